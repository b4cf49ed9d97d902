"""Damaged files, moved inputs, restored settings, and sources that change."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import gradsieve
import world
from gradsieve.errors import DataError, RunError
from gradsieve.pipeline.preflight import check
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.folder import RunFolder
from gradsieve.runs.verify import verify
from gradsieve.stages.score import Score
from gradsieve.stages.select import Select


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made: dict[str, Any] = world.make(tmp_path_factory.mktemp("inputs"), rows=30)
    return {**made, "score": {"methods": ["random"]}, "select": {"count": 5}}


@pytest.fixture(scope="module")
def finished(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    gradsieve.run(trained(inputs), folder)
    return folder


def trained(inputs: dict[str, Any], **changes: Any) -> Recipe:
    return world.recipe(inputs, **{"train": {"epochs": 1}, "evaluate": {"tasks": ["target_loss"]},
                                   **changes})  # fmt: skip


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(finished, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


DAMAGED = (
    "00-pool/order.npy",
    "03-score/mine/random.parquet",
    "04-select/mine/random/messages.jsonl",
    "05-train/mine/random/seed-0/adapter_model.safetensors",
    "06-evaluate/mine/random/seed-0.json",
    "08-report/index.html",
)


def test_the_same_command_makes_again_what_is_damaged(
    run: RunFolder, inputs: dict[str, Any]
) -> None:
    before = world.results(run)
    for name in DAMAGED:
        flip(run.path / name)
    assert {problem["file"] for problem in verify(run).problems} == {
        str(run.path / name) for name in DAMAGED
    }
    told = world.Listening()
    gradsieve.run(trained(inputs), run.path, progress=told)
    after = world.results(run)
    assert {name: after.get(name) for name in before} == before
    assert verify(run).problems == []
    for name in DAMAGED:
        assert any(f"{run.path / name} is damaged" in line for line in told.lines), name
        kept = run.path / "archive" / name
        assert kept.is_file() or name.startswith("05-train")


def test_the_next_stage_names_what_is_damaged(run: RunFolder, inputs: dict[str, Any]) -> None:
    flip(run.path / "03-score/mine/random.parquet")
    with pytest.raises(RunError, match="damaged") as caught:
        gradsieve.run(trained(inputs), run.path, first="select", last="select")
    assert "03-score/mine/random.parquet" in caught.value.where


def test_the_metadata_of_later_stages_is_not_needed(run: RunFolder, inputs: dict[str, Any]) -> None:
    (run.path / "05-train" / "meta.json").write_text("{")
    for first in (None, "select"):
        told = world.Listening()
        gradsieve.run(trained(inputs), run.path, first=first, last="select", progress=told)
        assert "select: up to date" in told.lines


def test_a_lost_curve_costs_no_training(run: RunFolder, inputs: dict[str, Any]) -> None:
    flip(run.path / "05-train/mine/random/seed-0/loss.jsonl")
    told = world.Listening()
    gradsieve.run(trained(inputs), run.path, progress=told)
    assert "train: up to date" in told.lines
    assert any("loss.jsonl is damaged; it was for display" in line for line in told.lines)


def test_moved_inputs_cause_no_work(
    run: RunFolder, inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(inputs["model"]["name"]).parent
    shutil.copytree(folder, tmp_path / "moved")
    text = json.dumps(inputs).replace(str(folder), "moved")
    monkeypatch.chdir(tmp_path)
    told = world.Listening()
    gradsieve.run(trained(json.loads(text)), run.path, progress=told)
    stages = ("pool", "score", "select", "train", "evaluate")
    assert [f"{name}: up to date" for name in stages] == told.lines[:5]


def test_a_setting_that_is_put_back_finds_its_outputs(
    run: RunFolder, inputs: dict[str, Any]
) -> None:
    before = world.results(run)
    told = world.Listening()
    gradsieve.run(trained(inputs, select={"count": 4}), run.path, last="select", progress=told)
    assert "select: running again (select.count: 5 -> 4" in "\n".join(told.lines)
    told = world.Listening()
    gradsieve.run(trained(inputs), run.path, progress=told)
    assert "select: these settings' outputs are taken back from the archive" in told.lines
    assert "train: up to date" in told.lines
    assert {name: world.results(run).get(name) for name in before} == before


def test_reasons_are_words(run: RunFolder, inputs: dict[str, Any]) -> None:
    other = {**inputs["targets"][1], "name": "code"}
    told = world.Listening()
    more = trained({**inputs, "targets": [*inputs["targets"], other]})
    gradsieve.run(more, run.path, last="select", progress=told)
    assert "score: updating (target `code` was added)" in told.lines


def test_a_source_that_changes_is_named(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "one.jsonl"
    shutil.copy(inputs["pool"][0]["path"], file)
    recipe = world.recipe({**inputs, "pool": [{"name": "one", "path": str(file)}]})
    real = Score.run

    def touching(*arguments: Any) -> Any:
        os.utime(file)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Score, "run", touching)
        told = world.Listening()
        gradsieve.run(recipe, tmp_path / "a", last="select", progress=told)
    assert told.lines[-1].startswith(f"warning: {file} has changed since this run read it")

    monkeypatch.setattr("gradsieve.pipeline.run.check", lambda *a: (check(*a), os.utime(file)))
    with pytest.raises(DataError, match="changed while it was read") as caught:
        gradsieve.run(recipe, tmp_path / "b", last="select")
    assert caught.value.where == str(file)


def test_seconds_of_a_stopped_stage_are_added_up(
    run: RunFolder, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> Any:
        run.stage("select").joinpath("made").touch()
        raise KeyboardInterrupt

    changed = trained(inputs, select={"count": 3})
    with monkeypatch.context() as patch:
        patch.setattr(Select, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            gradsieve.run(changed, run.path, last="select")
    run.keep_seconds("select", 1000.0)
    gradsieve.run(changed, run.path, last="select")
    assert run.require("select")["seconds"] > 1000
