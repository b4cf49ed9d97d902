"""The order in which a pool's examples are considered, and taking them until a selection is full.

In: scores as arrays. Out: a `Ranking` of all scored examples, and the places in it that are chosen
or passed over. The order of a million examples is three arrays; only those that are looked at cost
more.

Letters: n scored examples, S columns of scores, k orders.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from gradsieve.recipe.schema import SelectConfig
from gradsieve.selection.rules import Caps

Check = Callable[[int], str | None]
"""Why the example at a place of the ranking is passed over; None: it is taken. Called only for
examples that would be taken."""


@dataclass(frozen=True)
class Ranking:
    """All scored examples, best first.

    Attributes:
        lines: Lines of the score table [n].
        scores: What each was ranked by [n].
        columns: The subtask that it helps most, or whose turn it was, an index into `subtasks`;
            -1: none [n].
        subtasks: Names.
    """

    lines: NDArray[np.int64]
    scores: NDArray[np.float32]
    columns: NDArray[np.int32]
    subtasks: Sequence[str]

    def __len__(self) -> int:
        return len(self.lines)

    def subtask(self, place: int) -> str:
        """The subtask of the example at a place; empty: none."""
        column = int(self.columns[place])
        return "" if column < 0 else self.subtasks[column]


def in_turns(by_subtask: NDArray[np.float32], subtasks: Sequence[str]) -> Ranking:
    """Subtasks take turns.

    Args:
        by_subtask: Scores [n, S].
        subtasks: Names of the columns.
    """
    lines, columns = round_robin(by_subtask)
    return Ranking(lines, by_subtask[lines, columns], columns, subtasks)


def together(rankings: Sequence[Ranking]) -> Ranking:
    """Rankings of the same lines (by the scores of several targets) take turns."""
    if len(rankings) == 1:
        return rankings[0]
    lines, turns = interleave([ranking.lines for ranking in rankings])
    scores = np.empty(len(lines), dtype=np.float32)
    columns = np.empty(len(lines), dtype=np.int32)
    subtasks: list[str] = []
    for turn, ranking in enumerate(rankings):
        places = np.empty(len(lines), dtype=np.int64)
        places[ranking.lines] = np.arange(len(lines))
        own = np.flatnonzero(turns == turn)
        taken = places[lines[own]]
        scores[own], columns[own] = ranking.scores[taken], ranking.columns[taken]
        columns[own[columns[own] >= 0]] += len(subtasks)
        subtasks += ranking.subtasks
    return Ranking(lines, scores, columns, subtasks)


def round_robin(scores: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Lines in the order in which columns take turns, each taking its best line that is left.

    Args:
        scores: [n, S]; equal scores are taken in order of their lines.

    Returns:
        Each line once [n], and the column whose turn it was [n].
    """
    orders = np.empty(scores.T.shape, dtype=np.int32)
    for column, order in zip(scores.T, orders, strict=True):
        order[:] = np.argsort(-column, kind="stable")
    return interleave(orders)


def interleave(
    orders: Sequence[NDArray[np.integer]] | NDArray[np.integer],
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Several orders of the same items made one: they take turns, each giving its next new item.

    Args:
        orders: Numbers from 0 [k, n]; some orders may be shorter.

    Returns:
        Each item once [n], and the number of the order that gave it [n].
    """
    ends = np.cumsum([0, *map(len, orders)])
    merged: tuple[NDArray[np.int64], NDArray[np.int32]] = _interleave(np.concatenate(orders), ends)
    return merged


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _interleave(
    items: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Orders, one after the other in `items`; `ends` says where each starts and ends [k + 1]."""
    size = items.max() + 1 if len(items) else 0
    taken, coming = np.zeros(size, np.bool_), ends[:-1].copy()
    merged, turns = np.empty(size, np.int64), np.empty(size, np.int32)
    count, before = 0, -1
    while before < count:
        before = count
        for order in range(len(coming)):
            place, end = coming[order], ends[order + 1]
            while place < end and taken[items[place]]:
                place += 1
            if place < end:
                taken[items[place]] = True
                merged[count], turns[count] = items[place], order
                count += 1
            coming[order] = place
    return merged[:count], turns[:count]


@dataclass(frozen=True)
class Choice:
    """Places of a ranking.

    Attributes:
        chosen: In order.
        passed: Those passed over on the way, in order.
        reasons: Why, aligned with `passed`.
    """

    chosen: NDArray[np.int64]
    passed: NDArray[np.int64]
    reasons: Sequence[str]


def choose(
    sources: NDArray[np.integer],
    tokens: NDArray[np.int32],
    names: Sequence[str],
    settings: SelectConfig,
    checks: Sequence[Check] = (),
) -> Choice:
    """Take examples in order until there are enough.

    With a budget of tokens, examples are taken until the next one would exceed it.

    Args:
        sources: The source of each example, an index into `names`, best first [n].
        tokens: The length of each example [n].
        names: Of the sources.
        settings: How many, and the most of each source.
        checks: Reasons to pass over an example, cheapest first.
    """
    count = settings.count
    if settings.fraction is not None:
        count = max(1, round(settings.fraction * len(tokens)))
    caps = Caps(settings, count, names)
    chosen, passed = array("q"), array("q")
    reasons: list[str] = []
    spent = 0
    for place, row in enumerate(zip(sources.data, tokens.data, strict=True)):
        if len(chosen) == count:
            break
        reason = caps.full(*row) or next(filter(None, (check(place) for check in checks)), None)
        if reason is not None:
            passed.append(place)
            reasons.append(reason)
            continue
        spent += row[1]
        if settings.tokens is not None and spent > settings.tokens:
            break
        caps.take(*row)
        chosen.append(place)
    return Choice(np.array(chosen, np.int64), np.array(passed, np.int64), reasons)
