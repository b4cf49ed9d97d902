"""The ids of a source's rows: kept from the row, or made from its content.

In: rows one by one, in any order. Out: an id for each, unique in the source. Made ids are the first
16 hexadecimal digits of SHA-256 of the row as JSON, with `-2` and so on for equal rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from gradsieve.data.formats import BadRow, is_unicode


def given_id(row: Mapping[str, Any]) -> str | int | None:
    """The id that a row comes with; None if it has none that can be used."""
    given = row.get("id")
    usable = isinstance(given, int) or (isinstance(given, str) and is_unicode(given))
    return None if not usable or isinstance(given, bool) or given == "" else given


def content_digest(row: Mapping[str, Any]) -> bytes:
    """SHA-256 of a row, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()


def made_id(digest: bytes) -> str:
    """The id of a row that comes without one: 16 hexadecimal digits made of its content."""
    return digest.hex()[:16]


class Ids:
    """Ids kept from rows, or made from their content: stable under reordering and renaming.

    A row's own id and one made for another row can be the same text, e.g. where a selection, whose
    rows were given their ids, is a pool's source together with rows that it was selected from. The
    later of the two is a bad row.
    """

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._made: dict[str, str] = {}
        self._equal: dict[str, int] = {}

    def of(self, row: Mapping[str, Any], where: str) -> str:
        """The row's id.

        Raises:
            BadRow: If another row has it; names that row's place.
        """
        given = given_id(row)
        if given is None:
            return self._make(row, where)
        id = str(given)
        if id in self._given:
            raise BadRow(f"the id {given!r} is taken by {self._given[id]}")
        if id in self._made:
            raise BadRow(f"the id {given!r} was made for {self._made[id]}, which has none")
        self._given[id] = where
        return id

    def _make(self, row: Mapping[str, Any], where: str) -> str:
        id = digest = made_id(content_digest(row))
        # A number distinguishes equal rows; which is which makes no difference.
        count = self._equal.get(digest, 0) + 1
        if count > 1:
            id = f"{digest}-{count}"
        if id in self._given:
            raise BadRow(f"it has no id, and the one made for it, {id}, is of {self._given[id]}")
        self._equal[digest] = count
        self._made[id] = where
        return id
