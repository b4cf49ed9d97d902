"""A stage's files with sizes and hashes: listed when the stage finishes, verified before use.

In: a stage's folder. Out: the list stored in `meta.json`, and the differences between the folder
and this list. A file is read once per process for this, at full disk speed; a datastore's files
have their hash in their names, so listing them reads nothing.

Files that the run folder itself writes, hidden files and unfinished work are not listed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradsieve.io import file_hash

META, INPUTS = "meta.json", "inputs.json"
NAMED_BY_HASH = re.compile(r"-([0-9a-f]{32})\.[a-z]+$")
"""Matches a datastore's files: `shard-K-H.safetensors`, `keys-H.parquet`, `skipped-H.parquet`."""

FileList = Mapping[str, list[int | str]]
"""Size in bytes and XXH3 hash of each file, keyed by its path within the stage's folder."""

Identity = tuple[str, int, int, int, int]

_verified: dict[Identity, str] = {}
"""Hashes that this process has computed."""


@dataclass(frozen=True)
class Fault:
    """A file in a stage's folder that differs from what the stage wrote."""

    file: Path
    what: Literal["damaged", "missing", "foreign"]

    def __str__(self) -> str:
        return f"{self.file} is {self.what}"


def files_in(folder: Path) -> Iterator[Path]:
    """A stage's output files, without its metadata, hidden files and temporary files."""
    for below, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_passing(name)]
        top = Path(below) == folder
        for name in names:
            if not _is_passing(name) and not (top and name in (META, INPUTS)):
                yield Path(below, name)


def _is_passing(name: str) -> bool:
    return name.startswith(".") or name.endswith(".tmp")


def list_files(folder: Path) -> dict[str, list[int | str]]:
    """Sizes and hashes of all files in a stage's folder."""
    return {
        file.relative_to(folder).as_posix(): [file.stat().st_size, _listed_hash(file)]
        for file in sorted(files_in(folder))
    }


def _listed_hash(file: Path) -> str:
    named = NAMED_BY_HASH.search(file.name)
    return named[1] if named else hash_once(file)


def hash_once(file: Path) -> str:
    """A file's hash, computed once per process as long as the file does not change."""
    known = identity(file)
    if known not in _verified:
        _verified[known] = file_hash(file)
    return _verified[known]


def identity(file: Path) -> Identity:
    """What changes whenever a file's content does: path, inode, size, mtime and ctime."""
    status = file.stat()
    return str(file), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def damaged_by_name(folder: Path) -> list[Path]:
    """Files in a datastore's folder, if it exists, that don't match the hash in their name."""
    named = ((file, NAMED_BY_HASH.search(file.name)) for file in sorted(folder.glob("*")))
    return [file for file, name in named if name and hash_once(file) != name[1]]


Read = Literal["all", "unnamed", "none"]
"""Which files are read to compare their hashes. `unnamed` excludes a datastore's files, which are
named by their hash: the datastore's reader verifies them too."""


def faults(
    folder: Path, listed: FileList, within: Path | None = None, read: Read = "all"
) -> list[Fault]:
    """The differences between a stage's folder and its list; `within`: only in this file or folder.

    Of files that are not `read`, only the size is compared.
    """
    found, within = [], within or folder
    # Thousands of results are verified one by one, and all of them are in this list.
    below = "" if within == folder else within.relative_to(folder).as_posix()
    start = f"{below}/" if below else ""
    names = [below] if below in listed else [name for name in listed if name.startswith(start)]
    for name in names:
        (size, digest), file = listed[name], folder / name
        if not file.is_file():
            found.append(Fault(file, "missing"))
        elif file.stat().st_size != size or (_is_read(file, read) and hash_once(file) != digest):
            found.append(Fault(file, "damaged"))
    if within.is_dir():
        known = {folder / name for name in names}
        found += [Fault(f, "foreign") for f in files_in(within) if f not in known]
    return found


def _is_read(file: Path, read: Read) -> bool:
    return read == "all" or (read == "unnamed" and not NAMED_BY_HASH.search(file.name))
