"""What there is to do, against what a run has done."""

from pathlib import Path
from typing import Any

import pytest

import gradsieve
import world
from gradsieve.data.batching import length_sorted_batches
from gradsieve.pipeline.planning.costs import Costs
from gradsieve.pipeline.planning.work import Batch, Work, cut
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder

METHODS = ["less", "random", "random-1", "full"]
SETTINGS = {
    "score": {"methods": METHODS},
    "select": {"count": 6},
    "train": {"seeds": [0, 1], "epochs": 1},
    "evaluate": {},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world.make(tmp_path_factory.mktemp("inputs"), rows=60)


@pytest.fixture(scope="module")
def run(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("run")
    return gradsieve.run(world.recipe(inputs, **SETTINGS), out, progress=world.Listening())


def work_of(inputs: dict[str, Any], out: Path, **changes: Any) -> Work:
    recipe = world.recipe(inputs, **{**SETTINGS, **changes})
    stages = ["warmup", "features", "score", "select", "train", "evaluate"]
    return Work(Context(recipe, RunFolder(out), world.Listening()), stages)


def test_counts_are_the_runs(inputs: dict[str, Any], run: RunFolder, tmp_path: Path) -> None:
    work = work_of(inputs, tmp_path)
    assert work.warmup is not None
    assert work.warmup.rows == run.require("warmup")["rows"]
    assert work.checkpoints == len(run.checkpoints)
    folder = run.stage("features") / "checkpoint-1"
    assert work.stores == len([p for p in folder.iterdir() if p.name != "targets"])
    models = run.require("train")["models"]
    assert sum(1 + t.copies for t in work.trainings) == len(models) == 16
    selected = run.require("select")["targets"]["mine"]
    assert [work.selected(method) for method in METHODS] == [
        selected[method]["rows"] for method in METHODS
    ]
    results = [p for p in run.stage("evaluate").rglob("seed-*.json") if "mine" in p.parts]
    assert work.evaluated == len(results)


def test_bytes_are_the_runs(inputs: dict[str, Any], run: RunFolder, tmp_path: Path) -> None:
    costs = Costs(work_of(inputs, tmp_path))
    for stage in ("warmup", "features", "score", "select", "train"):
        patterns = {"warmup": "*.safetensors", "train": "*.safetensors", "select": "selected.jsonl"}
        files = run.stage(stage).rglob(patterns.get(stage, "*.*"))
        found = sum(file.stat().st_size for file in files)
        assert found / 3 < costs.disk_bytes(stage) < 3 * found, stage


def test_the_datastores_bytes(inputs: dict[str, Any], run: RunFolder, tmp_path: Path) -> None:
    """What fills disks is told closely."""
    costs = Costs(work_of(inputs, tmp_path))
    folder = run.stage("features")
    files = [*folder.rglob("shard-*"), *folder.rglob("targets/*")]
    found = sum(file.stat().st_size for file in files)
    assert costs.disk_bytes("features") == pytest.approx(found, rel=0.1)


def test_batches_are_those_of_the_extraction(inputs: dict[str, Any], tmp_path: Path) -> None:
    work = work_of(inputs, tmp_path)
    wanted = length_sorted_batches(work.lengths, 256)
    assert cut(work.lengths, 256) == [
        Batch(len(batch), max(work.lengths[i] for i in batch)) for batch in wanted
    ]
    found = work.feature_batches(256, 2048)
    assert sum(batch.examples for batch in found) == len(work.rows)


def test_selected_by_share_and_by_tokens(inputs: dict[str, Any], tmp_path: Path) -> None:
    assert work_of(inputs, tmp_path, select={"fraction": 0.2}).selected("less") == 12
    by_tokens = work_of(inputs, tmp_path, select={"tokens": 200})
    mean = sum(by_tokens.lengths) / 60
    assert by_tokens.selected("less") == round(200 / mean)


def test_given_checkpoints_and_another_student(
    inputs: dict[str, Any], run: RunFolder, tmp_path: Path
) -> None:
    folders = [str(folder) for folder in run.checkpoints]
    work = work_of(inputs, tmp_path, warmup={"checkpoints": folders, "batch_size": 4})
    assert work.warmup is None
    assert work.checkpoints == 2
    costs = Costs(work)
    assert costs.flops("warmup") == costs.disk_bytes("warmup") == 0
    assert costs.shape.adapter == 2 * 2 * 4 * (16 + 16)  # layers, r, modules, in and out
