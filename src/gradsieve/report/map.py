"""A map of the pool by its stored features: rows with similar updates are close to each other.

In: the datastore at the last checkpoint. Out: a point for each row of a sample, up to half of it
selected rows. The axes are the sample's first two principal components. Rejected: t-SNE and UMAP,
whose distances change with a seed, and all rows, which would fill page and memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsieve.runs.context import Context

POINTS = 1500
"""Maximum rows on the map: the axes take seconds, and points can still be distinguished."""

VALUES = 1 << 26
"""Maximum feature values read: a quarter of a GiB. More dimensions mean fewer rows."""

Chosen = Mapping[str, NDArray[np.int64]]
"""The selected rows' numbers in the pool, by method."""


def feature_map(context: Context, chosen: Mapping[str, Chosen]) -> dict[str, Any] | None:
    """The map, with the selections by target; None without a datastore or with too few rows."""
    store, pool = context.artifacts.features.last_store(), context.pool
    if store is None:
        return None
    selections = [numbers for methods in chosen.values() for numbers in methods.values()]
    dimensions = store.read(np.arange(1)).shape[1] if len(store) else 1
    numbers = _sample(pool.usable, np.concatenate(selections), min(POINTS, VALUES // dimensions))
    positions = store.positions(pool.store_keys(numbers))
    numbers, positions = numbers[positions >= 0], positions[positions >= 0]
    if len(numbers) < 3:
        return None
    places, share = principal_axes(store.read(positions))
    keys = pool.take(numbers, ["source", "id"]).to_pylist()
    sources = sorted(pool.source_names)
    return {
        "points": [
            [sources.index(key["source"]), key["id"], *place]
            for key, place in zip(keys, places.round(3).tolist(), strict=True)
        ],
        "selected": {
            target: {
                method: np.flatnonzero(np.isin(numbers, rows)).tolist()
                for method, rows in methods.items()
            }
            for target, methods in chosen.items()
        },
        "share": round(share, 4),
        "rows": len(pool.usable),
    }


def _sample(usable: NDArray[np.int64], selected: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Numbers of at most `most` rows: up to half of them selected rows, all drawn at random.

    They are in the order of `usable`, which is by (source, id), not in the order of lines.
    """
    random = np.random.default_rng(0)
    is_selected = np.isin(usable, selected)
    places = np.flatnonzero(is_selected)
    places = random.choice(places, min(len(places), most // 2), replace=False)
    others = np.flatnonzero(~is_selected)
    others = random.choice(others, min(len(others), most - len(places)), replace=False)
    return np.asarray(usable[np.sort(np.concatenate([places, others]))])


def principal_axes(features: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Coordinates [n, 2] from -1 to 1 on the two principal axes, and their share of the variance.

    Only the directions of the rows [n, d] count.
    """
    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    rows -= rows.mean(axis=0)
    values, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    top = np.maximum(values[-2:][::-1], 0)
    places = vectors[:, -2:][:, ::-1] * np.sqrt(top)
    largest = places[np.abs(places).argmax(axis=0), [0, 1]]
    places *= np.where(largest < 0, -1, 1)  # the sign of an axis is arbitrary
    size, total = float(np.abs(places).max()), float(values.sum())
    return places / max(size, 1e-30), float(top.sum()) / max(total, 1e-30)
