"""Confidence intervals of differences between two methods, by a paired bootstrap.

In: a number per model and question. Out: the mean difference over questions and models, and its
95% interval. Each resample draws questions, the same for both methods, and models of each method:
another seed would have selected, or trained, otherwise. With one model on a side, its seed counts
as the only one there is.

Letters: m models, Q questions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BOOTSTRAPS = 2000
"""Resamples; the interval is between their 2.5% and 97.5% quantiles."""

AT_ONCE = 100
"""Resamples drawn at a time; bounds memory."""


def difference(
    one: NDArray[np.float64], other: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[float, float, float] | None:
    """The mean difference of two methods, and the ends of its interval.

    Args:
        one: Values of a method's models [m, Q]; NaN where a model was not asked.
        other: Those of the other method, on the same questions.
        weights: Of the questions [Q].

    Returns:
        None if there is no question that all models were asked.
    """
    there = ~np.isnan(one).any(0) & ~np.isnan(other).any(0)
    if not there.any():
        return None
    one, other, weights = one[:, there], other[:, there], weights[there]
    mean = float((weights * (one.mean(0) - other.mean(0))).sum() / weights.sum())
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(BOOTSTRAPS // AT_ONCE):
        drawn = _counts(rng, len(weights)) * weights
        drawn /= drawn.sum(1, keepdims=True)
        gaps.append(_resampled(rng, one, drawn) - _resampled(rng, other, drawn))
    low, high = np.quantile(np.concatenate(gaps), [0.025, 0.975])
    return mean, float(low), float(high)


def _resampled(
    rng: np.random.Generator, table: NDArray[np.float64], questions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Means of resampled models on resampled questions: [m, Q] and [AT_ONCE, Q] to [AT_ONCE].

    Resampling m models gives a variance that is m - 1 over m of the true one, so they are moved
    apart by as much (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8).
    """
    models, mean = len(table), table.mean(0)
    if models > 1:
        table = mean + (table - mean) * (models / (models - 1)) ** 0.5
    means: NDArray[np.float64] = (questions @ table.T * _counts(rng, models)).mean(1)
    return means


def _counts(rng: np.random.Generator, of: int) -> NDArray[np.float64]:
    """How often each is drawn when as many are drawn as there are: [AT_ONCE, of]."""
    drawn = rng.integers(of, size=(AT_ONCE, of)) + of * np.arange(AT_ONCE)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=AT_ONCE * of)
    return counts.reshape(AT_ONCE, of).astype(np.float64)
