"""Orders of rows that are fair to several columns of scores."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item", bound=Hashable)


def round_robin(scores: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Rows in the order in which columns take turns, each taking its best row that is left.

    Args:
        scores: [n, k]; equal scores are taken in order of their rows.

    Returns:
        (row, the column whose turn it was), every row once.
    """
    orders = np.argsort(-scores, axis=0, kind="stable").T.tolist()
    return interleave(orders)


def interleave(orders: Sequence[Iterable[Item]]) -> list[tuple[Item, int]]:
    """Several orders of the same items made one: they take turns, each giving its next new item.

    Returns:
        (item, the number of the order that gave it), every item once.
    """
    coming = [iter(order) for order in orders]
    taken: set[Item] = set()
    merged: list[tuple[Item, int]] = []
    while coming:
        before = len(merged)
        for number, order in enumerate(coming):
            item = next((item for item in order if item not in taken), None)
            if item is not None:
                taken.add(item)
                merged.append((item, number))
        if len(merged) == before:
            break
    return merged
