"""A table of scores, `03-score/TARGET/METHOD.parquet`, and the names of its columns.

The first four columns are fixed. The others are named after subtasks: `SUBTASK` for its scores,
`standardized:SUBTASK` if subtasks are compared by standardized scores, `best_example:SUBTASK` (an
id) if a subtask's score is that of its best target example, and `example:NUMBER:SUBTASK/ID` if
target examples take turns. A subtask named like a fixed column, or with one of these prefixes, gets
the prefix `subtask:`, so that no two share a column.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradsieve.data.pool import Pool
from gradsieve.data.pool.mapped import ExampleKey
from gradsieve.errors import RunError
from gradsieve.io import atomic
from gradsieve.methods.base import ExampleScores, Scores

FIXED = ("source", "id", "score", "subtask")
MARK = "subtask:"
STANDARDIZED = "standardized:"
BEST_EXAMPLE = "best_example:"
EXAMPLE = "example:"
MARKED = (MARK, STANDARDIZED, BEST_EXAMPLE, EXAMPLE)


def column_of(subtask: str) -> str:
    """The column name of a subtask."""
    taken = subtask in FIXED or subtask.startswith(MARKED)
    return MARK + subtask if taken else subtask


def subtask_of(column: str) -> str:
    """The subtask that a column is named after."""
    return column.removeprefix(MARK)


@dataclass(frozen=True)
class ScoreTable:
    """A target's scores by a method, one line per scored example, in order of (source, id).

    Attributes:
        keys: Columns `source` and `id` [n].
        total: Scores, float32 [n].
        best: Each example's best subtask, an index into `subtasks`; -1 if none. int32 [n].
        subtasks: Names of the subtasks [S].
        by_subtask: Scores, float32 [n, S].
        standardized: The same with mean 0 and standard deviation 1, if they decide `best`.
        best_examples: Ids of the target examples behind these scores, one column per subtask, if
            each score comes from a single example.
    """

    keys: pa.Table
    total: NDArray[np.float32]
    best: NDArray[np.int32]
    subtasks: list[str]
    by_subtask: NDArray[np.float32]
    standardized: NDArray[np.float32] | None = None
    best_examples: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.total)

    @property
    def compared(self) -> NDArray[np.float32]:
        """The scores by which an example's subtasks are compared, float32 [n, S]."""
        return self.by_subtask if self.standardized is None else self.standardized

    @property
    def within(self) -> NDArray[np.float32]:
        """The scores by which rows are compared within a subtask, as in `Scores.within`."""
        return self.by_subtask if self.best_examples is None else self.compared

    def best_example(self, line: int, column: int) -> str | None:
        """Id of the target example that a line's score for a subtask comes from, if any."""
        if self.best_examples is None:
            return None
        id: str = self.best_examples[column][int(line)].as_py()
        return id

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Lines of the table, best first; equal scores stay in order of (source, id)."""
        return np.argsort(-self.total, kind="stable")

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """Each line's rank in `order`, from 1."""
        ranks = np.empty(len(self), dtype=np.int64)
        ranks[self.order] = np.arange(1, len(ranks) + 1)
        return ranks

    def key(self, line: int) -> ExampleKey:
        """The key of a line."""
        return ExampleKey(*(self.keys[name][int(line)].as_py() for name in ExampleKey._fields))

    def subtask(self, line: int) -> str:
        """The best subtask of a line; empty if there is none."""
        best = int(self.best[line])
        return "" if best < 0 else self.subtasks[best]

    def find(self, source: str, id: str) -> int | None:
        """The line of an example; None if it has no score."""
        wanted = ExampleKey(source, id)
        line = bisect_left(range(len(self)), wanted, key=self.key)
        return line if line < len(self) and self.key(line) == wanted else None

    def numbers(self, pool: Pool) -> NDArray[np.int64]:
        """Each line's row number in the pool [n]; -1 where the pool lacks the example."""
        usable = pool.usable
        if pool.take(usable, self.keys.column_names).equals(self.keys):  # the usual case
            return usable
        return pool.locate(self.keys)

    def numbers_in(self, pool: Pool) -> NDArray[np.int64]:
        """Each line's row number in the pool [n].

        Raises:
            RunError: If the pool lacks an example: it has changed since the scores were made.
        """
        numbers = self.numbers(pool)
        lost = np.flatnonzero(numbers < 0)
        if len(lost):
            first = self.key(int(lost[0]))
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise RunError(
                "The pool no longer has rows that the scores are of.",
                f"03-score: {first.source} {first.id}{more}",
                "Run `gradsieve run` with this recipe: it scores the rows that are there now.",
            )
        return numbers


def read_scores(file: Path) -> ScoreTable:
    """Read a table."""
    with pq.ParquetFile(file) as opened:
        columns = [name for name in opened.schema_arrow.names if name not in FIXED]
        raw = [name for name in columns if not name.startswith(MARKED[1:])]
        standardized = [name for name in columns if name.startswith(STANDARDIZED)]
        best_examples = [name for name in columns if name.startswith(BEST_EXAMPLE)]
        values, compared = _matrix(opened, raw), _matrix(opened, standardized)
        fixed, ids = opened.read(list(FIXED)), opened.read(best_examples)
    subtasks = [subtask_of(name) for name in raw]
    best = pc.index_in(fixed["subtask"], pa.array(subtasks, pa.string()))
    return ScoreTable(
        fixed.select(["source", "id"]),
        fixed["score"].to_numpy(),
        pc.fill_null(best, -1).to_numpy(),
        subtasks,
        values,
        compared if standardized else None,
        ids if best_examples else None,
    )


def _matrix(opened: pq.ParquetFile, columns: list[str]) -> NDArray[np.float32]:
    values = np.empty((opened.metadata.num_rows, len(columns)), dtype=np.float32)
    for index, name in enumerate(columns):  # one at a time: MMLU has 57 subtasks
        values[:, index] = opened.read([name])[name].to_numpy()
    return values


def read_example_scores(file: Path) -> ExampleScores | None:
    """Read the scores for each target example; None if the table has none."""
    with pq.ParquetFile(file) as opened:
        fields = [field for field in opened.schema_arrow if field.name.startswith(EXAMPLE)]
        values = _matrix(opened, [field.name for field in fields])
    facts = [field.metadata for field in fields]
    ids, subtasks = ([fact[key].decode() for fact in facts] for key in (b"id", b"subtask"))
    return ExampleScores(ids, subtasks, values) if fields else None


def write_scores(file: Path, keys: pa.Table, scores: Scores) -> None:
    """Write a method's scores; `keys` has the columns `source` and `id` [n]."""
    names = pa.array([*scores.subtasks, ""], pa.string())
    columns = {
        "source": keys["source"],
        "id": keys["id"],
        "score": scores.total,
        "subtask": names.take(pa.array(scores.best % len(names))),
    }
    if scores.by_subtask is not None:
        for name, values in zip(scores.subtasks, scores.by_subtask.T, strict=True):
            columns[column_of(name)] = values
    if scores.standardized is not None:
        for name, values in zip(scores.subtasks, scores.standardized.T, strict=True):
            columns[STANDARDIZED + name] = values
    if scores.best_examples is not None:
        for name, ids in zip(scores.subtasks, scores.best_examples.columns, strict=True):
            columns[BEST_EXAMPLE + name] = ids
    found = pa.table(columns)
    if (examples := scores.examples) is not None:
        for index, (id, subtask) in enumerate(zip(examples.ids, examples.subtasks, strict=True)):
            name = f"{EXAMPLE}{index + 1}:{subtask}/{id}"
            field = pa.field(name, pa.float32(), metadata={"id": id, "subtask": subtask})
            found = found.append_column(field, pa.array(examples.values[:, index]))
    with atomic(file, hashed=True) as temporary:
        pq.write_table(found.combine_chunks(), temporary)
