"""Tables for notebooks: text of the data is escaped, so that none of it becomes HTML.

Without rich, which `gradsieve --help` must not import.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

SHOWN = 200
"""Characters shown of a cell."""


def html_table(title: str, rows: Sequence[Sequence[object]]) -> str:
    """A table with a caption; the first row is its head."""
    head, *body = ([_cell(cell) for cell in row] for row in rows)
    lines = ["<tr><th>" + "</th><th>".join(head) + "</th></tr>"]
    lines += ["<tr><td>" + "</td><td>".join(row) + "</td></tr>" for row in body]
    return f"<table><caption>{_cell(title)}</caption>{''.join(lines)}</table>"


def _cell(value: object) -> str:
    text = " ".join(str(value)[: 2 * SHOWN].split())
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)  # marks of direction too
    return escape(text if len(text) <= SHOWN else text[:SHOWN] + "…")
