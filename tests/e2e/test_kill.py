"""A run that is killed at any moment ends with the same bytes after it is started again."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

import gradsieve
import world
from gradsieve.errors import GradsieveError
from gradsieve.recipe.load import dump_recipe
from gradsieve.runs.folder import RunFolder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], RunFolder]:
    inputs = world.make(tmp_path_factory.mktemp("inputs"), rows=150)
    run = tmp_path_factory.mktemp("whole")
    return inputs, gradsieve.run(world.recipe(inputs), run)


def test_killed_again_and_again(
    whole: tuple[dict[str, Any], RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One folder is killed at its second file, its third, and so on until a run completes."""
    inputs, run = whole
    kills = kill_until_done(inputs, tmp_path, monkeypatch, range(2, 100))
    assert kills >= 5
    assert leftovers(tmp_path) == []
    assert world.results(RunFolder(tmp_path)) == world.results(run)


@pytest.mark.slow
def test_killed_once_at_each_file(
    whole: tuple[dict[str, Any], RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, run = whole
    for number in range(2, 100):
        folder = tmp_path / str(number)
        if not kill_until_done(inputs, folder, monkeypatch, [number, -1]):
            assert number > 20
            break
        assert leftovers(folder) == []
        assert world.results(RunFolder(folder)) == world.results(run), number


def kill_until_done(
    inputs: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, numbers: Iterable[int]
) -> int:
    """Run with a kill at each of these moves until a run completes; returns the number of kills."""
    for kills, number in enumerate(numbers):
        with monkeypatch.context() as patch:
            world.kill_at(patch, number, before=number % 2 == 0)
            try:
                gradsieve.run(world.recipe(inputs), folder)
            except world.Killed:
                continue
        return kills
    raise AssertionError("no run got through")


@pytest.mark.parametrize("files", [1, 12, 120])
def test_a_full_disk_is_reported_and_nothing_done_is_lost(
    whole: tuple[dict[str, Any], RunFolder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: int,
) -> None:
    """There is room for some files only; then space is freed."""
    inputs, run = whole
    room = [files]
    real = os.fsync

    def fsync(file: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(GradsieveError, match="No space left on device") as caught:
            gradsieve.run(world.recipe(inputs), tmp_path)
    assert "it resumes" in caught.value.todo
    there = world.results(RunFolder(tmp_path))
    gradsieve.run(world.recipe(inputs), tmp_path)
    found = world.results(RunFolder(tmp_path))
    assert found == world.results(run)
    kept = [name for name in there if "shard-" in name]
    assert all(found[name] == there[name] for name in kept)
    assert bool(kept) == (files == 120)


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    ],
)
def test_a_library_that_meets_a_full_disk(
    whole: tuple[dict[str, Any], RunFolder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """safetensors and torch raise their own errors for a full disk."""

    def stop(*_: Any) -> None:
        raise error

    monkeypatch.setattr("gradsieve.stages.warmup.Warmup.run", stop)
    with pytest.raises(GradsieveError, match="cannot be written to its end"):
        gradsieve.run(world.recipe(whole[0]), tmp_path)


def leftovers(folder: Path) -> list[str]:
    """Temporary files that a finished run must not leave."""
    return [str(f) for f in folder.rglob("*") if f.name.endswith(".tmp") or f.name == "trainer"]


@pytest.mark.slow
def test_kill_9_at_random_moments(whole: tuple[dict[str, Any], RunFolder], tmp_path: Path) -> None:
    """Real processes, a real signal; on one thread, like the run that they are compared with.

    Slow: in every test run, tests/trust does the same a few times.
    """
    kills = 200
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(world.recipe(whole[0])))
    killer = [sys.executable, str(Path(__file__).with_name("killer.py"))]
    told = subprocess.run(
        [*killer, str(recipe), str(tmp_path), str(kills)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    killed, runs = map(int, told.stdout.split())
    assert killed == kills
    assert runs >= 1
    wanted = world.results(RunFolder(tmp_path / "alone"))
    for number in range(runs):
        found = world.results(RunFolder(tmp_path / str(number)))
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if wanted[name] != found[name]] == []
        assert leftovers(tmp_path / str(number)) == []


def test_what_unfinished_stages_have_made_is_verified(tmp_path: Path) -> None:
    """A byte of each file is flipped between a kill and the next start."""
    recipe = world.recipe(
        world.make(tmp_path / "inputs", rows=60),
        score__methods=["less", "random", "perplexity_middle"],
        train={"epochs": 1},
        evaluate={},
        validate={"subsets": 3, "leave_out": []},
    )
    whole = gradsieve.run(recipe, tmp_path / "a", last="validate")
    run = RunFolder(shutil.copytree(whole.path, tmp_path / "b"))
    for stage in ("features", "score", "train", "evaluate", "validate"):
        (run.stage(stage) / "meta.json").unlink()
        files = [file for file in run.stage(stage).rglob("*") if file.is_file()]
        made = [
            f for f in files if f.name not in ("inputs.json", "loss.jsonl") and f.name[0] != "."
        ]
        assert len(made) >= 4
        for file in made:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 4
            file.write_bytes(content)
    gradsieve.run(recipe, run.path, last="validate")
    found = world.results(run)
    assert {name: found[name] for name in found if not name.startswith("archive/")} == (
        world.results(whole)
    )
