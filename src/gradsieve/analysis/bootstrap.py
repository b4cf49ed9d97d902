"""Bootstrap confidence intervals for differences between methods and for rank correlations.

Differences: in, a number per model and question; out, the mean difference over questions and
models, and its 95% interval. Each resample draws questions, the same for both methods, and models
of each method, since other seeds would give other selections and trainings. If a method has one
model, variation between seeds is ignored. Rank correlations (Spearman): pairs are resampled.

Letters: m models, Q questions, n pairs, B resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

Interval = tuple[float, float, float]
"""A value, and the ends of its 95% interval."""

BOOTSTRAPS = 2000
"""Number of resamples; the interval is between their 2.5% and 97.5% quantiles."""

AT_ONCE = 100
"""Number of resamples drawn at a time; bounds memory."""


def interval_text(found: Interval, digits: int = 3) -> str:
    """An interval as text for tables, with signs."""
    mean, low, high = (f"{value:+.{digits}f}" for value in found)
    return f"{mean} [{low}, {high}]"


def difference(
    one: NDArray[np.float64], other: NDArray[np.float64], weights: NDArray[np.float64]
) -> Interval | None:
    """The mean difference of two methods [m, Q] on the same questions with weights [Q].

    A value is NaN if the model didn't get the question. None if no question was put to all models.
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

    Resampling m models gives (m - 1) / m of the true variance, so deviations from the mean are
    scaled up to compensate (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8).
    """
    models, mean = len(table), table.mean(0)
    if models > 1:
        table = mean + (table - mean) * (models / (models - 1)) ** 0.5
    means: NDArray[np.float64] = (questions @ table.T * _counts(rng, models)).mean(1)
    return means


def spearman(one: Floats, other: Floats) -> float:
    """Rank correlation of n pairs; ties get their mean rank. NaN if one side is constant."""
    return float(_correlations(one, other, np.ones((1, len(one))))[0])


def spearman_interval(one: Floats, other: Floats) -> Interval:
    """Rank correlation of n pairs, neither side constant, and the ends of its interval."""
    rng = np.random.default_rng(0)
    rounds = range(BOOTSTRAPS // AT_ONCE)
    found = np.concatenate([_correlations(one, other, _counts(rng, len(one))) for _ in rounds])
    low, high = np.nanquantile(found, [0.025, 0.975])
    return spearman(one, other), float(low), float(high)


def _correlations(one: Floats, other: Floats, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank correlations of resamples with these counts of pairs [B, n]; NaN if one is constant."""
    first, second = (
        ranks - (counts * ranks).sum(1, keepdims=True) / counts.sum(1, keepdims=True)
        for ranks in (_ranks(one, counts), _ranks(other, counts))
    )
    sizes = (counts * first**2).sum(1) * (counts * second**2).sum(1)
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = (counts * first * second).sum(1) / np.sqrt(sizes)
    return found


def _ranks(values: Floats, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks of values [n] in resamples with these counts [B, n]; ties get their mean rank."""
    order = np.argsort(values, kind="stable")
    _, starts, places = np.unique(values[order], return_index=True, return_inverse=True)
    equal = np.add.reduceat(counts[:, order], starts, axis=1)
    ranks = np.empty_like(counts)
    ranks[:, order] = (np.cumsum(equal, axis=1) - (equal - 1) / 2)[:, places]
    return ranks


def _counts(rng: np.random.Generator, of: int) -> NDArray[np.float64]:
    """Counts of each of `of` items in `of` draws with replacement [AT_ONCE, of]."""
    drawn = rng.integers(of, size=(AT_ONCE, of)) + of * np.arange(AT_ONCE)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=AT_ONCE * of)
    return counts.reshape(AT_ONCE, of).astype(np.float64)
