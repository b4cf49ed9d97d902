"""The report's numbers, compared with another library's."""

import numpy as np

from gradsieve.report.contributions import overlap_of_top
from gradsieve.report.selection import histogram, length_histogram
from gradsieve.report.texts import short


def test_overlap_of_top() -> None:
    values = np.arange(100.0)
    assert overlap_of_top(values, values, 0.05) == 1
    assert overlap_of_top(values, -values, 0.05) == 0
    other = values.copy()
    other[:2] = 1000  # two of the five places go to other rows
    assert overlap_of_top(values, other, 0.05) == 3 / 5


def test_histograms_count_every_finite_value() -> None:
    values = np.array([0.0, 1.0, 1.0, 2.0, np.nan])
    chosen = np.array([False, True, False, True, True])
    found = histogram(values, chosen)
    assert (sum(found["all"]), sum(found["selected"])) == (4, 2)
    assert (found["edges"][0], found["edges"][-1]) == (0, 2)
    assert sum(histogram(np.zeros(3), np.ones(3, bool))["all"]) == 3


def test_edges_differ_where_scores_are_close() -> None:
    values = np.array([0.12345678, 0.12345679], dtype=np.float32)
    edges = histogram(values, np.ones(2, bool))["edges"]
    assert edges == sorted(set(edges))


def test_bins_of_lengths_hold_whole_numbers() -> None:
    tokens = np.array([1, 2, 2, 3, 10, 2048])
    found = length_histogram(tokens, tokens > 2)
    assert (sum(found["all"]), sum(found["selected"])) == (6, 3)
    assert all(edge == int(edge) for edge in found["edges"])
    assert found["edges"] == sorted(set(found["edges"]))
    assert sum(length_histogram(np.full(4, 7), np.ones(4, bool))["all"]) == 4


def test_short_numbers_are_finite() -> None:
    assert short(0.123456789) == 0.123457
    assert short(float("nan")) is None
    assert short(float("-inf")) is None
