"""Several processes share a training, as with `accelerate launch`; here on the CPU.

Slow: each process imports everything. The launcher is torch's own, since `accelerate launch` starts
only one process without a GPU; both set the same environment.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import gradsieve
import world
from gradsieve.recipe.load import dump_recipe

pytestmark = pytest.mark.slow


def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "gradsieve"]
    return subprocess.run(
        [sys.executable, *command, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world.make(tmp_path_factory.mktemp("inputs"), rows=60)


def test_two_processes_train_as_one_does(inputs: dict[str, Any], tmp_path: Path) -> None:
    recipe = world.recipe(
        inputs,
        score={"methods": ["random", "bm25"]},
        select={"count": 12},
        train={"seeds": [0], "epochs": 2},
        warmup__lora__dropout=0,  # each process draws its own random numbers
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    alone = gradsieve.run(recipe, tmp_path / "alone")
    gradsieve.run(recipe, tmp_path / "shared", last="select")
    done = launched("train", str(file), "--out", str(tmp_path / "shared"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mine, random: 12 rows") == 1, done.stdout
    assert done.stderr.count("train: starting") == 1
    for name in ("mine/random", "mine/bm25", "plain/random"):
        where = f"05-train/{name}/seed-0/adapter_model.safetensors"
        one, other = (load_file(tmp_path / run / where) for run in ("alone", "shared"))
        assert one.keys() == other.keys()
        for weight in one:
            assert (one[weight] - other[weight]).abs().max() < 1e-5
    names = {path.name for path in (tmp_path / "shared/05-train/mine/random/seed-0").iterdir()}
    assert {path.name for path in (alone.stage("train") / "mine/random/seed-0").iterdir()} == names
    again = launched("train", str(file), "--out", str(tmp_path / "shared"))
    assert "train: up to date" in again.stderr


def test_two_processes_warm_up(inputs: dict[str, Any], tmp_path: Path) -> None:
    recipe = world.recipe(inputs, warmup__lora__dropout=0)
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    done = launched("warmup", str(file), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    run = gradsieve.run(recipe, tmp_path / "run", last="select")
    alone = gradsieve.run(recipe, tmp_path / "alone", last="warmup")
    rates = alone.require("warmup")["learning_rates"]
    assert run.require("warmup")["learning_rates"] == pytest.approx(rates)
    assert run.require("select")["targets"]["mine"]["less"]["rows"]


def test_other_stages_are_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(world.recipe(inputs)))
    done = launched("run", str(file), "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "Several processes can share a training, not the stage pool." in done.stderr
