"""Stage 4: a score for each example of the pool, target and method (method.md, steps 4 and 5).

In: the pool, the targets and, for methods that use them, gradients. Out:
`03-score/TARGET/METHOD.parquet` with columns source, id, score, subtask (the one that scored
highest) and the scores by subtask (`runs/score_table.py`), in order of (source, id). The pool and
the features know which examples have no score, and why (`artifacts.scores.skipped`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradsieve.console import clock
from gradsieve.errors import GradsieveError
from gradsieve.io import file_fingerprint, fingerprint, reading
from gradsieve.methods import (
    Features,
    Scores,
    ScoringTask,
    find_method,
    split_seed,
    uses_gradients,
)
from gradsieve.runs.artifacts import StageArtifact
from gradsieve.runs.context import Context
from gradsieve.runs.score_table import ScoreTable
from gradsieve.stages import checks
from gradsieve.stages.base import Inputs, Stage
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
"""A row of a table of scores apart from its subtasks, compressed: an assumption."""


class Score(Stage):
    """A score per example, target and method."""

    name = "score"
    refreshes_pool = True

    def artifact(self, context: Context) -> StageArtifact:
        """What it leaves."""
        return context.artifacts.scores

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        """What this stage depends on."""
        names = context.recipe.score.methods
        gradients = _needs_features(context)
        return {
            "score": context.recipe.score.results(),
            "methods": names,
            "targets": {target.name: target.fingerprint for target in context.targets},
            "pool": context.pool_inputs,
            "model": context.model_inputs,
            "features": _features(context) if gradients else {},
        }

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """Whether scores are kept: other methods and targets may come."""
        grows: dict[str, Any] = {"methods": None, "targets": {}, "features": {}}
        return {**old, **grows} == {**new, **grows} and all(
            new[part].get(name) == value
            for part in ("targets", "features")
            for name, value in old[part].items()
        )

    def check(self, context: Context) -> Iterator[GradsieveError]:
        """Every method is known, and its library is installed."""
        yield from checks.methods(context.recipe, libraries=True)
        yield from checks.models(context)
        if not _needs_features(context):  # else the stages before have looked
            yield from checks.vocabulary(context)
        yield from checks.targets(context)

    def estimate(self, context: Context) -> Estimate:
        """Passes of methods that use a model; reading the datastores for the others."""
        methods, rows = context.recipe.score.methods, len(context.pool.usable)
        shape, names = selecting_shape(context), subtasks(context)
        stored = sum(map(uses_gradients, methods)) * checkpoints(context)
        passes = sum(find_method(name).uses == "model" for name in methods)
        tokens = float(lengths(context).sum())
        tokens += sum(len(row.encoded.input_ids) for row in target_rows(context))
        products = 2.0 * width(context) * names * rows if stored else 0.0
        return Estimate(
            units=tokens,
            flops=stored * products + passes * shape.forward(1, tokens, tokens),
            disk_bytes=rows * len(methods) * (4 * names + KEY_BYTES * len(context.targets)),
            read_bytes=stored * store_bytes(context) if stored else 0,
        )

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Score the pool by every method; tables that are there are kept."""
        scores = context.artifacts.scores
        names = context.recipe.score.methods
        for name in names:
            if not all(scores.is_scored(target.name, name) for target in context.targets):
                _score(context, name)
        tables = {
            f"{target.name}/{name}": scores.table_file(target.name, name)
            for target in context.targets
            for name in names
        }
        made = [*tables.values()]
        if _needs_features(context):  # which examples have no score
            made.append(context.artifacts.features.skipped_file)
        seconds = scores.seconds()
        return {
            "methods": {
                name: {"source": find_method(name).source, "seconds": seconds.get(name, 0.0)}
                for name in names
            },
            "tables": {name: _spread(file) for name, file in tables.items()},
            "output": fingerprint([file_fingerprint(file) for file in made]),
        }


def _needs_features(context: Context) -> bool:
    return any(map(uses_gradients, context.recipe.score.methods))


def _features(context: Context) -> dict[str, Any]:
    rates = context.artifacts.warmup.learning_rates
    return {**context.artifacts.features.metadata["output"], "learning_rates": rates}


def _score(context: Context, name: str) -> None:
    """Score by one method; what it took is recorded first, so that no table lacks it."""
    artifact = context.artifacts.scores
    task = _task(context, name)
    start = time.monotonic()
    scores = find_method(name).score(task)
    seconds = round(time.monotonic() - start, 3)
    artifact.add_seconds(name, seconds)
    keys = task.pool.take(task.numbers, ["source", "id"])
    for target in context.targets:
        artifact.write_table(target.name, name, _table(keys, scores[target.name]))
        if split_seed(name)[0] != "full":
            _warn_of_ties(context, f"{name}, target {target.name}", scores[target.name])
    context.progress.say(f"  {name}: scored in {clock(seconds)}")


def _table(keys: pa.Table, scores: Scores) -> ScoreTable:
    by_subtask = scores.by_subtask
    if by_subtask is None:
        by_subtask = np.zeros((len(keys), 0), dtype=np.float32)
    return ScoreTable(
        keys, scores.total, scores.best, list(scores.subtasks), by_subtask, scores.standardized
    )


def _warn_of_ties(context: Context, name: str, scores: Scores) -> None:
    """Warn if the scores, or those for some subtasks, rank nothing."""
    rows = len(scores.total)
    if rows > 1 and np.ptp(scores.total) == 0:
        ties = "; equal scores are ordered by source and id"
        context.progress.warn(f"{name}: all {rows} rows have the same score{ties}")
    elif rows > 1 and scores.by_subtask is not None:
        tied = np.flatnonzero(np.ptp(scores.by_subtask, axis=0) == 0)
        if len(tied):
            names = ", ".join(str(scores.subtasks[index]) for index in tied[:5])
            more = f" and {len(tied) - 5} more" if len(tied) > 5 else ""
            context.progress.warn(
                f"{name}: all {rows} rows have the same score for the subtasks {names}{more}"
            )


def _task(context: Context, name: str) -> ScoringTask:
    numbers, features = context.pool.usable, None
    if uses_gradients(name):
        checkpoints = context.artifacts.features.checkpoints
        skipped = context.pool.locate(context.artifacts.features.skipped())
        numbers = numbers[~np.isin(numbers, skipped)]
        rates = context.artifacts.warmup.learning_rates
        exact = context.artifacts.features.exact_targets
        features = Features([checkpoint.folder for checkpoint in checkpoints], rates, exact)
    return ScoringTask(
        pool=context.pool,
        numbers=numbers,
        targets={target.name: context.target_rows(target) for target in context.targets},
        recipe=context.recipe,
        model=context.model,
        seed=split_seed(name)[1],
        progress=context.progress,
        features=features,
    )


def _spread(file: Path) -> dict[str, float]:
    """How many examples were scored, and between which scores they lie."""
    with reading(file):
        total = pq.read_table(file, columns=["score"])["score"].to_numpy()
    quantiles = {"lowest": 0.0, "median": 0.5, "top 5%": 0.95, "highest": 1.0}
    spread = {name: float(np.quantile(total, share)) for name, share in quantiles.items()}
    return {"rows": len(total), **spread}


STAGE = Score()
