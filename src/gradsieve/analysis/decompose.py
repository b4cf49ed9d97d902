"""Decompose scores: what each target example contributes to an example's score.

In: a run's datastores and the gradients of a target's examples. Out: each target example's
contribution. Inf(z, j) is linear in the target gradients once the length of their mean is fixed, so
the contributions of a subtask's examples, summed over checkpoints, add up to the score for that
subtask (docs/method.md). With `target_mean: none` a subtask's score is one example's contribution.

Letters: N checkpoints, n examples of the pool, k of the target, S directions, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradsieve.gradients.similarity import example_directions
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.context import Context
from gradsieve.store import Store

METHODS = ("less", "dot", "sgd")
"""Methods whose scores are sums over target examples."""


@dataclass(frozen=True)
class Contributions:
    """What each example [k] of a target contributes to the scores of some examples of the pool.

    Values are float32 [N, n, k]. Summed over checkpoints and over a subtask's examples they give
    the score for that subtask; with `target_mean: none` each example's sum is a score.
    """

    ids: Sequence[str]
    subtasks: Sequence[str]
    values: NDArray[np.float32]


def can_decompose(recipe: Recipe, method: str) -> bool:
    """Whether a method's scores can be decomposed (exact mode doesn't store gradients)."""
    return method in METHODS and recipe.features.mode != "exact"


def decompose(
    context: Context, target: str, numbers: NDArray[np.int64], method: str = "less"
) -> Contributions:
    """Decompose a method's scores, if it can, of some examples by their numbers in the pool [n].

    Raises:
        StoreError: If an example has no stored feature.
    """
    artifacts, mean = context.artifacts, context.recipe.score.target_mean
    kind = "pool-sgd" if method == "sgd" else "pool"
    keys = context.pool.store_keys(numbers)
    found: list[NDArray[np.float32]] = []
    checkpoints, weights = artifacts.features.checkpoints, artifacts.warmup.weights
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        gradients = checkpoint.target_gradients(kind, target)
        if mean == "none":
            parts = gradients.rows if method == "dot" else gradients.units()
        else:
            own = mean if method != "dot" else "mean"
            parts = example_directions(gradients.rows, gradients.subtasks, own, gradients.norms)
        store = checkpoint.store(kind)
        cosines, lengths = similarities(store, parts.numpy(), store.find(keys), store.balanced)
        found.append(weight * cosines * (lengths[:, None] if method == "dot" else 1.0))
    return Contributions(gradients.ids, gradients.subtasks, np.stack(found).astype(np.float32))


def similarities(
    store: Store,
    directions: NDArray[np.float32],
    positions: NDArray[np.int64],
    balanced: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines [n, S] of a datastore's rows with unit directions [S, d], and the rows' lengths [n].

    Each position [n] occurs once. With `balanced`, the directions are those of a target, scaled
    inversely to the rows.
    """
    cosines = np.zeros((len(positions), len(directions)), dtype=np.float32)
    lengths = np.zeros(len(positions), dtype=np.float32)
    order = np.argsort(positions)
    for block in store.similarities(directions, positions, balanced):
        at = order[np.searchsorted(positions, block.positions, sorter=order)]
        cosines[at], lengths[at] = block.cosines, block.norms
    return cosines, lengths
