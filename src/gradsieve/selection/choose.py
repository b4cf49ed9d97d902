"""Going down an order of rows until a selection is full, telling what is passed over and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradsieve.recipe.schema import SelectConfig

Key = tuple[str, str]
"""(source, id) of a row."""

Check = Callable[[Key], str | None]
"""Why a row is to be passed over; None if it is not. Asked only of rows that would be taken."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row in its place of the order.

    Attributes:
        key: (source, id).
        score: What it was ranked by.
        subtask: The subtask that it helps most, or whose turn it was.
        tokens: Its length.
    """

    key: Key
    score: float
    subtask: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Passed:
    """A row that was passed over, and why."""

    key: Key
    reason: str


def choose(
    order: Iterable[Candidate], settings: SelectConfig, rows: int, checks: Sequence[Check] = ()
) -> tuple[list[Candidate], list[Passed]]:
    """Take rows in order until there are enough.

    With a budget of tokens, rows are taken until the next one would exceed it.

    Args:
        order: Best first.
        settings: How many, and the most of each source.
        rows: Scored rows, of which `fraction` is a share.
        checks: Reasons to pass over a row, cheapest first.

    Returns:
        What was chosen, and what was passed over while choosing.
    """
    count = settings.count
    if settings.fraction is not None:
        count = max(1, round(settings.fraction * rows))
    caps = _Caps(settings, count)
    chosen: list[Candidate] = []
    passed: list[Passed] = []
    spent = 0
    for candidate in order:
        if count is not None and len(chosen) == count:
            break
        reasons = (check(candidate.key) for check in checks)
        reason = caps.full(candidate) or next(filter(None, reasons), None)
        if reason is not None:
            passed.append(Passed(candidate.key, reason))
            continue
        spent += candidate.tokens
        if settings.tokens is not None and spent > settings.tokens:
            break
        caps.take(candidate)
        chosen.append(candidate)
    return chosen, passed


class _Caps:
    """The most that each source may have: rows, or a share of the selection's rows or tokens."""

    def __init__(self, settings: SelectConfig, count: int | None) -> None:
        self._settings, self._count = settings, count
        self._spent: Counter[str] = Counter()

    def full(self, candidate: Candidate) -> str | None:
        source = candidate.key[0]
        given = self._settings.per_source
        cap = given.get(source) if isinstance(given, Mapping) else given
        if cap is None:
            return None
        if isinstance(cap, int):
            over = self._spent[source] + 1 > cap
            return f"per_source: {cap} rows of {source} are selected already" if over else None
        whole = self._settings.tokens if self._count is None else self._count
        over = self._spent[source] + self._cost(candidate, cap) > cap * (whole or 0) + 1e-9
        return f"per_source: {source} has its share of {cap:.0%} already" if over else None

    def take(self, candidate: Candidate) -> None:
        source = candidate.key[0]
        given = self._settings.per_source
        cap = given.get(source) if isinstance(given, Mapping) else given
        self._spent[source] += self._cost(candidate, cap)

    def _cost(self, candidate: Candidate, cap: float | None) -> int:
        by_tokens = isinstance(cap, float) and self._count is None
        return candidate.tokens if by_tokens else 1
