"""All that a report tells of a run, as JSON: the same for the same inputs.

In: a run whose select stage is finished. Out: rows and target examples with their texts, a view for
each target and method, and what the whole run has in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradsieve.analysis.decompose import can_attribute
from gradsieve.analysis.results import compare
from gradsieve.io import read_lines
from gradsieve.methods import find_method
from gradsieve.report.examples import CUT, Key, Pool, turns
from gradsieve.report.numbers import short
from gradsieve.report.provenance import checkpoints, current_stages, loss_curve
from gradsieve.report.pulls import Pulls
from gradsieve.report.selections import GROUPS, Selection
from gradsieve.runs.context import Context
from gradsieve.tasks import Target

LEAKS_TOLD = 50


def gather(context: Context) -> dict[str, Any]:
    """Read a run.

    Raises:
        RunError: If there is no selection for its recipe.
    """
    recipe = context.recipe
    stages = current_stages(context)
    leaks = list(read_lines(context.artifacts.selections.leaks))
    pool = Pool(context, {(leak["source"], leak["id"]): leak for leak in leaks})
    names = [(target, method) for target in context.targets for method in recipe.score.methods]
    views: list[dict[str, Any]] = []
    chosen: dict[str, dict[str, set[int]]] = {}
    with context.progress.counting("report", len(names), "selections") as report:
        for target, method in names:
            view, lines = _view(context, pool, target, method, len(names))
            views.append(view)
            chosen.setdefault(target.name, {})[method] = lines
            report(len(views))
    return {
        "model": Path(recipe.model.name).name,
        "cut": CUT,
        "groups": GROUPS,
        "together": recipe.select.together,
        "sources": pool.sources,
        "targets": [_target(target) for target in context.targets],
        "views": views,
        "rows": pool.rows(),
        "overlaps": {name: _overlaps(lines) for name, lines in chosen.items()},
        "leaks": {"rows": len(leaks), "told": leaks[:LEAKS_TOLD]},
        "questions": {name: len(test.questions) for name, test in context.whole_test_sets.items()},
        "loss": loss_curve(context.artifacts.warmup.losses()) if "warmup" in stages else [],
        "checkpoints": checkpoints(stages),
        "results": _results(context) if "evaluate" in stages else {},
    }


def _view(
    context: Context, pool: Pool, target: Target, method: str, views: int
) -> tuple[dict[str, Any], set[int]]:
    """What is told of one selection, and the pool's rows that are in it."""
    recipe, artifacts = context.recipe, context.artifacts
    table = artifacts.scores.table(target.name, method)
    files = artifacts.selections.of(recipe, target.name, method)
    selection = Selection(files, table, pool, own=not recipe.select.together)
    rows = selection.shown(recipe.report, recipe.report.rows // views)
    told = {
        "target": target.name,
        "method": method,
        "about": find_method(method).source,
        **selection.told(),
        "shown": selection.columns(rows),
        "agreement": None,
    }
    if can_attribute(recipe, method):
        keys = [table.key(row.line) for row in rows]
        pulls = Pulls(context, target.name, method, _places(target))
        told["shown"] |= pulls.of_rows(keys, [row.subtask for row in rows])
        told["agreement"] = pulls.agreement(table)
    return told, set(selection.places[selection.chosen].tolist())


def _places(target: Target) -> dict[Key, int]:
    return {(example.subtask, example.id): n for n, example in enumerate(target.examples)}


def _target(target: Target) -> dict[str, Any]:
    """Its examples as [id, subtask, characters left out, turns]."""
    examples = []
    for example in target.examples:
        kept, more = turns(example.messages)
        examples.append([example.id, example.subtask, more, kept])
    return {"name": target.name, "examples": examples}


def _overlaps(chosen: Mapping[str, set[int]]) -> dict[str, Any]:
    """Shared rows over the smaller selection, for each two methods."""
    methods = list(chosen)
    shares = [
        [short(len(chosen[a] & chosen[b]) / min(len(chosen[a]), len(chosen[b]))) for b in methods]
        for a in methods
    ]
    return {"methods": methods, "shares": shares}


def _results(context: Context) -> dict[str, list[dict[str, Any]]]:
    """For each target its metrics, with each method's numbers."""
    cells = compare([context.run.path]).cells
    return {
        target: [
            {
                "metric": metric,
                "higher_is_better": next(iter(methods.values())).higher_is_better,
                "methods": [
                    {
                        "method": method,
                        "values": _short(cell.values),
                        "mean": short(cell.mean),
                        "deviation": None if cell.deviation is None else short(cell.deviation),
                        "over_random": None if cell.over_random is None
                        else _short(cell.over_random),
                    }
                    for method, cell in methods.items()
                ],
            }
            for metric, methods in metrics.items()
        ]
        for target, metrics in cells.items()
    }  # fmt: skip


def _short(values: Sequence[float]) -> list[float | None]:
    return [short(value) for value in np.asarray(values, dtype=np.float64).tolist()]
