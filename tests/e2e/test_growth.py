"""An extended run computes features for what is new, counted in rows, and for nothing else."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import gradsieve
import world
from gradsieve.errors import DataError, RunError, StoreError
from gradsieve.gradients import jobs
from gradsieve.io import read_sealed, write_sealed
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import RunFolder
from gradsieve.store.targets import read_target_gradients

ROWS = 40
CHECKPOINTS = 2


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sources one and two of 20 rows each, the checkpoints of a warm-up on both, and one target."""
    folder = tmp_path_factory.mktemp("shared")
    made = world.make(folder / "inputs", rows=ROWS)
    warm = gradsieve.run(world.recipe(made), folder / "warm", last="warmup")
    folders = [str(warm.stage("warmup") / f"checkpoint-{number}") for number in (1, 2)]
    return {**made, "warmup": {"checkpoints": folders}, "targets": made["targets"][:1]}


@pytest.fixture(scope="module")
def finished(shared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of these inputs; tests must not change it."""
    return run(shared, tmp_path_factory.mktemp("finished"))


@pytest.fixture
def inputs(shared: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The same inputs, with rows in files that a test may change."""
    own: dict[str, Any] = copy.deepcopy(shared)
    for given in (*own["pool"], *own["targets"]):
        given["path"] = str(shutil.copy(given["path"], tmp_path))
    return own


@pytest.fixture
def done(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the finished run, in the folder where `run` resumes it."""
    return RunFolder(shutil.copytree(finished.path, tmp_path / "run"))


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row count of each extraction, except for those that measure eps."""
    counts: list[int] = []
    real = jobs.extract

    def counting(extractor: Any, encoded: Any, *others: Any, **named: Any) -> Any:
        if not named.get("measure_eps"):
            counts.append(len(encoded))
        return real(extractor, encoded, *others, **named)

    monkeypatch.setattr(jobs, "extract", counting)
    return counts


def targets_rows(inputs: dict[str, Any]) -> int:
    files = [Path(target["path"]) for target in inputs["targets"]]
    return sum(len(file.read_bytes().splitlines()) for file in files)


def run(inputs: dict[str, Any], out: Path) -> RunFolder:
    return gradsieve.run(world.recipe(inputs), out)


def scores(done: RunFolder, target: str = "mine") -> dict[tuple[str, str], float]:
    table = pq.read_table(done.stage("score") / target / "less.parquet").to_pylist()
    return {(row["source"], row["id"]): row["score"] for row in table}


def only(inputs: dict[str, Any], source: str, keep: slice, folder: Path) -> dict[str, Any]:
    """The pool with only some rows of a source."""
    folder.mkdir(exist_ok=True)
    pool = []
    for given in inputs["pool"]:
        lines = Path(given["path"]).read_text(encoding="utf-8").split("\n")[:-1]
        kept = lines[keep] if given["name"] == source else lines
        file = folder / f"{given['name']}.jsonl"
        file.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        pool.append({**given, "path": str(file)})
    return {**inputs, "pool": pool}


def test_a_new_source(
    inputs: dict[str, Any], finished: RunFolder, extracted: list[int], tmp_path: Path
) -> None:
    small = run({**inputs, "pool": inputs["pool"][:1]}, tmp_path / "run")
    assert sum(extracted) == CHECKPOINTS * (ROWS // 2 + targets_rows(inputs))
    extracted.clear()
    meta = small.stage("features") / "meta.json"
    write_sealed(meta, {**(read_sealed(meta) or {}), "seconds": 1000.0})
    grown = run(inputs, tmp_path / "run")
    assert 1000 < grown.require("features")["seconds"] < 2000  # the total cost
    assert sum(extracted) == CHECKPOINTS * ROWS // 2
    assert scores(grown) == pytest.approx(scores(finished), abs=5e-6)


def test_new_rows_in_a_source(
    inputs: dict[str, Any], finished: RunFolder, extracted: list[int], tmp_path: Path
) -> None:
    run(only(inputs, "two", slice(0, 13), tmp_path / "fewer"), tmp_path / "run")
    extracted.clear()
    grown = run(inputs, tmp_path / "run")
    assert sum(extracted) == CHECKPOINTS * 7
    assert scores(grown) == pytest.approx(scores(finished), abs=5e-6)


def test_a_changed_row_counts_as_new(
    inputs: dict[str, Any], done: RunFolder, extracted: list[int]
) -> None:
    first = scores(done)
    file = Path(inputs["pool"][0]["path"])
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    changed = json.loads(lines[3])
    changed["messages"][1]["content"] = "z y x"
    file.write_text("\n".join([*lines[:3], json.dumps(changed), *lines[4:], ""]))
    second = scores(run(inputs, done.path))
    assert sum(extracted) == CHECKPOINTS
    assert {key for key in first if first[key] != second[key]} == {("one", changed["id"])}


def test_a_new_target(inputs: dict[str, Any], done: RunFolder, extracted: list[int]) -> None:
    one = scores(done)
    two = {**inputs, "targets": [{**inputs["targets"][0], "name": "plain"}, *inputs["targets"]]}
    del two["targets"][0]["subtask"]
    grown = run(two, done.path)
    assert sum(extracted) == CHECKPOINTS * targets_rows(inputs)
    assert scores(grown) == one
    assert scores(grown, "plain").keys() == one.keys()


def test_a_target_and_a_method_with_another_name(inputs: dict[str, Any], tmp_path: Path) -> None:
    """Their tables have the same bytes in other files: selections are made for the new names."""
    own = tmp_path / "own.py"
    own.write_text(
        "from gradsieve.methods import Scores\n"
        "class Longest:\n"
        "    source, uses = 'mine', 'data'\n"
        "    def score(self, task):\n"
        "        lengths = task.pool.lengths[task.numbers].astype(float)\n"
        "        return {name: Scores(lengths) for name in task.targets}\n"
    )
    for target, method in (("mine", "long"), ("renamed", "long"), ("renamed", "longest")):
        score = {"methods": ["less", method], "files": {method: f"{own}:Longest"}}
        named = [{**inputs["targets"][0], "name": target}]
        done = run({**inputs, "targets": named, "score": score}, tmp_path / "run")
        selected = {
            file.parent.name for file in (done.stage("select") / target).glob("*/selected*")
        }
        assert selected == {"less", method}
        assert [*done.require("select")["targets"]] == [target]
        assert done.require("report")


def test_a_target_that_is_removed_costs_no_scores(inputs: dict[str, Any], tmp_path: Path) -> None:
    def scored(targets: list[dict[str, Any]]) -> list[str]:
        score = {"methods": ["less", "bm25"]}
        recipe, progress = world.recipe({**inputs, "targets": targets, "score": score}), said()
        gradsieve.run(recipe, tmp_path / "run", progress=progress)
        return [line.split(":")[0].strip() for line in progress.lines if "scored in" in line]

    said = world.Listening
    one, two = inputs["targets"][0], {**inputs["targets"][0], "name": "two"}
    assert scored([one, two]) == ["less", "bm25"]
    before = world.results(RunFolder(tmp_path / "run"))
    assert scored([two]) == []
    left = [file.name for file in RunFolder(tmp_path / "run").stage("score").glob("*/")]
    assert "mine" not in left
    after = world.results(RunFolder(tmp_path / "run"))
    tables = [name for name in before if name.startswith("03-score/two/")]
    assert len(tables) == 4
    assert all(before[name] == after[name] for name in tables)
    row = Path(one["path"]).read_text(encoding="utf-8").split("\n")[0]
    (tmp_path / "one.jsonl").write_text(row + "\n", encoding="utf-8")
    assert scored([{**one, "path": str(tmp_path / "one.jsonl")}, two]) == ["less", "bm25"]
    assert scored([{**one, "path": str(tmp_path / "one.jsonl")}]) == []


def test_a_mistake_leaves_the_scores_as_they_were(inputs: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from gradsieve.errors import DataError\n"
        "class Wrong:\n"
        "    source, uses = 'mine', 'data'\n"
        "    def score(self, task):\n"
        "        raise DataError('no', 'here', 'nothing')\n"
    )
    two = {**inputs, "targets": [*inputs["targets"], {**inputs["targets"][0], "name": "two"}]}
    done = run(two, tmp_path / "run")
    before = world.results(done)
    with pytest.raises(DataError):
        run({**inputs, "score": {"methods": ["less", f"{own}:Wrong"]}}, tmp_path / "run")
    assert {name: world.results(done).get(name) for name in before} == before
    assert [*done.require("score")["inputs"]["targets"]] == ["mine", "two"]
    assert not [*(done.path / "archive").glob("03-score*")]


def test_rows_that_are_gone_drop_from_the_scores(
    inputs: dict[str, Any], done: RunFolder, extracted: list[int], tmp_path: Path
) -> None:
    whole = scores(done)
    fewer = scores(run(only(inputs, "one", slice(5, None), tmp_path / "fewer"), done.path))
    assert sum(extracted) == 0
    assert len(fewer) == ROWS - 5
    assert {key: whole[key] for key in fewer} == fewer
    again = scores(run(inputs, done.path))  # their features are still stored
    assert sum(extracted) == 0
    assert again == whole


def test_scores_of_rows_that_are_gone_are_not_selected_from(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    validated = {**inputs, "validate": {"subsets": 3, "leave_out": [0.1]}}
    gradsieve.run(world.recipe(validated), tmp_path / "run", last="select")
    fewer = world.recipe(only(validated, "one", slice(5, None), tmp_path / "fewer"))
    for stage in ("select", "validate"):
        with pytest.raises(RunError, match="no longer has rows that the scores are of") as caught:
            gradsieve.run(fewer, tmp_path / "run", first=stage, last=stage)
        assert caught.value.where == "03-score: one 00000 and 4 more"
    found = gradsieve.run(fewer, tmp_path / "run", first="score")  # its features are stored
    assert len(scores(found)) == ROWS - 5
    assert found.require("report")["rows"] == ROWS - 5


def test_the_pools_order_does_not_matter(
    inputs: dict[str, Any], done: RunFolder, extracted: list[int], tmp_path: Path
) -> None:
    whole = scores(done)
    assert scores(run(world.shuffled(inputs, tmp_path / "shuffled"), done.path)) == whole
    assert sum(extracted) == 0


@pytest.mark.parametrize("turns", ["none", "examples"])
def test_target_examples_that_take_turns_do_so_in_their_order(
    inputs: dict[str, Any], tmp_path: Path, extracted: list[int], turns: str
) -> None:
    """Gradients keep the order in which they were extracted; another order needs no computation."""
    inputs["targets"][0]["subtask"] = None
    methods = ["less", "bm25", "rds_plus", "fusion"]
    chosen = {**inputs, "score": {"methods": methods}, "select": {"count": 8, "turns": turns}}
    run(chosen, tmp_path / "run")
    file = Path(inputs["targets"][0]["path"])
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    file.write_text("\n".join(lines[::-1]) + "\n", encoding="utf-8")
    extracted.clear()
    found = [run(chosen, tmp_path / "run")]
    assert sum(extracted) == 0
    found.append(run(chosen, tmp_path / "anew"))
    for method in methods:
        files = [one.stage("select") / "mine" / method / "messages.jsonl" for one in found]
        rows = [[*map(json.loads, one.read_text("utf-8").split("\n")[:-1])] for one in files]
        same, anew = ([(row["source"], row["id"]) for row in own] for own in rows)
        assert same == anew, method


def test_a_row_that_cannot_be_read_is_listed(inputs: dict[str, Any], tmp_path: Path) -> None:
    skipping = {**inputs, "on_bad_row": "skip"}
    first = run(skipping, tmp_path / "run")
    with Path(inputs["pool"][0]["path"]).open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    found = run(skipping, tmp_path / "run")
    dropped = found.stage("select") / "mine" / "less" / "dropped.jsonl"
    assert "not JSON" in dropped.read_text("utf-8")
    assert (
        world.results(found)["08-report/index.html"]
        == world.results(run(skipping, tmp_path / "anew"))["08-report/index.html"]
    )
    assert scores(found) == scores(first)


def test_a_datastore_that_was_deleted_is_made_again(
    inputs: dict[str, Any], done: RunFolder, extracted: list[int]
) -> None:
    """The message about an older format asks for it."""
    before = world.results(done)
    settings = done.stage("features") / "checkpoint-2" / "pool" / "settings.json"
    told = json.loads(settings.read_text(encoding="utf-8"))
    for file in (settings, settings.with_name("manifest.json")):
        file.write_text(json.dumps({**told, "format": "gradsieve-datastore/1"}))
    (done.stage("features") / "meta.json").unlink()
    with pytest.raises(StoreError, match="datastore/1; this version reads") as caught:
        run(inputs, done.path)
    assert "Delete its folder" in caught.value.todo
    shutil.rmtree(settings.parent)
    extracted.clear()
    assert world.results(run(inputs, done.path)) == before
    assert sum(extracted) == ROWS


def test_targets_gradients_and_tables_that_are_lost_are_made_again(
    inputs: dict[str, Any], done: RunFolder, extracted: list[int]
) -> None:
    before = world.results(done)
    taken = done.stage("features") / "checkpoint-2" / "targets" / "mine.safetensors"
    table = done.stage("score") / "mine" / "less.parquet"
    for file in (taken, done.stage("features") / "skipped.parquet", table):
        file.unlink()
        extracted.clear()
        run(inputs, done.path)
        assert extracted == ([targets_rows(inputs)] if file == taken else [])
        assert world.results(done) == before


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_damaged_gradients_of_a_target_are_reported_and_made_again(
    inputs: dict[str, Any], done: RunFolder, extracted: list[int], content: bytes | None
) -> None:
    before = world.results(done)
    file = done.stage("features") / "checkpoint-1" / "targets" / "mine.safetensors"
    file.write_bytes(file.read_bytes()[:-8] if content is None else content)
    (done.stage("score") / "mine" / "less.parquet").unlink()
    with pytest.raises(StoreError, match="gradients of a target are missing or damaged") as caught:
        read_target_gradients(file)
    assert (caught.value.where, caught.value.todo[:15]) == (str(file), "Delete that fil")
    told = world.Listening()
    gradsieve.run(world.recipe(inputs), done.path, progress=told)
    assert any(line.startswith(f"features: {file} is damaged") for line in told.lines)
    assert extracted == [targets_rows(inputs)]
    after = world.results(done)
    assert {name: after[name] for name in before} == before  # besides an archive
    file.unlink()
    with pytest.raises(StoreError, match="are missing"):
        read_target_gradients(file)


def test_a_run_that_was_moved_takes_new_features(inputs: dict[str, Any], tmp_path: Path) -> None:
    plain = {key: value for key, value in inputs.items() if key != "warmup"}
    plain["warmup"] = {"epochs": 2, "batch_size": 4, "lora": {"r": 2, "alpha": 8}}
    first = run({**plain, "pool": inputs["pool"][:1]}, tmp_path / "run")
    stale = first.require("features")["output"]
    first.path.rename(tmp_path / "moved")
    grown = gradsieve.run(world.recipe(plain), tmp_path / "moved", first="features")
    assert grown.require("features")["output"] != stale
    assert all(folder.parent.parent == grown.path for folder in Artifacts(grown).warmup.checkpoints)


def test_what_a_stopped_method_has_left_is_removed(tmp_path: Path) -> None:
    recipe = world.recipe(world.make(tmp_path / "inputs", rows=20), score={"method": "random"})
    left = tmp_path / "run" / "03-score" / "work" / "similarities-1" / "0.npz"
    gradsieve.run(recipe, tmp_path / "run", last="pool")
    left.parent.mkdir(parents=True)
    left.touch()
    run = gradsieve.run(recipe, tmp_path / "run", last="score")
    assert (run.stage("score") / "mine" / "random.parquet").is_file()
    assert not left.exists()
