"""Runs on a cluster give the same bytes as a local run, despite kills. `make test-cluster`."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gradsieve
import world
from gradsieve.recipe.load import dump_recipe
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.folder import RunFolder
from gradsieve.stages import features

pytestmark = pytest.mark.cluster

METHODS = ["less", "rds_plus", "perplexity_middle", "random"]
KILLS = 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world.make(tmp_path_factory.mktemp("inputs"), rows=300)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "ROWS_A_SHARD", (2, 2))


@pytest.fixture(scope="module")
def local(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run up to the trained models, in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "ROWS_A_SHARD", (2, 2))
        out = tmp_path_factory.mktemp("local")
        return gradsieve.run(recipe(inputs), out, last="train")


@pytest.fixture
def warm(local: RunFolder, tmp_path: Path) -> Path:
    """A run with a completed warm-up."""
    out = tmp_path / "run"
    shutil.copytree(local.path, out, ignore=shutil.ignore_patterns("0[2-9]-*"))
    return out


def recipe(inputs: dict[str, Any], **engine: Any) -> Recipe:
    return world.recipe(
        inputs,
        score__methods=METHODS,
        select={"fraction": 0.2, "near_duplicates": {"cosine": 0.9}},
        train={"epochs": 1, "seeds": [0, 1]},
        engine=engine,
    )


def on(cluster: Any) -> dict[str, Any]:
    return {"kind": "ray", "address": cluster.address, "cpus_per_worker": 1}


def test_same_bytes_as_local(
    cluster: Any, inputs: dict[str, Any], local: RunFolder, warm: Path
) -> None:
    found = gradsieve.run(recipe(inputs, **on(cluster)), warm, last="train")
    assert world.results(found) == world.results(local)
    assert len({one["name"] for one in found.require("features")["workers"]}) == 3
    for job in ("similarities of checkpoint-1/pool, part 1", "near duplicates from"):
        assert job in (warm / "log.txt").read_text()
    for stage in ("features", "score", "select", "train"):
        work = found.require(stage)["workers"]
        assert sum(one["tasks"] for one in work) > 0
        assert {one["device"] for one in work} == {"cpu"}


def test_exact_mode(cluster: Any, inputs: dict[str, Any], warm: Path, tmp_path: Path) -> None:
    exact = {**inputs, "features": {"mode": "exact"}}
    here = tmp_path / "here"
    shutil.copytree(warm, here)
    runs = [
        gradsieve.run(world.recipe(exact, engine=engine), out, last="score")
        for engine, out in ((on(cluster), warm), ({"kind": "local"}, here))
    ]
    assert world.results(runs[0]) == world.results(runs[1])


def finished(log: Path) -> Iterator[int]:
    """Yield the process id of each worker that has finished a task, as the log grows."""
    processes: dict[str, int] = {}
    with log.open() as lines:
        while True:
            line = lines.readline()
            if not line:
                time.sleep(0.01)
                yield 0
            elif start := re.search(r"(worker \d+) is on .*, process (\d+)", line):
                processes[start[1]] = int(start[2])
            elif done := re.search(r"(worker \d+) on .*shard ", line):
                yield processes[done[1]]


def test_random_kills_and_a_lost_node(
    cluster: Any, inputs: dict[str, Any], local: RunFolder, warm: Path
) -> None:
    chance, killed, stop = random.Random(0), set[int](), threading.Event()
    extra = cluster.add_node(num_cpus=1)

    def kill() -> None:
        for process in finished(warm / "log.txt"):
            if stop.is_set():
                return
            if process and process not in killed and len(killed) < KILLS:
                time.sleep(chance.random() / 10)  # enough time for some shards
                os.kill(process, signal.SIGKILL)
                killed.add(process)
                if len(killed) == KILLS // 2:
                    cluster.remove_node(extra, allow_graceful=False)

    killer = threading.Thread(target=kill)
    (warm / "log.txt").touch()
    killer.start()
    try:
        found = gradsieve.run(recipe(inputs, **on(cluster)), warm, last="train")
    finally:
        stop.set()
        killer.join()
    assert len(killed) == KILLS
    assert world.results(found) == world.results(local)


def test_a_killed_driver_resumes(inputs: dict[str, Any], local: RunFolder, warm: Path) -> None:
    file = warm.parent / "recipe.yaml"
    file.write_text(dump_recipe(recipe(inputs, kind="ray", workers=2)))
    code = (
        "from gradsieve.stages import features; features.ROWS_A_SHARD = (2, 2);"
        "from gradsieve.__main__ import main; main()"
    )
    command = [sys.executable, "-c", code, "run", str(file), "--out", str(warm), "--until", "train"]
    driver = subprocess.Popen(command, start_new_session=True)
    while len(shards := list(warm.glob("02-features/*/pool/shard-*"))) < 5:
        assert driver.poll() is None
        time.sleep(0.1)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = {shard: shard.stat().st_mtime_ns for shard in shards}
    subprocess.run(command, check=True, start_new_session=True)
    assert {shard: shard.stat().st_mtime_ns for shard in shards} == before
    assert world.results(RunFolder(warm)) == world.results(local)
