"""Simulate a power cut: unsynced changes are lost, fully or in part.

In: a run folder as a killed process left it, the folder as it was before that process started, and
which files and folders the process synced. A file that was written since its last sync is emptied,
halved, partly zeroed or kept. A name that was added or removed since its folder's last sync
is reverted or kept, independently of all others; file systems that keep the order lose less.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

LOST = 0.6
"""Probability that an unsynced change is lost."""


@dataclass(frozen=True)
class Before:
    """The earlier state of a folder.

    Attributes:
        folder: The folder's path.
        copy: A copy of it, including modification times.
        numbers: Inode number and modification time (ns) of each file and folder, by relative path.
    """

    folder: Path
    copy: Path
    numbers: dict[str, tuple[int, int]]


def remember(folder: Path, copy: Path) -> Before:
    """Save the current state of a folder."""
    shutil.rmtree(copy, ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, copy, symlinks=True)
    return Before(folder, copy, _numbers(folder))


def _numbers(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for below, _, files in os.walk(folder):
        for path in (Path(below), *(Path(below, name) for name in files)):
            status = path.lstat()
            found[os.path.relpath(path, folder)] = (status.st_ino, status.st_mtime_ns)
    return found


def cut(before: Before, synced: Path, rng: random.Random) -> list[str]:
    """Discard some of the unsynced changes; returns what was lost."""
    records = [json.loads(line) for line in synced.read_text().splitlines()]
    contents = {(record["number"], record["time"]) for record in records}
    entries = {r["number"]: r["entries"] for r in records if "entries" in r}
    now = _numbers(before.folder)
    was_at = {number: path for path, (number, _) in before.numbers.items()}
    lost: list[str] = []
    for path, state in sorted(now.items(), key=lambda item: item[0].count("/"), reverse=True):
        file = before.folder / path
        if path == "." or not file.exists():
            continue
        known = entries.get(now[str(Path(path).parent)][0], {}).get(file.name) == state[0]
        was_there = before.numbers.get(path, (0, 0))[0] == state[0]
        if not known and not was_there and rng.random() < LOST:
            lost.append(f"name {path}")
            _put_back(before, path, was_at.get(state[0]))
            continue
        written = state not in contents and before.numbers.get(path) != state
        if written and file.is_file() and rng.random() < LOST:
            lost.append(_spoil(file, rng))
    for path, (number, _) in before.numbers.items():
        parent, name = now.get(str(Path(path).parent)), Path(path).name
        moved = any(number == other for other, _ in now.values())
        if path in now or parent is None or moved or rng.random() > LOST:
            continue
        if name not in entries.get(parent[0], {name: 0}):
            continue  # its removal was synced
        old, new = before.copy / path, before.folder / path
        if old.is_file() and new.parent.is_dir() and not new.exists():
            lost.append(f"removal of {path}")
            shutil.copy2(old, new)
    return lost


def _put_back(before: Before, path: str, old_path: str | None) -> None:
    """Undo the creation of a name."""
    here, old = before.folder / path, before.copy / path
    target = before.folder / old_path if old_path else None
    if target is not None and target.parent.is_dir() and not target.exists():
        here.rename(target)
    elif here.is_dir():
        shutil.rmtree(here)
    else:
        here.unlink()
    if old.is_file():
        shutil.copy2(old, here)


def _spoil(file: Path, rng: random.Random) -> str:
    content, how = file.read_bytes(), rng.choice(("emptied", "halved", "holed"))
    middle = len(content) // 2
    quarter = len(content) // 4
    holed = content[:quarter] + bytes(quarter) + content[2 * quarter :]
    file.write_bytes({"emptied": b"", "halved": content[:middle], "holed": holed}[how])
    return f"{how} {file.name}"
