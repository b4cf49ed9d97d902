"""Whether scores predict training: where the answer is known, with kills, and when extended."""

import json
import shutil
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradsieve
import world
from gradsieve import methods
from gradsieve.analysis.validation import Validation, read_validation
from gradsieve.demo.skills import Row, make_examples, make_rows
from gradsieve.errors import DataError
from gradsieve.methods import Scores, ScoringTask
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages import jobs
from gradsieve.stages.estimate import student_training
from gradsieve.stages.validate import STAGE

SETTINGS: dict[str, Any] = {
    "warmup": {"batch_size": 2, "epochs": 1, "learning_rate": 1e-2, "lora": {"r": 2, "alpha": 8}},
    "score": {"methods": ["planted", "random-1"]},
    "select": {"count": 6},
    "validate": {"subsets": 3, "share": 0.25, "leave_out": [0.1]},
}


class Planted:
    """A method that knows which rows are of the target's kind."""

    source = "tests, this very file"
    uses = "data"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        planted = [key.id.startswith("planted") for key in task.example_keys()]
        return {name: Scores(np.array(planted, np.float32)) for name in task.targets}


PLANTED = Planted()


@pytest.fixture(scope="module", autouse=True)
def _installed() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        entry = EntryPoint("planted", f"{__name__}:PLANTED", methods.GROUP)
        patch.setattr(methods, "entry_points", lambda group: [entry])
        patch.setitem(sys.modules, __name__, sys.modules[__name__])
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A pool of 24 rows: 6 have the target's answer, the others answer in numbers."""
    folder = tmp_path_factory.mktemp("inputs")
    data = world.make(folder, rows=24)
    others = [replace(row, answer="10 11 12 13") for row in make_rows(18, 0)]
    planted = [
        replace(row, id=f"planted-{number}") for number, row in enumerate(answered_in_letters(3, 1))
    ]
    for name, rows in {
        "one": others,
        "two": planted,
        "target": answered_in_letters(2, 0),
        "test": answered_in_letters(4, 2),
    }.items():
        world.write(folder / f"{name}.jsonl", [world.record(row) for row in rows])
    target = {"name": "mine", "path": str(folder / "target.jsonl")}
    return {**data, "targets": [{**target, "test": str(folder / "test.jsonl")}]}


def answered_in_letters(count: int, seed: int) -> list[Row]:
    return [replace(row, answer="a b c d") for row in make_examples("reverse", count, seed)]


def run(inputs: dict[str, Any], out: Path, **changes: Any) -> RunFolder:
    recipe = world.recipe({**inputs, **SETTINGS}, **changes)
    return gradsieve.run(recipe, out, last="validate")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows in each training."""
    counts: list[int] = []
    real = jobs.train_model

    def train(model: Any, rows: Any, *others: Any, **more: Any) -> Any:
        counts.append(len(rows))
        return real(model, rows, *others, **more)

    monkeypatch.setattr(jobs, "train_model", train)
    return counts


@pytest.fixture(scope="module")
def whole(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(inputs, tmp_path_factory.mktemp("whole"))


def found(folder: RunFolder) -> dict[str, Validation]:
    return {one.method: one for one in read_validation(Artifacts(folder).validation)}


def test_scores_that_are_known_to_predict(
    inputs: dict[str, Any], tmp_path: Path, trained: list[int]
) -> None:
    """All weights are trained, with the same number of steps for any rows, and no model is kept."""
    train = {"full_parameters": True, "learning_rate": 1e-2, "max_steps": 6}
    settings = {"subsets": 12, "share": 0.25, "leave_out": [0.25]}
    folder = run(inputs, tmp_path, train=train, validate=settings)
    rows = found(folder)
    lds = rows["planted"].lds
    assert lds is not None
    assert lds[0] > 0.9
    assert lds[1] > 0.8
    assert "predict which rows lower the loss" in rows["planted"].text()
    other = rows["random-1"].lds
    assert other is not None
    assert other[1] < 0 < other[2]
    assert "no evidence" in rows["random-1"].text()
    assert rows["planted"].without["0.25"][1] > 0  # the loss is far worse without any planted row
    assert trained.count(6) >= 11  # equal subsets are trained on once
    assert {*trained} == {6, 18}
    assert not list(folder.stage("validate").rglob("*.safetensors"))


def test_the_loss_is_of_held_out_examples(whole: RunFolder, inputs: dict[str, Any]) -> None:
    rows = found(whole)
    assert rows.keys() == {"planted", "random-1"}
    assert rows["planted"].loss == "held_out_loss"
    assert rows["planted"].examples == 8
    assert len(rows["planted"].losses) == len(rows["planted"].summed) == 3
    assert rows["planted"].losses == rows["random-1"].losses
    assert whole.require("validate")["models"] == 3 + 3 + 2


def test_killed_again_and_again(
    inputs: dict[str, Any], whole: RunFolder, tmp_path: Path, trained: list[int]
) -> None:
    for kills in range(40):
        with pytest.MonkeyPatch.context() as patch:
            number = 5 + kills
            world.kill_at(patch, number, before=number % 2 == 1, below="07-validate")
            try:
                run(inputs, tmp_path)
                break
            except world.Killed:
                continue
    assert kills > 4
    left = world.results(RunFolder(tmp_path))
    assert left == world.results(whole)
    assert len(trained) < 8 + 2 + kills  # completed trainings are not repeated


def test_order_makes_no_difference(
    inputs: dict[str, Any], whole: RunFolder, tmp_path: Path
) -> None:
    other = run(world.shuffled(inputs, tmp_path / "rows"), tmp_path / "run")
    names = [name for name in world.results(whole) if name.startswith("07-validate")]
    assert len(names) > 10
    one, two = world.results(whole), world.results(other)
    assert [name for name in names if one[name] != two[name]] == []


def test_what_comes_later_is_added(
    inputs: dict[str, Any], whole: RunFolder, tmp_path: Path, trained: list[int]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole.path, folder)
    run(inputs, folder)
    assert trained == []
    run(inputs, folder, score__methods=["planted", "random-1", "full", "random-2"])
    assert trained == [22]  # without the best by random-2; `full` has no ranking
    rows = found(RunFolder(folder))
    assert rows["full"].lds is None
    assert rows["full"].without == {}
    assert "nothing to validate" in rows["full"].text()
    assert rows["planted"] == found(whole)["planted"]
    run(inputs, folder, validate__subsets=4)
    assert trained == [22, 6]
    second = {**inputs["targets"][0], "name": "second", "test": None}
    more = {**inputs, "targets": [*inputs["targets"], second]}
    run(more, folder, validate__subsets=4)
    assert trained == [22, 6]  # models are kept, and evaluated on the new target
    (row,) = [
        one
        for one in read_validation(Artifacts(RunFolder(folder)).validation)
        if (one.target, one.method) == ("second", "planted")
    ]
    assert (row.loss, row.examples) == ("target_loss", 4)
    run(inputs, folder, validate__share=0.5)
    assert trained[2:5] == [12, 12, 12]
    assert list((folder / "archive").glob("07-validate*"))


def test_another_model_reads_the_rows_itself(
    inputs: dict[str, Any], whole: RunFolder, tmp_path: Path, trained: list[int]
) -> None:
    shutil.copytree(inputs["model"]["name"], tmp_path / "other")
    train = {"model": str(tmp_path / "other")}
    other = run(inputs, tmp_path / "run", train=train, validate__leave_out=[])
    assert trained == [6] * 5  # the train stage makes two of them
    assert found(other)["planted"].losses == found(whole)["planted"].losses


def test_a_damaged_model_is_made_again(
    inputs: dict[str, Any], whole: RunFolder, tmp_path: Path, trained: list[int]
) -> None:
    """Nothing else would detect it, since the model's losses are stored."""
    copy = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    file = min(copy.stage("validate").glob("models/*/seed-0/*.safetensors"))
    file.write_bytes(bytes([file.read_bytes()[0] ^ 4]) + file.read_bytes()[1:])
    run(inputs, copy.path)
    assert len(trained) == 1
    wanted, there = world.results(whole), world.results(copy)
    assert {name: there.get(name) for name in wanted} == wanted


def test_plan_counts_the_trainings(inputs: dict[str, Any], whole: RunFolder) -> None:
    recipe = world.recipe({**inputs, **SETTINGS})
    context = Context(recipe, whole, world.Listening())
    estimate = STAGE.estimate(context)
    folders = list(whole.stage("validate").glob("models/*/seed-0"))
    assert estimate.loads == 2 * len(folders)
    steps = [json.loads((one / "training.json").read_text())["steps"] for one in folders]
    assert estimate.steps == sum(steps)
    size = sum(file.stat().st_size for file in whole.stage("validate").rglob("*.safetensors"))
    assert size / 3 < estimate.disk_bytes < 3 * size


def test_plan_counts_each_targets_losses_once(inputs: dict[str, Any], whole: RunFolder) -> None:
    changes = {"validate__leave_out": [], "score__methods": ["random-1"]}

    def losses(count: int) -> float:
        targets = [{**inputs["targets"][0], "name": f"t{number}"} for number in range(count)]
        recipe = world.recipe({**inputs, **SETTINGS, "targets": targets}, **changes)
        context = Context(recipe, whole, world.Listening())
        return STAGE.estimate(context).flops - 3 * student_training(context, 6).flops

    assert losses(3) == pytest.approx(3 * losses(1))


def test_a_pool_of_one_row_is_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    (pool,) = [part for part in inputs["pool"] if part["name"] == "two"]
    first = Path(pool["path"]).read_text(encoding="utf-8").split("\n")[0]
    (tmp_path / "two.jsonl").write_text(first + "\n", encoding="utf-8")
    alone = {**inputs, "pool": [{**pool, "path": str(tmp_path / "two.jsonl")}]}
    with pytest.raises(DataError, match="too few rows"):
        run(alone, tmp_path / "run", select={"count": 1})


def test_a_share_that_leaves_no_row_is_refused(
    inputs: dict[str, Any], whole: RunFolder, tmp_path: Path
) -> None:
    recipe = world.recipe({**inputs, **SETTINGS}, validate__leave_out=[0.05, 0.99])
    for attempt in (
        lambda: gradsieve.run(recipe, tmp_path),
        lambda: gradsieve.plan(recipe),
        lambda: STAGE.run(Context(recipe, whole, world.Listening())),
    ):
        with pytest.raises(DataError, match="too few rows") as caught:
            attempt()
        assert caught.value.where.endswith("rows with label tokens, of which 99% are left out")
    assert not RunFolder(tmp_path).stage("score").exists()  # found before anything is computed
