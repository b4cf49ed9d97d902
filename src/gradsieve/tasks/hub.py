"""Reading a benchmark through `datasets`: from the Hugging Face hub, or a folder in its format.

In: a data set's name or folder, a configuration and a split. Out: rows as plain data, in the order
they come; or an error that says which of the three is not there.

A folder may be a copy of a hub repository (`README.md` with its front matter), Parquet files as
CONFIGURATION/SPLIT*.parquet, or a saved `DatasetDict`, also one for each configuration. No code
that comes with data is run: `datasets` has not done so since its version 4.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from gradsieve.errors import DataError

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""OWNER/NAME; anything else that isn't there is a path with a mistake in it."""

SAVED = "dataset_dict.json"
"""What `DatasetDict.save_to_disk` writes."""

Rows = list[dict[str, Any]]


class NotThere(DataError):
    """The data set is there, but has no such configuration or split."""


def is_data_set(path: str) -> bool:
    """Whether a path that doesn't hold the paper's layout is one for `datasets`."""
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
        name: The target's, for messages.
        path: Of the data set: a folder or a name on the hub.
        config: The configuration.
        split: One of its splits.

    Raises:
        NotThere: If it has no such configuration or split.
        DataError: If the data set can't be read at all.
    """
    import datasets
    import pyarrow as pa

    where = f"target {name}: {path}, configuration {config}, split {split}"
    unreadable = (pa.ArrowException, datasets.exceptions.DatasetsError, yaml.YAMLError)
    try:
        return _rows(path, config, split)
    except (OSError, RuntimeError, ValueError, KeyError, *unreadable) as error:
        said = _said(error)
        if said.startswith(ABSENT):
            what = f"The data set has no such configuration or split: {said}"
            todo = "Give a copy that has it; docs/targets.md names some."
            raise NotThere(what, where, todo) from None
        raise DataError(f"{_unreadable(path)}: {said}", where, TODO) from None


ABSENT = ("BuilderConfig", "Unknown split", "Couldn't find cache")
"""How `datasets` begins to say so."""

TODO = (
    "Check the name, the network and HF_HUB_OFFLINE; or give a folder: docs/targets.md says what "
    "it may hold."
)


def _rows(path: str, config: str, split: str) -> Rows:
    import datasets
    import pyarrow.parquet as pq

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
    return "This is no folder here, and it cannot be read from the Hugging Face hub"


def _said(error: Exception) -> str:
    """The first line of what is wrong; `datasets` has it one deeper for files it can't read."""
    from datasets.exceptions import DatasetGenerationError

    deeper = error.__cause__ if isinstance(error, DatasetGenerationError) else None
    return str(deeper or error).strip().partition("\n")[0] or type(error).__name__
