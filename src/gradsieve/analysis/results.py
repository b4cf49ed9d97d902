"""The paper's table: what training on each method's selection does for each target.

In: the folders of runs with an evaluate stage. Out: method x target with mean and deviation over
seeds, the difference to `random` with an interval, the overlap of selections and what each method
cost, as Markdown, LaTeX or JSON. A method's seeds (`random`, `random-1`, ...) and the training's
seeds count as repetitions of one method, and so do several runs.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsieve.errors import RunError
from gradsieve.io import differences, first_few, read_lines
from gradsieve.methods import split_seed, uses_gradients
from gradsieve.recipe.load import load_recipe
from gradsieve.recipe.schema import TOGETHER
from gradsieve.runs.artifacts import Artifacts, SelectionsArtifact
from gradsieve.runs.folder import RunFolder

BOOTSTRAPS = 2000
"""Resamples of the questions, paired, and of the models; 95% intervals are the 2.5% and 97.5%
quantiles."""
AT_ONCE = 100
"""Of them; bounds memory."""

HELD_OUT = "held_out_loss"
UNTRAINED = ("base", "warmed_up")
"""Models that runs may share: one model is no repetition of itself."""


@dataclass(frozen=True)
class Cell:
    """One method on one target by one metric.

    Attributes:
        values: One for each model: seeds of selection and of training.
        mean: Of the values.
        deviation: Standard deviation over them; None for one.
        over_random: Mean difference to `random`, and its 95% interval over questions and over
            models; None if there is no `random`, or no question that both were asked.
        higher_is_better: Direction.
    """

    values: list[float]
    mean: float
    deviation: float | None
    over_random: tuple[float, float, float] | None
    higher_is_better: bool


@dataclass(frozen=True)
class Comparison:
    """All that the runs say.

    Attributes:
        cells: By target, metric and method.
        rows: Selected rows, by target and method.
        overlap: Shared rows over the smaller selection, by target and method and method.
        seconds: What a method took before training, by method: warm-up, features, scores.
        notes: What the reader should know of how the runs differ, a line each.
    """

    cells: dict[str, dict[str, dict[str, Cell]]] = field(default_factory=dict)
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    overlap: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def json(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    def markdown(self) -> str:
        """As Markdown tables."""
        parts = []
        for target in self.cells:
            parts.append(_markdown(f"### {target}", self._table(target, "–")))
            if self.overlap.get(target):
                parts.append(_markdown("Rows that selections share:", self._overlaps(target)))
        return "\n\n".join(parts)

    def latex(self) -> str:
        """As LaTeX tables (package booktabs)."""
        parts = []
        for target in self.cells:
            parts.append(_tabular(self._table(target, ""), target))
            if self.overlap.get(target):
                parts.append(_tabular(self._overlaps(target), f"{target}: rows that are shared"))
        return "\n\n".join(parts)

    def _table(self, target: str, none: str) -> list[list[str]]:
        metrics = self.cells[target]
        arrows = {
            name: "↑" if next(iter(cells.values())).higher_is_better else "↓"
            for name, cells in metrics.items()
        }
        compared = [m for m, cells in metrics.items() if any(c.over_random for c in cells.values())]
        # The loss, and the metric that the task reports first.
        compared = [m for m in compared if m == HELD_OUT or m == _first_metric(metrics)]
        head = ["method", "rows", *(f"{name} {arrows[name]}" for name in metrics)]
        head += [f"{name}, over random" for name in compared] + ["cost (s)"]
        table = [head]
        for method in dict.fromkeys(method for cells in metrics.values() for method in cells):
            row = [method, str(self.rows.get(target, {}).get(method, none))]
            for cells in metrics.values():
                cell = cells.get(method)
                row.append(_mean(cell) if cell else none)
            for metric in compared:
                cell = metrics[metric].get(method)
                row.append(_interval(cell.over_random) if cell and cell.over_random else none)
            cost = self.seconds.get(method)
            table.append([*row, none if cost is None else f"{cost:.0f}"])
        return table

    def _overlaps(self, target: str) -> list[list[str]]:
        """The lower triangle of the matrix of shares."""
        shares = self.overlap[target]
        names = list(dict.fromkeys([*shares, *(name for row in shares.values() for name in row)]))
        head = ["", *names[:-1]]
        return [head] + [
            [name, *(_shared(shares, name, other) for other in names[:place])]
            + [""] * (len(names) - 1 - place)
            for place, name in enumerate(names)
            if place
        ]


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Read runs and put their results beside each other.

    Args:
        runs: Folders of runs.

    Raises:
        RunError: If a run has not been evaluated, or two on different questions of a target.
    """
    folders = [RunFolder(run) for run in runs]
    by_run = [_results(run) for run in folders]
    results = [result for found in by_run for result in found]
    comparison = Comparison(notes=_notes(folders, by_run))
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for result in results:
        key = (result["target"], result["metric"], split_seed(result["method"])[0])
        group = groups.setdefault(key, [])
        same = (other["by_question"] == result["by_question"] for other in group)
        if result["method"] not in UNTRAINED or not any(same):
            group.append(result)
    for (target, metric, method), found in groups.items():
        random = groups.get((target, metric, "random"), []) if method != "random" else []
        cell = _cell(found, random)
        comparison.cells.setdefault(target, {}).setdefault(metric, {})[method] = cell
    for run in folders:
        _add_selections(comparison, run)
    return comparison


def _notes(runs: Sequence[RunFolder], results: Sequence[list[dict[str, Any]]]) -> list[str]:
    """Of runs that count as repetitions of each other though their settings differ."""
    selections = [
        {(row["target"], row["method"]) for row in found if row["method"] not in UNTRAINED}
        for found in results
    ]
    notes = []
    for (one, first), (other, second) in combinations(zip(runs, selections, strict=True), 2):
        changes = differences(_settings(one), _settings(other))
        if changes and first & second:
            notes.append(
                f"{one.path} and {other.path} count as repetitions of each other and differ in "
                + first_few(changes)
            )
    return notes


def _settings(run: RunFolder) -> dict[str, Any]:
    """What of a run's recipe changes its results, besides methods, targets and seeds."""
    if not run.recipe.is_file():
        return {}
    recipe = load_recipe(run.recipe)
    decisive = ("model", "warmup", "features", "score", "select", "train", "evaluate")
    sections = {name: getattr(recipe, name) for name in decisive}
    settings: dict[str, Any] = {
        name: section and section.results(("yes", "contents")) for name, section in sections.items()
    }
    settings["pool"] = [source.results(("yes", "contents")) for source in recipe.pool]
    return settings


def _results(run: RunFolder) -> list[dict[str, Any]]:
    """The rows of results.json, each with its numbers by question and the questions' ids."""
    run.require("evaluate")
    results = Artifacts(run).results
    rows = results.rows()
    for row in rows:
        found = results.result(results.name(row))
        row["by_question"] = found["metrics"][row["metric"]]
        own = row["metric"] == "target_loss"  # of the target's examples, not of the questions
        row["weights"], row["ids"] = (None if own else found.get(key) for key in ("weights", "ids"))
        row["run"] = str(run.path)
    return rows


def _cell(found: list[dict[str, Any]], random: list[dict[str, Any]]) -> Cell:
    _check_questions([*found, *random])
    values = [result["value"] for result in found]
    return Cell(
        values=values,
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        over_random=_difference(found, random) if random else None,
        higher_is_better=found[0]["higher_is_better"],
    )


def _check_questions(results: list[dict[str, Any]]) -> None:
    """Refuse results of which the numbers don't stand for the same questions in the same order."""
    first = results[0]
    for other in results[1:]:
        if other["ids"] != first["ids"]:
            pairs = zip_longest(first["ids"], other["ids"])
            one, two = next(pair for pair in pairs if pair[0] != pair[1])
            raise RunError(
                "The runs were evaluated on different questions.",
                f"target {first['target']}: {len(first['ids'])} in {first['run']}, "
                f"{len(other['ids'])} in {other['run']}; the first to differ: {one}, {two}",
                "Compare runs with the same target, test file and evaluate.limit.",
            )


def _difference(
    found: list[dict[str, Any]], random: list[dict[str, Any]]
) -> tuple[float, float, float] | None:
    """Mean difference over paired questions and all models, and its 95% interval.

    Each resample draws questions, the same for both methods, and models of each method: another
    seed would have chosen, or trained, otherwise. With one model on a side its seed counts as the
    only one there is.
    """
    if found[0]["weights"] is None:
        return None
    one, other = _by_question(found), _by_question(random)
    there = ~np.isnan(one).any(0) & ~np.isnan(other).any(0)
    if not there.any():
        return None
    one, other, weights = one[:, there], other[:, there], np.array(found[0]["weights"])[there]
    mean = float((weights * (one.mean(0) - other.mean(0))).sum() / weights.sum())
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(BOOTSTRAPS // AT_ONCE):
        drawn = _counts(rng, len(weights)) * weights
        drawn /= drawn.sum(1, keepdims=True)
        gaps.append(_resampled(rng, one, drawn) - _resampled(rng, other, drawn))
    low, high = np.quantile(np.concatenate(gaps), [0.025, 0.975])
    return mean, float(low), float(high)


def _resampled(
    rng: np.random.Generator, table: NDArray[np.float64], questions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Means of resampled models on resampled questions: [m, Q] and [AT_ONCE, Q] to [AT_ONCE].

    Resampling m models gives a variance that is m - 1 over m of the true one, so they are moved
    apart by as much (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8).
    """
    models, mean = len(table), table.mean(0)
    if models > 1:
        table = mean + (table - mean) * (models / (models - 1)) ** 0.5
    means: NDArray[np.float64] = (questions @ table.T * _counts(rng, models)).mean(1)
    return means


def _counts(rng: np.random.Generator, of: int) -> NDArray[np.float64]:
    """How often each is drawn when as many are drawn as there are: [AT_ONCE, of]."""
    drawn = rng.integers(of, size=(AT_ONCE, of)) + of * np.arange(AT_ONCE)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=AT_ONCE * of)
    return counts.reshape(AT_ONCE, of).astype(np.float64)


def _by_question(results: list[dict[str, Any]]) -> NDArray[np.float64]:
    """A row a model; NaN where it wasn't asked."""
    table = [[np.nan if v is None else v for v in result["by_question"]] for result in results]
    return np.array(table, dtype=np.float64)


def _add_selections(comparison: Comparison, run: RunFolder) -> None:
    """Sizes, overlaps and costs of a run's selections."""
    scored, select = run.require("score"), run.require("select")
    steps = [meta["seconds"] for name in ("warmup", "features") if (meta := run.metadata(name))]
    for name, facts in scored["methods"].items():
        cost = facts["seconds"] + (sum(steps) if uses_gradients(name) else 0)
        comparison.seconds.setdefault(split_seed(name)[0], cost)
    for name, methods in select["targets"].items():
        for target in list(comparison.cells) if name == TOGETHER else [name]:
            _add_selection(comparison, target, methods, Artifacts(run).selections, name)


def _add_selection(
    comparison: Comparison,
    target: str,
    methods: Mapping[str, Any],
    selections: SelectionsArtifact,
    name: str,
) -> None:
    chosen = {}
    for method, facts in methods.items():
        base = split_seed(method)[0]
        comparison.rows.setdefault(target, {}).setdefault(base, facts["rows"])
        if method == base != "full":
            chosen[method] = _keys(selections.selection(name, method).messages)
    for one, other in combinations(chosen, 2):
        smaller = min(len(chosen[one]), len(chosen[other]))
        shares = comparison.overlap.setdefault(target, {}).setdefault(one, {})
        shares.setdefault(other, len(chosen[one] & chosen[other]) / smaller)


def _keys(messages: Path) -> set[tuple[str, str]]:
    """(source, id) of each selected row; `selected.jsonl` may have an id of the row's own."""
    return {(row["source"], row["id"]) for row in read_lines(messages)}


def _shared(shares: Mapping[str, Mapping[str, float]], one: str, other: str) -> str:
    """A share as text; empty where no run has both methods."""
    share = shares.get(one, {}).get(other, shares.get(other, {}).get(one))
    return "" if share is None else f"{share:.0%}"


def _first_metric(metrics: Iterable[str]) -> str | None:
    return next((name for name in metrics if not name.endswith("_loss")), None)


def _mean(cell: Cell) -> str:
    deviation = "" if cell.deviation is None else f" ± {cell.deviation:.3f}"
    return f"{cell.mean:.3f}{deviation}"


def _interval(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _markdown(title: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join([title, "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def _tabular(table: list[list[str]], what: str) -> str:
    head, *body = (" & ".join(map(_tex, row)) + r" \\" for row in table)
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}} % {_tex(what)}", r"\toprule"]
    return "\n".join([*lines, head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


_TEX: Mapping[str, str] = {
    "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "_": r"\_", "%": r"\%", "&": r"\&",
    "#": r"\#",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
