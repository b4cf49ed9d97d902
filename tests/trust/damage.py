"""Every kind of file of a run, damaged in five ways.

In: runs that are finished, were killed midway, or have an archive. Out: a trial for each kind of
file, each kind of damage and each command: the same command, or the next stage alone.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import world
from gradsieve.runs.folder import ARCHIVE, FOLDERS, RunFolder
from gradsieve.runs.verify import verify
from trust.bases import Base
from trust.children import run_child

WAYS = ("flip", "cut", "empty", "delete", "older")
COMMANDS = ("the same command", "the next stage")
UNREAD = r"\.lock|log\.txt|(.*/)?\.[^/]+\.xxh3"
"""Files whose contents affect no other file. The hashes of an unfinished stage's files are read
when it resumes; a file with a wrong hash is made again."""

UNHASHED = r"unfinished .*/(loss\.jsonl|\.)"
"""Loss curves and hidden files of an unfinished stage; no result depends on them."""

NAMES = (
    (r"[0-9a-f]{16,}", "H"),
    (rf"(?<={ARCHIVE}/)(\d\d-[a-z]+)-[0-9a-f]{{8}}", r"\1-H"),
    (r"/(mine|plain)(?=[/.])", "/TARGET"),
    (r"/\.(mine|plain)\.json", "/.TARGET.json"),
    (r"/(less|random|bm25|sgd|base|warmed_up)(?=[/.])", "/METHOD"),
    (r"/(one|two)(?=\.)", "/SOURCE"),
    (r"(checkpoint|seed)-\d+", r"\1-N"),
    (r"directions/(\.?)\d+", r"directions/\1N"),
)
"""Parts of a name that don't affect the kind of file: hashes, numbers and names of inputs."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of damaging a file.

    Attributes:
        how: `healed`: all bytes are restored. `found`: a message names the file, and the
            command fails or all other results are right. `unread`: nothing depends on the file.
            `silent`: none of these.
        why: The reason if it is silent, or if a traceback was shown.
    """

    how: str
    why: str = ""


@dataclass(frozen=True)
class Damage:
    """Damage to a file, and the command that follows.

    Attributes:
        base: The run before the damage.
        kind: The kind of file, for the record.
        file: The file's path in the run.
        way: One of `WAYS`.
        command: One of `COMMANDS`.
    """

    base: Base
    kind: str
    file: str
    way: str
    command: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.way}, {self.command}"


def all_damages(bases: Sequence[Base]) -> Iterator[Damage]:
    """Each kind of file of each base, damaged in each way, with each command that applies."""
    seen: set[str] = set()
    for base in bases:
        for kind, file in kinds(base).items():
            if kind in seen or re.match(UNHASHED, kind):
                continue
            seen.add(kind)
            after = base.stage is None and _next_stage(file, base.run) is not None
            for command in COMMANDS if after else COMMANDS[:1]:
                yield from (Damage(base, kind, file, way, command) for way in WAYS)


def kinds(base: Base) -> dict[str, str]:
    """One file per kind, by the kind's name; for a killed run, only files of the killed stage."""
    found: dict[str, str] = {}
    for file in sorted(base.run.rglob("*")):
        name = file.relative_to(base.run).as_posix()
        if not file.is_file():
            continue
        kind = name
        for pattern, same in NAMES:
            kind = re.sub(pattern, same, kind)
        if base.stage is not None:
            if not name.startswith(FOLDERS[base.stage]):
                continue
            kind = f"unfinished {kind}"
        found.setdefault(kind, name)
    return found


def damage(file: Path, way: str, older: Path) -> bool:
    """Damage a file; returns whether that changed anything."""
    content = file.read_bytes()
    if way == "delete":
        file.unlink()
        return True
    if way == "older":
        others = [older] if older.is_file() else sorted(older.parent.glob(f"*{file.suffix}"))
        new = others[0].read_bytes() if others else content
    elif way == "flip":
        middle = len(content) // 2
        new = (
            content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
            if content
            else b""
        )
    else:
        new = content[: len(content) * 2 // 3] if way == "cut" else b""
    file.write_bytes(new)
    return new != content


def try_damage(trial: Damage, work: Path) -> Outcome | None:
    """Damage a file in a copy of a run and run the command; None if the damage changes nothing."""
    base, copy = trial.base, work / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(base.run, copy)
    now = re.sub(rf"^{ARCHIVE}/([^/]+)-[0-9a-f]{{8}}/", r"\1/", trial.file)  # when restored
    if not damage(copy / trial.file, trial.way, base.older / now):
        return None
    is_unread = re.fullmatch(UNREAD, now) is not None
    is_listed = base.stage is None and now == trial.file and not is_unread
    # An older meta.json of the same files is valid; another recipe makes stages out of date.
    is_as_good = trial.way == "older" and Path(now).name in ("meta.json", "recipe.yaml")
    if is_listed and not is_as_good and _is_sound(copy):
        return Outcome("silent", "verify finds nothing")
    first, last = None, base.stage
    if trial.command == COMMANDS[1]:  # so that the stage runs and reads the file
        first = last = _next_stage(trial.file, base.run)
        assert first is not None
        shutil.rmtree(RunFolder(copy).stage(first))
    ended = run_child(base.recipe, copy, work / "child", first=first, last=last)
    if "Traceback" in ended.said or ended.status not in (0, 1, 2):
        return Outcome("silent", f"status {ended.status}: {ended.said[-600:]}")
    differing = _differing(base, copy)
    if ended.status == 0 and not differing and _is_sound(copy):
        return Outcome("unread" if is_unread else "healed")
    if _is_named(trial.file, now, ended.said) and (
        ended.status or set(differing) <= {now, "08-report/index.html"}  # the report omits the file
    ):
        return Outcome("found")
    # A single stage reads only what it needs; `verify` has found the damage above.
    if ended.status == 0 and differing == [now] and (is_unread or trial.command == COMMANDS[1]):
        return Outcome("unread")
    said = ended.said[-300:]
    return Outcome("silent", f"status {ended.status}, differs: {differing[:3]}, {said}")


def _is_named(file: str, now: str, said: str) -> bool:
    """Whether a message names the file; for meta.json, naming its stage folder is enough."""
    return (
        file in said
        or now in said
        or (file.endswith("meta.json") and str(Path(now).parent) in said)
    )


def _differing(base: Base, run: Path) -> list[str]:
    """Missing or wrong results of a run; for a killed run, up to the stage that was killed."""
    wanted, there = world.results(RunFolder(base.whole)), world.results(RunFolder(run))
    last = FOLDERS[base.stage] if base.stage else "~"
    return [one for one in wanted if one <= f"{last}/~" and there.get(one) != wanted[one]]


def _is_sound(run: Path) -> bool:
    """Whether `verify` finds no problem and every stage has its meta.json."""
    found = verify(RunFolder(run))
    return not found.problems and set(found.stages.values()) == {"checked"}


def _next_stage(file: str, run: Path) -> str | None:
    """The first later stage that reads a stage's files; None for the report and for other files."""
    there = RunFolder(run).stages_there()
    folders, folder = [FOLDERS[stage] for stage in there], file.split("/")[0]
    if folder not in folders[:-1]:
        return None
    after = there[folders.index(folder) + 1 :]
    return next(stage for stage in after if stage != "validate" or folder < "06")
