"""A comparison of methods as data, and as Markdown, LaTeX or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from gradsieve.analysis.bootstrap import interval_text
from gradsieve.analysis.validation import Validation
from gradsieve.analysis.verdict import HELD_OUT, Cell, Curve, Verdict, headline
from gradsieve.runs.notebook import html_lines, html_table

NONE = "–"
"""A cell without a value."""

ByMethod = dict[str, dict[str, int]]
"""Numbers by target and method."""


@dataclass(frozen=True)
class Comparison:
    """Results of one or several runs.

    Attributes:
        cells: Results by target, metric and method.
        verdicts: Verdicts by target, for targets with held-out questions.
        curves: Curves by target, if selections have several sizes.
        validation: By run, whether each method's scores predict the effect of training.
        rows: Number of selected rows, by target and method.
        steps: Optimizer steps of the training on them, by target and method.
        leaks: Number of selected rows with text of the target's test questions, if there are any.
        selections: Folder of each selection, by target and method.
        overlap: Shared rows as a fraction of the smaller selection, by target and two methods.
        seconds: Cost of a method before training (warm-up, features, scores), by method.
        notes: How the runs differ, and which results are left out, one line each.
    """

    cells: dict[str, dict[str, dict[str, Cell]]] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    validation: dict[str, list[Validation]] = field(default_factory=dict)
    rows: ByMethod = field(default_factory=dict)
    steps: ByMethod = field(default_factory=dict)
    leaks: ByMethod = field(default_factory=dict)
    selections: dict[str, dict[str, str]] = field(default_factory=dict)
    overlap: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def json(self) -> str:
        """The comparison as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    def markdown(self) -> str:
        """The comparison as Markdown tables, each with its verdict and cautions below."""
        parts = []
        for target in self.cells:
            parts += [_markdown(f"### {target}", self._table(target)), *self._said(target)]
            parts += [_markdown(f"{title}:", table) for title, table in self._more(target)]
        if self.validation:
            lines = (f"- {line}" for line in self._validated())
            parts.append("\n".join(["### Validation", "", *lines]))
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return "\n\n".join([*(f"note: {note}" for note in self.notes), self.markdown()])

    def latex(self) -> str:
        """LaTeX tables (package booktabs), with verdicts and cautions as comments."""
        parts = []
        for target in self.cells:
            said = "".join(f"\n% {line}" for line in self._said(target))
            parts.append(_tabular(self._table(target), target) + said)
            parts += [_tabular(table, f"{target}: {title}") for title, table in self._more(target)]
        if self.validation:
            parts.append("\n".join(f"% {line}" for line in self._validated()))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        """HTML for notebooks: the tables, each with its verdict below, and the notes."""
        parts = [
            html_table(target, self._table(target)) + html_lines(self._said(target))
            for target in self.cells
        ]
        return "".join([*parts, html_lines([*self._validated(), *self.notes])])

    def _said(self, target: str) -> Iterator[str]:
        if found := self.verdicts.get(target):
            yield f"Verdict: {found.text}"
            yield from (f"Caution: {caution}." for caution in found.cautions)
        elif headline(self.cells[target]) is None:
            yield (
                "No verdict: target_loss is of the examples that were selected for. Give the "
                "target held-out examples (`test`), and leave evaluate.metrics out."
            )
        else:
            yield "No verdict: the only selections are random and full. Add methods."

    def _validated(self) -> Iterator[str]:
        for run, found in self.validation.items():
            where = f"{run}: " if len(self.validation) > 1 else ""
            yield from (f"{where}{one.text()}" for one in found)

    def _table(self, target: str) -> list[list[str]]:
        metrics, rows, steps = self.cells[target], self.rows.get(target, {}), self.steps.get(target)
        methods = dict.fromkeys(method for cells in metrics.values() for method in cells)
        columns = {"method": list(methods), "rows": [str(rows.get(m, NONE)) for m in methods]}
        if steps:
            columns["steps"] = [str(steps.get(method, NONE)) for method in methods]
        for name, cells in metrics.items():
            arrow = "↑" if next(iter(cells.values())).higher_is_better else "↓"
            found = [cells.get(method) for method in methods]
            columns[f"{name} {arrow}"] = [_mean(cell) if cell else NONE for cell in found]
        # The loss and the headline metric are compared with random.
        for name in (name for name in metrics if name in (HELD_OUT, headline(metrics))):
            over = {method: cell.over_random for method, cell in metrics[name].items()}
            if any(over.values()):
                gaps = [over.get(method) for method in methods]
                columns[f"{name}, over random"] = [interval_text(g) if g else NONE for g in gaps]
        costs = [self.seconds.get(method.partition("@")[0]) for method in methods]
        columns["cost (s)"] = [NONE if cost is None else f"{cost:.0f}" for cost in costs]
        return [list(columns), *map(list, zip(*columns.values(), strict=True))]

    def _more(self, target: str) -> Iterator[tuple[str, list[list[str]]]]:
        """Titles and tables: the metric by size, and shared rows for each size of selection."""
        if found := self.curves.get(target):
            yield f"{found.metric} by size", _sizes(found)
        shares = self.overlap.get(target, {})
        by_size: dict[str, list[str]] = {}
        for name in dict.fromkeys([*shares, *(name for row in shares.values() for name in row)]):
            by_size.setdefault(name.partition("@")[2], []).append(name)
        for size, names in by_size.items():
            which = f"selections of {size}" if size else "selections"
            yield f"Rows that {which} share", _triangle(shares, names)


def _triangle(shares: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> list[list[str]]:
    """The lower triangle of the matrix of shares."""
    return [["", *names[:-1]]] + [
        [name, *(_shared(shares, name, other) for other in names[:place])]
        + [""] * (len(names) - 1 - place)
        for place, name in enumerate(names)
        if place
    ]


def _sizes(curve: Curve) -> list[list[str]]:
    """A row per method with the metric for each size; levels without sizes are the same for all."""
    lines = {
        name: [NONE if point is None else f"{point[1]:.3f}" for point in points]
        for name, points in curve.lines.items()
    }
    lines |= {name: [f"{level:.3f}"] * len(curve.sizes) for name, level in curve.levels.items()}
    return [["", *curve.sizes], *([name, *cells] for name, cells in lines.items())]


def _shared(shares: Mapping[str, Mapping[str, float]], one: str, other: str) -> str:
    """A share as text; empty if no run has both methods."""
    share = shares.get(one, {}).get(other, shares.get(other, {}).get(one))
    return "" if share is None else f"{share:.0%}"


def _mean(cell: Cell) -> str:
    deviation = "" if cell.deviation is None else f" ± {cell.deviation:.3f}"
    return f"{cell.mean:.3f}{deviation}"


def _markdown(title: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join([title, "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def _tabular(table: list[list[str]], caption: str) -> str:
    head, *body = (" & ".join(map(_tex, row)) + r" \\" for row in table)
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}} % {_tex(caption)}", r"\toprule"]
    return "\n".join([*lines, head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


_TEX = str.maketrans({
    NONE: "--", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "_": r"\_", "%": r"\%",
    "&": r"\&", "#": r"\#",
})  # fmt: skip


def _tex(text: str) -> str:
    return text.translate(_TEX)
