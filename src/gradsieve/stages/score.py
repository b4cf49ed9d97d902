"""Stage 4: a score for each row of the pool, target and method (method.md, steps 4 and 5).

In: the pool, the targets and, for methods that use them, gradients. Out:
`03-score/TARGET/METHOD.parquet` with columns source, id, score, subtask (the one that scored
highest) and one column a subtask, in order of (source, id); and `rows.parquet`, which tells each
row's tokens and why a row could not be scored.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from gradsieve.console import clock
from gradsieve.io import atomic, file_fingerprint, fingerprint
from gradsieve.methods import Gradients, Problem, Scores, find_method, split_seed, uses_gradients
from gradsieve.runs.artifacts import StageArtifact
from gradsieve.runs.context import Context
from gradsieve.runs.score_table import ScoreTable
from gradsieve.stages.base import Inputs, Stage


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

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Score the pool by every method; tables that are there are kept."""
        scores = context.artifacts.scores
        names = context.recipe.score.methods
        for name in names:
            files = [scores.table_file(target.name, name) for target in context.targets]
            if not all(file.is_file() for file in files):
                _score(context, name)
        _write_rows(context, scores.examples)
        tables = {
            f"{target.name}/{name}": scores.table_file(target.name, name)
            for target in context.targets
            for name in names
        }
        seconds = scores.seconds()
        return {
            "methods": {
                name: {"source": find_method(name).source, "seconds": seconds[name]}
                for name in names
            },
            "tables": {name: _spread(file) for name, file in tables.items()},
            "output": fingerprint(
                [file_fingerprint(file) for file in (scores.examples, *tables.values())]
            ),
        }


def _needs_features(context: Context) -> bool:
    return any(map(uses_gradients, context.recipe.score.methods))


def _features(context: Context) -> dict[str, Any]:
    rates = context.artifacts.warmup.learning_rates
    return {**context.artifacts.features.metadata["output"], "learning_rates": rates}


def _score(context: Context, name: str) -> None:
    """Score by one method; what it took is recorded first, so that no table lacks it."""
    artifact = context.artifacts.scores
    start = time.monotonic()
    scores = find_method(name).score(_problem(context, name))
    seconds = round(time.monotonic() - start, 3)
    artifact.add_seconds(name, seconds)
    for target in context.targets:
        artifact.write_table(target.name, name, _table(scores[target.name]))
        if split_seed(name)[0] != "full":
            _warn_of_ties(context, f"{name}, target {target.name}", scores[target.name])
    context.progress.say(f"  {name}: scored in {clock(seconds)}")


def _table(scores: Scores) -> ScoreTable:
    by_subtask = scores.by_subtask
    if by_subtask is None:
        by_subtask = np.zeros((len(scores.keys), 0), dtype=np.float32)
    keys, best = list(scores.keys), scores.best_subtask
    return ScoreTable(keys, scores.total, best, list(scores.subtasks), by_subtask)


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


def _problem(context: Context, name: str) -> Problem:
    gradients = None
    if uses_gradients(name):
        features = context.artifacts.features
        folders = [checkpoint.folder for checkpoint in features.checkpoints]
        rates = context.artifacts.warmup.learning_rates
        gradients = Gradients(folders, rates, features.examples)
    return Problem(
        rows=[row for row in context.rows if not row.set_aside],
        targets={target.name: context.target_rows(target) for target in context.targets},
        recipe=context.recipe,
        seed=split_seed(name)[1],
        progress=context.progress,
        gradients=gradients,
    )


def _spread(file: Path) -> dict[str, float]:
    """How many rows were scored, and between which scores they lie."""
    import pyarrow.parquet as pq

    total = pq.read_table(file, columns=["score"])["score"].to_numpy()
    quantiles = {"lowest": 0.0, "median": 0.5, "top 5%": 0.95, "highest": 1.0}
    spread = {name: float(np.quantile(total, share)) for name, share in quantiles.items()}
    return {"rows": len(total), **spread}


def _write_rows(context: Context, file: Path) -> None:
    """Tokens of each row, and why a row can't be scored."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = context.rows
    reasons = [row.set_aside for row in rows]
    if _needs_features(context):  # some may have a gradient that is not finite
        features = context.artifacts.features.examples
        reasons = pq.read_table(features, columns=["set_aside"])["set_aside"].to_pylist()
    told = {
        "source": [row.example.source for row in rows],
        "id": [row.example.id for row in rows],
        "tokens": [len(row.encoded.input_ids) for row in rows],
        "label_tokens": [row.encoded.n_labels for row in rows],
        "truncated": [row.encoded.truncated for row in rows],
        "set_aside": pa.array(reasons, pa.string()),
    }
    with atomic(file) as temporary:
        pq.write_table(pa.table(told), temporary)


STAGE = Score()
