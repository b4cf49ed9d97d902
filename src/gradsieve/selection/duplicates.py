"""Near duplicates: rows whose updates point almost the same way.

In: the datastore of one checkpoint, and rows in order of rank. Out: for each row that is asked
after, whether a row that was kept has a cosine with it at or above a threshold. The first, that is
the best, of a group of near duplicates is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gradsieve.selection.choose import Key
from gradsieve.store import Store

AHEAD = 2048
"""Rows read from the datastore at a time."""


class NearDuplicates:
    """A check for `choose`: every row that passes it is taken as kept.

    Args:
        store: The datastore.
        rows: Position of each row in the datastore.
        order: Rows in the order in which they will be asked after; some may not be.
        cosine: At or above it two rows are near duplicates.
    """

    def __init__(
        self, store: Store, rows: Mapping[Key, int], order: Sequence[Key], cosine: float
    ) -> None:
        self._store, self._rows, self._cosine = store, rows, cosine
        self._order = [key for key in order if key in rows]
        self._place = {key: place for place, key in enumerate(self._order)}
        self._read: dict[Key, NDArray[np.float32]] = {}
        self._kept: list[Key] = []
        self._units = np.empty((0, 0), dtype=np.float32)

    def __call__(self, key: Key) -> str | None:
        """Why the row is to be passed over; None: it is kept."""
        if key not in self._rows:  # it has no gradient to compare
            return None
        unit = self._unit(key)
        if self._kept:
            cosines = self._units[: len(self._kept)] @ unit
            nearest = int(cosines.argmax())
            if cosines[nearest] >= self._cosine:
                source, id = self._kept[nearest]
                return f"near_duplicates: cosine {cosines[nearest]:.3f} with {source} {id}"
        self._keep(key, unit)
        return None

    def _unit(self, key: Key) -> NDArray[np.float32]:
        if key not in self._read:
            start = self._place[key]
            coming = self._order[start : start + AHEAD]
            rows = self._store.read(np.array([self._rows[other] for other in coming]))
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
            self._read = dict(zip(coming, rows, strict=True))
        return self._read[key]

    def _keep(self, key: Key, unit: NDArray[np.float32]) -> None:
        if len(self._kept) == len(self._units):  # twice the room
            larger = np.empty((max(256, 2 * len(self._units)), len(unit)), dtype=np.float32)
            larger[: len(self._units)] = self._units.reshape(-1, len(unit))
            self._units = larger
        self._units[len(self._kept)] = unit
        self._kept.append(key)
