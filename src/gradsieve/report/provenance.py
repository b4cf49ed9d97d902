"""How a run was made: which stages belong to it, its recipe, times, versions and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsieve.errors import RunError
from gradsieve.io import differences
from gradsieve.methods import uses_gradients
from gradsieve.recipe.load import dump_recipe
from gradsieve.recipe.schema import TOGETHER
from gradsieve.report.numbers import short
from gradsieve.runs.context import Context
from gradsieve.runs.folder import STAGE_NAMES

POINTS = 400
"""Of a loss curve, at most: as many as a page is wide."""


def current_stages(context: Context) -> dict[str, dict[str, Any]]:
    """Meta of each finished stage that this recipe's selection was made with or led to.

    A run's folder may hold stages of an earlier recipe: they are left out.

    Raises:
        RunError: If there is no selection for this recipe.
    """
    recipe, run = context.recipe, context.run
    found = {"score": run.require("score"), "select": run.require("select")}
    gradients = any(map(uses_gradients, recipe.score.methods))
    if gradients or recipe.select.near_duplicates:
        found |= {"warmup": run.require("warmup"), "features": run.require("features")}
    _check_selection(context)
    for name, wanted, given, made_by in (
        ("train", recipe.train or recipe.evaluate, "selections", "select"),
        ("evaluate", recipe.evaluate, "models", "train"),
    ):
        meta = run.metadata(name)
        # What it was made from must be what is there now.
        if wanted and meta and meta["inputs"][given] == found.get(made_by, {}).get(given):
            found[name] = meta
    return {name: found[name] for name in STAGE_NAMES if name in found}


def _check_selection(context: Context) -> None:
    """Refuse to tell of a selection that another recipe has made."""
    recipe = context.recipe
    score, select = (context.run.require(name) for name in ("score", "select"))
    targets = [TOGETHER] if recipe.select.together else [target.name for target in recipe.targets]
    wanted = {f"{target}/{method}" for target in targets for method in recipe.score.methods}
    missing = [f"no selection {name}" for name in sorted(wanted - select["selections"].keys())]
    made = {name: score["inputs"][name] for name in ("model", "score", "targets")}
    made |= {name: select["inputs"][name] for name in ("select", "pool")}
    now = {
        "model": context.model_inputs,
        "score": recipe.score.results(),
        "targets": {target.name: target.fingerprint for target in context.targets},
        "select": recipe.select.results(),
        "pool": context.pool_inputs,
    }
    if changes := [*missing, *differences(made, now)]:
        raise RunError(
            "The run's selection is not of this recipe.",
            f"{context.run.stage('select')}: {'; '.join(changes[:3])}",
            "Run `gradsieve run` with this recipe first.",
        )


def _other_settings(context: Context, stages: Mapping[str, dict[str, Any]]) -> list[str]:
    """In what the warm-up and features, taken as they are (`--from`), differ from the recipe."""
    if "warmup" not in stages:
        return []
    made = {
        "warmup": _warmed_up(stages["warmup"]["inputs"]),
        "features": stages["features"]["inputs"]["features"],
    }
    # A stage's inputs hold those keys of its section that its results depend on.
    now = {
        name: getattr(context.recipe, name).model_dump(mode="json", include=set(made[name]))
        for name in made
    }
    if folders := context.recipe.warmup.checkpoints:
        now["warmup"]["checkpoints"] = [str(Path(folder).resolve()) for folder in folders]
    return differences(made, now)


def _warmed_up(inputs: dict[str, Any]) -> dict[str, Any]:
    """The keys of `warmup` that the stage has used: those of a training, or the checkpoints."""
    given = inputs.get("checkpoints")
    used = inputs["warmup"] if given is None else {}
    return {**used, "checkpoints": given and [folder for folder, _ in given]}


def _recipe(context: Context, stages: Mapping[str, dict[str, Any]]) -> str:
    others = _other_settings(context, stages)
    notes = [f"# made with other settings than below: {line}\n" for line in others]
    return "".join(notes) + dump_recipe(context.recipe)


def provenance(context: Context) -> dict[str, Any]:
    """What differs between runs of the same inputs: recipe (it names paths), times, versions."""
    stages = current_stages(context)
    return {
        "recipe": _recipe(context, stages),
        "seconds": {name: meta["seconds"] for name, meta in stages.items()},
        "scoring_seconds": {
            name: method["seconds"] for name, method in stages["score"]["methods"].items()
        },
        "versions": stages["select"]["versions"],
    }


def checkpoints(stages: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each checkpoint's learning rate, and its share of coordinates with a small v."""
    if "warmup" not in stages:
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
    """[step, loss] of a training, averaged over equal stretches if there are many steps."""
    size = -(-len(logs) // POINTS)
    stretches = [logs[start : start + size] for start in range(0, len(logs), size or 1)]
    return [
        [part[-1]["step"], short(sum(log["loss"] for log in part) / len(part))]
        for part in stretches
    ]
