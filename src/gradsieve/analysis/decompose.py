"""Which of a target's examples pull a row in, and how much.

In: a run's datastores and the gradients of a target's examples. Out: each example's part of a row's
score. Inf(z, j) is linear in the examples' gradients once the length of their mean is fixed, so the
parts of a subtask's examples, summed over checkpoints, add up to the row's score for that subtask
(docs/method.md; none of the peers tells this).

Letters: N checkpoints, n rows, k examples of the target, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gradsieve.errors import RunError
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import RunFolder
from gradsieve.store import RowKey

if TYPE_CHECKING:
    from numpy.typing import NDArray

METHODS = ("less", "dot", "sgd")
"""Methods whose scores are sums over the target's examples."""


@dataclass(frozen=True)
class Parts:
    """What each example of a target adds to rows' scores.

    Attributes:
        keys: (source, id) of each row [n], in the order asked for.
        ids: Of the target's examples [k].
        subtasks: The subtask of each example [k].
        parts: float32 [N, n, k]; summed over checkpoints and over a subtask's examples they are
            the row's score for that subtask.
    """

    keys: Sequence[tuple[str, str]]
    ids: Sequence[str]
    subtasks: Sequence[str]
    parts: NDArray[np.float32]


def can_attribute(recipe: Recipe, method: str) -> bool:
    """Whether a method's scores come apart by example: exact mode keeps no gradients."""
    return method in METHODS and recipe.features.mode == "store"


def attribute(
    run: RunFolder,
    recipe: Recipe,
    target: str,
    keys: Sequence[tuple[str, str]],
    method: str = "less",
) -> Parts:
    """Take apart the scores of some rows of a finished features stage.

    Args:
        run: The run.
        recipe: Its recipe.
        target: The target's name.
        keys: (source, id) of the rows.
        method: `less`, `dot` or `sgd`.

    Raises:
        RunError: If a row has no feature, or the method's scores don't come apart
            (`can_attribute`).
    """
    if not can_attribute(recipe, method):
        raise RunError(
            "These scores cannot be taken apart by target example.",
            f"score.methods {method}, features.mode {recipe.features.mode}",
            f"Use one of {', '.join(METHODS)} with features.mode: store.",
        )
    from gradsieve.gradients.similarity import example_directions

    artifacts = Artifacts(run)
    names = _row_keys(run, keys)
    mean = recipe.score.target_mean if method != "dot" else "mean"
    found: list[NDArray[np.float32]] = []
    checkpoints, weights = artifacts.features.checkpoints, artifacts.warmup.weights
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        gradients = checkpoint.target_gradients(target)
        directions = example_directions(gradients.rows, gradients.subtasks, mean).numpy()
        parts = np.zeros((len(names), len(gradients.ids)), dtype=np.float32)
        store = checkpoint.store("pool-sgd" if method == "sgd" else "pool")
        positions = store.find(names)
        order = np.argsort(positions)
        for block in store.similarities(directions, positions):
            here = order[np.searchsorted(positions, block.positions, sorter=order)]
            lengths = block.feature_norms[:, None] if method == "dot" else 1.0
            parts[here] = weight * block.cosines * lengths
        found.append(parts)
    return Parts(keys, gradients.ids, gradients.subtasks, np.stack(found))


def row_keys(run: RunFolder) -> dict[tuple[str, str], RowKey]:
    """The datastore's key of each example that has a feature."""
    pool, features = Artifacts(run).pool.read(), Artifacts(run).features
    numbers = pool.usable[~np.isin(pool.usable, pool.locate(features.skipped()))]
    keys = pool.store_keys(numbers).to_pylist()
    return {(key["source"], key["id"]): RowKey(**key) for key in keys}


def _row_keys(run: RunFolder, keys: Sequence[tuple[str, str]]) -> list[RowKey]:
    """The datastore's key of each example."""
    known = row_keys(run)
    missing = [key for key in keys if key not in known]
    if missing:
        source, id = missing[0]
        raise RunError(
            "An example has no gradient: it is not in the pool, or was skipped.",
            f"{source} {id}",
            "Name an example of the pool by its source and id; dropped.jsonl lists the skipped.",
        )
    return [known[key] for key in keys]
