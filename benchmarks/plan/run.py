"""Is `gradsieve plan` right? Four recipes are planned, run, and compared, stage by stage.

    python benchmarks/plan/run.py --data ../shared/data --out runs/plan --model SMOLLM2 \
        [--only demo] [--clock cpu]

1. demo: the built-in example with fewer epochs, four methods, training and evaluation;
2. real: 600 rows of eleven public sources, MMLU, TyDiQA and BBH as targets, a Llama with 260
   thousand parameters, up to the selection;
3. trained: the same pool for TyDiQA, with three methods, training and evaluation;
4. smollm2: SmolLM2-135M-Instruct in bfloat16, 300 of the rows and TyDiQA.

Plan and run are separate processes, one after the other. With `--clock cpu` both measure CPU time
instead of wall time: on a shared machine, whose load changes from minute to minute, only CPU time
can be compared. Writes result.json and table.md to this folder. A stage that takes less than a
second is not informative and is left out of the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "real_data"))

import run as real_data

from gradsieve.console import Progress
from gradsieve.demo import prepare
from gradsieve.recipe.load import check_recipe, dump_recipe
from gradsieve.runs.folder import RunFolder

HERE = Path(__file__).parent
ROWS = 600
CLOCKS = {
    "wall": "",
    "cpu": "import time; time.monotonic = time.perf_counter = time.process_time; ",
}
"""Code that runs before gradsieve is imported, by clock."""


def real(data: Path, out: Path, targets: tuple[str, ...], rows: int = ROWS, **more: Any) -> Path:
    """Write a recipe for the real rows; returns its file."""
    tree = {
        "model": real_data.small_model(data),
        "pool": real_data.draw(data, out / "pool", rows, planted=0),
        "targets": [
            {"name": name, "task": name, "path": str(data / "eval" / name)} for name in targets
        ],
        "warmup": {
            "epochs": 2,
            "learning_rate": 1e-3,
            "batch_size": 16,
            "lora": {"r": 8, "alpha": 32},
        },
        **more,
    }
    file = out / "recipe.yaml"
    file.write_text(dump_recipe(check_recipe(tree)), encoding="utf-8")
    return file


def recipes(data: Path, out: Path, model: Path) -> dict[str, tuple[Callable[[], Path], list[str]]]:
    """What writes a recipe's file, and overrides, by name."""
    return {
        "demo": (
            lambda: prepare(out / "demo-inputs", Progress()),
            ["train.epochs=3", "train.seeds=[0]"],
        ),
        "real": (lambda: real(data, out / "real-inputs", targets=("mmlu", "tydiqa", "bbh")), []),
        "trained": (
            lambda: real(
                data,
                out / "trained-inputs",
                targets=("tydiqa",),
                score={"methods": ["less", "random", "rds_plus"]},
                train={"seeds": [0, 1]},
                evaluate={"limit": 3},
            ),
            [],
        ),
        "smollm2": (
            lambda: real(
                data,
                out / "smollm2-inputs",
                targets=("tydiqa",),
                rows=300,
                model={"name": str(model), "max_length": 1024},
                warmup={"epochs": 1, "fraction": 0.2, "lora": {"r": 8, "alpha": 32}},
                score={"methods": ["less", "random", "rds_plus"]},
                select={"fraction": 0.1},
                train={"epochs": 1, "seeds": [0]},
                evaluate={"limit": 1},
            ),
            [],
        ),
    }


def gradsieve(
    clock: str, command: str, recipe: Path, out: Path, overrides: list[str]
) -> tuple[Any, float]:
    """Run a command; returns the JSON that it prints and the seconds it took."""
    changes = [part for item in overrides for part in ("--set", item)]
    arguments = [command, str(recipe), "--out", str(out), *changes, "--json"]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", f"{CLOCKS[clock]}from gradsieve.__main__ import main; main()",
         *arguments],
        stdout=subprocess.PIPE,
        check=True,
    )  # fmt: skip
    return json.loads(done.stdout), time.monotonic() - start


def compare(recipe: Path, overrides: list[str], out: Path, clock: str) -> dict[str, Any]:
    """Plan and run a recipe, and compare the two."""
    planned, planning = gradsieve(clock, "plan", recipe, out, overrides)
    _, running = gradsieve(clock, "run", recipe, out, overrides)
    run = RunFolder(out)
    stages = []
    for stage in planned["stages"]:
        name = stage["stage"]
        size = sum(f.stat().st_size for f in run.stage(name).rglob("*") if f.is_file())
        took = run.require(name)["seconds"]
        stages.append(
            {
                "stage": name,
                "predicted_seconds": round(stage["seconds"], 2),
                "seconds": took,
                "predicted_bytes": stage["disk_bytes"],
                "bytes": size,
            }
        )
    return {
        "stages": stages,
        "predicted_seconds": round(planned["seconds"], 2),
        "seconds": round(sum(stage["seconds"] for stage in stages), 2),
        "wall_seconds_of_planning": round(planning, 1),
        "wall_seconds_of_the_run": round(running, 1),
        "clock": clock,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load": round(os.getloadavg()[0], 1),
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    clocks = ", ".join(
        f"{name} by {found['clock']} time ({found['threads']} threads, load {found['load']})"
        for name, found in result["recipes"].items()
    )
    lines = [
        "# Predicted and taken\n",
        f"`{result['command']}`, {result['machine']}, {json.dumps(result['versions'])}.\n",
        f"Stages that took a second or more, and the sums of all: {clocks}.\n",
        "| recipe | stage | predicted | taken | predicted / taken |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in result["recipes"].items():
        for stage in [*found["stages"], {"stage": "all", **found}]:
            if stage["seconds"] >= 1:
                told, took = stage["predicted_seconds"], stage["seconds"]
                lines.append(
                    f"| {name} | {stage['stage']} | {told:.1f} s | {took:.1f} s | "
                    f"{told / took:.2f} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="for all recipes but demo")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="for the recipe smollm2")
    parser.add_argument("--only", help="one recipe; the others' results are kept")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    file, found = HERE / "result.json", {}
    known = recipes(arguments.data, arguments.out, arguments.model)
    if arguments.only not in (None, *known):
        parser.error(f"--only takes one of {', '.join(known)}")
    for name in [arguments.only] if arguments.only else known:
        recipe, overrides = known[name]
        found[name] = compare(recipe(), overrides, arguments.out / name, arguments.clock)
    if arguments.only:
        found = {**json.loads(file.read_text(encoding="utf-8"))["recipes"], **found}
    result = {
        "command": "python benchmarks/plan/run.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "recipes": found,
    }
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (HERE / "table.md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
