"""The ids of one source's rows: kept or made, each once, whatever the number of rows.

In: for each row the id that it came with, or a digest of its content. Out: its id, or why it can't
have it. Ids are stable when rows are reordered or files renamed. They are held in a temporary
database of SQLite, which spills to disk (a dictionary would take 150 bytes of memory a row).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from gradsieve.data.formats import BadRow

CACHE_KIB = 64 * 1024
"""Memory of the database; a million ids take about 40 MB."""

_TABLE = "CREATE TABLE taken (id TEXT PRIMARY KEY, line INTEGER, equal_rows INTEGER) WITHOUT ROWID"
"""`equal_rows`: rows without an id that have this content; 0 where a row came with the id."""

_GIVEN = "INSERT OR IGNORE INTO taken VALUES (?, ?, 0)"
_MADE = """INSERT INTO taken VALUES (?, ?, 1)
    ON CONFLICT (id) DO UPDATE SET equal_rows = equal_rows + 1 WHERE equal_rows > 0
    RETURNING equal_rows"""


class IdIndex:
    """The ids of a source that are taken, and by which lines.

    Args:
        where: From a line to its place, for messages.
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

    def keep(self, given: str | int, line: int) -> str:
        """The id of a row that came with one.

        Raises:
            BadRow: If another row has it.
        """
        id = str(given)
        if self._database.execute(_GIVEN, (id, line)).rowcount == 0:
            where, is_made = self._holder(id)
            if is_made:
                raise BadRow(f"the id {given!r} was made for {where}, which has none")
            raise BadRow(f"the id {given!r} is taken by {where}")
        return id

    def make(self, digest: str, line: int) -> str:
        """The id of a row that came without one: its digest, numbered if rows are equal.

        Which of several equal rows gets which number makes no difference.

        Raises:
            BadRow: If another row came with this id.
        """
        equal_rows = self._made(digest, line)
        if equal_rows == 1:
            return digest
        id = f"{digest}-{equal_rows}"
        self._made(id, line)
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
