"""examples/less_in_one_file.py gives the same warm-up, scores and selection as the package."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import world
from gradsieve.pipeline.run import run

FILE = Path(__file__).parent.parent.parent / "examples" / "less_in_one_file.py"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The file as a module, with the settings of a small run."""
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = {"WARMUP_FRACTION": 0.3, "EPOCHS": 2, "BATCH": 4, "LEARNING_RATE": 3e-3}
    for name, value in {**small, "MAX_LENGTH": 64, "DIM": 1000}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "LORA", {"r": 2, "lora_alpha": 8, "lora_dropout": 0.1})
    return module


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """The same settings for the package: one source, and a target with two subtasks."""
    made = world.make(tmp_path, rows=120)
    rows = [json.loads(line) for name in ("one", "two") for line in lines(tmp_path, name)]
    world.write(tmp_path / "pool.jsonl", rows)
    target = [json.loads(line) for line in lines(tmp_path, "target")]
    for number, row in enumerate(target):
        row["subtask"] = "abb"[number % 3]
    world.write(tmp_path / "target.jsonl", target)
    made["pool"] = [{"name": "pool", "path": str(tmp_path / "pool.jsonl")}]
    made["targets"] = [
        {"name": "mine", "path": str(tmp_path / "target.jsonl"), "subtask": "subtask"}
    ]
    made["features"] = {"projection": {"dim": 1000, "balanced": False}, "bits": 32}
    made["select"] = {"fraction": 0.05}
    return made


def lines(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]


def test_equals_the_package(
    example: ModuleType, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(world.recipe(recipe), tmp_path / "run", last="select")

    weights, moments = [], []
    original = example.warm_up

    def watched(model: Any, rows: list[dict[str, Any]]) -> Any:
        for state, rate in original(model, rows):
            trained = {n: w for n, w in model.named_parameters() if w.requires_grad}
            weights.append({n: w.detach().clone() for n, w in trained.items()})
            moments.append({n: state[w]["exp_avg_sq"].clone() for n, w in trained.items()})
            yield state, rate

    monkeypatch.setattr(example, "warm_up", watched)
    pool, target = tmp_path / "pool.jsonl", tmp_path / "target.jsonl"
    ranked = example.less(recipe["model"]["name"], pool, target)

    for number in (1, 2):
        folder = tmp_path / "run" / "01-warmup" / f"checkpoint-{number}"
        saved = load_file(folder / "adapter_model.safetensors")
        adam = load_file(folder / "adam.safetensors")
        for name, weight in weights[number - 1].items():
            own = name.replace(".default", "")
            torch.testing.assert_close(weight, saved[own], atol=1e-6, rtol=1e-4)
            v = moments[number - 1][name]
            torch.testing.assert_close(v, adam[f"exp_avg_sq/{own}"], atol=1e-9, rtol=1e-3)

    table = pq.read_table(tmp_path / "run" / "03-score" / "mine" / "less.parquet").to_pylist()
    scores = {row["id"]: row["score"] for row in table}
    assert len(ranked) == len(scores) == 120
    assert {row["id"]: row["score"] for row in ranked} == pytest.approx(scores, abs=1e-5)
    subtasks = {row["id"]: row["subtask"] for row in table}
    assert {row["id"]: row["subtask"] for row in ranked} == subtasks
    assert len(set(subtasks.values())) == 2

    selected = lines(tmp_path / "run" / "04-select" / "mine" / "less", "selected")
    ids = [json.loads(line)["id"] for line in selected]
    assert len(ids) == 6
    assert [row["id"] for row in ranked[:6]] == ids
