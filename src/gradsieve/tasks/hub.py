"""Reading a benchmark through `datasets`: from the Hugging Face hub, or a folder in its format.

In: a data set's name or folder, a configuration and a split. Out: rows as plain data, in the data
set's order; or an error that names which of the three is missing.

A folder may be a copy of a hub repository (`README.md` with its front matter), Parquet files as
CONFIGURATION/SPLIT*.parquet, or a saved `DatasetDict`, or one per configuration. Data set scripts
are never run: `datasets` has not supported them since version 4.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError

from gradsieve.data.readers import UNREADABLE
from gradsieve.errors import DataError, first_line
from gradsieve.tasks.layout import shown

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""OWNER/NAME; any other name that doesn't exist is treated as a mistyped path."""

SAVED = "dataset_dict.json"
"""The file by which a folder written by `DatasetDict.save_to_disk` is recognized."""

ABSENT = ("BuilderConfig", "Unknown split", "Couldn't find cache")
"""Prefixes of the messages of `datasets` for a missing configuration or split."""

Rows = list[dict[str, Any]]


class NotThere(DataError):
    """The data set exists, but has no such configuration or split."""


def is_data_set(path: str) -> bool:
    """Whether `datasets` can read a path that lacks the paper's layout."""
    folder = Path(path)
    if not folder.exists():
        return NAME.fullmatch(path) is not None
    card = folder / "README.md"
    if card.is_file() and card.read_bytes().startswith(b"---"):
        return True
    return any(any(folder.glob(pattern)) for pattern in (SAVED, f"*/{SAVED}", "*/*.parquet"))


def place(name: str, path: str, config: str, split: str) -> str:
    """Describes a split of a target's data set, for messages."""
    return f"target {name}: {path}, configuration {config}, split {split}"


def read_split(name: str, path: str, config: str, split: str) -> Rows:
    """All rows of a split.

    Raises:
        NotThere: If there is no such configuration or split.
        DataError: If the data set can't be read.
    """
    where = place(name, path, config, split)
    try:
        return _rows(path, config, split)
    except UNREADABLE as error:
        # For unreadable files, the message of `datasets` is in the cause.
        deeper = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        reason = first_line(deeper or error)
        if reason.startswith(ABSENT):
            what = f"The data set has no such configuration or split: {reason}"
            todo = "Use a copy that has it; docs/targets.md names some."
            raise NotThere(what, where, todo) from None
        todo = (
            "Use a folder in one of the layouts of docs/targets.md; or, for a data set on the "
            "Hugging Face hub, check the name, the network and HF_HUB_OFFLINE."
        )
        raise DataError(f"The data set cannot be read: {reason}", where, todo) from None


def _rows(path: str, config: str, split: str) -> Rows:
    folder = Path(path)
    for saved in (folder / config, folder):
        if (saved / SAVED).is_file():
            splits = datasets.load_from_disk(str(saved))
            if split not in splits:
                raise ValueError(f"Unknown split {split}. Should be one of {', '.join(splits)}.")
            return list(splits[split])
    if files := sorted((folder / config).glob(f"{split}*.parquet")):
        return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
    return list(datasets.load_dataset(path, config, split=split))


def other_columns(expected: str, where: str, row: dict[str, Any], on_hub: str) -> DataError:
    """The error for a row without a benchmark's columns."""
    what, todo = f"Expected columns {expected}.", f"Use {on_hub} or a copy of it."
    return DataError(what, f"{where}: found {shown(row)}", todo)
