"""What is told of a row adds up, agrees with the run's files, and says what it cannot tell."""

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
    """A pool with a row that is too long, and one whose id is in both sources."""
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
    return gradsieve.run(recipe, tmp_path_factory.mktemp("run"), progress=world.Listening())


def table(run: RunFolder, target: str, method: str) -> list[dict[str, Any]]:
    rows = pq.read_table(run.stage("score") / target / f"{method}.parquet").to_pylist()
    return sorted(rows, key=lambda row: (-row["score"], row["source"], row["id"]))


@pytest.mark.parametrize("method", METHODS)
def test_scores_and_ranks_are_the_tables(run: RunFolder, method: str) -> None:
    ranked = table(run, "mine", method)
    for rank in (1, 2, ROWS // 2, len(ranked)):
        row = ranked[rank - 1]
        told = gradsieve.explain(run.path, "mine", row["id"], row["source"], method)
        assert told.score is not None
        assert (told.score.rank, told.score.of) == (rank, ROWS + 1)
        assert told.score.score == row["score"]
        assert told.score.subtasks == {name: row[name] for name in ("letters", "numbers")}
        assert set(told.targets) == {"mine", "plain"}


@pytest.mark.parametrize("method", ["less", "dot", "sgd"])
def test_checkpoints_and_examples_add_up_to_the_score(run: RunFolder, method: str) -> None:
    row = table(run, "mine", method)[3]
    told = gradsieve.explain(run, "mine", row["id"], row["source"], method)
    assert told.score is not None
    for subtask, score in told.score.subtasks.items():
        assert sum(told.checkpoints[subtask]) == pytest.approx(score, rel=1e-4, abs=1e-6)
        parts = [pull.part for pull in told.pulls + told.pushes if pull.subtask == subtask]
        if len(told.pulls) < 5:  # all are told
            assert sum(parts) == pytest.approx(score, rel=1e-4, abs=1e-6)
    assert all(pull.part > 0 for pull in told.pulls)
    assert all(push.part < 0 for push in told.pushes)
    assert [p.part for p in told.pulls] == sorted((p.part for p in told.pulls), reverse=True)
    assert [p.part for p in told.pushes] == sorted(p.part for p in told.pushes)
    assert all(p.text and p.text.startswith("user: ") for p in told.pulls + told.pushes)


def test_neighbors_are_the_datastores_largest_cosines(run: RunFolder) -> None:
    row = table(run, "mine", "less")[0]
    told = gradsieve.explain(run, "mine", row["id"], row["source"])
    store = gradsieve.open_store(run.stage("features") / "checkpoint-2" / "pool")
    names = [(key["source"], key["id"]) for key in store.keys().to_pylist()]
    rows = store.read(np.arange(len(store)))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows[names.index((row["source"], row["id"]))]
    best = sorted(zip(-cosines, names, strict=True))[1:6]
    assert [(n.source, n.id) for n in told.neighbors] == [name for _, name in best]
    ranked = [(row["source"], row["id"]) for row in table(run, "mine", "less")]
    for neighbor, (minus, name) in zip(told.neighbors, best, strict=True):
        assert neighbor.cosine == pytest.approx(-minus, abs=1e-3)
        assert neighbor.rank == ranked.index(name) + 1
        assert neighbor.text is not None


def test_what_became_of_each_row_is_what_the_selection_says(run: RunFolder) -> None:
    folder = run.stage("select") / "mine" / "less"
    lines = (folder / "messages.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    for record in map(json.loads, lines):
        told = gradsieve.explain(run, "mine", record["id"], record["source"])
        assert (told.selected, told.reason) == (record["rank"], None)
        assert told.messages == record["messages"]
    dropped = map(json.loads, (folder / "dropped.jsonl").read_text("utf-8").split("\n")[:-1])
    for record in dropped:
        told = gradsieve.explain(run, "mine", record["id"], record["source"])
        assert (told.selected, told.reason) == (None, record["reason"])
    last = table(run, "mine", "less")[-1]
    told = gradsieve.explain(run, "mine", last["id"], last["source"])
    assert told.reason == "the 5 rows of the selection come before it"


def test_a_row_that_was_set_aside(run: RunFolder) -> None:
    told = gradsieve.explain(run, "plain", "long")
    assert told.reason == "no label token within the first 64 tokens"
    assert (told.targets, told.pulls, told.neighbors) == ({}, [], [])
    assert told.messages is not None


def test_a_method_without_gradients_tells_its_scores_and_neighbors(run: RunFolder) -> None:
    row = table(run, "mine", "bm25")[0]
    told = gradsieve.explain(run, "mine", row["id"], row["source"], "bm25")
    assert told.notes == ["scores of bm25 don't come apart by checkpoint or target example"]
    assert told.score is not None
    assert len(told.neighbors) == 5


def test_a_run_without_gradients(inputs: dict[str, Any], tmp_path: Path) -> None:
    recipe = world.recipe(inputs, score={"method": "bm25"})
    gradsieve.run(recipe, tmp_path, last="score", progress=world.Listening())
    told = gradsieve.explain(tmp_path, "mine", "00001")
    assert told.reason == "nothing has been selected yet"
    assert "no datastore" in told.notes[1]
    assert not told.neighbors


def test_exact_mode_tells_checkpoints_but_no_examples(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    recipe = world.recipe(inputs, features={"mode": "exact"})
    run = gradsieve.run(recipe, tmp_path, progress=world.Listening())
    row = table(run, "mine", "less")[0]
    told = gradsieve.explain(run, "mine", row["id"], row["source"])
    assert told.score is not None
    for subtask, score in told.score.subtasks.items():
        assert sum(told.checkpoints[subtask]) == pytest.approx(score, rel=1e-4, abs=1e-6)
    assert "features.mode: exact" in told.notes[0]
    assert (told.pulls, told.neighbors) == ([], [])


def test_one_selection_for_all_targets(inputs: dict[str, Any], tmp_path: Path) -> None:
    recipe = world.recipe(inputs, score={"method": "random"}, select={"count": 4, "together": True})
    run = gradsieve.run(recipe, tmp_path, progress=world.Listening())
    file = run.stage("select") / "together" / "random" / "messages.jsonl"
    record = json.loads(file.read_text(encoding="utf-8").split("\n")[2])
    assert gradsieve.explain(run, "plain", record["id"], record["source"]).selected == 3


@pytest.mark.parametrize("mode", ["store", "exact"])
def test_features_that_are_not_those_of_the_scores(
    inputs: dict[str, Any], tmp_path: Path, mode: str
) -> None:
    def made(sources: int, **stages: str) -> RunFolder:
        pool = inputs["pool"][:sources]
        recipe = world.recipe({**inputs, "pool": pool}, features={"mode": mode})
        return gradsieve.run(recipe, tmp_path, progress=world.Listening(), **stages)

    run = made(2)
    made(3, first="features", last="features")
    scored = {(row["source"], row["id"]) for row in table(run, "mine", "less")}
    for source, id in sorted(scored)[:: ROWS // 5]:
        told = gradsieve.explain(run, "mine", id, source)
        assert {(n.source, n.id) for n in told.neighbors} <= scored
    assert told.checkpoints
    made(1, first="features", last="features")
    last = max(scored)
    told = gradsieve.explain(run, "mine", last[1], last[0])
    assert (told.checkpoints, told.pulls, told.neighbors) == ({}, [], [])
    assert told.notes[0] == "the features that are there now are not those of the scores"


def test_files_that_have_moved(inputs: dict[str, Any], tmp_path: Path) -> None:
    pool = Path(inputs["pool"][0]["path"])
    moved = tmp_path / "one.jsonl"
    moved.write_bytes(pool.read_bytes())
    recipe = world.recipe(
        {**inputs, "pool": [{"name": "one", "path": str(moved)}]}, score={"method": "random"}
    )
    run = gradsieve.run(recipe, tmp_path / "run", progress=world.Listening())
    moved.unlink()
    told = gradsieve.explain(run, "mine", "00001")
    assert told.messages is None
    assert "the pool's rows cannot be read any more: The file is not there." in told.notes[-1]


@pytest.mark.parametrize(
    ("asked", "said", "todo"),
    [
        ({"id": "no"}, "There is no row with the id 'no'", "There are"),
        ({"id": "0001"}, "There is no row with the id '0001'", "Did you mean"),
        ({"id": "00003"}, "Several rows have the id 00003", "--source"),
        ({"id": "00003", "source": "ones"}, "There is no source ones", "Did you mean one?"),
        ({"id": "00003", "source": "two"}, "There is no row", "It is in extra, one."),
        ({"id": "00001", "target": "mane"}, "There is no target mane", "Did you mean mine?"),
        ({"id": "00001", "target": None}, "The run has several targets", "There are mine, plain."),
        ({"id": "00001", "method": "les"}, "There is no method les", "Did you mean less?"),
    ],
)
def test_mistakes_name_what_is_near(
    run: RunFolder, asked: dict[str, Any], said: str, todo: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        gradsieve.explain(run, **{"target": "mine", **asked})
    assert todo in caught.value.todo


def test_folders_that_cannot_be_explained(inputs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run's folder"):
        gradsieve.explain(tmp_path, "mine", "1")
    recipe = world.recipe(inputs, score={"method": "random"})
    run = gradsieve.run(recipe, tmp_path, progress=world.Listening())
    (run.stage("score") / "plain" / "random.parquet").unlink()
    with pytest.raises(RunError, match="no scores of this target"):
        gradsieve.explain(tmp_path, "mine", "00001")
    (run.stage("score") / "meta.json").unlink()
    with pytest.raises(RunError, match="score is not finished"):
        gradsieve.explain(tmp_path, "mine", "00001")


def test_json_holds_all_of_it(run: RunFolder) -> None:
    told = gradsieve.explain(run, "mine", "00001")
    tree = json.loads(told.json())
    assert tree["targets"]["plain"]["rank"] == told.targets["plain"].rank
    assert tree["pulls"][0]["part"] == told.pulls[0].part
    assert tree["neighbors"][0]["id"] == told.neighbors[0].id
