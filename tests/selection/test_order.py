"""Columns, and whole orders, take turns."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradsieve.selection.order import interleave, round_robin


def rows(scores: list[list[float]]) -> list[tuple[int, int]]:
    return round_robin(np.array(scores, dtype=np.float32))


def test_by_hand() -> None:
    # Column 0 takes row 0, column 1 row 1; then column 0's next is row 2, column 1's row 3.
    assert rows([[9, 1], [8, 9], [7, 8], [1, 7]]) == [(0, 0), (1, 1), (2, 0), (3, 1)]


def test_a_row_that_is_taken_is_passed_over() -> None:
    assert rows([[9, 9], [1, 2], [2, 1]]) == [(0, 0), (1, 1), (2, 0)]


def test_equal_scores_go_in_order_of_rows() -> None:
    assert [row for row, _ in rows([[0, 0, 0]] * 4)] == [0, 1, 2, 3]


@given(arrays(np.float32, (13, 4), elements=st.integers(0, 5)))
def test_each_column_gets_its_share(scores: np.ndarray) -> None:
    chosen = round_robin(scores)
    assert sorted(row for row, _ in chosen) == list(range(13))
    for turn, (row, column) in enumerate(chosen):
        assert column == turn % 4
        left = [other for other in range(13) if other not in [r for r, _ in chosen[:turn]]]
        assert scores[row, column] == max(scores[other, column] for other in left)


def test_orders_of_different_lengths() -> None:
    assert interleave([["a", "b", "c"], ["b"], ["a", "d"]]) == [
        ("a", 0),
        ("b", 1),
        ("d", 2),
        ("c", 0),
    ]
    assert interleave([[], []]) == []
