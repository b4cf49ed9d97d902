"""Reading a benchmark through `datasets`: from the Hugging Face hub, or a folder in its format.

In: a data set's name or folder, a configuration and a split. Out: rows as plain data, in the data
set's order; or an error that names which of the three is missing.

A folder may be a copy of a hub repository (`README.md` with its front matter), Parquet files as
CONFIGURATION/SPLIT*.parquet, or a saved `DatasetDict`, also one for each configuration. No code of
a data set is run: `datasets` has not done so since version 4.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets.exceptions import DatasetGenerationError

from gradsieve.errors import DataError

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""OWNER/NAME; anything else that doesn't exist is a mistyped path."""

SAVED = "dataset_dict.json"
"""What `DatasetDict.save_to_disk` writes."""

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
    patterns = (SAVED, f"*/{SAVED}", "*/*.parquet")
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def read_split(name: str, path: str, config: str, split: str) -> Rows:
    """All rows of a split.

    Args:
        name: The target's name, for messages.
        path: A folder, or the id of a data set on the hub.
        config: A configuration.
        split: A split.

    Raises:
        NotThere: If there is no such configuration or split.
        DataError: If the data set can't be read.
    """
    where = f"target {name}: {path}, configuration {config}, split {split}"
    unreadable = (pa.ArrowException, datasets.exceptions.DatasetsError, yaml.YAMLError)
    try:
        return _rows(path, config, split)
    except (OSError, RuntimeError, ValueError, KeyError, *unreadable) as error:
        reason = _reason(error)
        if reason.startswith(ABSENT):
            what = f"The data set has no such configuration or split: {reason}"
            todo = "Use a copy that has it; docs/targets.md names some."
            raise NotThere(what, where, todo) from None
        raise DataError(f"{_unreadable(path)}: {reason}", where, TODO) from None


ABSENT = ("BuilderConfig", "Unknown split", "Couldn't find cache")
"""How the messages of `datasets` start in that case."""

TODO = (
    "Check the name, the network and HF_HUB_OFFLINE; or use a folder in one of the layouts of "
    "docs/targets.md."
)


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


def _unreadable(path: str) -> str:
    if Path(path).exists():
        return "The data set cannot be read"
    return "There is no such folder, and it cannot be read from the Hugging Face hub"


def _reason(error: Exception) -> str:
    """The message's first line; for unreadable files `datasets` has it in the cause."""
    deeper = error.__cause__ if isinstance(error, DatasetGenerationError) else None
    return str(deeper or error).strip().partition("\n")[0] or type(error).__name__
