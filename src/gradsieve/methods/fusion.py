"""Rank fusion: a row's score is the sum over methods of 1 / (60 + its rank by the method).

Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009, with their k of 60). It uses only
ranks, so methods whose scores have different scales can be combined. For a subtask (or a target
example, if these take turns) a method's ranks are by its score for the subtask, or by its total
score if it has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradsieve.methods import score_by, split_seed
from gradsieve.methods.base import ExampleScores, Scores, ScoringTask, Uses

K = 60
"""Cormack et al.: "k = 60 was fixed during a pilot investigation"."""


class Fusion:
    """Combines the methods in `score.fusion`, and needs what they need."""

    source = "reciprocal rank fusion of score.fusion (Cormack et al., SIGIR 2009), k 60"
    uses: Uses = "data"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Reuse known scores; compute those of the other methods first."""
        found = [
            task.known[name] if name in task.known
            else score_by(name, replace(task, seed=split_seed(name)[1]))
            for name in task.recipe.score.fusion
        ]  # fmt: skip
        return {target: fuse([scores[target] for scores in found]) for target in task.targets}


def fuse(parts: Sequence[Scores]) -> Scores:
    """Fuse several methods' scores of the same examples into one."""
    totals = [one.total for one in parts]
    subtasks = next((one.subtasks for one in parts if one.subtasks), ())
    by_subtask = examples = None
    if subtasks:
        by_subtask = _columns(len(subtasks), totals, [one.within for one in parts])
    if example := next((one.examples for one in parts if one.examples), None):
        ids = example.ids  # stored gradients keep the order of the examples at that time
        tables = [one.examples.in_order(ids).values if one.examples else None for one in parts]
        values = _columns(len(ids), totals, tables)
        examples = ExampleScores(ids, example.subtasks, values)
    return Scores(_sum(totals), subtasks, by_subtask, examples=examples)


def _columns(
    count: int,
    totals: Sequence[NDArray[np.float32]],
    tables: Sequence[NDArray[np.float32] | None],
) -> NDArray[np.float32]:
    """Fuse each column [n, count]; a method without columns ranks by its total."""
    fused = [
        _sum([total if table is None else table[:, column]
              for total, table in zip(totals, tables, strict=True)])
        for column in range(count)
    ]  # fmt: skip
    return np.stack(fused, axis=1)


def _sum(scores: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Sum 1 / (60 + rank); equal scores stay in order of (source, id) [n]."""
    total = np.zeros(len(scores[0]))
    for values in scores:
        order = np.argsort(-values, kind="stable")
        total[order] += 1 / (K + np.arange(1, len(order) + 1))
    return total.astype(np.float32)


FUSION = Fusion()
