"""Ctrl-C, in every stage: one message, no traceback, and the same command resumes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import world
from gradsieve.demo.skills import make_questions
from gradsieve.recipe.load import dump_recipe
from gradsieve.runs.folder import STAGE_NAMES, RunFolder

STARTS = {stage: f"{stage}: starting" for stage in STAGE_NAMES}
MOMENTS = {"pool": STARTS["pool"], "training, in the Trainer": "  warm-up: ", **STARTS}
"""For each moment, in the order of a run: the start of the line after which Ctrl-C is pressed."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    made: dict[str, Any] = world.make(folder, rows=60)
    world.write(folder / "test.jsonl", [world.record(q) for q in make_questions("reverse", 4, 1)])
    made["targets"] = [{**made["targets"][0], "test": str(folder / "test.jsonl")}]
    few = {"subsets": 3, "share": 0.1, "leave_out": []}
    whole = world.recipe(made, train={"epochs": 1}, evaluate={}, validate=few)
    (folder / "recipe.yaml").write_text(dump_recipe(whole))
    return folder / "recipe.yaml"


def run_until(
    recipe: Path, out: Path, said: str | None, *more: str, number: int = signal.SIGINT
) -> tuple[int, str, str]:
    """Start the command and send a signal after the line; returns status, stdout and stderr."""
    code = "import gradsieve.console as p; p.SECONDS_BETWEEN_LINES = 0.0\n"
    code += "import gradsieve.cli.signals as s; s.AGAIN_SECONDS = 0.01\n"  # stages take 0.1 s here
    code += "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup ignores it
    code += "from gradsieve.__main__ import main; main()"
    command = [sys.executable, "-c", code, "run", str(recipe), "--out", str(out), *more]
    told: list[str] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        out_lines: list[str] = []
        reader = threading.Thread(target=lambda: out_lines.extend(process.stdout or ()))
        reader.start()
        for line in process.stderr:
            told.append(line)
            if said is not None and line.startswith(said):
                os.killpg(process.pid, number)  # as a terminal does, to workers too
                said = None
        reader.join()
    assert said is None, told
    return process.returncode, "".join(out_lines), "".join(told)


@pytest.mark.slow
def test_in_every_stage(recipe: Path, tmp_path: Path) -> None:
    """One folder, interrupted in each stage in turn, ends with an uninterrupted run's bytes."""
    long = ["--set", "warmup.epochs=500"]
    for moment, said in MOMENTS.items():
        more = long if moment.startswith("training") else []
        status, out, told = run_until(recipe, tmp_path / "run", said, *more)
        assert status == 130, (moment, told)
        assert out == ""
        assert "Traceback" not in told
        last = told.splitlines()[-1]
        assert last.startswith("stopped. Finished stages"), moment
        assert str(tmp_path / "run") in last
        assert last.endswith("run the same command again to resume.")
        logged = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8").splitlines()
        assert logged[-1].endswith("stopped: KeyboardInterrupt")
    status, out, told = run_until(recipe, tmp_path / "run", None)
    assert status == 0
    assert "train: up to date" in told
    run_until(recipe, tmp_path / "whole", None)
    whole = world.results(RunFolder(tmp_path / "whole"))
    found = world.results(RunFolder(tmp_path / "run"))
    assert {name: found.get(name) for name in whole} == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_the_warnings_of_a_cluster(recipe: Path, tmp_path: Path, number: int) -> None:
    """A job that is terminated or preempted ends as with Ctrl-C, with its own status."""
    status, out, told = run_until(recipe, tmp_path / "run", STARTS["features"], number=number)
    assert status == 128 + number
    assert out == ""
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith("stopped. Finished stages")
    status, _, told = run_until(recipe, tmp_path / "run", None)
    assert status == 0
    assert "warmup: up to date" in told
