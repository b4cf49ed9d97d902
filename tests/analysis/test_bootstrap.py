"""Confidence intervals of differences, on numbers whose interval is known."""

import numpy as np
import pandas as pd
import pytest

from gradsieve.analysis.bootstrap import _correlations, difference, spearman, spearman_interval

Values = list[float | None] | list[float]


def interval(one: list[Values], other: list[Values]) -> tuple[float, float, float] | None:
    """The interval for questions with equal weights; None marks a question that was not asked."""
    weights = np.full(len(one[0]), 1 / len(one[0]))
    return difference(np.array(one, dtype=float), np.array(other, dtype=float), weights)


def test_the_interval_is_of_paired_differences() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, 400)  # questions vary widely, the methods only a little
    gain = rng.normal(0.5, 1, 400)
    found = interval([(hard + gain).tolist()], [hard.tolist()])
    assert found is not None
    mean, low, high = found
    assert mean == pytest.approx(gain.mean())
    # The normal approximation: 1.96 standard errors on either side.
    half = 1.96 * gain.std() / 20
    assert (mean - low, high - mean) == (pytest.approx(half, rel=0.1), pytest.approx(half, rel=0.1))


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        gain = rng.normal(0.3, 1, 60)
        found = interval([gain.tolist()], [[0.0] * 60])
        assert found is not None
        hits += found[1] <= 0.3 <= found[2]
    assert 0.89 <= hits / 200 <= 0.99


def test_seeds_are_averaged_first() -> None:
    found = interval([[1.0, 3.0], [3.0, 5.0]], [[0.0, 0.0]])
    assert found is not None
    assert found[0] == pytest.approx(3.0)


@pytest.mark.parametrize(("ours", "theirs"), [(3, 3), (3, 9), (5, 5)])
def test_it_covers_what_seeds_do(ours: int, theirs: int) -> None:
    """Models of both methods vary by seed, and by more than the questions show."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        hard = rng.normal(0, 1, 100)

        def models(count: int, hard: np.ndarray = hard) -> list[Values]:
            noise = rng.normal(0, 0.15, (count, 1)) + rng.normal(0, 0.3, (count, 100))
            return list((hard + noise).tolist())

        found = interval(models(ours), models(theirs))
        assert found is not None
        hits += found[1] <= 0 <= found[2]
    assert 0.84 <= hits / 200 <= 0.99


def test_no_question_in_common_has_no_difference() -> None:
    assert interval([[1.0, None]], [[None, 1.0]]) is None


def test_questions_that_some_model_could_not_be_asked_are_left_out() -> None:
    found = interval([[1.0, None, 3.0]], [[0.0, 5.0, None]])
    assert found == (1.0, 1.0, 1.0)


def test_rank_correlation_with_and_without_equal_values() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=500)
    for other in (one + rng.normal(size=500), np.round(one, 0)):
        wanted = pd.Series(one).rank().corr(pd.Series(other).rank())
        assert spearman(one, other) == pytest.approx(wanted, abs=1e-12)
    assert np.isnan(spearman(one, np.zeros(500)))


def test_resampled_rank_correlations_are_those_of_the_repeated_pairs() -> None:
    one, other = np.array([3.0, 1.0, 2.0, 2.0]), np.array([1.0, 4.0, 2.0, 3.0])
    counts = np.array([[2, 0, 1, 1], [0, 3, 1, 0], [1, 1, 1, 1]])
    found = _correlations(one, other, counts.astype(float))
    wanted = [spearman(np.repeat(one, often), np.repeat(other, often)) for often in counts]
    assert found.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_the_interval_of_a_rank_correlation_covers_it(rho: float) -> None:
    rng = np.random.default_rng(3)
    truth = 6 / np.pi * np.arcsin(rho / 2)  # for a normal distribution
    hits = 0
    for _ in range(100):
        one, noise = rng.normal(size=(2, 32))
        value, low, high = spearman_interval(one, rho * one + (1 - rho**2) ** 0.5 * noise)
        assert low <= value <= high
        hits += low <= truth <= high
    assert 0.88 <= hits / 100 <= 1
