"""Forward passes over the pool and the targets, run as tasks of an engine.

In: a function that computes a row for each example. Out: the rows of each target, and those of the
pool in parts, since they may not fit in memory. Each task writes its own file, which survives a
kill and is reused by the stage's other methods; the stage removes the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradsieve.console import Progress
from gradsieve.data.batching import PoolTokens, length_sorted_batches
from gradsieve.data.examples import TokenizedExample
from gradsieve.data.pool import Pool
from gradsieve.engine import Job, Size
from gradsieve.io import atomic, fingerprint, is_whole
from gradsieve.methods.base import ScoringTask
from gradsieve.models.source import ModelSource

MakeRows = Callable[[Any, Sequence[TokenizedExample]], NDArray[Any]]
"""Computes a row for each example with a model. Must be picklable."""

Part = tuple[NDArray[np.int64] | slice, NDArray[Any]]
"""Positions of some of the pool's examples, and one row for each."""

Item = TypeVar("Item")

TASKS_WANTED = 50
ROWS_A_TASK = (64, 4096)
"""Minimum and maximum rows per task, as for feature shards: the work that a kill can lose."""


@dataclass(frozen=True)
class ForwardTask:
    """A file to write, and its examples: a target's, or the numbers of examples of the pool."""

    file: Path
    examples: Sequence[TokenizedExample] | NDArray[np.int64] = field(repr=False)
    tokens: int


@dataclass(frozen=True)
class ForwardJob(Job[ForwardTask, None]):
    """The data that all tasks share."""

    unit = "rows"

    model: ModelSource
    pool: Path
    make: MakeRows
    what: str

    def setup(self, progress: Progress) -> Callable[[ForwardTask], None]:
        """Load the model and map the pool."""
        model, pool = self.model.load().eval(), Pool(self.pool)

        def run(task: ForwardTask) -> None:
            some = task.examples
            examples = PoolTokens(pool, some) if isinstance(some, np.ndarray) else some
            with atomic(task.file, hashed=True) as temporary, temporary.open("wb") as file:
                np.save(file, self.make(model, examples))

        return run

    def size(self, task: ForwardTask) -> Size:
        return Size(len(task.examples), task.tokens)

    def name(self, task: ForwardTask) -> str:
        return f"{self.what}, part {task.file.stem[:8]}"


def forward(
    task: ScoringTask,
    what: str,
    make: MakeRows,
    tokens_per_batch: int,
    targets: Mapping[str, Sequence[TokenizedExample]],
) -> tuple[dict[str, NDArray[Any]], Iterator[Part]]:
    """The rows of each target [k, ...], and those of the pool's examples in parts.

    `what` must be unique to `make`: rows that are already stored under this name, by an earlier
    attempt or another method of the stage, are reused.
    Tasks hold full batches of `tokens_per_batch`, the batch size that `make` uses, so that results
    don't depend on the number of tasks.
    """
    settings = task.model.settings
    own = fingerprint([task.model.fingerprint, settings.dtype, settings.quantization])
    folder = task.work / f"{what.replace(' ', '-')}-{own[:16]}"
    job = ForwardJob(task.model, task.pool.folder, make, what)
    parts = [
        (place, _of_pool(folder, task, task.numbers[place]))
        for place in _parts(task.pool.lengths[task.numbers], tokens_per_batch)
    ]
    of_targets = {name: _of_target(folder, name, some) for name, some in targets.items()}
    tasks = [*(one for _, one in parts), *of_targets.values()]
    missing = [one for one in tasks if not is_whole(one.file)]
    done = sum(len(one.examples) for one in tasks) - sum(len(one.examples) for one in missing)
    for _ in task.engine.map(job, missing, what, done):
        pass
    found = {name: np.load(one.file) for name, one in of_targets.items()}
    return found, ((place, np.load(one.file)) for place, one in parts)


def _parts(lengths: NDArray[np.int32], tokens_per_batch: int) -> Iterator[NDArray[np.int64]]:
    """Positions of full batches, shortest examples first, grouped into tasks."""
    size = int(np.clip(len(lengths) // TASKS_WANTED, *ROWS_A_TASK))
    for some in grouped(length_sorted_batches(lengths, tokens_per_batch), len, size):
        yield np.concatenate(some)


def grouped(parts: Iterable[Item], rows: Callable[[Item], int], least: int) -> Iterator[list[Item]]:
    """Groups of consecutive parts with at least `least` rows each; the last may have fewer."""
    group: list[Item] = []
    for part in parts:
        group.append(part)
        if sum(map(rows, group)) >= least:
            yield group
            group = []
    if group:
        yield group


def _of_pool(folder: Path, task: ScoringTask, numbers: NDArray[np.int64]) -> ForwardTask:
    own = hashlib.sha256(task.pool.column("content_hash")[numbers].tobytes()).hexdigest()
    tokens = int(task.pool.lengths[numbers].sum())
    return ForwardTask(folder / f"{own[:32]}.npy", numbers, tokens)


def _of_target(folder: Path, name: str, examples: Sequence[TokenizedExample]) -> ForwardTask:
    own = fingerprint([name, [one.input_ids.tolist() for one in examples]])
    tokens = sum(len(one.input_ids) for one in examples)
    return ForwardTask(folder / f"{own[:32]}.npy", examples, tokens)
