"""The ids of a source's rows: kept from the row, or made of its content, each once.

In: for each row the id that it came with, or a digest of its content. Out: its id, or why it can't
have it. Made ids are the first 16 hexadecimal digits of SHA-256 of the row as JSON, with `-2` and
so on for equal rows: stable when rows are reordered or files renamed. Ids are held in a temporary
database of SQLite, which spills to disk (a dictionary would take 150 bytes of memory a row).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from gradsieve.data.formats import BadRow, is_unicode

CACHE_KIB = 64 * 1024
"""Memory of the database; a million ids take about 40 MB."""

_TABLE = "CREATE TABLE taken (id TEXT PRIMARY KEY, line INTEGER, equal_rows INTEGER) WITHOUT ROWID"
"""`equal_rows`: rows without an id that have this content; 0 where a row came with the id."""

_GIVEN = "INSERT OR IGNORE INTO taken VALUES (?, ?, 0)"
_MADE = """INSERT INTO taken VALUES (?, ?, 1)
    ON CONFLICT (id) DO UPDATE SET equal_rows = equal_rows + 1 WHERE equal_rows > 0
    RETURNING equal_rows"""

_SORTED = json.JSONEncoder(sort_keys=True)


def given_id(row: Mapping[str, Any]) -> str | None:
    """The id that a row comes with, as text; None if it has none that can be used."""
    given = row.get("id")
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    return given if isinstance(given, str) and given and is_unicode(given) else None


def content_digest(row: Mapping[str, Any]) -> bytes:
    """SHA-256 of a row, whatever the order of its keys."""
    return hashlib.sha256(_SORTED.encode(row).encode()).digest()


class IdIndex:
    """The ids of a source that are taken, and by which lines.

    A row's own id and one made for another row can be the same text, e.g. where a selection, whose
    rows were given their ids, is a pool's source together with rows that it was selected from. The
    later of the two is a bad row.
    """

    def __init__(self, where: Callable[[int], str]) -> None:
        self._where = where
        self._database = sqlite3.connect("", isolation_level=None)  # a temporary file of its own
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(_TABLE)

    def close(self) -> None:
        """Delete the database."""
        self._database.close()

    def take(self, id: str, is_made: bool, line: int) -> str:
        """The id of a row: the one that it came with, or the one made for it, numbered if taken.

        A `BadRow` if another row has it. Which of several equal rows gets which number makes no
        difference.
        """
        if is_made and (equal_rows := self._made(id, line)) > 1:
            id = f"{id}-{equal_rows}"
            self._made(id, line)
        if not is_made and self._database.execute(_GIVEN, (id, line)).rowcount == 0:
            where, of_made = self._holder(id)
            holds = f"was made for {where}, which has none" if of_made else f"is taken by {where}"
            raise BadRow(f"the id {id!r} {holds}")
        return id

    def _made(self, id: str, line: int) -> int:
        """Rows that have this made id, this one included."""
        found = self._database.execute(_MADE, (id, line)).fetchone()
        if found is None:
            where, _ = self._holder(id)
            raise BadRow(f"it has no id, and the one made for it, {id}, is of {where}")
        return int(found[0])

    def _holder(self, id: str) -> tuple[str, bool]:
        """The place of the row that has an id, and whether it was made."""
        query = "SELECT line, equal_rows FROM taken WHERE id = ?"
        line, equal_rows = self._database.execute(query, (id,)).fetchone()
        return self._where(line), equal_rows > 0
