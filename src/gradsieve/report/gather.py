"""The content of a report as JSON; the same inputs give the same JSON.

In: a run whose select stage is finished. Out: rows and target examples with their texts, a view for
each target and method, and the data that all views share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradsieve.analysis.decompose import can_decompose
from gradsieve.analysis.results import compare, overlap
from gradsieve.analysis.tables import Comparison
from gradsieve.analysis.validation import Validation, read_validation
from gradsieve.analysis.verdict import Cell
from gradsieve.io import read_lines
from gradsieve.recipe.schema import SelectionName
from gradsieve.report.answers import answers
from gradsieve.report.contributions import Decomposition
from gradsieve.report.made import checkpoints, current_stages, loss_curve
from gradsieve.report.map import Chosen, feature_map
from gradsieve.report.selection import GROUPS, Selection
from gradsieve.report.texts import CUT, PageRows, short, turns
from gradsieve.runs.context import Context
from gradsieve.tasks import Target

LEAKS_SHOWN = 50

Ranks = Mapping[str, NDArray[np.int32]]
"""By method, each row's rank by score, in the order of the pool: negative for selected rows, 0 for
rows without a score."""


def gather(context: Context) -> dict[str, Any]:
    """Read a run and return the report's content.

    Raises:
        RunError: If the run has no selection made with its recipe.
    """
    recipe = context.recipe
    stages = current_stages(context)
    leaks = list(read_lines(context.artifacts.selections.leaks))
    rows = PageRows(context.pool, {(leak["source"], leak["id"]): leak for leak in leaks})
    names = [(t, name) for t in context.targets for name in recipe.selections_for(t.name)]
    views: list[dict[str, Any]] = []
    ranks: dict[str, dict[str, NDArray[np.int32]]] = {}
    with context.progress.counting("report", len(names), "selections") as report:
        for target, name in names:
            view, of_pool = _view(context, rows, target, name, len(names))
            views.append(view)
            ranks.setdefault(target.name, {})[name.short] = of_pool
            report(len(views))
    chosen = {
        name: {method: np.flatnonzero(of_pool < 0) for method, of_pool in methods.items()}
        for name, methods in ranks.items()
    }
    comparison = compare([context.run.path]) if "evaluate" in stages else Comparison()
    validation = read_validation(context.artifacts.validation) if "validate" in stages else []
    return {
        "model": Path(recipe.model.name).name,
        "cut": CUT,
        "groups": GROUPS,
        "together": recipe.select.together,
        "turns": recipe.select.turns != "none",
        "sources": rows.sources,
        "targets": [_target(target) for target in context.targets],
        "views": views,
        "rows": rows.content(),
        "ranks": {
            name: _side_by_side(rows, [view for view in views if view["target"] == name], methods)
            for name, methods in ranks.items()
        },
        "map": feature_map(context, chosen) if "features" in stages else None,
        "overlaps": {name: _overlaps(numbers) for name, numbers in chosen.items()},
        "leaks": {"rows": len(leaks), "shown": leaks[:LEAKS_SHOWN]},
        "questions": {name: len(test.questions) for name, test in context.full_test_sets.items()},
        "loss": loss_curve(context.artifacts.warmup.losses()) if "warmup" in stages else [],
        "checkpoints": checkpoints(stages),
        "results": _results(comparison),
        "findings": findings(comparison, validation),
        "answers": {
            name: found
            for name, metrics in comparison.cells.items()
            if (found := answers(context, name, {m for cells in metrics.values() for m in cells}))
        },
    }


def _view(
    context: Context, rows: PageRows, target: Target, name: SelectionName, views: int
) -> tuple[dict[str, Any], NDArray[np.int32]]:
    """The content of one selection, and the pool's ranks as in `Ranks`."""
    recipe, artifacts, method = context.recipe, context.artifacts, name.method
    table = artifacts.scores.table(target.name, method)
    files = artifacts.selections.of(recipe, target.name, name.short)
    selection = Selection(files, table, rows, own=not recipe.select.together)
    shown = selection.shown(recipe.report, recipe.report.rows // views)
    view = {
        "target": target.name,
        "method": name.short,
        "about": artifacts.scores.metadata["methods"][method]["source"],
        **selection.summary(),
        "shown": selection.columns(shown),
        "agreement": None,
    }
    if can_decompose(recipe, method):
        scores = Decomposition(context, target, method)
        wanted = [
            (table.subtasks[column], table.best_example(line, column))
            for line, column in zip(shown.lines.tolist(), shown.subtasks.tolist(), strict=True)
        ]
        view["shown"] |= scores.of_rows(selection.numbers[shown.lines], wanted)
        view["agreement"] = scores.agreement(selection.numbers, table.total)
    of_pool = np.zeros(len(context.pool), np.int32)
    of_pool[selection.numbers] = np.where(selection.chosen, -table.ranks, table.ranks)
    return view, of_pool


def _side_by_side(
    rows: PageRows, views: Sequence[Mapping[str, Any]], ranks: Ranks
) -> list[list[int]]:
    """[row, rank by each method] for a target's shown rows; ranks are as in `Ranks`."""
    places = sorted({place for view in views for place in view["shown"]["row"]})
    numbers = np.array(rows.numbers, np.int64)[np.array(places, np.int64)]
    columns = [places, *(of_pool[numbers].tolist() for of_pool in ranks.values())]
    return [list(row) for row in zip(*columns, strict=True)]


def _target(target: Target) -> dict[str, Any]:
    """A target's name, and its examples as [id, subtask, characters left out, turns]."""
    examples = [[one.id, one.subtask, *turns(one.messages)[::-1]] for one in target.examples]
    return {"name": target.name, "examples": examples}


def _overlaps(chosen: Chosen) -> dict[str, Any]:
    """The overlap of each pair of methods."""
    tables = [pa.table({"number": numbers}) for numbers in chosen.values()]
    shares = [[short(overlap(one, other)) for other in tables] for one in tables]
    return {"methods": list(chosen), "shares": shares}


def findings(comparison: Comparison, validation: Sequence[Validation]) -> dict[str, dict[str, Any]]:
    """The conclusions from results and validation, by target; empty if there are neither."""
    targets = dict.fromkeys([*comparison.cells, *(one.target for one in validation)])
    verdicts, curves = comparison.verdicts, comparison.curves
    return {
        target: {
            "verdict": asdict(verdicts[target]) if target in verdicts else None,
            "curve": asdict(curves[target]) if target in curves else None,
            "steps": comparison.steps.get(target, {}),
            "validation": [
                {
                    "method": one.method,
                    "text": one.meaning,
                    "loss": one.loss,
                    "points": _short(list(zip(one.summed, one.losses, strict=True))),
                }
                for one in validation
                if one.target == target
            ],
        }
        for target in targets
    }


def _results(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """Each target's metrics, with the numbers of each method."""
    return {
        target: [_metric(metric, cells) for metric, cells in metrics.items()]
        for target, metrics in comparison.cells.items()
    }


def _metric(metric: str, cells: Mapping[str, Cell]) -> dict[str, Any]:
    methods = [{"method": method, **_short(asdict(cell))} for method, cell in cells.items()]
    higher_is_better = [bool(one.pop("higher_is_better")) for one in methods]
    return {"metric": metric, "higher_is_better": higher_is_better[0], "methods": methods}


def _short(value: Any) -> Any:
    """Round all numbers to six digits."""
    if isinstance(value, Mapping):
        return {name: _short(one) for name, one in value.items()}
    if isinstance(value, Sequence):
        return [_short(one) for one in value]
    return value if value is None else short(value)
