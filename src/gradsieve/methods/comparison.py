"""Similarities of a datastore's rows to a target's gradients, computed here or by workers.

In: a datastore of one checkpoint, a `Comparison`, and the rows. Out: blocks of rows in order of
position, the same blocks with any engine. An engine with several workers gets groups of shards;
each worker reads its shards and writes a file, which this process reads and removes.

Letters: m rows, S columns (subtasks, or target examples), d dims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradsieve.console import Progress
from gradsieve.engine import Job, LocalEngine, Size
from gradsieve.io import atomic
from gradsieve.methods.base import ScoringTask
from gradsieve.methods.forward import grouped
from gradsieve.store import Shard, Store, Wanted, open_store
from gradsieve.store.quantize import TINY

TASK_ROWS = 1 << 16
"""Rows per task: about one second on one core."""


class Column(NamedTuple):
    """What a column of scores is for: a subtask of a target, or one of its examples by id."""

    target: str
    subtask: str
    example: str | None = None


class Part(NamedTuple):
    """Some rows: their positions [m], similarities [m, S], and the variance of the similarities
    due to projection, summed over the rows [S].
    """

    positions: NDArray[np.int64]
    similarities: NDArray[np.float32]
    variances: NDArray[np.float64] | float = 0.0


@dataclass(frozen=True)
class Directions:
    """Cosines or inner products with directions [S, d]."""

    columns: Sequence[Column]
    directions: NDArray[np.float32]
    cosine: bool

    def parts(self, store: Store, rows: Wanted) -> Iterator[Part]:
        """Similarities with their variance due to a projection to d dims.

        The variance of an inner product of x and y is (|x|^2 |y|^2 + <x,y>^2) / d. Lengths are
        those of the projected vectors, which estimate the lengths of the original vectors.
        """
        projection: dict[str, Any] = store.settings["projection"]
        dims = None if projection["kind"] == "none" else int(projection["dim"])
        squares = np.square(self.directions, dtype=np.float64).sum(axis=1)
        for found in store.similarities(self.directions, rows, store.balanced):
            values = found.cosines
            lengths: NDArray[Any] = found.feature_norms
            if self.cosine:
                lengths = lengths / np.maximum(found.norms, TINY)
            else:
                values = values * found.norms[:, None]
            variances: NDArray[np.float64] | float = 0.0
            if dims:
                both = np.square(lengths, dtype=np.float64).sum() * squares
                variances = (both + np.square(values, dtype=np.float64).sum(axis=0)) / dims
            yield Part(found.positions, values, variances)


@dataclass(frozen=True)
class Subspaces:
    """Cosines with directions, both projected to the subspace of the column's target.

    Attributes:
        bases: An orthonormal basis of each target's subspace [r, d].
        inside: The directions of each target's columns, projected to its subspace, with length 1.
    """

    columns: Sequence[Column]
    bases: Mapping[str, NDArray[np.float32]]
    inside: Mapping[str, NDArray[np.float32]]

    def parts(self, store: Store, rows: Wanted) -> Iterator[Part]:
        """Similarities, without variances."""
        owners = np.array([column.target for column in self.columns])
        ends = np.cumsum([len(basis) for basis in self.bases.values()])
        together = np.concatenate([*self.bases.values()])
        for found in store.similarities(together, rows):
            values = np.empty((len(found.positions), len(self.columns)), dtype=np.float32)
            split = np.split(found.cosines, ends[:-1], axis=1)
            for target, own in zip(self.bases, split, strict=True):
                values[:, owners == target] = unit(own) @ self.inside[target].T
            yield Part(found.positions, values)


@dataclass(frozen=True)
class Stored:
    """The cosines that exact mode has stored: each row's values are its columns."""

    columns: Sequence[Column]

    def parts(self, store: Store, rows: Wanted) -> Iterator[Part]:
        for block in store.shards(rows):
            yield Part(block.positions, block.rows)


Comparison = Directions | Subspaces | Stored
"""What the rows of one datastore are compared with; `parts` yields one part per shard."""


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1; rows of length 0 stay unchanged."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    found: NDArray[np.float32] = (rows / np.where(norms > 0, norms, 1)).astype(np.float32)
    return found


def compare(
    task: ScoringTask, what: str, store: Store, comparison: Comparison, rows: NDArray[np.int64]
) -> Iterator[Part]:
    """Similarities of the rows at the positions `rows`, in order of position.

    Raises:
        StoreError: If a shard is damaged.
    """
    wanted = store.wanted(rows)
    if isinstance(task.engine, LocalEngine):
        done = 0
        with task.progress.counting(what, len(rows), "rows") as report:
            for part in comparison.parts(store, wanted):
                done += len(part.positions)
                yield part
                report(done)
        return
    tasks = [
        ComparisonTask(task.work / "similarities" / f"{number}.npz", group)
        for number, group in enumerate(grouped(wanted, _rows, TASK_ROWS))
    ]
    job = ComparisonJob(str(store.folder), comparison)
    for _ in task.engine.map(job, tasks, what):
        pass
    for one in tasks:
        yield from one.parts()
        one.file.unlink()


@dataclass(frozen=True)
class ComparisonTask:
    """Rows of some shards, and the file to write their similarities to."""

    file: Path
    rows: Wanted = field(repr=False)

    def parts(self) -> Iterator[Part]:
        """Read the written file, shard by shard."""
        ends = np.cumsum([*map(_rows, self.rows)])
        with np.load(self.file) as found:
            similarities, variances = found["similarities"], found["variances"]
        for (_, positions), some, variance in zip(
            self.rows, np.split(similarities, ends[:-1]), variances, strict=True
        ):
            yield Part(positions, some, variance)


@dataclass(frozen=True)
class ComparisonJob(Job[ComparisonTask, None]):
    """The data that all tasks share."""

    unit = "rows"

    store: str
    comparison: Comparison

    def setup(self, progress: Progress) -> Callable[[ComparisonTask], None]:
        """Open the datastore without reading its index."""
        store = open_store(self.store)

        def run(task: ComparisonTask) -> None:
            parts = list(self.comparison.parts(store, task.rows))
            with atomic(task.file) as temporary, temporary.open("wb") as file:
                similarities = np.concatenate([part.similarities for part in parts])
                variances = np.array([part.variances for part in parts])
                np.savez(file, similarities=similarities, variances=variances)

        return run

    def size(self, task: ComparisonTask) -> Size:
        return Size(sum(map(_rows, task.rows)))

    def name(self, task: ComparisonTask) -> str:
        store = "/".join(Path(self.store).parts[-2:])
        return f"similarities of {store}, part {int(task.file.stem) + 1}"


def _rows(wanted: tuple[Shard, NDArray[np.int64]]) -> int:
    return len(wanted[1])
