"""Rank a pool's examples, and take them in this order until the selection is full.

In: scores as arrays. Out: the chosen lines, and those passed over on the way. A `Ranking` offers
one line after another. If subtasks, target examples or targets take turns, a turn ends only when a
line is taken: after a line is passed over (a cap, a near duplicate, a leak), the same subtask
offers its next best line, so that each subtask gets its share.

Letters: n scored examples (lines of the score table), S columns of scores.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradsieve.recipe.schema import Budget, SelectConfig
from gradsieve.selection.rules import Caps

Check = Callable[[int], str | None]
"""Returns why a line is passed over, or None. Called only for lines that would be taken."""


class Offer(NamedTuple):
    """A line, the score that it was ranked by, and the subtask that it helps most or whose turn it
    is (an index into the ranking's subtasks; -1 for none).
    """

    line: int
    score: float
    column: int


class Order:
    """Lines by score [n], best first; ties are in order of lines.

    `columns` is the subtask of each line [n], or of all lines.
    """

    def __init__(self, scores: NDArray[np.float32], columns: NDArray[np.int32] | int) -> None:
        self._scores, self._columns = scores, np.broadcast_to(columns, len(scores))
        self._order = np.argsort(-scores, kind="stable").astype(np.int32)
        self._place = 0

    def offer(self, gone: NDArray[np.bool_]) -> Offer | None:
        """The best remaining line."""
        self._place = _first_left(self._order, gone, self._place)
        if self._place == len(self._order):
            return None
        line = int(self._order[self._place])
        return Offer(line, float(self._scores[line]), int(self._columns[line]))


def _first_left(order: NDArray[np.int32], gone: NDArray[np.bool_], place: int) -> int:
    """The first place from `place` on whose line remains; with many columns most are gone."""
    size = 1
    while place < len(order):
        taken = gone[order[place : place + size]]
        first = int(taken.argmin())
        if not taken[first]:
            return place + first
        place, size = place + len(taken), 2 * size
    return place


Turns = deque[deque[Order]]
"""The orders of each target; the first order of the first target has its turn."""


class Ranking:
    """All scored lines, offered one by one: `targets` take turns, and so do each one's orders."""

    def __init__(
        self, lines: int, targets: Iterable[Iterable[Order]], subtasks: Sequence[str]
    ) -> None:
        self.subtasks, self._lines = subtasks, lines
        self._start: Turns = deque(map(deque, targets))
        self.restart()

    def restart(self) -> None:
        """Start again with all lines."""
        self._gone, self._turns = np.zeros(self._lines, dtype=bool), _copied(self._start)

    def offer(self) -> Offer | None:
        """The next line, the best that remains in the order whose turn it is; None at the end."""
        while self._turns:
            while own := self._turns[0]:
                if (found := own[0].offer(self._gone)) is not None:
                    self._gone[found.line] = True
                    return found
                own.popleft()  # no line remains in it
            self._turns.popleft()
        return None

    def end_turn(self) -> None:
        """Move to the next target, and the next order of this one: the offered line was taken."""
        self._turns[0].rotate(-1)
        self._turns.rotate(-1)

    def ahead(self, count: int) -> NDArray[np.int64]:
        """Up to `count` lines that come next; exact if all of them are taken."""
        twin = copy(self)
        twin._gone, twin._turns = self._gone.copy(), _copied(self._turns)
        lines: list[int] = []
        while len(lines) < count and (found := twin.offer()) is not None:
            twin.end_turn()
            lines.append(found.line)
        return np.array(lines, np.int64)

    def subtask(self, column: int) -> str:
        """A subtask's name; empty if there is none."""
        return "" if column < 0 else self.subtasks[column]


def _copied(turns: Turns) -> Turns:
    """Independent turns with the same state; the arrays are shared."""
    return deque(deque(map(copy, orders)) for orders in turns)


class Ranked(NamedTuple):
    """Scores for one target: a single ranking of lines, or columns that take turns.

    Attributes:
        scores: [n] for a single ranking; [n, S] for columns that take turns.
        columns: The subtask of each line [n], or of each column [S]: indices into `subtasks`.
        subtasks: The subtasks' names.
    """

    scores: NDArray[np.float32]
    columns: NDArray[np.int32]
    subtasks: Sequence[str]


def ranking_of(parts: Sequence[Ranked]) -> Ranking:
    """A ranking in which several targets take turns, from their scores of the same lines."""
    targets: list[list[Order]] = []
    subtasks: list[str] = []
    for scores, columns, names in parts:
        own = np.where(columns < 0, columns, columns + len(subtasks)).astype(np.int32)
        if scores.ndim == 1:
            targets.append([Order(scores, own)])
        else:
            pairs = zip(scores.T, own.tolist(), strict=True)
            targets.append([Order(column, number) for column, number in pairs])
        subtasks += names
    return Ranking(len(parts[0].scores), targets, subtasks)


def in_turns(scores: NDArray[np.float32], subtasks: Sequence[str]) -> Ranked:
    """Scores whose columns take turns; `subtasks` names each column's and may repeat names."""
    return Ranked(scores, np.arange(len(subtasks), dtype=np.int32), subtasks)


def round_robin(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """All lines [n], ranked by scores [n, S] whose columns take turns: each takes its best
    remaining line.
    """
    return ranking_of([in_turns(scores, [""] * scores.shape[1])]).ahead(len(scores))


@dataclass(frozen=True)
class Choice:
    """The chosen lines of a score table, in order.

    Attributes:
        columns: The subtask that each was chosen for, an index into the ranking's subtasks.
        passed: The lines passed over on the way, in order.
        too_long: The first line that would exceed the token budget; -1 if there is none.
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
    indices into `names` [n], `tokens` lengths [n]; put the cheapest of `checks` first.
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
