"""The files that let `datasets.load_from_disk` load a pool: state.json and dataset_info.json.

`datasets` itself writes them only together with a copy of the rows (`Dataset.save_to_disk`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Features

from gradsieve.data.pool.chunks import SCHEMA
from gradsieve.io import write_json


def write_state(folder: Path, files: Sequence[str], identity: str) -> None:
    """Name the files of a pool's rows; written last.

    Args:
        folder: Of the pool.
        files: Within its `dataset/`, in order.
        identity: Changes if the rows do.
    """
    write_json(
        folder / "dataset" / "dataset_info.json",
        {"features": Features.from_arrow_schema(SCHEMA).to_dict()},
    )
    state: dict[str, Any] = {
        "_data_files": [{"filename": file} for file in files],
        "_fingerprint": identity,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(_state_file(folder), state)


def read_state(folder: Path) -> dict[str, Any] | None:
    """What `write_state` wrote; None if there is nothing to be read."""
    try:
        state: dict[str, Any] = json.loads(_state_file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state


def _state_file(folder: Path) -> Path:
    return folder / "dataset" / "state.json"
