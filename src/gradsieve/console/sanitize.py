"""Text of the data is data: what a terminal would obey is replaced before anything is printed.

In: text that may hold escape sequences, marks that turn the direction of writing, or halves of
surrogate pairs. Out: the same with each of these replaced.
"""

from __future__ import annotations

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def clean(text: str) -> str:
    """Text that no terminal obeys, on one line."""
    return _printable(" ".join(text.split()))


def clean_lines(text: str) -> str:
    """Text that no terminal obeys, with its lines and indents."""
    return "\n".join(_printable(line.expandtabs()) for line in text.split("\n"))


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else REPLACEMENT for c in line)
