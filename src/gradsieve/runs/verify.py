"""Checks a run's files against what was written (`gradsieve verify`).

In: a run folder. Out: damaged, missing and foreign files, stage by stage, as fast as the files can
be read. Neither models nor sources are read, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from gradsieve.errors import GradsieveError, RunError
from gradsieve.runs.files import INPUTS, META
from gradsieve.runs.folder import RunFolder
from gradsieve.runs.lineage import outdated
from gradsieve.store import open_store


@dataclass
class Verification:
    """The result of verifying a run's files."""

    run: str
    # `checked` (with or without problems) or `unfinished`
    stages: dict[str, str] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)
    files: int = 0
    bytes: int = 0

    def add(self, stage: str, file: str, problem: str) -> None:
        """Record a problem."""
        self.problems.append({"stage": stage, "file": file, "problem": problem})

    def text(self) -> str:
        """A readable summary: one line per problem, and one about what was read."""
        lines = [f"{one['stage']}: {one['file']}: {one['problem']}" for one in self.problems]
        lines += [f"{name}: {state}" for name, state in self.stages.items() if state != "checked"]
        count = len(self.problems) or "no"
        checked = list(self.stages.values()).count("checked")
        read = f"{checked} stages, {self.files} files, {self.bytes / 2**20:.1f} MiB"
        return "\n".join([*lines, f"{count} problem{'s' * (count != 1)} in {read}"])


def verify(run: RunFolder, report: Callable[[float], None] = lambda stages: None) -> Verification:
    """Read a run's files and compare them with `meta.json`; reports the count of stages done."""
    found = Verification(str(run.path))
    there = run.stages_there()
    try:
        if not run.checked_recipe().is_file():
            found.add("run", str(run.recipe), "missing")
    except RunError as error:
        found.add("run", error.where, error.what)
    for done, name in enumerate(there, start=1):
        try:
            _stage(run, name, found)
        except GradsieveError as error:
            found.add(name, error.where, error.what)
        report(done)
    with suppress(RunError):  # unreadable files are among the problems
        for reason in dict.fromkeys(outdated(run).values()):
            name, _, rest = reason.partition(" ")
            if rest == "is not finished":  # though a later stage has read it
                found.add(name, str(run.stage(name) / META), "missing")
    return found


def _stage(run: RunFolder, name: str, found: Verification) -> None:
    metadata, listed = run.metadata(name), run.files(name)
    if metadata is not None and listed is not None:
        found.stages[name] = "checked"
        found.files += len(listed)
        found.bytes += sum(int(size) for size, _ in listed.values())
        for fault in run.faults(name):
            found.add(name, str(fault.file), fault.what)
        if run.started_with(name) != metadata.get("inputs"):
            found.add(name, str(run.stage(name) / INPUTS), "not of this stage")
        return
    found.stages[name] = "unfinished"
    run.started_with(name)
    if name == "features":  # its shards can be verified without a list
        for settings in sorted(run.stage(name).glob("*/*/settings.json")):
            for problem in open_store(settings.parent).verify():
                file, _, what = problem.partition(": ")
                found.add(name, file, what)
