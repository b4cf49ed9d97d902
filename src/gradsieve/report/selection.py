"""One target's selection by one method: which rows, from which sources, scores and lengths.

Four groups of rows are shown: the selected, those passed over (near duplicates, leaks, caps), the
near misses (the best of the others) and the lowest scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradsieve.analysis.bootstrap import Floats
from gradsieve.analysis.results import records_of
from gradsieve.recipe.schema import ReportConfig
from gradsieve.report.texts import PageRows, short
from gradsieve.runs.artifacts import SelectionFiles
from gradsieve.runs.score_table import ScoreTable

GROUPS = ("selected", "passed over", "near miss", "lowest")

SUBTASKS_SHOWN = 5
"""Number of scores by subtask shown per row: the highest ones."""

BINS, LENGTH_BINS = 60, 32

RULES = ("near_duplicates", "per_source", "drop_leaks")
"""Rule names, with which the reason for passing over a row begins."""


@dataclass(frozen=True)
class Shown:
    """Rows of the score table that the page shows, in order.

    Attributes:
        lines: The rows' lines in the table [m].
        groups: Indices into `GROUPS` [m].
        subtasks: The subtask that each row was selected for [m]; -1 for none.
        reasons: Why a row was passed over, by its index among these rows.
    """

    lines: NDArray[np.int64]
    groups: NDArray[np.int64]
    subtasks: NDArray[np.integer[Any]]
    reasons: Mapping[int, str]


class Selection:
    """A selection's files, next to the score table.

    `own` means that the selection is for one target, not for all together, and names subtasks.
    Scores are those of the table even if subtasks take turns, whose scores have different scales.
    """

    def __init__(self, files: SelectionFiles, table: ScoreTable, rows: PageRows, own: bool) -> None:
        self.table, self.rows = table, rows
        self.numbers = table.numbers(rows.pool)
        selected = pa.concat_tables(records_of(files.messages))
        self.lines = lines_of(table, selected)
        self.subtasks = table.best[self.lines]
        if own:
            names = pa.array(table.subtasks, pa.string())
            self.subtasks = pc.fill_null(pc.index_in(selected["subtask"], names), -1).to_numpy()
        self.chosen = np.zeros(len(table.total), dtype=bool)
        self.chosen[self.lines] = True
        self._read_dropped(files)

    def _read_dropped(self, files: SelectionFiles) -> None:
        """Count the reasons, and store the rows that were passed over."""
        self.passed_over: Counter[str] = Counter()
        self.not_scored: Counter[str] = Counter()
        passed = []
        for block in records_of(files.dropped):
            rules = pc.list_element(pc.split_pattern(block["reason"], ":", max_splits=1), 0)
            is_passed = pc.is_in(rules, pa.array(RULES))
            self.passed_over.update(rules.filter(is_passed).to_pylist())
            self.not_scored.update(block["reason"].filter(pc.invert(is_passed)).to_pylist())
            passed.append(block.filter(is_passed))
        self.passed = pa.concat_tables(passed)

    def shown(self, settings: ReportConfig, most: int) -> Shown:
        """The rows of the four groups: best first, but the lowest-scored group lowest first."""
        table = self.table
        passed = lines_of(table, self.passed)
        taken = self.chosen.copy()
        taken[passed] = True
        rest = table.order[~taken[table.order]]
        passed, near = passed[: settings.near_misses], rest[: settings.near_misses]
        low = rest[len(near) :][::-1][: settings.lowest]
        first = min(most, len(self.lines))
        others = np.concatenate([passed, near, low])
        sizes = (first, len(passed), len(near), len(low))
        return Shown(
            np.concatenate([self.lines[:first], others]),
            np.repeat(np.arange(len(GROUPS)), sizes),
            np.concatenate([self.subtasks[:first], table.best[others]]),
            dict(enumerate(self.passed["reason"][: len(passed)].to_pylist(), start=first)),
        )

    def summary(self) -> dict[str, Any]:
        """Counts and distributions, as JSON."""
        table, pool, chosen = self.table, self.rows.pool, self.chosen
        tokens = pool.lengths[self.numbers]
        truncated = pool.column("truncated")[self.numbers]
        sources = pc.index_in(table.keys["source"], pa.array(self.rows.sources)).to_numpy()
        counts = [np.bincount(part, minlength=len(self.rows.sources)).tolist()
                  for part in (sources[chosen], sources)]  # fmt: skip
        return {
            "selected": len(self.lines),
            "scored": len(table.total),
            "tokens": int(tokens[chosen].sum()),
            "pool_tokens": int(tokens.sum()),
            "sources": [list(pair) for pair in zip(*counts, strict=True)],
            "subtasks": self._by_subtask(),
            "scores": histogram(table.total, chosen),
            "lowest_selected": short(float(table.total[self.lines].min())),
            "lengths": length_histogram(tokens, chosen),
            "median_tokens": [float(np.median(tokens[chosen])), float(np.median(tokens))],
            "truncated": [int(truncated[chosen].sum()), int(truncated.sum())],
            "passed_over": _most_frequent(self.passed_over),
            "not_scored": _most_frequent(self.not_scored),
        }

    def _by_subtask(self) -> list[list[Any]]:
        """[name, selected rows, scored rows that help it most] of each subtask."""
        count = len(self.table.subtasks) + 1  # -1 (none) is counted at index 0
        chosen, best = (
            np.bincount(np.asarray(part) + 1, minlength=count)[1:].tolist()
            for part in (self.subtasks, self.table.best)
        )
        return [list(row) for row in zip(self.table.subtasks, chosen, best, strict=True)]

    def columns(self, shown: Shown) -> dict[str, Any]:
        """The columns of the page's list for the shown rows; ranks by score count from 1."""
        return {
            "row": self.rows.places(self.numbers[shown.lines].tolist()),
            "group": shown.groups.tolist(),
            "rank": self.table.ranks[shown.lines].tolist(),
            "score": [short(score) for score in self.table.total[shown.lines].tolist()],
            "subtask": shown.subtasks.tolist(),
            "reason": shown.reasons,
            "by_subtask": [_highest(self.table.compared[line]) for line in shown.lines],
        }


def histogram(values: Floats, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Counts of all values and of the chosen ones in bins of equal width."""
    finite = np.isfinite(values)
    known = values[finite] if finite.any() else np.zeros(1)
    low, high = float(known.min()), float(known.max())
    return _counted(values, chosen, np.linspace(low, high if high > low else low + 1, BINS + 1))


def length_histogram(tokens: NDArray[np.integer[Any]], chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Like `histogram`, for lengths in bins of equal ratio that each contain an integer."""
    low, high = max(1, int(tokens.min())), int(tokens.max()) + 1
    edges = np.unique(np.round(np.geomspace(low, max(high, low + 1), LENGTH_BINS + 1)))
    return _counted(tokens, chosen, edges)


def _counted(
    values: NDArray[Any], chosen: NDArray[np.bool_], edges: NDArray[np.float64]
) -> dict[str, Any]:
    return {
        "edges": edges.tolist(),  # all digits: scores may differ in later digits
        "all": np.histogram(values, edges)[0].tolist(),
        "selected": np.histogram(values[chosen], edges)[0].tolist(),
    }


def lines_of(table: ScoreTable, records: pa.Table) -> NDArray[np.int64]:
    """The lines in a score table of the records that have a score, in the records' order."""
    keys = ["source", "id"]
    wanted = records.select(keys).append_column("place", pa.array(np.arange(len(records))))
    lines = table.keys.append_column("line", pa.array(np.arange(len(table.total))))
    found: NDArray[np.int64] = (
        wanted.join(lines, keys, join_type="inner").sort_by("place")["line"].to_numpy()
    )
    return found


def _most_frequent(counts: Counter[str]) -> list[list[Any]]:
    """[reason, rows], the most frequent first."""
    return [list(item) for item in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _highest(scores: NDArray[np.float32]) -> list[list[float | None]]:
    """[number of the subtask, score] of the subtasks with the highest scores."""
    order = np.argsort(-scores, kind="stable")[:SUBTASKS_SHOWN].tolist()
    return [[column, short(float(scores[column]))] for column in order]
