"""A stage's files with sizes and hashes: listed when it is finished, verified before they are used.

In: a stage's folder. Out: the list that `meta.json` keeps, and where the folder differs from it. A
file is read for this once per process, as fast as it can be read; a datastore's files have their
hash in their names, so that listing them reads nothing.

Left out are what the run folder itself writes, hidden files, and folders of unfinished work.
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
"""Files of a datastore: `shard-K-H.safetensors`, `keys-H.parquet`, `skipped-H.parquet`."""

FileList = Mapping[str, list[int | str]]
"""Bytes and XXH3 of each file, by its path within the stage's folder."""

Identity = tuple[str, int, int, int, int]

_verified: dict[Identity, str] = {}
"""Hashes that this process has found, by path, number, size and times of the file."""


@dataclass(frozen=True)
class Fault:
    """Where a stage's folder differs from what was written."""

    file: Path
    what: Literal["damaged", "missing", "foreign"]

    def __str__(self) -> str:
        return f"{self.file} is {self.what}"


def files_in(folder: Path) -> Iterator[Path]:
    """A stage's own files."""
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
    """A file's hash, computed once per process while the file is not written to."""
    status = file.stat()
    identity = (str(file), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if identity not in _verified:
        _verified[identity] = file_hash(file)
    return _verified[identity]


def damaged_by_name(folder: Path) -> list[Path]:
    """Files of a datastore, if there is one, whose bytes are not those that they are named by."""
    named = ((file, NAMED_BY_HASH.search(file.name)) for file in sorted(folder.glob("*")))
    return [file for file, name in named if name and hash_once(file) != name[1]]


Read = Literal["all", "unnamed", "none"]
"""Which files are read to compare them: those of a datastore, named by their hash, are verified by
its own reader, too."""


def faults(
    folder: Path, listed: FileList, within: Path | None = None, read: Read = "all"
) -> list[Fault]:
    """Where a folder differs from its list.

    Args:
        folder: A stage's folder.
        listed: What `list_files` gave.
        within: Only this file, or what is below this folder.
        read: Which files are read; of the others the size alone is compared.
    """
    found = []
    for name, (size, digest) in listed.items():
        file = folder / name
        if within is not None and file != within and within not in file.parents:
            continue
        if not file.is_file():
            found.append(Fault(file, "missing"))
        elif file.stat().st_size != size or (_is_read(file, read) and hash_once(file) != digest):
            found.append(Fault(file, "damaged"))
    if within is None or within.is_dir():
        known = {folder / name for name in listed}
        found += [Fault(f, "foreign") for f in files_in(within or folder) if f not in known]
    return found


def _is_read(file: Path, read: Read) -> bool:
    return read == "all" or (read == "unnamed" and not NAMED_BY_HASH.search(file.name))
