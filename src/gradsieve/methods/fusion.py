"""Rank fusion: a row's score is the sum over methods of 1 / (60 + its rank by the method).

Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009, with their k of 60). It compares
ranks only, so methods whose scores have different scales can be joined. For a subtask (or a target
example, where these take turns) the ranks are those for it, or by the total score of a method that
has none for it.
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
    """The methods of `score.fusion`, joined; what they need, it needs."""

    source = "reciprocal rank fusion of score.fusion (Cormack et al., SIGIR 2009), k 60"
    uses: Uses = "data"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Scores that are known are taken; the other methods score first."""
        found = [_scored(task, name) for name in task.recipe.score.fusion]
        return {target: fuse([scores[target] for scores in found]) for target in task.targets}


def _scored(task: ScoringTask, name: str) -> dict[str, Scores]:
    if name in task.known:
        return dict(task.known[name])
    return score_by(name, replace(task, seed=split_seed(name)[1]))


def fuse(parts: Sequence[Scores]) -> Scores:
    """Scores of several methods for the same examples as one."""
    totals = [one.total for one in parts]
    subtasks = next((one.subtasks for one in parts if one.subtasks), ())
    by_subtask = examples = None
    if subtasks:
        by_subtask = _columns(len(subtasks), totals, [one.within for one in parts])
    if example := next((one.examples for one in parts if one.examples), None):
        ids = example.ids  # gradients keep the order that the examples had when they were taken
        tables = [one.examples.in_order(ids).values if one.examples else None for one in parts]
        values = _columns(len(ids), totals, tables)
        examples = ExampleScores(ids, example.subtasks, values)
    return Scores(_sum(totals), subtasks, by_subtask, examples=examples)


def _columns(
    count: int,
    totals: Sequence[NDArray[np.float32]],
    tables: Sequence[NDArray[np.float32] | None],
) -> NDArray[np.float32]:
    """Each column fused; a method without columns ranks by its total [n, count]."""
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
