"""The texts that a page shows: rows of the pool and examples of the targets, cut where long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradsieve.data.examples import Message
from gradsieve.runs.context import Context

CUT = 4000
"""Characters of one row that a page holds, about two screens; the rest is counted."""

Key = tuple[str, str]


def turns(messages: Iterable[Message]) -> tuple[list[list[str]], int]:
    """[role, text] of each turn within the first `CUT` characters, and characters left out."""
    kept: list[list[str]] = []
    room, more = CUT, 0
    for message in messages:
        text = message["content"]
        if room > 0 or not text:
            kept.append([message["role"], text[:room]])
        more += max(0, len(text) - room)
        room = max(0, room - len(text))
    return kept, more


@dataclass
class Pool:
    """The pool's rows in order of (source, id), and those of them that the page shows.

    Attributes:
        context: The run.
        leaks: What rows share with test questions, by (source, id).
        shown: Place in the page of each row that it shows, by place in the pool.
    """

    context: Context
    leaks: Mapping[Key, Any]
    shown: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pool = self.context.pool
        self.sources = sorted(pool.sources)
        self.keys: list[Key] = [*pool.keys(pool.order)]
        self.tokens = pool.lengths[pool.order]
        self.truncated = pool.column("truncated")[pool.order]
        number = {name: index for index, name in enumerate(self.sources)}
        self.source = np.array([number[source] for source, _ in self.keys])
        self.place = {key: place for place, key in enumerate(self.keys)}

    def show(self, places: Iterable[int]) -> list[int]:
        """Have the page show these rows; returns their places in it."""
        return [self.shown.setdefault(place, len(self.shown)) for place in places]

    def rows(self) -> list[list[Any]]:
        """[source, id, tokens, truncated, leak, characters left out, turns] of each shown row."""
        told = []
        for place in self.shown:
            kept, more = turns(self.context.pool.messages([self.context.pool.order[place]])[0])
            leak = self.leaks.get(self.keys[place])
            told.append(
                [
                    int(self.source[place]),
                    self.keys[place][1],
                    int(self.tokens[place]),
                    int(self.truncated[place]),
                    leak and f"{leak['run']} ({leak['target']}, {leak['question']})",
                    more,
                    kept,
                ]
            )
        return told
