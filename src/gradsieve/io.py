"""Files, hashes and optional libraries.

Files are written atomically: a file appears with all of its bytes or not at all.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from gradsieve.errors import UsageError


def fingerprint(value: Any) -> str:
    """SHA-256 of JSON data, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_fingerprint(folder: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """SHA-256 of names and bytes of a folder's own files that match a pattern."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    return fingerprint([(file.name, file_fingerprint(file)) for file in files if file.is_file()])


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """A line such as `warmup.epochs: 4 -> 2` for each leaf in which two trees of data differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        below = (differences(old.get(key), new.get(key), f"{at}.{key}".strip(".")) for key in keys)
        return [line for lines in below for line in lines]
    return [] if old == new else [f"{at}: {_short(old)} -> {_short(new)}"]


def first_few(changes: list[str]) -> str:
    """The first three of `differences`, and the number of others."""
    return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if changes[3:] else "")


def agree(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two mappings have the same values for their common keys."""
    return all(new[key] == value for key, value in old.items() if key in new)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    is_hash = isinstance(value, str) and len(value) == 64
    return value[:8] if is_hash else text if len(text) <= 60 else text[:57] + "..."


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that replaces `path`, synced to disk, when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode & 0o777  # by the umask; some writers create files as 0600
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_lines(path: Path) -> Iterator[Any]:
    """The values of a JSONL file."""
    with path.open("rb") as lines:
        yield from map(json.loads, lines)


def needed(module: str, extra: str) -> Any:
    """Import an optional library.

    Raises:
        UsageError: If it is not installed; with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(str(error.name), module, extra) from None


def installed(module: str, extra: str) -> None:
    """Check that an optional library is installed, without importing it.

    Raises:
        UsageError: If it is not installed; with the command that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise _missing(module, module, extra)


def _missing(name: str, module: str, extra: str) -> UsageError:
    todo = f"pip install 'gradsieve[{extra}]'"
    return UsageError(f"The library {name} is not installed.", module, todo)
