"""Stage 1: LoRA on a random share of the pool, a checkpoint after each epoch (method.md, step 1).

In: pool and model. Out: `01-warmup/checkpoint-1..N` with Adam's moments, and `loss.jsonl`. With
`warmup.checkpoints`, existing checkpoints are only checked and recorded.

The random share is the examples with the smallest hash of (seed, source, id), so it doesn't depend
on the pool's order, and examples added later change it little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsieve.data.batching import PoolTokens
from gradsieve.data.pool.shares import random_share, share_size
from gradsieve.errors import DataError, GradsieveError, ModelError
from gradsieve.gradients.objectives import SFT
from gradsieve.gradients.per_example import check_pass
from gradsieve.io import fingerprint
from gradsieve.methods import needs_gradients
from gradsieve.models import distributed
from gradsieve.models.checkpoints import checkpoint_fingerprint, load_learning_rates
from gradsieve.models.device import slow_dtype
from gradsieve.models.load import add_adapter
from gradsieve.models.training import clear_work, train_model
from gradsieve.recipe.schema import Recipe, WarmupConfig
from gradsieve.runs.context import Context
from gradsieve.stages import checks
from gradsieve.stages.base import Stage
from gradsieve.stages.estimate import Estimate, few_steps, selecting_shape, training


class Warmup(Stage):
    """Train LoRA on a random share of the pool, or take existing checkpoints."""

    name = "warmup"
    refreshes_pool = True
    distributed = True

    def needed(self, recipe: Recipe) -> bool:
        return needs_gradients(recipe)

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        settings = context.recipe.warmup
        # All inputs are read before any expensive work, the quickest to check first.
        pool, _ = context.pool_inputs, context.targets
        if settings.checkpoints is not None:
            folders = _existing(settings)
            prints = [checkpoint_fingerprint(folder) for folder in folders]
            return {"checkpoints": prints, "learning_rates": load_learning_rates(folders)}
        return {"model": context.model_inputs, "pool": pool, "warmup": settings.results()}

    def check(self, context: Context) -> Iterator[GradsieveError]:
        yield from checks.adapted_models(context)
        yield from checks.targets(context)
        yield from checks.trackers(context.recipe)

    def check_pool(self, context: Context) -> Iterator[GradsieveError]:
        """Check that the random share is enough for more than one optimizer step."""
        settings = context.recipe.warmup
        rows = share_size(len(context.pool.usable), settings.fraction)
        if settings.checkpoints is None and settings.changes_nothing(rows):
            yield DataError(
                "The warm-up would change nothing: the only step has a learning rate of 0.",
                f"{rows} rows, batch_size {settings.batch_size}",
                "Raise warmup.fraction or warmup.epochs, lower warmup.batch_size, or set "
                "warmup.warmup_ratio to 0.",
            )

    def estimate(self, context: Context) -> Estimate:
        settings, shape = context.recipe.warmup, selecting_shape(context)
        if settings.checkpoints is not None:
            return Estimate()
        rows = share_size(len(context.pool.usable), settings.fraction)
        one = training(shape, context, rows, settings)
        return replace(one, disk_bytes=settings.epochs * 12 * shape.adapter)

    def run(self, context: Context) -> dict[str, Any]:
        settings = context.recipe.warmup
        if settings.checkpoints is not None:
            return _describe(_existing(settings), context)
        pool, artifact = context.pool, context.artifacts.warmup
        chosen = random_share(pool, pool.usable, settings.fraction, settings.seed)
        folders = [artifact.own_checkpoint(epoch + 1) for epoch in range(settings.epochs)]
        if not artifact.is_trained(settings.epochs):
            _train(context, chosen)
        described = _describe(folders, context)
        if distributed.is_first():
            clear_work(artifact.folder)
        return {**described, "rows": len(chosen), "seed": settings.seed}


def _existing(settings: WarmupConfig) -> list[Path]:
    return [Path(folder).resolve() for folder in settings.checkpoints or ()]


def _train(context: Context, chosen: NDArray[np.int64]) -> None:
    settings, pool = context.recipe.warmup, context.pool
    model = add_adapter(context.model.load(), settings.lora, settings.seed)
    check_pass(model)
    steps = few_steps(settings.optimizer_steps(len(chosen)))
    for warning in (steps, slow_dtype(context.recipe.model.dtype)):
        if warning:
            context.progress.warn(warning)
    with context.progress.counting("warm-up", settings.epochs, "epochs") as report:
        train_model(
            model,
            PoolTokens(pool, chosen),
            settings,
            settings.seed,
            context.artifacts.warmup.folder,
            objective=SFT,
            on_step=lambda done, total: report(round(settings.epochs * done / total, 2)),
            warn=context.progress.warn,
            keep_checkpoints=True,
        )


def _describe(folders: list[Path], context: Context) -> dict[str, Any]:
    rates = load_learning_rates(folders)
    if rates is None:
        context.progress.warn(
            "the checkpoints' learning rates are unknown (no trainer_state.json, or nothing logged "
            "between two of them: lower logging_steps): each gets the same weight"
        )
    elif not any(rates):
        raise ModelError(
            "The checkpoints were not trained: their learning rate was 0.",
            ", ".join(map(str, folders)),
            "Use checkpoints of a training with more optimizer steps.",
        )
    prints = [checkpoint_fingerprint(folder) for folder in folders]
    rates = rates or [1.0] * len(folders)
    return {
        # The run's own checkpoints by name only, so that the run can be moved.
        "checkpoints": [
            folder.name if folder.parent == context.run.stage("warmup") else str(folder)
            for folder in folders
        ],
        "fingerprints": prints,
        "learning_rates": rates,
        "output": fingerprint([prints, rates]),
    }


STAGE = Warmup()
