"""What a method takes and returns.

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
from gradsieve.recipe.schema import AcrossSubtasks, Recipe

if TYPE_CHECKING:  # takes seconds to import, which a table of results does without
    from gradsieve.models.source import ModelSource

Uses = Literal["data", "model", "gradients", "plain gradients"]
"""What a method needs beyond the data: decides which stages a run takes."""

AT_ONCE = 10_000
"""Examples that are read from the pool at a time."""


@dataclass(frozen=True)
class Features:
    """Where the gradients are, one folder and learning rate per checkpoint.

    `exact` names the targets whose exact cosines are stored.
    """

    folders: Sequence[Path]
    weights: Sequence[float]
    exact: Collection[str] = ()


@dataclass(frozen=True)
class ScoringTask:
    """A pool, and targets to score it for.

    Attributes:
        numbers: Of the examples to score [n], in order of (source, id).
        engine: Runs passes over the pool; None: this process.
        work: Where these keep what they have done; None: a temporary folder.
        known: Scores of the same examples by other methods, by their names and the targets'.
    """

    pool: Pool
    numbers: NDArray[np.int64]
    targets: Mapping[str, Sequence[Row]]
    recipe: Recipe
    model: ModelSource
    seed: int
    progress: Progress
    features: Features | None = None
    engine: Engine | None = None
    work: Path | None = None
    known: Mapping[str, Mapping[str, Scores]] = field(default_factory=dict)

    @property
    def weights(self) -> list[float]:
        """The checkpoints' learning rates, which sum to 1: eta_i of the method."""
        rates = np.array(self.features.weights if self.features else (), dtype=np.float64)
        return list((rates / rates.sum()).tolist())

    def __len__(self) -> int:
        return len(self.numbers)

    def places(self) -> Iterator[slice]:
        """Positions of the examples, some thousands at a time."""
        return (slice(start, start + AT_ONCE) for start in range(0, len(self), AT_ONCE))

    def batches(self) -> Iterator[NDArray[np.int64]]:
        """The numbers, some thousands at a time."""
        return (self.numbers[some] for some in self.places())

    def example_keys(self) -> Iterator[ExampleKey]:
        """The examples' keys, in order."""
        return (key for batch in self.batches() for key in self.pool.keys(batch))

    def tokens(self) -> PoolTokens:
        """The tokenized examples, read when they are asked for."""
        return PoolTokens(self.pool, self.numbers)

    def texts(self) -> Iterator[str]:
        """What all turns of each example say, a turn a line."""
        return (text for batch in self.batches() for text in self.pool.texts(batch))


@dataclass(frozen=True)
class ExampleScores:
    """Scores for each target example [n, k], with the example's id and subtask [k]."""

    ids: Sequence[str]
    subtasks: Sequence[str]
    values: NDArray[np.float32]

    def in_order(self, ids: Sequence[str]) -> ExampleScores:
        """The same in the order of these ids."""
        place = {id: number for number, id in enumerate(ids)}
        order = sorted(range(len(self.ids)), key=lambda column: place.get(self.ids[column], -1))
        subtasks = [self.subtasks[column] for column in order]
        return ExampleScores(
            [self.ids[column] for column in order], subtasks, self.values[:, order]
        )


@dataclass(frozen=True)
class Scores:
    """A pool scored for one target, aligned with the task's `numbers`: higher is better.

    Attributes:
        total: float32 [n], by which examples are ranked.
        subtasks: Names of the columns; none for methods that look at no subtask.
        by_subtask: float32 [n, S].
        standardized: The same with mean 0 and deviation 1 over the pool, float32 [n, S], if the
            best subtask is found by these; 0 for a subtask whose scores are all equal.
        errors: Standard error of each subtask's scores, if it is known [S].
        spreads: Standard deviation over the pool of what has these errors [S]; None: of each
            subtask's scores.
        examples: Scores for each target example, if they are wanted.
        best_examples: With `target_mean: none` the id of the target example that gave each
            subtask's score: n rows, a column for each subtask.
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
        """By which an example's subtasks are compared [n, S]."""
        return self.by_subtask if self.standardized is None else self.standardized

    @property
    def within(self) -> NDArray[np.float32] | None:
        """By which rows are compared within a subtask [n, S]: as its examples are, if each row was
        scored by one of them.
        """
        return self.by_subtask if self.best_examples is None else self.compared

    @property
    def best(self) -> NDArray[np.int32]:
        """The subtask with each example's highest score [n]; -1 where there is none."""
        if (compared := self.compared) is None:
            return np.full(len(self.total), -1, dtype=np.int32)
        if self.standardized is not None:  # a subtask whose scores are all equal ranks nothing
            ranks = compared.any(axis=0)
            compared = np.where(ranks, compared, np.float32(-np.inf)) if ranks.any() else compared
        best: NDArray[np.int32] = compared.argmax(axis=1).astype(np.int32)
        return best


class Method(Protocol):
    """One way to score.

    Attributes:
        source: Who proposed it, and with which settings it is run here.
        uses: What it needs.
        library: Optionally, the name of a library that may be missing and is looked for first.
        check: Optionally, a function of the recipe that raises what is wrong with its settings.
    """

    source: str
    uses: Uses

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Score the pool for every target."""


def over_examples(
    task: ScoringTask, examples: Sequence[Row], by_example: NDArray[np.float32]
) -> Scores:
    """Scores for subtasks that are means over their examples, from scores for each [n, k]."""
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
    """Scores for which each target example is a subtask of its own; `errors` are by example [k].

    A subtask's columns are those of its best example, row by row.
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
    """The same examples in another order, best first [n]: totals fall evenly from 1."""
    place = np.empty(len(order), dtype=np.float32)
    place[order] = np.arange(len(order))
    return replace(scores, total=1 - place / np.float32(len(order)), examples=None)


def combine(
    across: AcrossSubtasks, subtasks: Sequence[str], by_subtask: NDArray[np.float32]
) -> Scores:
    """Scores whose total is the maximum or the mean over subtasks."""
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
    """Each column with mean 0 and standard deviation 1; 0 where all its scores are equal.

    Rows are in order of (source, id) and sums in float64, so nothing else changes the result.
    """
    found = np.zeros_like(scores)
    for column, result in zip(scores.T, found.T, strict=True):
        values = column.astype(np.float64)
        if np.ptp(values) > 0:
            result[:] = (values - values.mean()) / values.std()
    return found


def full_text(example: Example) -> str:
    """What all turns of a conversation say, a turn a line."""
    return "\n".join(text_of(turn["content"]) for turn in example.messages)
