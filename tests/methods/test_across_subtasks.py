"""How scores by subtask become one score: maximum, mean, and maximum of standardized scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradsieve
import world
from gradsieve.methods.base import combine, standardize
from gradsieve.stages.select import dominated
from world import table

BY_SUBTASK = np.array([[0.5, 0.10], [0.5, 0.40], [0.7, 0.10], [0.7, 0.20]], dtype=np.float32)
"""Subtask 0 is higher everywhere: mean 0.6, deviation 0.1; subtask 1: mean 0.2, sqrt(0.015)."""


def test_by_hand() -> None:
    found = combine("standardized_max", ["a", "b"], BY_SUBTASK)
    b = 0.015**0.5
    assert found.standardized is not None
    assert found.standardized[:, 0] == pytest.approx([-1, -1, 1, 1], abs=1e-6)
    assert found.standardized[:, 1] == pytest.approx([-0.1 / b, 0.2 / b, -0.1 / b, 0.0], abs=1e-6)
    assert found.best.tolist() == [1, 1, 0, 0]
    assert found.total == pytest.approx([-0.1 / b, 0.2 / b, 1, 1], abs=1e-6)
    assert combine("max", ["a", "b"], BY_SUBTASK).best.tolist() == [0, 0, 0, 0]
    assert combine("max", ["a", "b"], BY_SUBTASK).total == pytest.approx([0.5, 0.5, 0.7, 0.7])
    assert combine("mean", ["a", "b"], BY_SUBTASK).total == pytest.approx([0.3, 0.45, 0.4, 0.45])


def test_a_subtask_whose_scores_are_equal_contributes_nothing() -> None:
    scores = np.array([[0.1, 0.3], [0.1, 0.1], [0.1, 0.2]], dtype=np.float32)
    found = combine("standardized_max", ["dead", "live"], scores)
    assert found.best.tolist() == [1, 1, 1]
    assert np.argsort(-found.total).tolist() == [0, 2, 1]
    assert found.total[1] < 0  # not 0, the value for the subtask that ranks nothing
    nothing = combine("standardized_max", ["dead"], scores[:, :1])
    assert nothing.total.tolist() == [0, 0, 0]
    assert nothing.best.tolist() == [0, 0, 0]


def test_a_level_and_a_scale_change_nothing() -> None:
    scores = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    moved = (scores * [1, 100, 0.01] + [5, -70, 0.001]).astype(np.float32)
    assert standardize(moved) == pytest.approx(standardize(scores), abs=1e-3)
    assert standardize(scores).mean(axis=0) == pytest.approx([0, 0, 0], abs=1e-6)
    assert standardize(scores).std(axis=0) == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = world.make(tmp_path_factory.mktemp("inputs"), rows=60)
    return {**made, "score": {"across_subtasks": "standardized_max"}}


def check_table(found: dict[str, np.ndarray]) -> None:
    standardized = []
    for name in ("letters", "numbers"):
        raw = found[name].astype(np.float64)
        expected = (raw - raw.mean()) / raw.std()
        assert found[f"standardized:{name}"] == pytest.approx(expected, abs=1e-5)
        standardized.append(found[f"standardized:{name}"])
    assert found["score"] == pytest.approx(np.max(standardized, axis=0))
    names = np.array(["letters", "numbers"])[np.argmax(standardized, axis=0)]
    assert found["subtask"].tolist() == names.tolist()


@pytest.mark.parametrize("mode", ["store", "exact"])
def test_raw_and_standardized_columns(inputs: dict[str, Any], tmp_path: Path, mode: str) -> None:
    recipe = world.recipe(
        inputs, features={"mode": mode, "tokens_per_batch": 256}, score__methods=["less", "bm25"]
    )
    run = gradsieve.run(recipe, tmp_path / "run", last="score")
    check_table(table(run))
    check_table(table(run, "bm25"))
    other = world.recipe(recipe.model_dump(mode="json", exclude_unset=True),
                         features__tokens_per_batch=700)  # fmt: skip
    again = gradsieve.run(other, tmp_path / "again", last="score")
    first, second = table(run), table(again)
    for name in ("score", "standardized:letters", "numbers"):  # gradients differ in the last digits
        assert first[name] == pytest.approx(second[name], abs=1e-3)


def test_rows_that_are_added_change_what_scores_are_standardized_over(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    lines = Path(inputs["pool"][0]["path"]).read_text("utf-8").split("\n")
    file = tmp_path / "one.jsonl"
    file.write_text("\n".join(lines[:20]) + "\n", "utf-8")
    one = {**inputs["pool"][0], "path": str(file)}
    recipe = world.recipe({**inputs, "pool": [one, inputs["pool"][1]]})
    run = gradsieve.run(recipe, tmp_path / "run", last="score")
    before = table(run)
    file.write_text("\n".join(lines), "utf-8")
    run = gradsieve.run(recipe, tmp_path / "run", first="features", last="score")
    after = table(run)
    assert len(after["score"]) == len(before["score"]) + 10
    check_table(after)


def test_the_report_and_explain_show_both(inputs: dict[str, Any], tmp_path: Path) -> None:
    recipe = world.recipe(inputs, select={"count": 12})
    run = gradsieve.run(recipe, tmp_path / "run")
    found = table(run)
    facts = run.require("select")["targets"]["mine"]["less"]
    assert sum(facts["subtasks"].values()) == 12
    best = int(np.argmax(found["score"]))
    explained = gradsieve.explain(run, "mine", id=found["id"][best], source=found["source"][best])
    assert explained.score is not None
    assert max(explained.score.standardized.values()) == pytest.approx(explained.score.score)
    assert explained.score.subtasks["letters"] == pytest.approx(found["letters"][best])
    assert explained.selected_by_subtask == facts["subtasks"]
    assert "standardized" in str(explained)
    assert "selected rows" in str(explained)
    first = explained.positive[0].subtask
    assert first == found["subtask"][best]


def test_a_subtask_that_takes_most_is_a_warning() -> None:
    assert dominated({"a": 8, "b": 4}, 2, "max") is None  # 67%; up to 75% is accepted
    assert dominated({"a": 9, "b": 3}, 2, "max") is None
    warning = dominated({"a": 10, "b": 2}, 2, "max")
    assert warning is not None
    assert "10 of 12 selected rows are for the subtask a, one of 2" in warning
    assert "standardized_max" in warning
    assert "select.turns: subtasks" in warning
    standardized = dominated({"a": 10, "b": 2}, 2, "standardized_max")
    assert standardized is not None
    assert standardized.endswith("in general, use select.turns: subtasks")
    assert dominated({"a": 30, "b": 20}, 5, "max") is None  # 60%
    assert dominated({"a": 31, "b": 19}, 5, "max") is not None
    assert dominated({"a": 9}, 2, "max") is None  # too few rows
    assert dominated({"a": 100}, 1, "max") is None
    assert dominated({}, 0, "max") is None
