"""Which target examples contribute to the shown scores, and whether checkpoints agree.

In: the datastores, through `analysis.decompose`. A row's contributions are those of the examples of
the subtask that it was selected for, so they add up to its score for the subtask before
standardization; with `across_subtasks: mean`, those of all examples, divided by the number of
subtasks; with `target_mean: none`, that of the one example that determined the score.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsieve.analysis.bootstrap import Floats, spearman
from gradsieve.analysis.decompose import Contributions, decompose
from gradsieve.methods.base import combine
from gradsieve.report.texts import short
from gradsieve.runs.context import Context
from gradsieve.tasks import Target

SHOWN = 5
"""Maximum positive contributions shown per row, and as many negative ones."""

SAMPLE = 5000
"""Maximum number of rows, drawn at random, for comparing checkpoints."""

TOP = 0.05
"""The share that the paper selects."""

VALUES = 1 << 27
"""Maximum number of values of `Contributions` in memory: half a GiB."""


def overlap_of_top(one: Floats, other: Floats, share: float) -> float:
    """Share of the highest values of `one` that are also among the highest of `other`."""
    count = max(1, round(share * len(one)))
    tops = [set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (one, other)]
    return len(tops[0] & tops[1]) / count


class Decomposition:
    """Decomposes a target's scores by a method for which `can_decompose` is true."""

    def __init__(self, context: Context, target: Target, method: str) -> None:
        self._context, self._target, self._method = context, target.name, method
        self._places = {(e.subtask, e.id): place for place, e in enumerate(target.examples)}
        self._across = context.recipe.score.across_subtasks
        self._by_example = context.recipe.score.target_mean == "none"
        self._checkpoints = len(context.artifacts.warmup.learning_rates)

    def _blocks(self, numbers: NDArray[np.int64]) -> Iterator[Contributions]:
        """Contributions to the rows' scores, in blocks that fit into memory."""
        size = max(1, VALUES // (len(self._places) * self._checkpoints))
        for start in range(0, len(numbers), size):
            block = numbers[start : start + size]
            yield decompose(self._context, self._target, block, self._method)

    def of_rows(
        self, numbers: NDArray[np.int64], wanted: list[tuple[str, str | None]]
    ) -> dict[str, Any]:
        """The strongest [example, contribution] of each row, and its score by checkpoint.

        Args:
            numbers: The rows' numbers in the pool.
            wanted: The subtask of each row's score, and the example that gave it, if just one did.
        """
        strongest, by_checkpoint = [], []
        pairs = iter(wanted)
        for block in self._blocks(numbers):
            columns = self._columns(block)
            for row in range(block.values.shape[1]):
                subtask, example = next(pairs)
                own, scale = columns[subtask]
                if example is not None:
                    own = own[[block.ids[place] == example for place in own]]
                values = block.values[:, row, own] * scale
                strongest.append(self._strongest(values.sum(axis=0), own, block))
                by_checkpoint.append([short(value) for value in values.sum(axis=1).tolist()])
        return {"contributions": strongest, "by_checkpoint": by_checkpoint}

    def _columns(self, block: Contributions) -> dict[str, tuple[NDArray[np.int64], float]]:
        """For each subtask, the examples that make up its rows' scores, and the weight of each."""
        of = np.array(block.subtasks)
        names = sorted(set(block.subtasks))
        if self._across == "mean":
            return dict.fromkeys(names, (np.arange(len(of)), 1 / len(names)))
        return {name: (np.flatnonzero(of == name), 1.0) for name in names}

    def _strongest(
        self, values: NDArray[np.float32], own: NDArray[np.int64], block: Contributions
    ) -> list[list[Any]]:
        order = np.argsort(-values, kind="stable").tolist()
        positive = [place for place in order[:SHOWN] if values[place] > 0]
        negative = [place for place in order[-SHOWN:] if values[place] < 0]
        keys = [(block.subtasks[place], block.ids[place]) for place in own]
        return [
            [self._places[keys[place]], short(float(values[place]))]
            for place in [*positive, *negative]
        ]

    def agreement(
        self, numbers: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> dict[str, Any] | None:
        """Rank correlation and shared top rows between checkpoints, and with the score [n]."""
        if self._checkpoints < 2 or len(numbers) < 2:
            return None
        count = min(SAMPLE, len(numbers))
        drawn = np.sort(np.random.default_rng(0).choice(len(numbers), count, replace=False))
        found = [self._by_subtask(block) for block in self._blocks(numbers[drawn])]
        by_checkpoint = np.concatenate(found, axis=1)
        lists = [*(combine(self._across, (), one).total for one in by_checkpoint), scores[drawn]]
        return {
            "rows": count,
            "spearman": [[short(spearman(one, other)) for other in lists] for one in lists],
            "top": [[short(overlap_of_top(one, other, TOP)) for other in lists] for one in lists],
        }

    def _by_subtask(self, block: Contributions) -> NDArray[np.float32]:
        """Each row's score for each subtask from each single checkpoint [N, n, S].

        With `target_mean: none`, each target example counts as a separate subtask.
        """
        if self._by_example:
            return block.values
        names = sorted(set(block.subtasks))
        member = np.array([[name == of for name in names] for of in block.subtasks], np.float32)
        found: NDArray[np.float32] = block.values @ member
        return found
