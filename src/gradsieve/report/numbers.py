"""Numbers for the page: rounded, finite, counted in bins; rank correlations and overlaps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

BINS = 60
LENGTH_BINS = 32


def short(value: float) -> float | None:
    """Rounded to six digits, more than a score's precision; None if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def histogram(values: Floats, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Counts of all values and of the chosen ones in bins of equal width."""
    finite = np.isfinite(values)
    known = values[finite] if finite.any() else np.zeros(1)
    low, high = float(known.min()), float(known.max())
    return _counted(values, chosen, np.linspace(low, high if high > low else low + 1, BINS + 1))


def length_histogram(tokens: NDArray[np.integer[Any]], chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """The same of lengths, in bins of equal ratio; each holds at least one whole number."""
    low, high = max(1, int(tokens.min())), int(tokens.max()) + 1
    edges = np.unique(np.round(np.geomspace(low, max(high, low + 1), LENGTH_BINS + 1)))
    return _counted(tokens, chosen, edges)


def _counted(
    values: NDArray[Any], chosen: NDArray[np.bool_], edges: NDArray[np.float64]
) -> dict[str, Any]:
    return {
        "edges": edges.tolist(),  # all digits: scores may differ in later digits
        "all": np.histogram(values, edges)[0].tolist(),
        "selected": np.histogram(values[chosen], edges)[0].tolist(),
    }


def overlap_of_top(one: Floats, other: Floats, share: float) -> float:
    """Share of one's highest values that are among the other's highest."""
    count = max(1, round(share * len(one)))
    tops = [set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (one, other)]
    return len(tops[0] & tops[1]) / count
