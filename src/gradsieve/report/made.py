"""How a run was made: which stages belong to it, its recipe, times, versions and checkpoints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from gradsieve.errors import RunError
from gradsieve.io import differences
from gradsieve.report.texts import short
from gradsieve.runs.context import Context
from gradsieve.runs.folder import STAGE_NAMES
from gradsieve.runs.lineage import outdated, upstream
from gradsieve.runs.settings import changed_settings

STEPS_A_POINT, POINTS_AN_EPOCH = 25, 10
"""Minimum steps per point and maximum points per epoch of a loss curve: means over fewer steps show
which batches were hard, not how the training went (an assumption)."""

Stages = Mapping[str, dict[str, Any]]
"""Metadata by stage."""


def current_stages(context: Context) -> dict[str, dict[str, Any]]:
    """Metadata of each finished stage that led to this recipe's selections, or followed from them.

    A run folder may contain stages of an earlier recipe; these are left out.

    Raises:
        RunError: If there is no selection made with this recipe.
    """
    recipe, run = context.recipe, context.run
    for name in ("score", "select"):
        run.require(name)
    stale = outdated(run)
    _check_selection(context, stale)
    later = STAGE_NAMES[STAGE_NAMES.index("select") + 1 : STAGE_NAMES.index("report")]
    followed = [
        name for name in later if getattr(recipe, name) and run.metadata(name) and name not in stale
    ]
    found = set[str]().union(*(upstream(run, name) for name in ("select", *followed)))
    return {name: run.require(name) for name in STAGE_NAMES if name in found}


def _check_selection(context: Context, stale: Mapping[str, str]) -> None:
    """Raise if the selection was made with another recipe, or is out of date."""
    recipe, run = context.recipe, context.run
    score, select = run.require("score"), run.require("select")
    wanted = {f"{name.target}/{name.short}" for name in recipe.selections}
    made = {key: score["inputs"][key] for key in ("model", "targets", "pool")}
    now = {
        "model": context.model_inputs,
        "targets": context.target_inputs,
        "pool": {source.name: made["pool"].get(source.name) for source in recipe.pool},
    }
    changes = [
        *(f"no selection {name}" for name in sorted(wanted - select["selections"].keys())),
        *(line for name in ("score", "select") for line in changed_settings(run, recipe, name)),
        *differences(made, now),
        *(f"{name} is out of date: {stale[name]}" for name in ("score", "select") if name in stale),
    ]
    if changes:
        raise RunError(
            "The run's selection is not of this recipe.",
            f"{run.stage('select')}: {'; '.join(changes[:3])}",
            "Run `gradsieve run` with this recipe first.",
        )


def provenance(context: Context) -> dict[str, Any]:
    """What differs between runs of the same inputs: recipe (it names paths), times, versions."""
    recipe, stages = context.recipe, current_stages(context)
    changes = [line for name in stages for line in changed_settings(context.run, recipe, name)]
    notes = [f"# made with other settings than below: {line}\n" for line in changes]
    return {
        "recipe": "".join(notes) + context.recipe_text,
        "seconds": {name: metadata["seconds"] for name, metadata in stages.items()},
        "scoring_seconds": {
            name: method["seconds"] for name, method in stages["score"]["methods"].items()
        },
        "versions": stages["select"]["versions"],
        "workers": {name: _workers(stage.get("workers", [])) for name, stage in stages.items()},
    }


def _workers(work: Sequence[Mapping[str, Any]]) -> str:
    """The devices and nodes that a stage's tasks ran on, such as `8 x NVIDIA H100 on node-1`."""
    counts = Counter((one["device"], one["node"]) for one in work)
    return ", ".join(
        f"{count} x {device} on {node}" if count > 1 else f"{device} on {node}"
        for (device, node), count in sorted(counts.items())
    )


def checkpoints(stages: Stages) -> list[dict[str, Any]]:
    """Each checkpoint's learning rate, and its share of coordinates with a small v."""
    if "features" not in stages:
        return []
    facts = stages["features"]["checkpoints"]
    return [
        {
            "learning_rate": rate,
            "adam_step": fact["adam_step"],
            "below_eps": fact.get("share_of_coordinates_below_eps"),
        }
        for rate, fact in zip(stages["warmup"]["learning_rates"], facts, strict=True)
    ]


def loss_curve(logs: Sequence[dict[str, Any]]) -> list[list[float | None]]:
    """[last step, mean loss] of each epoch, or of equal parts of an epoch with many steps."""
    points: list[list[float | None]] = []
    for _, epoch in groupby(logs, lambda log: math.ceil(round(log["epoch"], 6))):
        steps = list(epoch)
        parts = max(1, min(len(steps) // STEPS_A_POINT, POINTS_AN_EPOCH))
        ends = [len(steps) * part // parts for part in range(parts + 1)]
        for start, end in pairwise(ends):
            mean = sum(log["loss"] for log in steps[start:end]) / (end - start)
            points.append([steps[end - 1]["step"], short(mean)])
    return points
