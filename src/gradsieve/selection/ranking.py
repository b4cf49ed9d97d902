"""The order in which a pool's examples are considered, and taking them until a selection is full.

In: scores as arrays. Out: the lines that are chosen, and those passed over on the way. A `Ranking`
offers one line after the other. Where subtasks, target examples or targets take turns, a turn ends
only when a line is taken: one that is passed over (a cap, a near duplicate, a leak) is followed by
the next best for the same subtask, so that each gets its share.

Letters: n scored examples (lines of the score table), S columns of scores.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from gradsieve.recipe.schema import Budget, SelectConfig
from gradsieve.selection.rules import Caps

Check = Callable[[int], str | None]
"""Why a line is passed over; None: it is taken. Called only for lines that would be taken."""


class Offer(NamedTuple):
    """A line, what it was ranked by, and the subtask that it helps most or whose turn it is; an
    index into the ranking's subtasks, -1: none.
    """

    line: int
    score: float
    column: int


class Order:
    """Lines by their scores [n], best first; equal scores in order of lines.

    `columns` has the subtask of each line [n], or of all.
    """

    def __init__(self, scores: NDArray[np.float32], columns: NDArray[np.int32] | int) -> None:
        self._scores, self._columns = scores, np.broadcast_to(columns, len(scores))
        self._order = np.argsort(-scores, kind="stable").astype(np.int32)
        self.restart()

    def restart(self) -> None:
        """Begin with the best again."""
        self._place = 0

    def offer(self, gone: NDArray[np.bool_]) -> Offer | None:
        """The best line that is left."""
        self._place = _first_left(self._order, gone, self._place)
        if self._place == len(self._order):
            return None
        line = int(self._order[self._place])
        return Offer(line, float(self._scores[line]), int(self._columns[line]))

    def end_turn(self) -> None:
        """Nothing changes: it has one order."""


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _first_left(order: NDArray[np.int32], gone: NDArray[np.bool_], place: int) -> int:
    """The first place from here on whose line is left: with many columns most lines are gone."""
    while place < len(order) and gone[order[place]]:
        place += 1
    return place


class Turns:
    """Orders (or turns of orders) that take turns, each offering its best line that is left."""

    def __init__(self, parts: Sequence[Order | Turns]) -> None:
        self._parts, self._turn = parts, 0

    def restart(self) -> None:
        """Begin with the first part again."""
        self._turn = 0
        for part in self._parts:
            part.restart()

    def offer(self, gone: NDArray[np.bool_]) -> Offer | None:
        """The line of the part whose turn it is; a part without lines is passed over."""
        for _ in self._parts:
            if (found := self._parts[self._turn].offer(gone)) is not None:
                return found
            self._next()
        return None

    def end_turn(self) -> None:
        """A line was taken: the next part is next."""
        self._parts[self._turn].end_turn()
        self._next()

    def _next(self) -> None:
        self._turn = (self._turn + 1) % len(self._parts)

    def __copy__(self) -> Turns:
        """Turns that go on from here on their own; the arrays are shared."""
        twin = Turns([copy(part) for part in self._parts])
        twin._turn = self._turn
        return twin


class Ranking:
    """All scored lines, offered one by one."""

    def __init__(self, lines: int, turns: Turns, subtasks: Sequence[str]) -> None:
        self.subtasks, self._turns = subtasks, turns
        self._gone = np.zeros(lines, dtype=bool)

    def restart(self) -> None:
        """Begin again."""
        self._gone[:] = False
        self._turns.restart()

    def offer(self) -> Offer | None:
        """The line that is next; None if all are gone."""
        found = self._turns.offer(self._gone)
        if found is not None:
            self._gone[found.line] = True
        return found

    def end_turn(self) -> None:
        """The line that was offered is taken."""
        self._turns.end_turn()

    def ahead(self, count: int) -> NDArray[np.int64]:
        """Lines that come next, exactly if all are taken."""
        turns, gone = copy(self._turns), self._gone.copy()
        lines: list[int] = []
        while len(lines) < count and (found := turns.offer(gone)) is not None:
            gone[found.line] = True
            turns.end_turn()
            lines.append(found.line)
        return np.array(lines, np.int64)

    def subtask(self, column: int) -> str:
        """A subtask's name; empty: none."""
        return "" if column < 0 else self.subtasks[column]


class Ranked(NamedTuple):
    """Scores for one target: by which lines are ranked, or columns that take turns.

    Attributes:
        scores: [n] with the subtask of each line, an index into `subtasks`; or [n, S] with one of
            each column.
        columns: [n] or [S].
        subtasks: Names.
    """

    scores: NDArray[np.float32]
    columns: NDArray[np.int32]
    subtasks: Sequence[str]


def ranking_of(parts: Sequence[Ranked]) -> Ranking:
    """The ranking by the scores of several targets, for the same lines, which take turns."""
    turns: list[Order | Turns] = []
    subtasks: list[str] = []
    for scores, columns, names in parts:
        own = np.where(columns < 0, columns, columns + len(subtasks)).astype(np.int32)
        if scores.ndim == 1:
            turns.append(Order(scores, own))
        else:
            pairs = zip(scores.T, own.tolist(), strict=True)
            turns.append(Turns([Order(column, number) for column, number in pairs]))
        subtasks += names
    return Ranking(len(parts[0].scores), Turns(turns), subtasks)


def in_turns(scores: NDArray[np.float32], subtasks: Sequence[str]) -> Ranked:
    """Columns take turns; `subtasks` names that of each, and may repeat."""
    return Ranked(scores, np.arange(len(subtasks), dtype=np.int32), subtasks)


def round_robin(scores: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Lines in the order in which columns take turns, each taking its best line that is left.

    Of scores [n, S] each line once [n], and the column whose turn it was [n].
    """
    ranking = ranking_of([in_turns(scores, [""] * scores.shape[1])])
    lines, columns = np.empty(len(scores), np.int64), np.empty(len(scores), np.int32)
    for place in range(len(scores)):
        offer = ranking.offer()
        assert offer is not None
        lines[place], _, columns[place] = offer
        ranking.end_turn()
    return lines, columns


@dataclass(frozen=True)
class Choice:
    """Lines of a score table.

    Attributes:
        columns: The subtask that each was chosen for, an index into the ranking's.
        passed: Those passed over on the way, in order.
        too_long: The one that the budget's tokens don't suffice for; -1: none.
    """

    chosen: NDArray[np.int64]
    scores: NDArray[np.float64]
    columns: NDArray[np.int32]
    passed: NDArray[np.int64]
    reasons: Sequence[str]
    too_long: int


def choose(
    ranking: Ranking,
    sources: NDArray[np.integer],
    tokens: NDArray[np.int32],
    names: Sequence[str],
    settings: SelectConfig,
    budget: Budget,
    checks: Sequence[Check] = (),
) -> Choice:
    """Take lines in order until there are enough.

    With a budget of tokens, lines are taken until the next one would exceed it. `sources` are
    indices into `names` [n], `tokens` lengths [n]; the cheapest of `checks` comes first.
    """
    count = budget.rows(len(tokens))
    caps = Caps(settings.per_source, count, budget.tokens, names)
    chosen, scores, columns, passed = array("q"), array("d"), array("i"), array("q")
    reasons: list[str] = []
    spent, too_long = 0, -1
    ranking.restart()
    while len(chosen) != count and (found := ranking.offer()) is not None:
        line = found.line
        row = int(sources[line]), int(tokens[line])
        reason = caps.full(*row) or next(filter(None, (check(line) for check in checks)), None)
        if reason is not None:
            passed.append(line)
            reasons.append(reason)
            continue
        spent += row[1]
        if budget.tokens is not None and spent > budget.tokens:
            too_long = line
            break
        caps.take(*row)
        ranking.end_turn()
        chosen.append(line)
        scores.append(found.score)
        columns.append(found.column)
    return Choice(
        np.array(chosen, np.int64),
        np.array(scores, np.float64),
        np.array(columns, np.int32),
        np.array(passed, np.int64),
        reasons,
        too_long,
    )
