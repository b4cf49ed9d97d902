"""The full plan: what is completed, what remains, and what it costs."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from typer.testing import CliRunner

import gradsieve
import world
from gradsieve.cli import app
from gradsieve.demo.skills import make_questions
from gradsieve.errors import ModelError, UsageError
from gradsieve.pipeline.plan import plan as make_plan
from gradsieve.pipeline.plan_text import size
from gradsieve.pipeline.sample import Samples, Times
from gradsieve.recipe.load import dump_recipe
from gradsieve.runs.folder import RunFolder
from gradsieve.stages.estimate import Estimate


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    made = world.make(folder, rows=60)
    world.write(folder / "test.jsonl", [world.record(q) for q in make_questions("reverse", 2, 1)])
    world.write(folder / "long.jsonl", [
        {"id": "aside", "prompt": "a " * 90, "completion": "b"},
        {"id": "cut", "prompt": "a", "completion": "b " * 90},
    ])  # fmt: skip
    made["targets"] = [{**made["targets"][0], "test": str(folder / "test.jsonl")}]
    made["pool"].append({"name": "long", "path": str(folder / "long.jsonl")})
    return made


@pytest.fixture(autouse=True)
def _one_sample_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradsieve.pipeline.sample.STAGE_SECONDS", 0.0)


def plan(inputs: dict[str, Any], out: Path | None = None, **given: Any) -> Any:
    options = {key: given.pop(key) for key in ("gpu", "workers", "calibrate") if key in given}
    told = world.Listening()
    return make_plan(world.recipe(inputs, **given), out, progress=told, **options)


def test_what_is_counted(inputs: dict[str, Any]) -> None:
    found = plan(inputs, calibrate=False)
    long = found.sources[-1]
    assert (long.name, long.rows, long.truncated, long.skipped) == ("long", 2, 1, 1)
    assert long.tokens == 64
    (target,) = found.targets
    assert (target["subtasks"], target["examples"], target["questions"]) == (2, 6, 4)
    assert [stage.stage for stage in found.stages] == [
        "pool",
        "warmup",
        "features",
        "score",
        "select",
    ]
    assert found.seconds is None
    assert all(stage.flops > 0 for stage in found.stages[1:4])


def test_every_stage_gets_seconds(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsieve.pipeline.sample.STAGE_SECONDS", 20.0)
    monkeypatch.setattr("gradsieve.pipeline.sample.CLEAR_SECONDS", 0.01)
    methods = ["less", "random", "bm25", "perplexity_top"]
    found = plan(
        inputs, tmp_path / "run", score={"methods": methods}, train={"epochs": 1}, evaluate={}
    )
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))
    assert all(stage.seconds > 0 for stage in found.stages)
    assert not (tmp_path / "run").exists()
    assert "evaluate  to run" in str(found)


@pytest.mark.parametrize(
    ("most", "times", "at_most"),
    [
        (100.0, Times(once=3.0, start=4.0, unit=0.5), []),
        (12.0, Times(once=3.0, start=4.0, unit=0.5), []),  # two times 5 seconds, not three times
        (9.0, Times(once=3.0, start=0.0, unit=2.5), ["warmup"]),
        (1.0, Times(once=0.0, start=0.0, unit=4.0), ["warmup"]),
    ],
)
def test_cost_per_row_is_separated_from_what_is_paid_once(
    monkeypatch: pytest.MonkeyPatch, most: float, times: Times, at_most: list[str]
) -> None:
    taken: list[int] = []

    def run(self: Samples, stage: Any, rows: int) -> tuple[float, Estimate]:
        taken.append(rows)
        return 4.0 + 0.5 * rows + (3.0 if len(taken) == 1 else 0.0), Estimate(units=rows, loads=1)

    monkeypatch.setattr("gradsieve.pipeline.sample.STAGE_SECONDS", most)
    monkeypatch.setattr(Samples, "_run", run)
    samples = Samples(Mock(pool=Mock(usable=range(100))), Path())
    estimate = Estimate(units=100, loads=2)
    assert samples.seconds("warmup", estimate) == pytest.approx(times.seconds(estimate, 1))
    assert samples.at_most == at_most


@pytest.mark.parametrize(
    "changes",
    [
        {"features": {"mode": "exact"}},
        {"features": {"projection": {"kind": "none"}}},
        {"warmup__batch_size": 1},
        {"warmup__batch_size": 8, "warmup__micro_batch_size": 2},
        {"train": {"full_parameters": True}},
        {"score": {"methods": ["random"]}, "warmup__lora": {"target_modules": ["not_looked_at"]}},
    ],
)
def test_settings_that_are_timed_otherwise(inputs: dict[str, Any], changes: Any) -> None:
    found = plan(inputs, **changes)
    assert all(stage.seconds >= 0 for stage in found.stages)


def test_what_is_done_and_what_a_change_does(inputs: dict[str, Any], tmp_path: Path) -> None:
    def states(**changes: Any) -> dict[str, tuple[str, str]]:
        found = plan(inputs, tmp_path, calibrate=False, **changes)
        return {stage.stage: (stage.state, stage.why) for stage in found.stages}

    assert states()["warmup"] == ("new", "")
    gradsieve.run(world.recipe(inputs), tmp_path, last="score")
    assert [state for state, _ in states().values()] == ["done", "done", "done", "done", "new"]
    found = plan(inputs, tmp_path, calibrate=False)
    assert found.stages[1].seconds == RunFolder(tmp_path).require("warmup")["seconds"]
    assert "took " in str(found)
    changed = states(warmup__epochs=3)
    assert changed["warmup"] == ("redo", "warmup.epochs: 2 -> 3")
    assert changed["features"] == ("wait", "warmup comes first")
    table, reasons = str(plan(inputs, tmp_path, calibrate=False, warmup__epochs=3)).split("\n\n")[
        2:4
    ]
    assert "warmup.epochs" not in table
    assert reasons == "warmup: warmup.epochs: 2 -> 3"
    grown = states(score={"methods": ["less", "random"]})
    assert grown["score"][0] == "extend"
    assert "random" in grown["score"][1]
    (tmp_path / "03-score" / "meta.json").unlink()
    assert states()["score"] == ("resume", "")
    shard = next((tmp_path / "02-features").rglob("shard-*"))
    shard.unlink()
    assert states()["features"] == ("resume", f"{shard} is missing")
    notes = plan(inputs, tmp_path, calibrate=False).notes
    assert "upper bounds, as parts of their outputs are there: features" in notes
    known = "what they can keep is known once the stages before them are made"
    assert f"upper bounds, as {known}: score" in notes


def test_a_stage_that_is_extended_needs_no_room_for_what_it_has(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradsieve.run(world.recipe(inputs), tmp_path, last="features")
    (tmp_path / "02-features" / "meta.json").unlink()
    room = plan(inputs, tmp_path, calibrate=False).disk_bytes // 2  # most of it is features
    monkeypatch.setattr("shutil.disk_usage", lambda _: Mock(free=room))
    assert plan(inputs, tmp_path, calibrate=False).disk_free_bytes == room


def test_what_the_archive_has_takes_no_time(inputs: dict[str, Any], tmp_path: Path) -> None:
    gradsieve.run(world.recipe(inputs), tmp_path, last="features")
    gradsieve.run(world.recipe(inputs, features__bits=8), tmp_path, last="features")
    found = plan(inputs, tmp_path, calibrate=False)
    stage = found.stages[2]
    assert (stage.stage, stage.state, stage.why, stage.seconds) == ("features", "archived", "", 0)
    assert found.disk_bytes == sum(one.disk_bytes for one in found.stages[3:])
    assert "features  in archive/" in str(found)
    progress = world.Listening()
    gradsieve.run(world.recipe(inputs), tmp_path, last="features", progress=progress)
    assert "features: these settings' outputs are taken back from the archive" in progress.lines


def test_a_named_gpu(inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("gradsieve.models.source.read_model", load)
    quick, slow = (plan(inputs, gpu=name, train={}, evaluate={}) for name in ("H200", "L4"))
    assert quick.machine == "H200"
    for one, other in zip(quick.stages, slow.stages, strict=True):
        # The pool is tokenized, and timed, on this machine.
        if one.stage in ("features", "train"):
            assert one.seconds < other.seconds
    assert quick.stages[2].memory_bytes > 0
    assert any("an assumption" in note for note in quick.notes)


def test_several_workers(inputs: dict[str, Any]) -> None:
    one, eight = (plan(inputs, gpu="H100", workers=n, train={"seeds": [0, 1]}) for n in (1, 8))
    assert (one.machine, eight.machine) == ("H100", "8 x H100")
    assert eight.gpu_hours == pytest.approx(eight.seconds * 8 / 3600)
    for alone, shared in zip(one.stages, eight.stages, strict=True):
        if alone.stage in ("features", "train"):
            assert shared.seconds < alone.seconds
        elif alone.stage == "warmup":
            assert shared.seconds == alone.seconds
    assert "on 8 x H100 (" in str(eight)
    assert "GPU-hours)" in str(eight)


def test_memory_that_may_not_suffice_is_reported(
    inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (
        plan(inputs, calibrate=False, features={"tokens_per_batch": tokens}).stages[2].memory_bytes
        for tokens in (100, 10_000)
    )
    assert 0 < small < large / 10
    monkeypatch.setattr("gradsieve.pipeline.plan._memory_there", lambda _: 2.0 * small)
    found = plan(inputs, calibrate=False, features={"tokens_per_batch": 10_000})
    assert [note.partition(":")[2] for note in found.notes if "features may need" in note] == [
        " lower features.tokens_per_batch or model.max_length"
    ]
    last = plan(inputs, calibrate=False, evaluate={}).stages[-1]
    monkeypatch.setattr("gradsieve.pipeline.plan._memory_there", lambda _: last.memory_bytes)
    told = [note for note in plan(inputs, calibrate=False, evaluate={}).notes if "may need" in note]
    assert told[-1].startswith("evaluate may need ")
    assert told[-1].endswith(": lower evaluate.batch_size")


def test_memory_of_a_large_model() -> None:
    """A batch of 32 full examples of 2048 tokens, for a model with billions of weights."""
    from gradsieve.models.shape import Shape

    llama7b = Shape(
        parameters=6_738_000_000, matmul=6_476_000_000, head=131_000_000, vocabulary=32000,
        layers=32, hidden=4096, inner=11008, kept=2 * 4096, adapter=134_000_000,
        bytes_a_value=2, bytes_a_weight=2,
    )  # fmt: skip
    one = llama7b.weight_bytes + llama7b.trained_bytes + llama7b.activation_bytes(2048, 2048)
    assert 24e9 < one < 40e9  # known to fit into 40 GB at batch size 1, but not into 24 GB
    assert llama7b.activation_bytes(32 * 2048, 32 * 2048) > 80e9


def test_on_the_command_line(inputs: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(world.recipe(inputs)))
    shell = CliRunner()
    told = shell.invoke(app, ["plan", str(recipe), "--no-calibration", "--json", "--quiet"])
    assert told.exit_code == 0
    assert told.stderr == ""
    assert json.loads(told.stdout)["stages"][0]["stage"] == "pool"
    table = shell.invoke(app, ["plan", str(recipe), "--gpu", "H100", "--set", "pool.2.name=x"])
    assert table.exit_code == 0
    lines = table.stdout.splitlines()
    assert lines[0].split() == ["pool", "rows", "bad", "tokens", "truncated", "skipped"]
    assert any(line.startswith("x ") for line in lines)
    assert any(line.startswith("to run: ") and "H100" in line for line in lines)


def test_memory_that_runs_out_is_one_message(
    inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("gradsieve.stages.warmup.train_model", train)
    with pytest.raises(ModelError, match="parts of warmup") as caught:
        plan(inputs)
    assert "--gpu" in caught.value.todo


def test_there_is_a_worker(inputs: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least one worker"):
        plan(inputs, workers=0)


def test_size() -> None:
    assert [size(n) for n in (5, 2048, 3 << 20, 5 << 30)] == ["5 B", "2 KiB", "3 MiB", "5.0 GiB"]


def test_features_at_existing_checkpoints_are_timed(inputs: dict[str, Any], tmp_path: Path) -> None:
    run = gradsieve.run(world.recipe(inputs), tmp_path, last="warmup").stage("warmup")
    again = plan(inputs, tmp_path)
    existing = plan(inputs, warmup__checkpoints=[str(run / f"checkpoint-{n}") for n in (1, 2)])
    assert again.stages[1].state == "done"
    assert existing.stages[1].seconds == 0
    assert again.stages[2].seconds > 0
    assert existing.stages[2].seconds > 0


def test_a_source_that_changed_is_read_again(tmp_path: Path) -> None:
    data = world.make(tmp_path / "inputs", rows=30)
    recipe = world.recipe(data)
    gradsieve.run(recipe, tmp_path / "run", last="pool")
    file = Path(data["pool"][0]["path"])
    rows = file.read_bytes().split(b"\n")[:-1]
    file.write_bytes(b"\n".join(rows[:-5]) + b"\n")
    found = make_plan(recipe, tmp_path / "run", calibrate=False)
    assert found.sources[0].rows == len(rows) - 5


@pytest.mark.parametrize(("times", "noted"), [(30.0, True), (1.5, False)])
def test_a_dtype_that_the_processor_is_slow_in(
    inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, times: float, noted: bool
) -> None:
    monkeypatch.setattr("gradsieve.models.device._slowdown", lambda dtype: times)
    notes = plan(inputs, calibrate=False, model__dtype="bfloat16").notes
    assert any("bfloat16 is slow on this machine" in note for note in notes) == noted
    assert not any("in float32" in note for note in plan(inputs, gpu="H100").notes)
