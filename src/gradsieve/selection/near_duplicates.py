"""Near duplicates: examples whose update has almost the same direction as that of a better one.

In: lines in the order in which they are considered. Out: why a line is passed over. Each line must
be compared with all lines kept before it. Instead of comparing them one by one, the next lines are
compared in one batch with the kept lines and with one another. An engine distributes this over
parts of the datastore; only near pairs are returned.

Rejected: keeping the kept rows in memory (1.6 GB for 50,000 rows at 8192 dims, and each line would
read all of it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsieve.console import Progress
from gradsieve.data.pool import Pool
from gradsieve.engine import Engine, Job, Size
from gradsieve.methods.comparison import unit
from gradsieve.methods.forward import grouped
from gradsieve.store import Store, Wanted, open_store
from gradsieve.store.reader import Similarities

AHEAD = 2048
"""Number of lines compared at a time; at 8192 dims their rows take 64 MiB."""

TASK_ROWS = 4096
"""Rows per task: a few seconds on one core."""

SAME = 1 - 1e-4
"""The highest threshold in use: with 4-bit codes, equal rows have cosines up to 2e-5 below 1."""

PAIR = np.dtype([("other", np.int64), ("row", np.int64), ("cosine", np.float32)])
"""The datastore positions of two near rows, and their cosine."""

NONE = np.empty(0, PAIR)


class NearDuplicates:
    """A check for `choose`. It assumes that every line that passes it is kept.

    Args:
        numbers: The pool's row number of each line [n].
        ahead: Returns up to n lines that will be considered next.
        cosine: The lowest cosine at which two rows are near duplicates.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        pool: Pool,
        numbers: NDArray[np.int64],
        ahead: Callable[[int], NDArray[np.int64]],
        cosine: float,
    ) -> None:
        self._engine, self._store, self._pool = engine, store, pool
        self._cosine = min(cosine, SAME)
        self._numbers, self._ahead = numbers, ahead
        self._kept: dict[int, int] = {}  # lines by datastore position
        self._coming: dict[int, int] = {}  # positions by line, of lines looked up; -1: not stored
        self._near: dict[int, NDArray[Any]] = {}  # pairs by these lines' positions

    def __call__(self, line: int) -> str | None:
        """Why a line is passed over; None if it is kept."""
        if line not in self._coming:
            self._look_ahead(line)
        position = self._coming[line]
        if position < 0:  # it has no gradient to compare
            return None
        own = self._near.get(position, NONE).tolist()
        near = [(cosine, row) for _, row, cosine in own if row in self._kept]
        if not near:
            self._kept[position] = line
            return None
        cosine, nearest = max(near)
        ((source, id),) = self._pool.keys(self._numbers[[self._kept[nearest]]])
        return f"near_duplicates: cosine {cosine:.3f} with {source} {id}"

    def _look_ahead(self, line: int) -> None:
        lines = np.concatenate([[line], self._ahead(AHEAD)])
        positions = self._store.positions(self._pool.store_keys(self._numbers[lines]))
        self._coming = dict(zip(lines.tolist(), positions.tolist(), strict=True))
        coming = np.unique(positions[positions >= 0])
        if not len(coming):
            return
        job = NearJob(str(self._store.folder), coming, unit(self._store.read(coming)), self._cosine)
        wanted = self._store.wanted(np.concatenate([coming, np.array([*self._kept], np.int64)]))
        tasks = grouped(wanted, lambda one: len(one[1]), TASK_ROWS)
        pairs = np.sort(np.concatenate([*self._engine.map(job, [*tasks])]), order="other")
        others, starts = np.unique(pairs["other"], return_index=True)
        self._near = dict(zip(others.tolist(), np.split(pairs, starts[1:]), strict=False))


@dataclass(frozen=True)
class NearJob(Job[Wanted, NDArray[Any]]):
    """Finds the rows of a datastore that are near the rows at `positions` [a].

    `directions` are the latter rows' features with length 1 [a, d].
    """

    unit = "rows"

    store: str
    positions: NDArray[np.int64] = field(repr=False)
    directions: NDArray[np.float32] = field(repr=False)
    cosine: float

    def setup(self, progress: Progress) -> Callable[[Wanted], NDArray[Any]]:
        """Open the datastore without reading its index."""
        store = open_store(self.store)

        def run(rows: Wanted) -> NDArray[Any]:
            parts = store.similarities(self.directions, rows)
            return np.concatenate([self._pairs(part) for part in parts])

        return run

    def _pairs(self, part: Similarities) -> NDArray[Any]:
        row, other = np.nonzero(part.cosines >= self.cosine)
        pairs = np.empty(len(row), PAIR)
        pairs["other"], pairs["row"] = self.positions[other], part.positions[row]
        pairs["cosine"] = part.cosines[row, other]
        return pairs

    def size(self, task: Wanted) -> Size:
        """The number of rows to read."""
        return Size(sum(len(positions) for _, positions in task))

    def name(self, task: Wanted) -> str:
        """Its first shard."""
        return f"near duplicates from {task[0][0].name} on"
