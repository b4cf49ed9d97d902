"""An explanation adds up, agrees with the run's files, and states what is not available."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import gradsieve
import world
from gradsieve.errors import RunError, UsageError
from gradsieve.runs.folder import RunFolder

ROWS = 60
METHODS = ["less", "dot", "sgd", "bm25"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A pool with a row that is too long, and with one id that occurs in both sources."""
    folder = tmp_path_factory.mktemp("inputs")
    made = world.make(folder, rows=ROWS)
    extra = [
        {"id": "long", "prompt": "a " * 90, "completion": "b"},
        {"id": "00003", "prompt": "inward : 1 2", "completion": "2 1"},
    ]
    world.write(folder / "extra.jsonl", extra)
    made["pool"].append({"name": "extra", "path": str(folder / "extra.jsonl")})
    return made


@pytest.fixture(scope="module")
def run(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    recipe = world.recipe(
        inputs, score={"methods": METHODS}, select={"count": 5, "per_source": {"one": 2}}
    )
    return gradsieve.run(recipe, tmp_path_factory.mktemp("run"))


def table(run: RunFolder, target: str, method: str) -> list[dict[str, Any]]:
    rows = pq.read_table(run.stage("score") / target / f"{method}.parquet").to_pylist()
    return sorted(rows, key=lambda row: (-row["score"], row["source"], row["id"]))


@pytest.mark.parametrize("method", METHODS)
def test_scores_and_ranks_are_the_tables(run: RunFolder, method: str) -> None:
    ranked = table(run, "mine", method)
    for rank in (1, 2, ROWS // 2, len(ranked)):
        row = ranked[rank - 1]
        found = gradsieve.explain(
            run.path, "mine", id=row["id"], source=row["source"], method=method
        )
        assert found.score is not None
        assert (found.score.rank, found.score.of) == (rank, ROWS + 1)
        assert found.score.score == row["score"]
        assert found.score.subtasks == {name: row[name] for name in ("letters", "numbers")}
        assert set(found.targets) == {"mine", "plain"}


@pytest.mark.parametrize("method", ["less", "dot", "sgd"])
def test_checkpoints_and_examples_add_up_to_the_score(run: RunFolder, method: str) -> None:
    row = table(run, "mine", method)[3]
    found = gradsieve.explain(run, "mine", id=row["id"], source=row["source"], method=method)
    assert found.score is not None
    for subtask, score in found.score.subtasks.items():
        assert sum(found.checkpoints[subtask]) == pytest.approx(score, rel=1e-4, abs=1e-6)
        # Three examples per subtask: all of them are shown.
        parts = [c.value for c in found.positive + found.negative if c.subtask == subtask]
        assert len(parts) == 3
        assert sum(parts) == pytest.approx(score, rel=1e-4, abs=1e-6)
    assert all(c.value > 0 for c in found.positive)
    assert all(c.value < 0 for c in found.negative)
    assert all(c.text and c.text.startswith("user: ") for c in found.positive + found.negative)


def test_the_winning_subtasks_examples_come_first(run: RunFolder, inputs: dict[str, Any]) -> None:
    for row in table(run, "mine", "less")[::10]:
        found = gradsieve.explain(run, "mine", id=row["id"], source=row["source"])
        assert found.score is not None
        by_score = sorted(found.score.subtasks, key=lambda name: -found.score.subtasks[name])
        assert by_score[0] == row["subtask"]
        for part in (found.positive, found.negative):
            order = [(by_score.index(c.subtask), -abs(c.value)) for c in part]
            assert order == sorted(order)
    file = Path(inputs["targets"][0]["path"])
    lines = [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]
    for c in found.positive + found.negative:
        path, _, number = c.where.rpartition(":")
        assert (Path(path), lines[int(number) - 1]["id"]) == (file, c.id)
    assert f"{file}:" in str(found)


def test_neighbors_are_the_datastores_largest_cosines(run: RunFolder) -> None:
    row = table(run, "mine", "less")[0]
    found = gradsieve.explain(run, "mine", id=row["id"], source=row["source"])
    store = gradsieve.open_store(run.stage("features") / "checkpoint-2" / "pool")
    names = [(key["source"], key["id"]) for key in store.keys().to_pylist()]
    rows = store.read(np.arange(len(store)))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows[names.index((row["source"], row["id"]))]
    best = sorted(zip(-cosines, names, strict=True))[1:6]
    assert [(n.source, n.id) for n in found.neighbors] == [name for _, name in best]
    ranked = [(row["source"], row["id"]) for row in table(run, "mine", "less")]
    for neighbor, (minus, name) in zip(found.neighbors, best, strict=True):
        assert neighbor.cosine == pytest.approx(-minus, abs=1e-3)
        assert neighbor.rank == ranked.index(name) + 1
        assert neighbor.text is not None


def test_what_became_of_each_row_is_what_the_selection_says(run: RunFolder) -> None:
    folder = run.stage("select") / "mine" / "less"
    lines = (folder / "messages.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    for record in map(json.loads, lines):
        found = gradsieve.explain(run, "mine", id=record["id"], source=record["source"])
        assert (found.selected, found.reason) == (record["rank"], None)
        assert found.messages == record["messages"]
    dropped = map(json.loads, (folder / "dropped.jsonl").read_text("utf-8").split("\n")[:-1])
    for record in dropped:
        found = gradsieve.explain(run, "mine", id=record["id"], source=record["source"])
        assert (found.selected, found.reason) == (None, record["reason"])
    last = table(run, "mine", "less")[-1]
    found = gradsieve.explain(run, "mine", id=last["id"], source=last["source"])
    assert found.reason == "the 5 selected rows rank before it"


def test_a_row_that_was_skipped(run: RunFolder) -> None:
    found = gradsieve.explain(run, "plain", id="long")
    assert found.reason == "no label token within the first 64 tokens"
    assert (found.targets, found.positive, found.neighbors) == ({}, [], [])
    assert found.messages[0]["content"] == "a " * 90


def test_a_method_without_gradients_has_scores_and_neighbors(run: RunFolder) -> None:
    row = table(run, "mine", "bm25")[0]
    found = gradsieve.explain(run, "mine", id=row["id"], source=row["source"], method="bm25")
    assert found.notes == ["scores of bm25 can't be decomposed by target example"]
    assert found.score is not None
    assert len(found.neighbors) == 5
    assert "each checkpoint" not in str(found)


def test_a_run_without_gradients(inputs: dict[str, Any], tmp_path: Path) -> None:
    recipe = world.recipe(inputs, score={"method": "bm25"})
    gradsieve.run(recipe, tmp_path, last="score")
    found = gradsieve.explain(tmp_path, "mine", id="00001")
    assert found.reason == "nothing has been selected yet"
    assert "no datastore" in found.notes[1]
    assert not found.neighbors


def test_exact_mode_has_checkpoints_but_no_contributions(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    recipe = world.recipe(inputs, features={"mode": "exact"})
    run = gradsieve.run(recipe, tmp_path)
    row = table(run, "mine", "less")[0]
    found = gradsieve.explain(run, "mine", id=row["id"], source=row["source"])
    assert found.score is not None
    for subtask, score in found.score.subtasks.items():
        assert sum(found.checkpoints[subtask]) == pytest.approx(score, rel=1e-4, abs=1e-6)
    assert "features.mode: exact" in found.notes[0]
    assert (found.positive, found.neighbors) == ([], [])


def test_one_selection_for_all_targets(inputs: dict[str, Any], tmp_path: Path) -> None:
    recipe = world.recipe(inputs, score={"method": "bm25"}, select={"count": 4, "together": True})
    run = gradsieve.run(recipe, tmp_path)
    file = run.stage("select") / "together" / "bm25" / "messages.jsonl"
    record = json.loads(file.read_text(encoding="utf-8").split("\n")[2])
    found = gradsieve.explain(run, "plain", id=record["id"], source=record["source"])
    assert found.selected == 3
    assert record["subtask"].startswith("mine/")
    assert found.notes[0].endswith(f"this row was taken for {record['subtask']}")


@pytest.mark.parametrize("mode", ["store", "exact"])
def test_features_that_are_not_those_of_the_scores(
    inputs: dict[str, Any], tmp_path: Path, mode: str
) -> None:
    def made(sources: int, **stages: str) -> RunFolder:
        pool = inputs["pool"][:sources]
        recipe = world.recipe({**inputs, "pool": pool}, features={"mode": mode})
        return gradsieve.run(recipe, tmp_path, **stages)

    run = made(2)
    made(3, first="pool", last="features")
    scored = {(row["source"], row["id"]) for row in table(run, "mine", "less")}
    for source, id in sorted(scored)[:: ROWS // 5]:
        found = gradsieve.explain(run, "mine", id=id, source=source)
        assert {(n.source, n.id) for n in found.neighbors} <= scored
        assert "score is out of date: pool has changed since" in found.notes[0]
    assert found.checkpoints
    made(1, first="pool", last="features")
    last = max(scored)
    with pytest.raises(UsageError, match="There is no source"):
        gradsieve.explain(run, "mine", id=last[1], source=last[0])


def test_features_that_are_being_made_again(inputs: dict[str, Any], tmp_path: Path) -> None:
    run = gradsieve.run(world.recipe(inputs), tmp_path, last="select")
    (run.stage("features") / "meta.json").unlink()
    row = table(run, "mine", "less")[0]
    found = gradsieve.explain(run, "mine", id=row["id"], source=row["source"])
    assert (found.checkpoints, found.positive, found.neighbors) == ({}, [], [])
    assert "score is out of date: features is not finished" in found.notes[0]
    assert found.notes[2].startswith("the features were made again since")


def test_a_selection_that_is_out_of_date(inputs: dict[str, Any], tmp_path: Path) -> None:
    def made(methods: list[str], **stages: str) -> RunFolder:
        recipe = world.recipe(inputs, score={"methods": methods})
        return gradsieve.run(recipe, tmp_path, **stages)

    run = made(["random"])
    assert gradsieve.explain(run, "mine", id="00001").notes[0].startswith("scores of random can't")
    made(["random", "random-1"], last="score")
    note = gradsieve.explain(run, "mine", id="00001").notes[0]
    assert "select is out of date: score has changed since" in note
    assert "gradsieve run" in note


def test_files_that_have_moved(inputs: dict[str, Any], tmp_path: Path) -> None:
    """The pool is in the run folder; the target's examples are not."""
    pool, target = (Path(inputs[part][0]["path"]) for part in ("pool", "targets"))
    moved, other = tmp_path / "one.jsonl", tmp_path / "target.jsonl"
    moved.write_bytes(pool.read_bytes())
    other.write_bytes(target.read_bytes())
    recipe = world.recipe(
        {**inputs, "pool": [{"name": "one", "path": str(moved)}]},
        targets=[{**inputs["targets"][0], "path": str(other)}],
    )
    run = gradsieve.run(recipe, tmp_path / "run", last="score")
    moved.unlink()
    other.unlink()
    found = gradsieve.explain(run, "mine", id="00001")
    assert found.messages[0]["role"] == "user"
    assert found.positive[0].text is None
    assert found.positive[0].id in str(found)
    assert (
        "the target's examples can't be read any more: The file does not exist." in found.notes[-1]
    )


@pytest.mark.parametrize(
    ("asked", "message", "todo"),
    [
        ({"id": "no"}, "There is no row with the id 'no'", "The first id is"),
        ({"id": "0001"}, "There is no row with the id '0001'", "Did you mean"),
        ({"id": "00003"}, "Several rows have the id 00003", "--source"),
        ({"id": "00003", "source": "ones"}, "There is no source ones", "Did you mean one?"),
        ({"id": "00003", "source": "two"}, "There is no row", "It is in extra, one."),
        ({"id": "00001", "target": "mane"}, "There is no target mane", "Did you mean mine?"),
        ({"id": "00001", "target": None}, "The run has several targets", "Known: mine, plain."),
        ({"id": "00001", "method": "les"}, "There is no method les", "Did you mean less?"),
    ],
)
def test_mistakes_name_what_is_near(
    run: RunFolder, asked: dict[str, Any], message: str, todo: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        gradsieve.explain(run, **{"target": "mine", **asked})
    assert todo in caught.value.todo


@pytest.mark.parametrize("id", ["0001", "no", "\udcf6"])
def test_a_mistake_in_a_large_pool(
    run: RunFolder, id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("gradsieve.analysis.explain"), "IDS", 10)
    with pytest.raises(UsageError, match="There is no row with the id") as caught:
        gradsieve.explain(run, "mine", id=id)
    assert caught.value.todo.startswith("Did you mean 0000" if id == "0001" else "The first id")


def test_a_method_that_was_added_since_the_scores(inputs: dict[str, Any], tmp_path: Path) -> None:
    gradsieve.run(world.recipe(inputs, score={"method": "random"}), tmp_path, last="score")
    more = world.recipe({**inputs, "score": {"methods": ["random", "bm25"]}})
    gradsieve.run(more, tmp_path, last="pool")
    with pytest.raises(RunError, match="no scores of this target and method") as caught:
        gradsieve.explain(tmp_path, "mine", id="00001", method="bm25")
    assert caught.value.where.endswith("bm25.parquet")
    assert "gradsieve score" in caught.value.todo


def test_folders_that_cannot_be_explained(inputs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        gradsieve.explain(tmp_path, "mine", id="1")
    recipe = world.recipe(inputs, score={"method": "random"})
    run = gradsieve.run(recipe, tmp_path)
    (run.stage("score") / "plain" / "random.parquet").unlink()
    with pytest.raises(RunError, match="A file of the run is missing"):
        gradsieve.explain(tmp_path, "mine", id="00001")
    (run.stage("score") / "meta.json").unlink()
    with pytest.raises(RunError, match="score is not finished"):
        gradsieve.explain(tmp_path, "mine", id="00001")


def test_json_holds_all_of_it(run: RunFolder) -> None:
    found = gradsieve.explain(run, "mine", id="00001")
    tree = json.loads(found.json())
    assert tree["targets"]["plain"]["rank"] == found.targets["plain"].rank
    assert tree["positive"][0]["value"] == found.positive[0].value
    assert tree["neighbors"][0]["id"] == found.neighbors[0].id
