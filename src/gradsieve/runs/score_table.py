"""A table of scores, `03-score/TARGET/METHOD.parquet`, and the names of its columns.

The first four are fixed, the others are subtasks by their names. A subtask that is called like one
of the four, or like a marked name, has a mark before its name; no two share a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradsieve.io import atomic

FIXED = ("source", "id", "score", "subtask")
MARK = "subtask:"


def column_of(subtask: str) -> str:
    """The column of a subtask."""
    return MARK + subtask if subtask in FIXED or subtask.startswith(MARK) else subtask


def subtask_of(column: str) -> str:
    """The subtask of a column."""
    return column.removeprefix(MARK)


@dataclass(frozen=True)
class ScoreTable:
    """A target's scores by a method.

    Attributes:
        keys: (source, id) of the rows [n], in that order.
        total: Scores [n].
        best: Name of each row's best subtask [n]; empty names where there is none.
        subtasks: Names of the columns [S].
        by_subtask: Scores [n, S].
    """

    keys: list[tuple[str, str]]
    total: NDArray[np.float32]
    best: list[str]
    subtasks: list[str]
    by_subtask: NDArray[np.float32]

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Lines of the table, best first; equal scores stay in order of (source, id)."""
        return np.argsort(-self.total, kind="stable")

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """Each row's place in that order, from 1."""
        ranks = np.empty(len(self.order), dtype=np.int64)
        ranks[self.order] = np.arange(1, len(ranks) + 1)
        return ranks


def read_scores(file: Path) -> ScoreTable:
    """Read a table."""
    table = pq.read_table(file)
    columns = [name for name in table.column_names if name not in FIXED]
    values = [table[name].to_numpy() for name in columns]
    return ScoreTable(
        list(zip(table["source"].to_pylist(), table["id"].to_pylist(), strict=True)),
        table["score"].to_numpy(),
        table["subtask"].to_pylist(),
        [subtask_of(name) for name in columns],
        np.stack(values, axis=1) if values else np.zeros((table.num_rows, 0), dtype=np.float32),
    )


def write_scores(file: Path, table: ScoreTable) -> None:
    """Write a table."""
    columns = {
        "source": [source for source, _ in table.keys],
        "id": [id for _, id in table.keys],
        "score": table.total,
        "subtask": table.best,
    }
    for index, name in enumerate(table.subtasks):
        columns[column_of(name)] = table.by_subtask[:, index]
    with atomic(file) as temporary:
        pq.write_table(pa.table(columns), temporary)
