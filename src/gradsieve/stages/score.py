"""Stage 4: a score for each example of the pool, target and method (method.md, steps 4 and 5).

In: the pool, the targets and, for methods that use them, gradients. Out:
`03-score/TARGET/METHOD.parquet` with columns source, id, score, subtask (the one with the highest
score) and the scores by subtask (`runs/score_table.py`), in order of (source, id). The outputs of
pool and features record which examples have no score, and why (`artifacts.scores.skipped`).
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradsieve.console import clock
from gradsieve.errors import GradsieveError
from gradsieve.io import file_fingerprint, fingerprint, is_whole, read_sealed, reading
from gradsieve.methods import (
    Features,
    Scores,
    ScoringTask,
    all_members,
    find_method,
    members,
    needs_gradients,
    score_by,
    split_seed,
    uses_gradients,
)
from gradsieve.models.saved import model_fingerprint
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.artifacts import link_tables
from gradsieve.runs.context import Context
from gradsieve.runs.files import INPUTS
from gradsieve.runs.score_table import write_scores
from gradsieve.stages import checks
from gradsieve.stages.base import Inputs, Stage, same_but
from gradsieve.stages.estimate import (
    Estimate,
    checkpoints,
    lengths,
    selecting_shape,
    store_bytes,
    subtasks,
    target_rows,
    width,
)

KEY_BYTES = 40
"""Compressed bytes of a score table's row apart from its subtasks: an assumption."""

EXACT = "stores.exact"
"""Key of exact mode's cosines in the outputs of features."""

LOW_SIGNAL = 2.0
"""Ratio of the scores' spread to the projection's error, below which a run warns: at 1 the scores
are only error, at 2 a quarter of their variance is."""


class Score(Stage):
    """A score per example, target and method."""

    name = "score"
    refreshes_pool = True

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        recipe, names = context.recipe, context.recipe.score.methods
        own = {name: found for name in names if (found := _identity(recipe, name))}
        order, features = _order(context), {}
        if _needs_features(context):
            rates = context.artifacts.warmup.learning_rates
            features = {**context.artifacts.features.metadata["output"], "learning_rates": rates}
        return {
            "score": recipe.score.results(),
            "methods": names,
            "targets": context.target_inputs,
            "pool": context.pool_inputs,
            "model": context.model_inputs,
            "features": features,
            **({"own": own} if own else {}),
            **({"order": order} if order else {}),
            **({"examples": True} if recipe.select.turns == "examples" else {}),
        }

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """Whether scores can be kept: methods may change, and targets may be added.

        Exact cosines, once they exist, replace those from a datastore.
        """
        return {*old["targets"]} == _kept(old, new)

    def reuse(self, archived: Path, folder: Path) -> None:
        """Keep the tables of unchanged targets if others changed or were removed."""
        old, new = (read_sealed(at / INPUTS) or {} for at in (archived, folder))
        link_tables(archived, folder, _kept(old, new))

    def check(self, context: Context) -> Iterator[GradsieveError]:
        yield from checks.methods(context.recipe, libraries=True)
        yield from checks.models(context)
        if not needs_gradients(context.recipe):  # else earlier stages have checked it
            yield from checks.vocabulary(context)
        yield from checks.targets(context)

    def estimate(self, context: Context) -> Estimate:
        """Forward passes of methods that use a model; reading datastores for the others."""
        recipe, rows = context.recipe, len(context.pool.usable)
        methods = all_members(recipe)
        shape, names = selecting_shape(context), subtasks(context)
        targets = [len(row.encoded.input_ids) for row in target_rows(context)]
        each, compared = len(targets), names
        if recipe.score.target_mean == "none":
            compared = each
        if recipe.select.turns == "examples":
            names, compared = names + each, names + each
        stored = sum(uses_gradients(name, recipe) for name in methods) * checkpoints(context)
        passes = sum(find_method(name, recipe).uses == "model" for name in methods)
        tokens = np.append(lengths(context), targets)
        products = 2.0 * width(context) * compared * rows
        forward = shape.forward(1, tokens, tokens).sum()
        return Estimate(
            units=float(tokens.sum()),
            flops=float(stored * products + passes * forward),
            hidden=shape.hidden,
            disk_bytes=rows * len(methods) * (4 * names + KEY_BYTES * len(context.targets)),
            read_bytes=stored * store_bytes(context),
        )

    def run(self, context: Context) -> dict[str, Any]:
        scores, recipe = context.artifacts.scores, context.recipe
        names = recipe.score.methods
        for name in sorted(names, key="fusion".__eq__):  # last: it uses the others' scores
            facts = scores.facts().get(name)
            is_scored = all(is_whole(scores.table_file(t.name, name)) for t in context.targets)
            if not is_scored or facts is None or facts.get("own", []) != _identity(recipe, name):
                _score(context, name)
        shutil.rmtree(scores.work, ignore_errors=True)
        made = [
            (f"{target}/{name}", file_fingerprint(scores.table_file(target, name)))
            for target, name in recipe.scored
        ]
        if _needs_features(context):  # which examples have no score
            made.append(("skipped", file_fingerprint(context.artifacts.features.skipped_file)))
        facts = scores.facts()
        return {
            "methods": {
                name: {
                    "source": find_method(name, recipe).source,
                    "seconds": facts[name]["seconds"],
                    "gradients": uses_gradients(name, recipe),
                }
                for name in names
            },
            "tables": {
                f"{target}/{name}": {
                    **_spread(scores.table_file(target, name)),
                    "signal_to_noise": facts[name]["noise"].get(target, {}),
                }
                for target, name in recipe.scored
            },
            "output": fingerprint(made),  # names too: a renamed table has the same bytes
        }


def _needs_features(context: Context) -> bool:
    recipe = context.recipe
    return any(uses_gradients(name, recipe) for name in recipe.score.methods)


def _kept(old: Inputs, new: Inputs) -> set[str]:
    """The targets whose tables for the old inputs are valid for the new inputs too."""
    if not same_but(old, new, "methods", "targets", "features", "own", "order"):
        return set()
    before, now = old["features"], new["features"]
    if before and EXACT in now and EXACT not in before:
        return set()
    if any(now.get(key) != before[key] for key in before if not key.startswith("targets.")):
        return set()

    def parts(inputs: Inputs, name: str) -> tuple[Any, ...]:
        key = f"targets.{name}"
        gradients = inputs["features"].get(key) if key in before else None
        return inputs["targets"].get(name), gradients, inputs.get("order", {}).get(name)

    return {name for name in old["targets"] if parts(old, name) == parts(new, name)}


def _order(context: Context) -> dict[str, str]:
    """If a method lets target examples take turns: their order, by target, unless it is by id."""
    methods = (find_method(name, context.recipe) for name in all_members(context.recipe))
    if not any(getattr(method, "in_turn", False) for method in methods):
        return {}
    ids = {target.name: [one.id for one in target.examples] for target in context.targets}
    return {name: fingerprint(own) for name, own in ids.items() if own != sorted(own)}


def _identity(recipe: Recipe, name: str) -> list[str]:
    """What a method depends on besides this package: other methods, files, an embedding model.

    A hub model is identified by its name.
    """
    parts = members(name, recipe)
    found = [] if parts == [name] else [*parts]
    for part in parts:
        if part in recipe.score.files:
            file, _, place = recipe.score.files[part].rpartition(":")
            found.append(f"{place}:{file_fingerprint(Path(file))}")
    if "embedding" in parts:
        found.append(model_fingerprint(recipe.score.embedding) or recipe.score.embedding)
    return found


def _score(context: Context, name: str) -> None:
    """Score by one method; its facts are written before its tables, so that no table lacks them."""
    artifact = context.artifacts.scores
    task = _task(context, name)
    start = time.monotonic()
    scores = score_by(name, task)
    seconds = round(time.monotonic() - start, 3)
    noise = {target: _noise(of) for target, of in scores.items() if of.errors is not None}
    own = _identity(context.recipe, name)
    facts = {"seconds": seconds, **({"own": own} if own else {}), "noise": noise}
    artifact.add_facts(name, facts)
    keys = task.pool.take(task.numbers, ["source", "id"])
    for target in context.targets:
        found, what = scores[target.name], f"{name}, target {target.name}"
        file = artifact.table_file(target.name, name)
        write_scores(file, keys, found)
        if split_seed(name)[0] != "full":
            _warn_of_ties(context, what, found)
        if warning := _noise_warning(context.recipe, noise.get(target.name, {})):
            context.progress.warn(f"{what}: {warning}")
    context.progress.say(f"  {name}: scored in {clock(seconds)}")


def _noise(scores: Scores) -> dict[str, dict[str, float]]:
    """Each subtask's spread of scores over rows, the projection's error, and their ratio."""
    assert scores.by_subtask is not None
    assert scores.errors is not None
    spreads = scores.spreads
    if spreads is None:
        spreads = scores.by_subtask.std(axis=0, dtype=float)
    return {
        name: {"spread": spread, "error": error, "ratio": spread / error}
        for name, spread, error in zip(
            scores.subtasks, spreads.tolist(), scores.errors.tolist(), strict=True
        )
    }


def _noise_warning(recipe: Recipe, noise: Mapping[str, Mapping[str, float]]) -> str | None:
    """A warning if scores are mostly the projection's error."""
    low = {name: found["ratio"] for name, found in noise.items() if found["ratio"] < LOW_SIGNAL}
    if not low:
        return None
    worst = min(low, key=lambda name: low[name])
    ratio = math.floor(10 * low[worst]) / 10  # 1.96 would be rounded to 2.0, the limit
    settings = recipe.features.projection
    balanced = "" if settings.balanced else "features.projection.balanced, "
    return (
        f"scores spread over rows {ratio} times as much as the projection to "
        f"{settings.dim} dims errs (subtask {worst}; {len(low)} of {len(noise)} are below "
        f"{LOW_SIGNAL:g}), so much of the ranking is noise: use features.mode: exact, {balanced}"
        "or a larger features.projection.dim"
    )


def _warn_of_ties(context: Context, name: str, scores: Scores) -> None:
    """Warn if all scores, the best half of them, or all scores of some subtasks are equal."""
    rows, warn = len(scores.total), context.progress.warn
    best = int((scores.total == scores.total.max(initial=-np.inf)).sum())
    if rows > 1 and best > rows / 2:
        warn(
            f"{name}: {best} of {rows} rows have the same, highest score; equal scores are ordered "
            "by source and id"
        )
    elif rows > 1 and scores.by_subtask is not None:
        tied = np.flatnonzero(np.ptp(scores.by_subtask, axis=0) == 0)
        if len(tied):
            warn(
                f"{name}: all {rows} rows have the same score for {len(tied)} of "
                f"{len(scores.subtasks)} subtasks, the first {scores.subtasks[tied[0]]}"
            )


def _task(context: Context, name: str) -> ScoringTask:
    numbers, features, recipe = context.pool.usable, None, context.recipe
    if uses_gradients(name, recipe):
        checkpoints = context.artifacts.features.checkpoints
        skipped = context.pool.locate(context.artifacts.features.skipped())
        numbers = numbers[~np.isin(numbers, skipped)]
        weights = context.artifacts.warmup.weights.tolist()
        exact = context.artifacts.features.exact_targets
        features = Features([checkpoint.folder for checkpoint in checkpoints], weights, exact)
    return ScoringTask(
        pool=context.pool,
        numbers=numbers,
        targets={target.name: context.target_rows(target) for target in context.targets},
        recipe=recipe,
        model=context.model,
        seed=split_seed(name)[1],
        progress=context.progress,
        features=features,
        engine=context.engine,
        work=context.artifacts.scores.work,
        known={
            part: {target.name: _known(context, target.name, part, numbers)
                   for target in context.targets}
            for part in members(name, recipe)
            if part != name and part in recipe.score.methods
        },
    )  # fmt: skip


def _known(context: Context, target: str, name: str, numbers: NDArray[np.int64]) -> Scores:
    """Read written scores, restricted to some of the pool's examples."""
    artifact = context.artifacts.scores
    table, examples = artifact.table(target, name), artifact.examples(target, name)
    kept = np.isin(table.numbers(context.pool), numbers)  # both are in order of (source, id)
    if examples is not None:
        examples = replace(examples, values=examples.values[kept])
    within = table.within[kept] if table.subtasks else None  # what `fusion` ranks by
    return Scores(table.total[kept], table.subtasks, within, examples=examples)


def _spread(file: Path) -> dict[str, float]:
    """The number of scored examples, and quantiles of their scores."""
    with reading(file):
        total = pq.read_table(file, columns=["score"])["score"].to_numpy()
    quantiles = {"lowest": 0.0, "median": 0.5, "top 5%": 0.95, "highest": 1.0}
    spread = {name: float(np.quantile(total, share)) for name, share in quantiles.items()}
    return {"rows": len(total), **spread}


STAGE = Score()
