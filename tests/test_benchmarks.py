"""Benchmarks do what they claim: the GPU's on a tiny shape, the ablations next to the pipeline."""

import ast
import json
import runpy
from pathlib import Path

import pytest

import gradsieve
import world

FOLDER = Path(__file__).parents[1] / "benchmarks"
FILE = FOLDER / "features" / "gpu.py"
TINY = (
    "--layers 1 --hidden 32 --intermediate 48 --heads 2 --vocabulary 64 --r 2 --dim 64 "
    "--subtasks 3 --matmul 64 --examples 4 --slow 2 --repeats 2 --lengths 8 12 --tokens 16 32"
)


def test_what_benchmarks_import_of_the_package_is_there() -> None:
    for file in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradsieve"):
                exec(ast.unparse(node), {})


def test_the_gpu_benchmark_with_a_tiny_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.syspath_prepend(FILE.parent)
    monkeypatch.setattr("sys.argv", [str(FILE), "--out", str(out), *TINY.split()])
    runpy.run_path(str(FILE), run_name="__main__")
    found = json.loads(out.read_text())
    assert set(found["lengths"]) == {"8", "12"}
    groups = found["lengths"]["8"]["groups"]
    assert set(groups["fast"]) == {"floor", "sketch", "exact, 3 subtasks"}
    assert set(groups["slow"]) >= {"floor", "sketch", "dense signs"}
    for told in (*groups["fast"].values(), groups["slow"]["dense signs"]):
        assert told["seconds_an_example"] > 0
        assert told["times_the_floor"] > 0
    # 8 tokens; linear layers of 4 x 32 x 32, 3 x 32 x 48 and 32 x 64 weights; 4 x 2 x 64 LoRA's
    linear, lora = 4 * 32 * 32 + 3 * 32 * 48 + 32 * 64, 4 * 2 * 64
    wanted = (4 * linear + 6 * lora) * 8 + 3 * 2 * 8**2 * 32
    assert found["lengths"]["8"]["floor_flops"] == wanted
    lines = out.with_suffix(".md").read_text().splitlines()
    assert sum("| fast |" in line for line in lines) == 6


def test_the_ablations_rank_as_the_pipeline_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints store rows in different orders, so scores must be added by name."""
    monkeypatch.syspath_prepend(FOLDER / "paper_in_miniature")
    import ablations

    recipe = world.recipe(world.make(tmp_path / "world"))
    run = gradsieve.run(recipe, tmp_path / "run", last="score")
    found, expected = ablations.ranked(run, (1, 2), None), ablations.ranking_of(run)
    assert found.keys() == expected.keys()
    for target, keys in expected.items():
        assert found[target][:20] == keys[:20]
