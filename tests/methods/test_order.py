"""Columns take turns."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradsieve.methods.order import round_robin


def test_by_hand() -> None:
    scores = np.array([[9, 1], [8, 9], [7, 8], [1, 7]], dtype=np.float32)
    # Column 0 takes row 0, column 1 row 1; then column 0's next is row 2, column 1's row 3.
    assert round_robin(scores) == [0, 1, 2, 3]
    assert round_robin(scores, 3) == [0, 1, 2]


def test_a_row_that_is_taken_is_passed_over() -> None:
    scores = np.array([[9, 9], [1, 2], [2, 1]], dtype=np.float32)
    assert round_robin(scores) == [0, 1, 2]


def test_equal_scores_go_in_order_of_rows() -> None:
    assert round_robin(np.zeros((4, 3), dtype=np.float32)) == [0, 1, 2, 3]


@given(arrays(np.float32, (13, 4), elements=st.integers(0, 5)), st.integers(0, 20))
def test_each_column_gets_its_share(scores: np.ndarray, count: int) -> None:
    chosen = round_robin(scores, count)
    assert len(chosen) == len(set(chosen)) == min(count, 13)
    for turn, row in enumerate(chosen):
        left = [other for other in range(13) if other not in chosen[:turn]]
        assert scores[row, turn % 4] == max(scores[other, turn % 4] for other in left)
