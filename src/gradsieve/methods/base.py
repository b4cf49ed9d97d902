"""What a method is given and what it gives back.

Letters: n rows of the pool, k examples of a target, S its subtasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from gradsieve.console import Progress
from gradsieve.data.examples import Example, Row
from gradsieve.recipe.schema import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

Uses = Literal["data", "model", "gradients", "plain gradients"]
"""What a method needs beyond the data: decides which stages a run takes."""


@dataclass(frozen=True)
class Gradients:
    """Where the gradients are, one folder and one weight a checkpoint.

    Attributes:
        folders: `RUN/02-features/checkpoint-i`.
        weights: Mean learning rates, which needn't sum to 1.
        rows: `RUN/02-features/rows.parquet`.
    """

    folders: Sequence[Path]
    weights: Sequence[float]
    rows: Path


@dataclass(frozen=True)
class Problem:
    """A pool and targets to score it for.

    Attributes:
        rows: The pool's usable rows, in order of (source, id).
        targets: Each target's usable examples.
        recipe: All settings.
        seed: Of what is random.
        progress: Where to tell.
        gradients: For methods that use them.
    """

    rows: Sequence[Row]
    targets: Mapping[str, Sequence[Row]]
    recipe: Recipe
    seed: int
    progress: Progress
    gradients: Gradients | None = None


@dataclass(frozen=True)
class Scores:
    """A pool scored for one target: the higher, the sooner a row is taken.

    Attributes:
        keys: (source, id) of each row, in that order.
        total: float32 [n], what rows are ranked by.
        subtasks: Names of the columns; none for methods that look at no subtask.
        by_subtask: float32 [n, S].
    """

    keys: Sequence[tuple[str, str]]
    total: NDArray[np.float32]
    subtasks: Sequence[str] = ()
    by_subtask: NDArray[np.float32] | None = None

    @property
    def best_subtask(self) -> list[str]:
        """The subtask with each row's highest score; empty where there is none."""
        if self.by_subtask is None:
            return [""] * len(self.keys)
        return [self.subtasks[index] for index in self.by_subtask.argmax(axis=1)]


class Method(Protocol):
    """One way to score.

    Attributes:
        source: Who proposed it, and with which settings it is run here.
        uses: What it needs.
        library: Optionally, the name of a library that may be missing and is looked for first.
    """

    source: str
    uses: Uses

    def score(self, problem: Problem) -> dict[str, Scores]:
        """Score the pool for every target."""


def over_subtasks(
    problem: Problem,
    subtasks: Sequence[str],
    by_subtask: NDArray[np.float32],
    keys: Sequence[tuple[str, str]] | None = None,
) -> Scores:
    """Scores whose total is the best (or mean, as the recipe says) over subtasks."""
    best = problem.recipe.score.across_subtasks == "max"
    total = by_subtask.max(axis=1) if best else by_subtask.mean(axis=1)
    return Scores(keys or [row.key for row in problem.rows], total, subtasks, by_subtask)


def mean_by_subtask(
    examples: Sequence[Row], by_example: NDArray[np.float32]
) -> tuple[list[str], NDArray[np.float32]]:
    """Subtasks in alphabetical order, and the mean of their examples' columns: [n, k] to [n, S]."""
    of = np.array([row.example.subtask for row in examples])
    names = sorted(set(of.tolist()))
    columns = [by_example[:, of == name].mean(axis=1) for name in names]
    return names, np.stack(columns, axis=1)


def whole_text(example: Example) -> str:
    """What all turns of a conversation say, a turn a line."""
    return "\n".join(turn["content"] for turn in example.messages)
