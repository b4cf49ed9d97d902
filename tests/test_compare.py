"""The interval of a difference, on numbers whose interval is known."""

from typing import Any

import numpy as np
import pytest

from gradsieve.compare import _difference


def result(values: list[float | None], seed: int = 0) -> dict[str, Any]:
    weights = [1 / len(values)] * len(values)
    return {"by_question": values, "weights": weights, "target": "t", "seed": seed}


def test_the_interval_is_of_paired_differences() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, 400)  # questions differ much, the methods little
    gain = rng.normal(0.5, 1, 400)
    found = _difference([result((hard + gain).tolist())], [result(hard.tolist())])
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
        found = _difference([result(gain.tolist())], [result([0.0] * 60)])
        assert found is not None
        hits += found[1] <= 0.3 <= found[2]
    assert 0.89 <= hits / 200 <= 0.99


def test_seeds_are_averaged_first() -> None:
    many = [result([1.0, 3.0]), result([3.0, 5.0], 1)]
    found = _difference(many, [result([0.0, 0.0])])
    assert found is not None
    assert found[0] == pytest.approx(3.0)


def test_questions_that_some_model_could_not_be_asked_are_left_out() -> None:
    found = _difference([result([1.0, None, 3.0])], [result([0.0, 5.0, None])])
    assert found == (1.0, 1.0, 1.0)
