"""Every kind of file of a finished run, damaged in five ways.

In: two finished runs, of which the second, of other data, has the older versions of files. Out: a
trial for each kind of file, each damage and each command: the same one, or the next stage alone.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import world
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.folder import STAGES, RunFolder
from gradsieve.runs.verify import verify
from trust.children import run_child

WAYS = ("flip", "cut", "empty", "delete", "older")
COMMANDS = ("the same command", "the next stage")
LEFT_OUT = {".lock", "log.txt"}
"""Neither is read."""


@dataclass(frozen=True)
class Outcome:
    """What became of a damaged file.

    Attributes:
        how: `healed`: all bytes are as they were. `found`: a message names the file, and what is
            there is right. `silent`: neither.
        why: If it is silent, or a traceback was shown.
    """

    how: str
    why: str = ""


def kinds(run: Path) -> dict[str, str]:
    """A file of each kind, by the kind's name: hashes, numbers and names of inputs don't matter."""
    found: dict[str, str] = {}
    for file in sorted(run.rglob("*")):
        name = file.relative_to(run).as_posix()
        if not file.is_file() or file.name in LEFT_OUT:
            continue
        kind = re.sub(r"[0-9a-f]{16,}", "H", name)
        kind = re.sub(r"/(mine|plain)(?=[/.])", "/TARGET", kind)
        kind = re.sub(r"/(less|random|bm25)(?=[/.])", "/METHOD", kind)
        kind = re.sub(r"/(one|two)(?=\.)", "/SOURCE", kind)
        kind = re.sub(r"(checkpoint|seed)-\d+", r"\1-N", kind)
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


def try_damage(
    recipe: Recipe, whole: Path, older: Path, kind: str, way: str, command: str, work: Path
) -> Outcome | None:
    """Damage a file of a copy of a finished run, and run; None if that changes nothing."""
    copy = work / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    name = kinds(whole)[kind]
    if not damage(copy / name, way, older / name):
        return None
    # An older meta.json of the same files is as good.
    if not verify(RunFolder(copy)).problems and (way, Path(name).name) != ("older", "meta.json"):
        return Outcome("silent", "verify finds nothing")
    stage = _next_stage(name, whole) if command == COMMANDS[1] else None
    if command == COMMANDS[1] and stage is None:
        return None
    if stage is not None:  # it has to run, and to read
        shutil.rmtree(RunFolder(copy).stage(stage))
    ended = run_child(recipe, copy, work / "child", first=stage, last=stage)
    if "Traceback" in ended.said or ended.status not in (0, 1, 2):
        return Outcome("silent", f"status {ended.status}: {ended.said[-600:]}")
    # Without the right meta.json it is the stage, or the files that meta.json lists, that is named.
    is_meta = Path(name).name == "meta.json"
    says = name in ended.said or (is_meta and str(Path(name).parent) in ended.said)
    wanted, there = world.results(RunFolder(whole)), world.results(RunFolder(copy))
    differing = [one for one in wanted if there.get(one) != wanted[one]]
    if ended.status == 0 and not differing and _is_sound(copy):
        return Outcome("healed")
    if says and (ended.status or set(differing) <= {name, *_displays(whole)}):
        return Outcome("found")
    return Outcome(
        "silent", f"status {ended.status}, differs: {differing[:3]}, {ended.said[-300:]}"
    )


def _is_sound(run: Path) -> bool:
    return not verify(RunFolder(run)).problems


def _displays(whole: Path) -> set[str]:
    """The report, which leaves out what is lost for display."""
    return {"08-report/index.html"}


def _next_stage(name: str, whole: Path) -> str | None:
    """The run's stage after that of a file; of the report and of the recipe there is none."""
    stages = [stage for stage in STAGES if (whole / stage.folder).is_dir()]
    folders, folder = [stage.folder for stage in stages], name.split("/")[0]
    if folder not in folders[:-1]:
        return None
    return stages[folders.index(folder) + 1].name
