"""Files, hashes and optional libraries.

Files are written atomically: a file appears with all of its bytes or not at all, even after a power
cut. A folder that a library fills is published in the same way. Folder entries are synced once,
before a marker that relies on them is written: a sync of each rename would double the cost.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import xxhash

from gradsieve.errors import GradsieveError, RunError, UsageError


def fingerprint(value: Any) -> str:
    """SHA-256 of JSON data, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hash(path: Path) -> str:
    """128-bit XXH3 of a file's bytes: detects damage, not tampering, at memory speed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def folder_fingerprint(folder: Path, patterns: tuple[str, ...]) -> str:
    """SHA-256 of names and bytes of the files directly in a folder that match a pattern."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    return fingerprint([(file.name, file_fingerprint(file)) for file in files if file.is_file()])


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """A line such as `warmup.epochs: 4 -> 2` for each leaf in which two trees of data differ.

    Changed fingerprints are described in words: "target `code` was added".
    """
    if old == new:
        return []
    hashed = _is_hashed(old) or _is_hashed(new)
    if at in SENTENCES and (hashed or at != "features"):  # a stage's settings have this key too
        return [SENTENCES[at]]
    lists = isinstance(old, list) and isinstance(new, list)
    if lists and any(isinstance(item, Mapping) for item in [*old, *new]):  # `pool.1.name: ...`
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if hashed and isinstance(old or new, Mapping):
        old, new = old or {}, new or {}
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys([*old, *new])
        below = (differences(old.get(key), new.get(key), f"{at}.{key}".strip(".")) for key in keys)
        return list(dict.fromkeys(chain.from_iterable(below)))
    if not hashed:
        return [f"{at}: {_short(old)} -> {_short(new)}"]
    section, _, name = at.partition(".")
    change = "was added" if old is None else "was removed" if new is None else "has changed"
    return [f"{THINGS[section]} `{name}` {change}" if section in THINGS else f"{at} {change}"]


def agree(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two mappings have the same values for their common keys."""
    return all(new[key] == value for key, value in old.items() if key in new)


THINGS = {
    "pool": "source",
    "sources": "source",
    "targets": "target",
    "questions": "the test set of target",
    "selections": "selection",
    "models": "model",
    "own": "method",
}
"""For each key with fingerprints by name: what the names refer to."""

TEMPLATE = "model.max_length, the chat template or the tokenizer has changed"

SENTENCES = {
    "bad_rows": "the rows that can't be read have changed",
    "base.template": TEMPLATE,
    "checkpoints": "the checkpoints have changed",
    "examples": "whether target examples have scores of their own has changed",
    "features": "the features that are read have changed",
    "model.template": TEMPLATE,
    "order": "the order of the targets or of their examples has changed",
    "scores": "the scores have changed",
    "stages": "the outputs of earlier stages have changed",
    "template": TEMPLATE,
    "turns": "the order of the target examples has changed",
    "warmed_up": "the model after the warm-up has changed",
}
"""Messages for a change of keys whose values say nothing to a user."""


def _is_hashed(value: Any) -> bool:
    """Whether a value is unreadable: a fingerprint, also after a name, or in a collection."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(_is_hashed, value))
    return isinstance(value, str) and re.fullmatch(r"(\w+:)?[0-9a-f]{32,64}", value) is not None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


@contextmanager
def atomic(path: Path, hashed: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces `path`, synced to disk, when the block ends.

    If `hashed`, its hash is on disk first: `is_whole` verifies the file when the stage that wrote
    it resumes. A finished stage has a list of all hashes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode & 0o777  # set by the umask; some writers create files as 0600
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
            _on_disk.add(_identity(os.fstat(file.fileno())))
        temporary.chmod(mode)
        if hashed:
            write_text(hash_of(path), file_hash(temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link_files(old: Path, new: Path, files: Iterable[Path]) -> None:
    """Hard-link files of one folder into another, at the same relative paths."""
    for file in files:
        link = new / file.relative_to(old)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(file)


def is_whole(path: Path) -> bool:
    """Whether a file exists with the bytes that `atomic` wrote, if their hash is known."""
    kept = hash_of(path)
    return path.is_file() and (not kept.is_file() or kept.read_bytes() == file_hash(path).encode())


def hash_of(path: Path) -> Path:
    """The path of the hash that `atomic` writes for a file."""
    return path.with_name(f".{path.name}.xxh3")


_on_disk: set[tuple[int, ...]] = set()
"""Files that `atomic` has synced: each sync takes milliseconds, and a datastore has many files."""


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def sync(path: Path) -> None:
    """Sync a file's bytes, or a folder's entries, to disk."""
    if _identity(path.stat()) in _on_disk:
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EBADF):
            raise  # some file systems can't sync folders
    finally:
        os.close(opened)


def sync_tree(folder: Path) -> None:
    """Sync everything below a folder, and the folder's own entries, to disk."""
    for below, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(below, name))
        sync(Path(below))


def publish(partial: Path, folder: Path) -> None:
    """Give a filled folder its final name, once all of it is on disk."""
    sync_tree(partial)
    partial.rename(folder)
    sync(folder.parent)


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with a fingerprint of its content, so that `read_sealed` finds damage."""
    value = json.loads(json.dumps(value))  # as it will be read: keys are strings
    write_json(path, {**value, "seal": fingerprint(value)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Read what `write_sealed` wrote; None if there is no file.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    if "seal" in value and value.pop("seal") != fingerprint(value):
        raise ValueError("its content is not what was written")
    return value


def write_json(path: Path, value: Any, hashed: bool = False) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n", hashed)


def write_text(path: Path, text: str, hashed: bool = False) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path, hashed) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the values of a run's JSONL file; a damaged one is refused."""
    with reading(path), path.open("rb") as lines:
        yield from map(json.loads, lines)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Refuse a run's file as damaged if it can't be read, whatever a library raises."""
    try:
        yield
    except GradsieveError:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]
        raise RunError(
            "A file of the run is missing or damaged.", f"{path}: {reason}", MAKE_AGAIN
        ) from None


MAKE_AGAIN = "Run `gradsieve run` with the run's recipe and --out: what is damaged is made again."


def needed(module: str, extra: str) -> Any:
    """Import an optional library; one that is not installed is refused, with the command."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(str(error.name), module, extra) from None


def installed(module: str, extra: str) -> None:
    """Refuse an optional library that is not installed, without importing it."""
    if importlib.util.find_spec(module) is None:
        raise _missing(module, module, extra)


def _missing(name: str, module: str, extra: str) -> UsageError:
    todo = f"pip install 'gradsieve[{extra}]'"
    return UsageError(f"The library {name} is not installed.", module, todo)
