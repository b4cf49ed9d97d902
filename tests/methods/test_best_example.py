"""`target_mean: none`: each target example is its own subtask; compared with numeric loops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradsieve
import world
from gradsieve.methods.base import ExampleScores, over_best_examples
from gradsieve.recipe.load import load_recipe
from gradsieve.report.gather import gather
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.store import open_store
from gradsieve.store.targets import read_target_gradients, target_file
from world import table


def test_by_hand() -> None:
    values = np.array([[0.5, 0.1, 0.0], [0.5, 0.4, 0.1], [0.7, 0.1, 0.1], [0.7, 0.2, 0.0]])
    scores = ExampleScores(["x", "y", "z"], ["a", "a", "b"], values.astype(np.float32))
    found = over_best_examples("standardized_max", scores)
    of_y, of_z = (values[:, column] for column in (1, 2))
    y, z = ((one - one.mean()) / one.std() for one in (of_y, of_z))
    assert found.subtasks == ["a", "b"]
    assert found.total == pytest.approx([max(-1, y[0], z[0]), y[1], 1, 1], abs=1e-6)
    assert found.best_examples is not None
    assert found.best_examples["a"].to_pylist() == ["y", "y", "x", "x"]
    assert found.best_examples["b"].to_pylist() == ["z"] * 4
    assert found.by_subtask == pytest.approx(np.stack([[0.1, 0.4, 0.7, 0.7], of_z], 1))
    assert found.best.tolist() == [0, 0, 0, 0]
    plain = over_best_examples("max", scores)
    assert plain.total == pytest.approx([0.5, 0.5, 0.7, 0.7])
    assert plain.standardized is None
    assert plain.best_examples is not None
    assert plain.best_examples["a"].to_pylist() == ["x"] * 4


def test_an_example_that_ranks_nothing_decides_nothing() -> None:
    values = np.array([[0.9, 0.1, 0.3], [0.9, 0.3, 0.1]], dtype=np.float32)
    scores = ExampleScores(["dead", "live", "other"], ["a", "a", "b"], values)
    found = over_best_examples("standardized_max", scores, np.array([0.3, 0.4, 0.1]))
    assert found.best_examples is not None
    assert found.best_examples["a"].to_pylist() == ["live", "live"]
    assert found.total == pytest.approx([1, 1])
    assert found.best.tolist() == [1, 0]
    assert found.errors == pytest.approx([(0.125) ** 0.5, 0.1])
    assert found.spreads == pytest.approx([(0.01 / 2) ** 0.5, 0.1], abs=1e-6)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = world.make(tmp_path_factory.mktemp("inputs"), rows=60)
    return {**made, "score": {"across_subtasks": "standardized_max", "target_mean": "none"}}


UNPROJECTED = {"projection": {"kind": "none"}, "bits": 32}


@pytest.fixture(scope="module")
def runs(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    features = {"store": UNPROJECTED, "exact": {}, "both": {"projection": {"dim": 512}}}
    return {
        mode: gradsieve.run(
            world.recipe(inputs, features={"mode": mode, **more}, select={"count": 12}),
            tmp_path_factory.mktemp(mode),
        )
        for mode, more in features.items()
    }


def cosines(run: RunFolder, target: str = "mine", kind: str = "pool") -> tuple[Any, Any, Any]:
    """Ids and subtasks of target examples, and sums of cosines by row and example [n, k]."""
    pool = Artifacts(run).pool.read()
    keys = pool.store_keys(pool.usable)
    rates = np.array(run.require("warmup")["learning_rates"])
    total: Any = 0
    for number, rate in enumerate(rates / rates.sum(), start=1):
        folder = run.stage("features") / f"checkpoint-{number}"
        store = open_store(folder / kind)
        rows = store.read(store.find(keys)).astype(np.float64)
        found = read_target_gradients(target_file(folder, kind, target))
        wanted = found.rows.numpy().astype(np.float64)
        sizes = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(wanted, axis=1)
        total = total + rate * rows @ wanted.T / sizes
    return found.ids, found.subtasks, total


def check(
    found: dict[str, np.ndarray], ids: list[str], subtasks: list[str], expected: np.ndarray
) -> None:
    """Compare a table with a single loop over rows and examples."""
    mean, deviation = expected.mean(axis=0), expected.std(axis=0)
    for row, values in enumerate(expected):
        standard = (values - mean) / deviation
        best = int(np.argmax(standard))
        assert found["score"][row] == pytest.approx(standard[best], abs=2e-3)
        assert found["subtask"][row] == subtasks[best]
        assert found[f"best_example:{subtasks[best]}"][row] == ids[best]
        for name in set(subtasks):
            own = [place for place, of in enumerate(subtasks) if of == name]
            best = max(own, key=lambda place: standard[place])
            assert found[name][row] == pytest.approx(values[best], abs=1e-5)
            assert found[f"standardized:{name}"][row] == pytest.approx(standard[best], abs=2e-3)


@pytest.mark.parametrize("mode", ["store", "exact", "both"])
@pytest.mark.parametrize("target", ["mine", "plain"])
def test_scores_are_those_of_the_best_example(
    runs: dict[str, RunFolder], mode: str, target: str
) -> None:
    check(table(runs[mode], target=target), *cosines(runs["store"], target))


def test_a_table_has_a_column_for_each_subtask_not_for_each_example(
    runs: dict[str, RunFolder],
) -> None:
    found = table(runs["store"])
    assert [*found] == ["source", "id", "score", "subtask", "letters", "numbers",
                        "standardized:letters", "standardized:numbers",
                        "best_example:letters", "best_example:numbers"]  # fmt: skip


@pytest.mark.parametrize("mode", ["store", "exact", "both"])
def test_explain_names_the_example_that_decided(runs: dict[str, RunFolder], mode: str) -> None:
    run, found = runs[mode], table(runs[mode])
    best = int(np.argmax(found["score"]))
    one = gradsieve.explain(run, "mine", id=found["id"][best], source=found["source"][best])
    assert one.score is not None
    subtask = found["subtask"][best]
    deciding = found[f"best_example:{subtask}"][best]
    assert one.score.best_examples[subtask] == deciding
    assert sum(one.checkpoints[subtask]) == pytest.approx(found[subtask][best], abs=1e-5)
    assert deciding in str(one)
    if mode == "store":
        assert (one.positive[0].id, one.positive[0].subtask) == (deciding, subtask)
        assert one.positive[0].value == pytest.approx(found[subtask][best], abs=1e-5)
    contributing = [(part.subtask, part.id) for part in [*one.positive, *one.negative]]
    assert set(contributing) <= set(one.score.best_examples.items())


def test_the_report_shows_the_example_that_decided(runs: dict[str, RunFolder]) -> None:
    run = runs["store"]
    content = gather(Context(load_recipe(run.recipe), run))
    (view,) = (one for one in content["views"] if one["target"] == "mine")
    examples = content["targets"][0]["examples"]
    found, shown = table(run), view["shown"]
    assert len(shown["contributions"]) > 12
    for rank, pairs in zip(shown["rank"], shown["contributions"], strict=True):
        ((example, value),) = pairs
        line = np.argsort(-found["score"], kind="stable")[rank - 1]
        subtask = found["subtask"][line]
        assert examples[example][:2] == [found[f"best_example:{subtask}"][line], subtask]
        assert value == pytest.approx(found[subtask][line], abs=1e-3)


def test_rows_that_are_added_change_what_scores_are_standardized_over(
    inputs: dict[str, Any], runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    checkpoints = [str(runs["exact"].stage("warmup") / f"checkpoint-{n}") for n in (1, 2)]
    warmup = {"checkpoints": checkpoints}
    for mode in ("store", "exact"):
        data = {**inputs, "warmup": warmup, "features": {"mode": mode}}
        fewer = world.recipe({**data, "pool": data["pool"][:1]})
        gradsieve.run(fewer, tmp_path / mode, last="score")
        run = gradsieve.run(world.recipe(data), tmp_path / mode, last="score")
        found = table(run)
        assert len(found["score"]) == 60
        if mode == "exact":
            check(found, *cosines(runs["store"]))


def test_other_methods_and_turns(
    inputs: dict[str, Any], runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    """Inner products, plain gradients, and turns in which each example uses its own cosines."""
    checkpoints = [str(runs["exact"].stage("warmup") / f"checkpoint-{n}") for n in (1, 2)]
    methods = ["less", "dot", "sgd", "gist", "knn_kde", "less_greedy", "fusion", "bm25"]
    recipe = world.recipe(
        {**inputs, "warmup": {"checkpoints": checkpoints}},
        score__methods=methods,
        score__fusion=["less", "sgd"],
        select={"count": 10, "turns": "examples"},
        features=UNPROJECTED,
    )
    run = gradsieve.run(recipe, tmp_path / "run")
    check(table(run, method="sgd"), *cosines(run, kind="pool-sgd"))
    ids, subtasks, values = cosines(run)
    less = table(run)
    for place, (id, subtask) in enumerate(zip(ids, subtasks, strict=True)):
        name = f"example:{place + 1}:{subtask}/{id}"
        assert less[name] == pytest.approx(values[:, place], abs=1e-5)
    for method in ("dot", "gist", "less_greedy", "fusion", "knn_kde"):
        assert np.ptp(table(run, method=method)["score"]) > 0


def test_exact_mode_keeps_cosines_to_examples_that_take_turns(
    inputs: dict[str, Any], runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    checkpoints = [str(runs["exact"].stage("warmup") / f"checkpoint-{n}") for n in (1, 2)]
    data = {**inputs, "warmup": {"checkpoints": checkpoints}, "score": {}}
    turns = {"count": 12, "turns": "examples"}
    made = {}
    for name, features in (("exact", {"mode": "exact"}), ("store", UNPROJECTED)):
        recipe = world.recipe({**data, "features": features}, select=turns)
        run = gradsieve.run(recipe, tmp_path / name)
        chosen = Path(run.stage("select") / "mine" / "less" / "selected.jsonl").read_text("utf-8")
        made[name] = table(run), [json.loads(line)["id"] for line in chosen.split("\n")[:-1]]
    (exact, selected), (store, expected) = made["exact"], made["store"]
    assert selected == expected
    assert [*exact] == [*store]
    assert sum(name.startswith("example:") for name in exact) == 6
    for name in exact:
        if exact[name].dtype == np.float32:
            assert exact[name] == pytest.approx(store[name], abs=1e-5)
