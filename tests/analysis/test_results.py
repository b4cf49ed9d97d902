"""Intervals of differences on numbers whose interval is known; runs that differ in parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import world
from gradsieve.analysis.results import _difference, compare
from gradsieve.cli import app
from gradsieve.errors import RunError
from gradsieve.io import write_json
from gradsieve.runs.folder import RunFolder


def result(values: list[float | None], seed: int = 0) -> dict[str, Any]:
    weights = [1 / len(values)] * len(values)
    return {"by_question": values, "weights": weights, "target": "t", "seed": seed}


def test_the_interval_is_of_paired_differences() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, 400)  # questions differ much, the methods little
    gain = rng.normal(0.5, 1, 400)
    found = _difference([result((hard + gain).tolist())], [result(hard.tolist())])
    assert found is not None
    mean, low, high = found
    assert mean == pytest.approx(gain.mean())
    # The normal approximation: 1.96 standard errors on either side.
    half = 1.96 * gain.std() / 20
    assert (mean - low, high - mean) == (pytest.approx(half, rel=0.1), pytest.approx(half, rel=0.1))


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        gain = rng.normal(0.3, 1, 60)
        found = _difference([result(gain.tolist())], [result([0.0] * 60)])
        assert found is not None
        hits += found[1] <= 0.3 <= found[2]
    assert 0.89 <= hits / 200 <= 0.99


def test_seeds_are_averaged_first() -> None:
    many = [result([1.0, 3.0]), result([3.0, 5.0], 1)]
    found = _difference(many, [result([0.0, 0.0])])
    assert found is not None
    assert found[0] == pytest.approx(3.0)


@pytest.mark.parametrize(("ours", "theirs"), [(3, 3), (3, 9), (5, 5)])
def test_it_covers_what_seeds_do(ours: int, theirs: int) -> None:
    """Models of both methods differ by chance alone, and by more than the questions tell."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        hard = rng.normal(0, 1, 100)

        def models(count: int, hard: np.ndarray = hard) -> list[dict[str, Any]]:
            noise = rng.normal(0, 0.15, (count, 1)) + rng.normal(0, 0.3, (count, 100))
            return [result(row.tolist()) for row in hard + noise]

        found = _difference(models(ours), models(theirs))
        assert found is not None
        hits += found[1] <= 0 <= found[2]
    assert 0.84 <= hits / 200 <= 0.99


def test_no_question_in_common_has_no_difference() -> None:
    assert _difference([result([1.0, None])], [result([None, 1.0])]) is None


def test_questions_that_some_model_could_not_be_asked_are_left_out() -> None:
    found = _difference([result([1.0, None, 3.0])], [result([0.0, 5.0, None])])
    assert found == (1.0, 1.0, 1.0)


def finished(folder: Path, methods: Sequence[str], ids: Sequence[str] = ("q1", "q2")) -> Path:
    """A run of one target with made-up results; every method selects rows r0 and NAME."""
    run = RunFolder(folder)
    rows = []
    for number, method in enumerate(methods):
        values = [float(number + place) for place in range(len(ids))]
        told = {"target": "mine", "method": method, "seed": 0, "metric": "held_out_loss"}
        rows.append({**told, "value": float(np.mean(values)), "higher_is_better": False})
        asked = {"ids": ids, "weights": [1 / len(ids)] * len(ids)}
        found = {"metrics": {"held_out_loss": values}, **asked}
        write_json(run.stage("evaluate") / "mine" / method / "seed-0.json", found)
        out = run.stage("select") / "mine" / method
        out.mkdir(parents=True)
        chosen = [{"source": "a", "id": id} for id in ("r0", method)]
        world.write(out / "messages.jsonl", chosen)
    write_json(run.stage("evaluate") / "results.json", {"rows": rows})
    scored = [method for method in methods if method != "base"]
    run.finish("score", {"methods": {method: {"seconds": 1.0} for method in scored}})
    run.finish("select", {"targets": {"mine": {method: {"rows": 2} for method in scored}}})
    run.finish("evaluate", {})
    return folder


def test_runs_may_have_different_methods(tmp_path: Path) -> None:
    one = finished(tmp_path / "one", ["bm25", "random"])
    two = finished(tmp_path / "two", ["bm25", "rds"])
    found = compare([one, two])
    table = found.markdown().split("Rows that selections share:")[1].split("\n")
    assert table[4:] == ["| random | 50% |  |", "| rds | 50% |  |"]
    results, shared = found.latex().split("\n\n")
    assert results.count(r"\\") == 4  # the head and three methods
    assert shared.startswith(r"\begin{tabular}{lrr} % mine: rows that are shared")
    assert r"rds & 50\% &  \\" in shared


def test_runs_that_differ_in_more_than_seeds_are_told(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, ["bm25", "random"]) for name in ("one", "two")]
    for run, rate in zip(runs, (1, 2), strict=True):
        recipe = {"warmup": {"seed": rate, "epochs": rate}, "train": {"seeds": [rate]}}
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (note,) = compare(runs).notes
    assert note == (
        f"{runs[0]} and {runs[1]} count as repetitions of each other and differ in "
        "warmup.epochs: 1 -> 2"
    )
    told = CliRunner().invoke(app, ["compare", *map(str, runs)])
    assert note in told.stderr
    assert compare([runs[0], finished(tmp_path / "three", ["rds"])]).notes == []


def test_a_model_before_training_is_no_repetition_of_itself(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, ["base", "random"]) for name in ("one", "two")]
    cells = compare(runs).cells["mine"]["held_out_loss"]
    assert (len(cells["base"].values), len(cells["random"].values)) == (1, 2)


def test_order_of_methods_may_differ_between_runs(tmp_path: Path) -> None:
    one = finished(tmp_path / "one", ["bm25", "random"])
    two = finished(tmp_path / "two", ["rds", "bm25"])
    assert "| rds | 50% |  |" in compare([one, two]).markdown()


@pytest.mark.parametrize("ids", [("q1", "q3"), ("q2", "q1"), ("q1", "q2", "q3")])
def test_runs_on_different_questions_are_refused(tmp_path: Path, ids: Sequence[str]) -> None:
    one = finished(tmp_path / "one", ["random", "bm25"])
    two = finished(tmp_path / "two", ["random", "bm25"], ids)
    with pytest.raises(RunError) as caught:
        compare([one, two])
    assert "different questions" in str(caught.value)
    assert f"2 in {one}, {len(ids)} in {two}" in caught.value.where


@pytest.mark.parametrize("own_id", ["", None, True, 0.5, ["r0"]])
def test_rows_are_told_apart_whatever_id_they_came_with(tmp_path: Path, own_id: Any) -> None:
    run = finished(tmp_path, ["random", "bm25"])
    for method in ("random", "bm25"):
        folder = RunFolder(run).stage("select") / "mine" / method
        world.write(folder / "selected.jsonl", [{"source": "a", "id": own_id}] * 2)
    assert compare([run]).overlap == {"mine": {"random": {"bm25": 0.5}}}
