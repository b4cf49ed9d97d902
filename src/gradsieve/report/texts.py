"""Texts and numbers as the page shows them; long rows and target examples are cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from gradsieve.data.content import text_of
from gradsieve.data.examples import Message
from gradsieve.data.pool import Pool

CUT = 4000
"""Maximum characters of a row on the page, about two screens; the rest is only counted."""

AT_ONCE = 1000
"""Number of rows read at a time."""


def short(value: float) -> float | None:
    """Rounded to six digits, more than a score's precision; None if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def turns(messages: Iterable[Message]) -> tuple[list[list[str]], int]:
    """[role, text] of each turn within the first `CUT` characters, and the number left out."""
    kept: list[list[str]] = []
    room, more = CUT, 0
    for message in messages:
        text = text_of(message["content"])
        if room > 0 or not text:
            kept.append([message["role"], text[:room]])
        more += max(0, len(text) - room)
        room = max(0, room - len(text))
    return kept, more


class PageRows:
    """The pool's rows on the page, without duplicates; `leaks` are by (source, id)."""

    def __init__(self, pool: Pool, leaks: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
        self.pool, self._leaks = pool, leaks
        self.sources = sorted(pool.source_names)
        self._places: dict[int, int] = {}

    def places(self, numbers: Iterable[int]) -> list[int]:
        """Add rows by their numbers in the pool; returns their places in the page."""
        return [self._places.setdefault(number, len(self._places)) for number in numbers]

    @property
    def numbers(self) -> list[int]:
        """Numbers in the pool, by place in the page."""
        return list(self._places)

    def content(self) -> list[list[Any]]:
        """[source, id, tokens, truncated, leak, characters left out, turns] of each row."""
        numbers = self.numbers
        blocks = (numbers[start : start + AT_ONCE] for start in range(0, len(numbers), AT_ONCE))
        return [row for block in blocks for row in self._block(block)]

    def _block(self, numbers: list[int]) -> Iterable[list[Any]]:
        columns = self.pool.take(numbers, ["source", "id", "length", "truncated"]).to_pylist()
        for row, messages in zip(columns, self.pool.messages(numbers), strict=True):
            kept, more = turns(messages)
            leak = self._leaks.get((row["source"], row["id"]))
            yield [
                self.sources.index(row["source"]),
                row["id"],
                row["length"],
                int(row["truncated"]),
                leak and f"{leak['run']} ({leak['target']}, {leak['question']})",
                more,
                kept,
            ]
