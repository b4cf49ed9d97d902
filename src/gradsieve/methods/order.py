"""Orders of rows that are fair to several columns of scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def round_robin(scores: NDArray[np.float32], count: int | None = None) -> list[int]:
    """Rows in the order in which columns take turns, each taking its best row that is left.

    Args:
        scores: [n, k]; equal scores are taken in order of their rows.
        count: How many rows; all by default.
    """
    count = len(scores) if count is None else min(count, len(scores))
    order = np.argsort(-scores, axis=0, kind="stable")
    taken = np.zeros(len(scores), dtype=bool)
    place = [0] * scores.shape[1]
    chosen: list[int] = []
    while len(chosen) < count:
        for column in range(scores.shape[1]):
            if len(chosen) == count:
                break
            while taken[order[place[column], column]]:
                place[column] += 1
            row = int(order[place[column], column])
            taken[row] = True
            chosen.append(row)
    return chosen
