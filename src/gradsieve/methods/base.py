"""The input and output of a scoring method.

Letters: n examples of the pool, k examples of a target, S its subtasks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradsieve.console import Progress
from gradsieve.data.batching import PoolTokens
from gradsieve.data.content import text_of
from gradsieve.data.examples import Example, Row
from gradsieve.data.pool import Pool
from gradsieve.data.pool.mapped import ExampleKey
from gradsieve.engine import Engine
from gradsieve.recipe.schema import Recipe
from gradsieve.recipe.selecting import AcrossSubtasks

if TYPE_CHECKING:  # takes seconds to import; a table of results doesn't need it
    from gradsieve.models.source import ModelSource

Uses = Literal["data", "model", "gradients", "plain gradients"]
"""What a method needs beyond the data; determines which stages a run needs."""

AT_ONCE = 10_000
"""Number of examples read from the pool at a time."""


@dataclass(frozen=True)
class Features:
    """Where the gradients are stored: one folder and weight per checkpoint.

    The weights are the checkpoints' learning rates, normalized to sum to 1 (eta_i in
    docs/method.md). `exact` names the targets whose exact cosines are stored.
    """

    folders: Sequence[Path]
    weights: Sequence[float]
    exact: Collection[str] = ()


@dataclass(frozen=True)
class ScoringTask:
    """A pool, and the targets to score it for.

    Attributes:
        numbers: Pool row numbers of the examples to score [n], in order of (source, id).
        engine: Runs passes over the pool.
        work: Folder where these passes store results; the stage's other methods reuse them.
        known: Scores of the same examples by other methods, by method and target name.
    """

    pool: Pool
    numbers: NDArray[np.int64]
    targets: Mapping[str, Sequence[Row]]
    recipe: Recipe
    model: ModelSource
    seed: int
    progress: Progress
    engine: Engine
    work: Path
    features: Features | None = None
    known: Mapping[str, Mapping[str, Scores]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def places(self) -> Iterator[slice]:
        """Slices of the examples' positions, `AT_ONCE` at a time."""
        return (slice(start, start + AT_ONCE) for start in range(0, len(self), AT_ONCE))

    def batches(self) -> Iterator[NDArray[np.int64]]:
        """The examples' row numbers, `AT_ONCE` at a time."""
        return (self.numbers[some] for some in self.places())

    def example_keys(self) -> Iterator[ExampleKey]:
        """The examples' keys, in order."""
        return (key for batch in self.batches() for key in self.pool.keys(batch))

    def tokens(self) -> PoolTokens:
        """The tokenized examples, read on access."""
        return PoolTokens(self.pool, self.numbers)

    def texts(self) -> Iterator[str]:
        """The text of all turns of each example, one turn per line."""
        return (text for batch in self.batches() for text in self.pool.texts(batch))


@dataclass(frozen=True)
class ExampleScores:
    """Scores for each target example [n, k], with the example's id and subtask [k]."""

    ids: Sequence[str]
    subtasks: Sequence[str]
    values: NDArray[np.float32]

    def in_order(self, ids: Sequence[str]) -> ExampleScores:
        """The same scores, with the target examples in the order of `ids`."""
        place = {id: number for number, id in enumerate(ids)}
        order = sorted(range(len(self.ids)), key=lambda column: place.get(self.ids[column], -1))
        subtasks = [self.subtasks[column] for column in order]
        return ExampleScores(
            [self.ids[column] for column in order], subtasks, self.values[:, order]
        )


@dataclass(frozen=True)
class Scores:
    """A pool's scores for one target, aligned with the task's `numbers`; higher is better.

    Attributes:
        total: The score that ranks the examples, float32 [n].
        subtasks: Names of the columns; empty for methods that ignore subtasks.
        by_subtask: The score for each subtask, float32 [n, S].
        standardized: `by_subtask` with mean 0 and deviation 1 over the pool, float32 [n, S], if it
            determines the best subtask; 0 for a subtask whose scores are all equal.
        errors: Standard error of each subtask's scores, if known [S].
        spreads: Standard deviation over the pool of the values that `errors` refers to [S]; None
            means that of each subtask's scores.
        examples: Scores for each target example, if requested.
        best_examples: With `target_mean: none`, the id of the target example that gave each
            subtask's score: n rows, one column per subtask.
    """

    total: NDArray[np.float32]
    subtasks: Sequence[str] = ()
    by_subtask: NDArray[np.float32] | None = None
    standardized: NDArray[np.float32] | None = None
    errors: NDArray[np.float64] | None = None
    spreads: NDArray[np.float64] | None = None
    examples: ExampleScores | None = None
    best_examples: pa.Table | None = None

    @property
    def compared(self) -> NDArray[np.float32] | None:
        """The scores by which an example's subtasks are compared [n, S]."""
        return self.by_subtask if self.standardized is None else self.standardized

    @property
    def within(self) -> NDArray[np.float32] | None:
        """The scores by which rows are compared within a subtask [n, S]: `compared` if each row's
        score comes from a single target example.
        """
        return self.by_subtask if self.best_examples is None else self.compared

    @property
    def best(self) -> NDArray[np.int32]:
        """The subtask with each example's highest score [n]; -1 if there are no subtasks."""
        if (compared := self.compared) is None:
            return np.full(len(self.total), -1, dtype=np.int32)
        if self.standardized is not None:  # a subtask whose scores are all equal can't be best
            ranks = compared.any(axis=0)
            compared = np.where(ranks, compared, np.float32(-np.inf)) if ranks.any() else compared
        best: NDArray[np.int32] = compared.argmax(axis=1).astype(np.int32)
        return best


class Method(Protocol):
    """A scoring method.

    Attributes:
        source: Who proposed it, and the settings used here.
        uses: What it needs beyond the data.
        library: Optional: the name of a library that may be missing, checked before a run.
        check: Optional: a function of the recipe that raises an error if settings are wrong.
    """

    source: str
    uses: Uses

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Score the pool for every target."""


def over_examples(
    task: ScoringTask, examples: Sequence[Row], by_example: NDArray[np.float32]
) -> Scores:
    """Scores by subtask, which are means of the scores for each target example [n, k]."""
    subtasks = [row.example.subtask for row in examples]
    of, names = np.array(subtasks), sorted(set(subtasks))
    means = np.stack([by_example[:, of == name].mean(axis=1) for name in names], axis=1)
    found = combine(task.recipe.score.across_subtasks, names, means)
    if task.recipe.select.turns != "examples":
        return found
    ids = [row.example.id for row in examples]
    return replace(found, examples=ExampleScores(ids, subtasks, by_example))


def over_best_examples(
    across: AcrossSubtasks,
    scores: ExampleScores,
    errors: NDArray[np.float64] | None = None,
) -> Scores:
    """Scores that treat each target example as a separate subtask; `errors` are per example [k].

    In each row, a subtask's columns have the values of its best target example for that row.
    """
    flat, of = combine(across, (), scores.values), np.array(scores.subtasks)
    names = sorted(set(scores.subtasks))
    members = [np.flatnonzero(of == name) for name in names]
    by_subtask = np.empty((len(scores.values), len(names)), dtype=np.float32)
    standardized = None if flat.standardized is None else np.empty_like(by_subtask)
    best = {}
    for place, (name, own) in enumerate(zip(names, members, strict=True)):
        part = replace(
            flat,
            by_subtask=scores.values[:, own],
            standardized=None if flat.standardized is None else flat.standardized[:, own],
        )
        chosen = part.best
        for table, values in ((by_subtask, part.by_subtask), (standardized, part.standardized)):
            if table is not None and values is not None:
                table[:, place] = np.take_along_axis(values, chosen[:, None], axis=1)[:, 0]
        ids = [scores.ids[example] for example in own.tolist()]
        best[name] = pa.DictionaryArray.from_arrays(chosen, pa.array(ids, pa.string()))

    def mean_square(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([np.sqrt(np.square(values[own]).mean()) for own in members])

    return replace(
        flat,
        subtasks=names,
        by_subtask=by_subtask,
        standardized=standardized,
        errors=None if errors is None else mean_square(errors),
        spreads=None if errors is None else mean_square(scores.values.std(axis=0, dtype=float)),
        best_examples=pa.table(best),
    )


def by_rank(scores: Scores, order: NDArray[np.int64]) -> Scores:
    """Replace the totals by evenly spaced ones, from 1 down, in the given order, best first [n]."""
    place = np.empty(len(order), dtype=np.float32)
    place[order] = np.arange(len(order))
    return replace(scores, total=1 - place / np.float32(len(order)), examples=None)


def combine(
    across: AcrossSubtasks, subtasks: Sequence[str], by_subtask: NDArray[np.float32]
) -> Scores:
    """Scores whose total is the mean, maximum, or standardized maximum over subtasks."""
    if across == "mean":
        return Scores(by_subtask.mean(axis=1), subtasks, by_subtask)
    found = Scores(by_subtask.max(axis=1), subtasks, by_subtask)
    if across == "max":
        return found
    standardized = standardize(by_subtask)
    found = replace(found, standardized=standardized)
    total = np.take_along_axis(standardized, found.best[:, None], axis=1)[:, 0]
    return replace(found, total=total)


def standardize(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each column to mean 0 and standard deviation 1, or to 0 if its scores are all equal.

    Rows are in order of (source, id) and sums in float64, so only the scores affect the result.
    """
    found = np.zeros_like(scores)
    for column, result in zip(scores.T, found.T, strict=True):
        values = column.astype(np.float64)
        if np.ptp(values) > 0:
            result[:] = (values - values.mean()) / values.std()
    return found


def full_text(example: Example) -> str:
    """The text of all turns of a conversation, one turn per line."""
    return "\n".join(text_of(turn["content"]) for turn in example.messages)
