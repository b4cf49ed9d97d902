"""Reads the files of the paper's layout; errors describe what a folder holds instead.

In: paths. Out: text or JSON data, or an error with what was expected and what was found.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradsieve.data.formats import BadRow, file_json, kind_of
from gradsieve.errors import DataError, first_few

LISTED = 5
"""Number of files in a folder that a message lists; the others are counted."""


def missing(what: str, name: str, path: Path, expected: str) -> DataError:
    """The error for a target whose path lacks the files of its task."""
    return DataError(what, f"target {name}: {path}: {_found(path)}", f"Use {expected}.")


def visible(files: Iterable[Path]) -> list[Path]:
    """The files, sorted, without hidden ones such as the `._x` files in archives from macOS."""
    return sorted(file for file in files if not file.name.startswith("."))


def read_text(file: Path) -> str:
    """A file's text, with its line endings unchanged.

    Raises:
        DataError: If it is not UTF-8; names the line.
    """
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        todo = "Save the file as UTF-8."
        raise DataError("The file is not UTF-8 text.", f"{file}:{line}", todo) from None


def read_json(file: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        DataError: If the file holds anything else.
    """
    todo = "Use the published file."
    try:
        value = file_json(file)
    except BadRow as error:
        raise DataError(f"The file cannot be read: {error}.", str(file), todo) from None
    if not isinstance(value, dict):
        raise DataError(f"Expected a JSON object, found {kind_of(value)}.", str(file), todo)
    return value


def shown(row: Any) -> str:
    """A row's columns and the start of their values, for a message; the type of anything else."""
    if not isinstance(row, dict):
        return type(row).__name__
    return ", ".join(f"{key}: {reprlib.repr(value)}" for key, value in row.items()) or "nothing"


def _found(path: Path) -> str:
    if path.is_file():
        return "found a file"
    if not path.is_dir():
        return "no such folder"
    names = sorted(item.name + "/" * item.is_dir() for item in path.iterdir())
    return f"found {first_few(names, LISTED)}" if names else "found an empty folder"
