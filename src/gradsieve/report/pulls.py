"""Which target examples pull the shown rows in or push them away, and whether checkpoints agree.

In: the datastores, through `analysis.decompose`. A row's parts are those of the examples of the
subtask that it was chosen for, so that they add up to the score that is shown; with
`across_subtasks: mean`, those of all examples, each over the number of subtasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsieve.analysis.decompose import Parts, attribute
from gradsieve.report.examples import Key
from gradsieve.report.numbers import overlap_of_top, short, spearman
from gradsieve.runs.context import Context
from gradsieve.runs.score_table import ScoreTable

TOLD = 5
"""Examples told that pull a row in, and as many that push it away."""

SAMPLE = 5000
"""Rows, drawn once for all, by which checkpoints are compared: at most."""

TOP = 0.05
"""The share that the paper selects."""

VALUES = 1 << 27
"""Values of `Parts` held at a time: half a GiB."""


class Pulls:
    """A target's scores by one method, taken apart.

    Args:
        context: The run.
        target: Name of the target.
        method: One that `can_attribute`.
        examples: Place of each of the target's examples, by (subtask, id).
    """

    def __init__(
        self, context: Context, target: str, method: str, examples: dict[Key, int]
    ) -> None:
        self._context, self._target, self._method = context, target, method
        self._examples = examples
        self._mean = context.recipe.score.across_subtasks == "mean"
        self._checkpoints = len(context.artifacts.warmup.learning_rates)

    def _parts(self, keys: Sequence[Key]) -> Iterator[Parts]:
        """In blocks that fit into memory."""
        size = max(1, VALUES // (len(self._examples) * self._checkpoints))
        context = self._context
        for start in range(0, len(keys), size):
            block = keys[start : start + size]
            yield attribute(context.run, context.recipe, self._target, block, self._method)

    def of_rows(self, keys: Sequence[Key], subtasks: Sequence[str]) -> dict[str, Any]:
        """For each row [example, part] of those told, and its score at each checkpoint."""
        pulls, by_checkpoint = [], []
        wanted = iter(subtasks)
        for parts in self._parts(keys):
            columns = self._columns(parts)
            for row in range(len(parts.keys)):
                own, scale = columns[next(wanted)]
                values = parts.parts[:, row, own] * scale
                pulls.append(self._strongest(values.sum(axis=0), own, parts))
                by_checkpoint.append([short(value) for value in values.sum(axis=1).tolist()])
        return {"pulls": pulls, "by_checkpoint": by_checkpoint}

    def _columns(self, parts: Parts) -> dict[str, tuple[NDArray[np.int64], float]]:
        """Which examples make the score of a row, by its subtask, and times what."""
        of = np.array(parts.subtasks)
        names = sorted(set(parts.subtasks))
        everything = np.arange(len(of))
        if self._mean:
            return dict.fromkeys(names, (everything, 1 / len(names)))
        return {name: (everything[of == name], 1.0) for name in names}

    def _strongest(
        self, values: NDArray[np.float32], own: NDArray[np.int64], parts: Parts
    ) -> list[list[Any]]:
        order = np.argsort(-values, kind="stable").tolist()
        pulling = [place for place in order[:TOLD] if values[place] > 0]
        pushing = [place for place in order[-TOLD:] if values[place] < 0]
        return [
            [
                self._examples[parts.subtasks[own[place]], parts.ids[own[place]]],
                short(float(values[place])),
            ]
            for place in [*pulling, *pushing]
        ]

    def agreement(self, table: ScoreTable) -> dict[str, Any] | None:
        """Rank correlation and shared top rows of checkpoints, and of each with the total."""
        if self._checkpoints < 2 or len(table) < 2:
            return None
        count = min(SAMPLE, len(table))
        drawn = np.sort(np.random.default_rng(0).choice(len(table), count, replace=False))
        keys = [table.key(line) for line in drawn.tolist()]
        found = [self._by_checkpoint(parts) for parts in self._parts(keys)]
        lists = [*np.concatenate(found, axis=1), table.total[drawn]]
        return {
            "rows": count,
            "spearman": [[short(spearman(one, other)) for other in lists] for one in lists],
            "top": [[short(overlap_of_top(one, other, TOP)) for other in lists] for one in lists],
        }

    def _by_checkpoint(self, parts: Parts) -> NDArray[np.float32]:
        """Each row's score from one checkpoint alone [N, n]."""
        names = sorted(set(parts.subtasks))
        member = np.array([[name == of for name in names] for of in parts.subtasks], np.float32)
        by_subtask = parts.parts @ member
        found: NDArray[np.float32] = by_subtask.mean(2) if self._mean else by_subtask.max(2)
        return found
