"""The runs that are killed and damaged: their recipes, and their state before the damage.

Each is made once, in a fork: a finished run; one with other settings and therefore other kinds of
files; runs that were killed midway; and one whose earlier outputs are in the archive.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import world
from gradsieve.demo.skills import make_questions
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.folder import FOLDERS, RunFolder
from trust.children import Kill, run_child

ROWS = 40
METHODS = ["less", "random", "bm25"]
KILLED_AT = (0.3, 0.8)
"""Fractions of a stage's file operations after which it is killed, each in a separate run."""


@dataclass(frozen=True)
class Base:
    """A run before damage.

    Attributes:
        run: Its folder.
        recipe: The recipe that resumes it after the damage.
        whole: The finished run whose bytes it must have after resuming.
        older: A run with other data, which provides the older versions of files.
    """

    run: Path
    recipe: Recipe
    whole: Path
    older: Path

    @property
    def stage(self) -> str | None:
        """The stage that was killed."""
        last = RunFolder(self.run).stages_there()[-1]
        return None if (self.run / FOLDERS[last] / "meta.json").exists() else last


class Bases:
    """All base runs, in a folder.

    Args:
        out: The folder; runs that it already contains are reused.
        seeds: Number of training seeds.
    """

    def __init__(self, out: Path, seeds: int = 2) -> None:
        self.out, self.seeds = out, seeds
        self.recipe = self._recipe("inputs", seed=0)
        self.whole = self._finished("whole", self.recipe)
        self.operations = int((out / "whole.ops").read_text())
        self.seconds = float((out / "whole.seconds").read_text())

    def _recipe(self, name: str, seed: int, **changes: object) -> Recipe:
        folder = self.out / name
        data = world.make(folder, rows=ROWS)
        test = [world.record(row) for row in make_questions("reverse", 2, 1 + seed)]
        world.write(folder / "test.jsonl", test)
        data["targets"] = [{**t, "test": str(folder / "test.jsonl")} for t in data["targets"]]
        settings = {
            "warmup__seed": seed,
            "features__mode": "both",
            "score": {"methods": METHODS},
            "select": {"count": 6 + seed},
            "train": {"epochs": 2, "seeds": [*range(self.seeds)]},
            "evaluate": {"tasks": ["target_loss", "mine"]},
            "validate": {"subsets": 3, "share": 0.3, "leave_out": []},
        }
        return world.recipe(data, **{**settings, **changes})

    def _finished(self, name: str, recipe: Recipe) -> Path:
        run = self.out / name
        if not (RunFolder(run).stage("report") / "meta.json").exists():
            began = time.monotonic()
            ended = run_child(recipe, run, self.out / name)
            assert ended.status == 0, ended.said
            (self.out / f"{name}.seconds").write_text(f"{time.monotonic() - began}")
        return run

    @cached_property
    def finished(self) -> Base:
        """The finished run."""
        older = self._finished("older", self._recipe("older-inputs", seed=1))
        return Base(self.whole, self.recipe, self.whole, older)

    @cached_property
    def damaged(self) -> list[Base]:
        """The runs whose files are damaged."""
        older = self.finished.older
        more = self._recipe(
            "inputs", 0, score={"methods": ["sgd"]}, train={"full_parameters": True}, validate=None
        )
        others = self._finished("others", more)
        return [
            self.finished,
            Base(others, more, others, older),
            Base(self._archived(), self.recipe, self.whole, older),
            *(Base(run, self.recipe, self.whole, older) for run in self._unfinished()),
        ]

    def _archived(self) -> Path:
        """A copy of the finished run, after a rerun with another selection archived outputs."""
        run = self.out / "archived"
        if not run.exists():
            shutil.copytree(self.whole, run.with_suffix(".part"))
            ended = run_child(self._recipe("inputs", 0, select={"count": 7}),
                              run.with_suffix(".part"), run)  # fmt: skip
            assert ended.status == 0, ended.said
            run.with_suffix(".part").rename(run)
        return run

    def _unfinished(self) -> list[Path]:
        lines = (self.out / "whole.stages").read_text().splitlines()
        starts = [int(line.split()[0]) for line in lines] + [self.operations]
        runs = []
        for line, (start, end) in zip(lines, pairwise(starts), strict=True):
            for number, part in enumerate(KILLED_AT):
                run = self.out / f"unfinished-{line.split()[1]}-{number}"
                if not run.exists():
                    kill = Kill(operation=start + round(part * (end - start)), before=False)
                    partial = run.with_suffix(".part")
                    shutil.rmtree(partial, ignore_errors=True)
                    # A few operations depend on timing, so one near the end may not occur.
                    assert run_child(self.recipe, partial, run, kill).status in (None, 0)
                    partial.rename(run)
                runs.append(run)
        return runs
