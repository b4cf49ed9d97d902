"""Unique ids for a source's rows: a row's own id, or one made from its content.

In: for each row its own id, or a digest of its content. Out: its id, or the reason why it can't
have that id. Made ids are the first 16 hexadecimal digits of the SHA-256 of the row as JSON, with
`-2` and so on for equal rows: stable when rows are reordered or files renamed. Ids are kept in a
temporary SQLite database, which spills to disk (a dictionary takes 150 bytes of RAM per row).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from gradsieve.data.formats import BadRow, is_unicode

CACHE_KIB = 64 * 1024
"""Memory for the database's cache; a million ids take about 40 MB."""

_TABLE = "CREATE TABLE taken (id TEXT PRIMARY KEY, line INTEGER, equal_rows INTEGER) WITHOUT ROWID"
"""`equal_rows`: number of rows without an id that have this content; 0 for a row's own id."""

_TAKE = """INSERT INTO taken VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE
    SET equal_rows = equal_rows + 1 WHERE equal_rows > 0 AND excluded.equal_rows > 0
    RETURNING equal_rows"""

_SORTED = json.JSONEncoder(sort_keys=True)


def given_id(row: Mapping[str, Any]) -> str | None:
    """A row's own id as text; None if it has no usable id."""
    given = row.get("id")
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    return given if isinstance(given, str) and given and is_unicode(given) else None


def content_digest(row: Mapping[str, Any]) -> bytes:
    """SHA-256 of a row, independent of the order of its keys."""
    return hashlib.sha256(_SORTED.encode(row).encode()).digest()


class IdIndex:
    """The ids of a source that are taken, each with the line of its row.

    A row's own id can equal the id made for another row, e.g. if a source contains a selection,
    whose rows were written with their ids, together with the rows it was selected from. The later
    of the two rows is a bad row.
    """

    def __init__(self, where: Callable[[int], str]) -> None:
        self._where = where
        self._database = sqlite3.connect("", isolation_level=None)  # a private temporary file
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(_TABLE)

    def close(self) -> None:
        """Delete the database."""
        self._database.close()

    def take(self, id: str, is_made: bool, line: int) -> str:
        """Take an id for a row: its own, or the one made for it, with a number for equal rows.

        Raises `BadRow` if another row has the id. Equal rows are interchangeable, so it does not
        matter which of them gets which number.
        """
        equal_rows = self._count(id, is_made, line)
        if equal_rows > 1:
            id = f"{id}-{equal_rows}"
            self._count(id, is_made, line)
        return id

    def _count(self, id: str, is_made: bool, line: int) -> int:
        """The number of rows for which this id was made, including this one."""
        found = self._database.execute(_TAKE, (id, line, is_made)).fetchone()
        if found is None:
            query = "SELECT line FROM taken WHERE id = ?"
            [line] = self._database.execute(query, (id,)).fetchone()
            made = " made from its content" if is_made else ""
            raise BadRow(f"the id {id!r}{made} is taken by {self._where(line)}")
        return int(found[0])
