"""Tables for notebooks: text from the data is escaped, so that none of it becomes HTML.

Rich is not used, since `gradsieve --help` must not import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

SHOWN = 200
"""Maximum number of characters shown per cell."""


def html_table(title: str, rows: Sequence[Sequence[object]]) -> str:
    """An HTML table with a caption; the first row is its header."""
    head, *body = ([_cell(cell) for cell in row] for row in rows)
    lines = ["<tr><th>" + "</th><th>".join(head) + "</th></tr>"]
    lines += ["<tr><td>" + "</td><td>".join(row) + "</td></tr>" for row in body]
    return f"<table><caption>{_cell(title)}</caption>{''.join(lines)}</table>"


def html_lines(lines: Iterable[str]) -> str:
    """A paragraph for each line."""
    return "".join(f"<p>{escape(_printable(line))}</p>" for line in lines)


def _cell(value: object) -> str:
    text = _printable(" ".join(str(value)[: 2 * SHOWN].split()))
    return escape(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text)  # direction marks too
