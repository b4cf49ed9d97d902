"""Random shares of a pool: the examples with the smallest hashes of (seed, source, id).

A share doesn't depend on the pool's order, and adding examples to the pool changes it little.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from gradsieve.data.pool.mapped import Pool

HASHED_AT_ONCE = 10_000


def random_share(
    pool: Pool, numbers: NDArray[np.int64], fraction: float, seed: int | str
) -> NDArray[np.int64]:
    """A random fraction of the examples `numbers` [n], smallest hash first; at least one.

    Another seed chooses other examples.
    """
    hashes = np.empty(len(numbers), dtype="S32")
    for start in range(0, len(numbers), HASHED_AT_ONCE):
        part = slice(start, start + HASHED_AT_ONCE)
        texts = ("\x1f".join((str(seed), *key)) for key in pool.keys(numbers[part]))
        hashes[part] = [hashlib.sha256(text.encode()).digest() for text in texts]
    order = np.argsort(hashes, kind="stable")
    return numbers[order[: share_size(len(numbers), fraction)]]


def share_size(rows: int, fraction: float) -> int:
    """The number of rows in the random share."""
    return max(1, round(fraction * rows))
