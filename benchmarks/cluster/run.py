"""Cost of distributing work: a driver with 64 workers, two workers against one, Ray against local.

    python benchmarks/cluster/run.py sleeping --workers 64 --shards 10000 --seconds 1
    OMP_NUM_THREADS=1 python benchmarks/cluster/run.py real --data ../shared/data --rows 5329

`sleeping`: tasks sleep instead of computing, so that many workers fit on few cores. Overhead is the
workers' time that is not spent in tasks, counted from the moment when all have started; the
driver's memory is its private memory after a tenth of the tasks and at the end. `real`: features of
real rows with the model stories260K, computed by the local engine and by Ray with one and with two
single-threaded workers; compares the seconds of the busiest worker. Writes result.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

import gradsieve
from gradsieve.console import Progress
from gradsieve.engine import Job, Size
from gradsieve.engine.ray import RayEngine
from gradsieve.recipe.load import check_recipe
from gradsieve.recipe.schema import EngineConfig

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Sleeping(Job[int, int]):
    seconds: float

    def setup(self, progress: Progress) -> Callable[[int], int]:
        def run(task: int) -> int:
            time.sleep(self.seconds)
            return task

        return run

    def size(self, task: int) -> Size:
        return Size(1, 4096)


def sleeping(workers: int, shards: int, seconds: float) -> dict[str, Any]:
    engine = RayEngine(EngineConfig(kind="ray", workers=workers), Progress(quiet=True))
    this, job = psutil.Process(), Sleeping(seconds)
    try:
        while sum(bool(worker.node) for worker in engine.workers) < workers:  # all have started
            list(engine.map(job, range(2 * workers)))
        engine.take_work()
        start, cpu, memory = time.monotonic(), this.cpu_times(), 0.0
        for done, _ in enumerate(engine.map(job, range(shards)), start=1):
            if done == shards // 10:
                memory = this.memory_full_info().uss
        wall = time.monotonic() - start
        after, used = this.memory_full_info().uss, this.cpu_times()
        ideal = shards * seconds / workers
    finally:
        engine.close()
    return {
        "workers": workers,
        "shards": shards,
        "seconds_a_shard": seconds,
        "wall_seconds": round(wall, 2),
        "ideal_seconds": round(ideal, 2),
        "overhead": round(wall / ideal - 1, 4),
        "driver_cpu_milliseconds_a_shard": round(
            1000 * (used.user + used.system - cpu.user - cpu.system) / shards, 3
        ),
        "driver_mebibytes_after_a_tenth": round(memory / 2**20, 1),
        "driver_mebibytes_at_the_end": round(after / 2**20, 1),
    }


def real(data: Path, out: Path, rows: int, planted: int) -> dict[str, Any]:
    sys.path.insert(0, str(HERE.parent / "real_data"))
    import run as real_data

    shutil.rmtree(out, ignore_errors=True)
    pool = real_data.draw(data, out / "pool", rows, planted)
    found: dict[str, Any] = {"rows": rows}
    for name, engine in {
        "warm-up": {"kind": "local"},
        "local": {"kind": "local"},
        "ray, 1 worker": {"kind": "ray", "workers": 1, "cpus_per_worker": 1},
        "ray, 2 workers": {"kind": "ray", "workers": 2, "cpus_per_worker": 1},
    }.items():
        recipe = check_recipe(
            {
                "model": real_data.small_model(data),
                "pool": pool,
                "targets": [{"name": "mmlu", "task": "mmlu", "path": str(data / "eval" / "mmlu")}],
                "warmup": {"epochs": 1, "fraction": 0.02, "lora": {"r": 8, "alpha": 32}},
                "features": {"projection": {"dim": 2048}},
                "engine": engine,
            }
        )
        if name == "warm-up":
            gradsieve.run(recipe, out / "warm-up", last="warmup")
            continue
        shutil.copytree(out / "warm-up", out / name)
        run = gradsieve.run(recipe, out / name, last="features")
        meta = run.require("features")
        found[name] = {
            "stage_seconds": meta["seconds"],
            "seconds_in_tasks": round(sum(one["seconds"] for one in meta["workers"]), 2),
            "busiest_worker_seconds": max(one["seconds"] for one in meta["workers"]),
            "rows": sum(one["units"] for one in meta["workers"]),
            "output": meta["output"],
        }
    engines = [found[name] for name in found if name not in ("rows",)]
    found["same_output"] = all(one["output"] == engines[0]["output"] for one in engines)
    for one in engines:
        del one["output"]
    busiest = {name: found[name]["busiest_worker_seconds"] for name in ("local", "ray, 1 worker")}
    found["overhead_of_ray"] = round(busiest["ray, 1 worker"] / busiest["local"] - 1, 3)
    found["speed_of_two_workers"] = round(
        busiest["ray, 1 worker"] / found["ray, 2 workers"]["busiest_worker_seconds"], 2
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("sleeping", "real"))
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=5329)
    parser.add_argument("--planted", type=int, default=500)
    parser.add_argument("--work", type=Path, default=Path("runs/cluster"))
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    arguments = parser.parse_args()
    if arguments.what == "sleeping":
        result = sleeping(arguments.workers, arguments.shards, arguments.seconds)
    else:
        result = real(arguments.data, arguments.work, arguments.rows, arguments.planted)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    result |= {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit,
        "cores": psutil.cpu_count(),
        "load": psutil.getloadavg()[0],
        "versions": {name: version(name) for name in ("ray", "torch", "gradsieve")},
    }
    kept = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    arguments.out.write_text(json.dumps({**kept, arguments.what: result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
