"""One target's selection by one method: which rows, from where, with which scores and lengths.

Four groups of rows are shown: the selected, those passed over on the way (near duplicates, leaks,
caps), the near misses (the best of the others) and the lowest scored.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsieve.io import read_lines
from gradsieve.recipe.schema import ReportConfig
from gradsieve.report.examples import Pool
from gradsieve.report.numbers import histogram, length_histogram, short
from gradsieve.runs.artifacts import SelectionFiles
from gradsieve.runs.score_table import ScoreTable

GROUPS = ("selected", "passed over", "near miss", "lowest")
SUBTASKS_SHOWN = 5
"""Scores by subtask told of a row: its highest."""


@dataclass(frozen=True)
class Shown:
    """A row that is shown: its line in the table, and what was said of it when rows were chosen."""

    line: int
    group: int
    score: float
    subtask: str
    reason: str | None = None


class Selection:
    """A selection's files, next to the table of scores.

    Args:
        files: Of the selection for the target, or for all targets together.
        table: The scores.
        pool: The pool.
        own: Whether the selection was made by these scores alone, and tells score and subtask.
    """

    def __init__(self, files: SelectionFiles, table: ScoreTable, pool: Pool, own: bool) -> None:
        self.table, self.pool = table, pool
        self.places = np.array(
            [pool.place[key["source"], key["id"]] for key in table.keys.to_pylist()]
        )
        self._line = {place: line for line, place in enumerate(self.places.tolist())}
        self.rows: list[Shown] = []
        for row in read_lines(files.messages):
            line = self._line[pool.place[row["source"], row["id"]]]
            told = Shown(line, 0, row["score"], row["subtask"]) if own else self._shown(line, 0)
            self.rows.append(told)
        self.dropped = list(read_lines(files.dropped))
        self.chosen = np.zeros(len(table.total), dtype=bool)
        self.chosen[[row.line for row in self.rows]] = True

    def _shown(self, line: int, group: int, reason: str | None = None) -> Shown:
        table = self.table
        return Shown(line, group, float(table.total[line]), table.subtask(line), reason)

    def shown(self, settings: ReportConfig, most: int) -> list[Shown]:
        """The rows of the four groups, each best first; the lowest, lowest first."""
        passed = [
            self._shown(self._line[place], 1, row["reason"])
            for row in self.dropped
            if (place := self.pool.place.get((row["source"], row.get("id", "")))) in self._line
        ]
        taken = {row.line for row in [*self.rows, *passed]}
        rest = [line for line in self.table.order.tolist() if line not in taken]
        near = rest[: settings.near_misses]
        low = rest[len(near) :][::-1][: settings.lowest]
        return [
            *self.rows[:most],
            *passed[: settings.near_misses],
            *(self._shown(line, 2) for line in near),
            *(self._shown(line, 3) for line in low),
        ]

    def sources(self) -> list[list[int]]:
        """Selected and scored rows of each source."""
        sources, count = self.pool.source[self.places], len(self.pool.sources)
        chosen = np.bincount(sources[self.chosen], minlength=count)
        scored = np.bincount(sources, minlength=count)
        return [list(pair) for pair in zip(chosen.tolist(), scored.tolist(), strict=True)]

    def subtasks(self) -> list[list[Any]]:
        """[name, selected rows, scored rows that help it most] of each subtask."""
        chosen = Counter(row.subtask for row in self.rows)
        best = Counter(self.table.best.tolist())
        names = enumerate(self.table.subtasks)
        return [[name, chosen[name], best[number]] for number, name in names]

    def told(self) -> dict[str, Any]:
        """Counts and distributions, as JSON."""
        table, pool = self.table, self.pool
        tokens, truncated = pool.tokens[self.places], pool.truncated[self.places]
        chosen = self.chosen
        return {
            "selected": len(self.rows),
            "scored": len(table.total),
            "tokens": int(tokens[chosen].sum()),
            "pool_tokens": int(tokens.sum()),
            "sources": self.sources(),
            "subtasks": self.subtasks(),
            "scores": histogram(table.total, chosen),
            "lowest_selected": short(min(row.score for row in self.rows)),
            "lengths": length_histogram(tokens, chosen),
            "median_tokens": [float(np.median(tokens[chosen])), float(np.median(tokens))],
            "truncated": [int(truncated[chosen].sum()), int(truncated.sum())],
            "passed_over": _reasons(self.dropped, passed=True),
            "not_scored": _reasons(self.dropped, passed=False),
        }

    def columns(self, rows: list[Shown]) -> dict[str, Any]:
        """What a page's list needs of each shown row; ranks count from 1 by score."""
        table = self.table
        number = {name: index for index, name in enumerate(table.subtasks)}
        lines = [row.line for row in rows]
        return {
            "row": self.pool.show(self.places[lines].tolist()),
            "group": [row.group for row in rows],
            "rank": table.ranks[lines].tolist(),
            "score": [short(row.score) for row in rows],
            "subtask": [number.get(row.subtask, -1) for row in rows],
            "reason": {str(n): row.reason for n, row in enumerate(rows) if row.reason},
            "by_subtask": [_highest(table.by_subtask[line]) for line in lines],
        }


_RULES = ("near_duplicates", "per_source", "drop_leaks")


def _reasons(dropped: list[dict[str, Any]], passed: bool) -> list[list[Any]]:
    """[rule or reason, rows], the most frequent first."""
    counts: Counter[str] = Counter()
    for row in dropped:
        rule = row["reason"].partition(":")[0]
        if (rule in _RULES) == passed:
            counts[rule if passed else row["reason"]] += 1
    return [list(item) for item in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _highest(scores: NDArray[np.float32]) -> list[list[float | None]]:
    """[number of the subtask, score] of the subtasks that a row helps most."""
    order = np.argsort(-scores, kind="stable")[:SUBTASKS_SHOWN].tolist()
    return [[column, short(float(scores[column]))] for column in order]
