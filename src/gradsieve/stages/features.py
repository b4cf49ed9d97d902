"""Stages 2 and 3 of the paper: the gradient datastore, and the targets' gradients.

In: the warm-up's checkpoints, pool and targets. Out, in `02-features/`: `checkpoint-i/pool/` (the
datastore), `checkpoint-i/targets/NAME.safetensors` (the target examples' projected gradients) and
`skipped.parquet` (the examples whose features are not finite).

With `features.mode: exact` the datastore is `checkpoint-i/exact/`, whose rows are the exact cosines
to the targets' subtasks, and the targets' gradients are not kept.

Work is cut into shards of examples of about equal length. The cut depends on the pool alone, so
that a killed run resumes with the next shard and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from gradsieve.data.template import TokenizedExample
from gradsieve.errors import GradsieveError, ModelError
from gradsieve.gradients.exact import ExactProducts
from gradsieve.gradients.extract import TokenBudget, extract
from gradsieve.gradients.features import FeatureExtractor, Moments
from gradsieve.gradients.per_example import check_pass, lora_layers
from gradsieve.gradients.projection import VERSION, Projection
from gradsieve.gradients.similarity import subtask_directions
from gradsieve.io import fingerprint
from gradsieve.methods import find_method, needs_gradients
from gradsieve.models.checkpoints import checkpoint_fingerprint, load_moments
from gradsieve.models.device import device, free_memory
from gradsieve.models.load import load_adapter
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.artifacts import CheckpointFeatures, StageArtifact
from gradsieve.runs.context import Context
from gradsieve.stages import checks
from gradsieve.stages.base import Inputs, Stage
from gradsieve.stages.estimate import (
    Estimate,
    checkpoints,
    lengths,
    selecting_shape,
    store_bytes,
    target_rows,
    width,
)
from gradsieve.store import StoreWriter
from gradsieve.store.format import key_hashes
from gradsieve.store.targets import TargetGradients
from gradsieve.tasks import Target

SHARDS_WANTED = 50
ROWS_A_SHARD = (64, 4096)
SHARD_VALUES = 1 << 26
"""Shards are what a kill can cost and what is read at once, so a pool is cut into about 50, within
these numbers of rows and values."""


class Features(Stage):
    """Per-example features of the pool, and the targets' gradients, at every checkpoint."""

    name = "features"
    refreshes_pool = True

    def needed(self, recipe: Recipe) -> bool:
        """If a method or the removal of near duplicates reads gradients."""
        return needs_gradients(recipe)

    def artifact(self, context: Context) -> StageArtifact:
        """What it leaves."""
        return context.artifacts.features

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        """What this stage depends on."""
        settings = context.recipe.features
        return {
            "features": settings.results(),
            "model": context.model_inputs,
            "checkpoints": context.artifacts.warmup.metadata["output"],
            "pool": context.pool_inputs,
            "targets": {target.name: target.fingerprint for target in context.targets},
            "target_mean": context.recipe.score.target_mean if settings.mode == "exact" else None,
            "stores": list(stores(context)),
        }

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """Whether what was made for old inputs serves new ones: other rows or targets may come."""
        grows: dict[str, Any] = {"pool": None}
        if new["features"]["mode"] == "store":
            grows.update(targets=None, stores=None)
        return {**old, **grows} == {**new, **grows}

    def check(self, context: Context) -> Iterator[GradsieveError]:
        """Model, targets, and whether the methods fit `features.mode`."""
        yield from checks.adapted_models(context)
        yield from checks.targets(context)
        yield from checks.methods(context.recipe)

    def estimate(self, context: Context) -> Estimate:
        """At each checkpoint a pass over the pool for each datastore, and one over the targets."""
        settings, shape, pool = context.recipe.features, selecting_shape(context), context.pool
        made, values, rows = len(stores(context)), width(context), target_rows(context)
        of_values = {"sketch": 4, "none": 2, "rademacher": 2 * values}[settings.projection.kind]
        exact = settings.mode == "exact"
        labels = pool.n_label_tokens[pool.usable].astype(np.float64)
        own = shape.forward_and_backward(1, lengths(context), labels).sum()
        own += ((2 * values if exact else of_values) + 10) * shape.adapter * len(pool.usable)
        of_targets = sum(
            shape.forward_and_backward(1, len(row.encoded.input_ids), row.encoded.n_labels)
            for row in rows
        )
        flops = checkpoints(context) * float(made * own + of_targets)
        wanted = settings.tokens_per_batch
        tokens = max(int(lengths(context).max()), wanted if isinstance(wanted, int) else 8192)
        held = shape.weight_bytes + (13 + (4 * values if exact else 0)) * shape.adapter
        left = made * store_bytes(context) + (0 if exact else 4 * values * len(rows))
        return Estimate(
            units=flops,
            flops=flops,
            loads=checkpoints(context),
            disk_bytes=checkpoints(context) * left,
            memory_bytes=held + shape.activation_bytes(tokens, tokens),
            weight_bytes=shape.weight_bytes,
        )

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Take the features of every row at every checkpoint, as far as they are not there yet."""
        pool, features = context.pool, context.artifacts.features
        checkpoints = context.artifacts.warmup.checkpoints
        facts, skipped = [], []
        for number, checkpoint in enumerate(checkpoints, start=1):
            where = features.checkpoint(number)
            name = f"features, checkpoint {number} of {len(checkpoints)}"
            made, not_finite = _checkpoint(context, checkpoint, where, name)
            facts.append(made)
            skipped += not_finite
        table = _by_key(pa.concat_tables(skipped))
        features.write_skipped(table)
        return {
            "rows": len(pool),
            "skipped": len(pool) - len(pool.usable) + len(table),
            "truncated": int(pool.column("truncated").sum()),
            "checkpoints": facts,
            "output": {
                f"{part}.{name}": fingerprint([fact[part][name] for fact in facts])
                for part in ("stores", "targets")
                for name in facts[0][part]
            },
        }


def stores(context: Context) -> dict[str, bool]:
    """Name of each datastore that the recipe's methods read, and whether its rows are Adam's."""
    if context.recipe.features.mode == "exact":
        return {"exact": True}
    uses = {find_method(name).uses for name in context.recipe.score.methods}
    plain = {"pool-sgd": False} if "plain gradients" in uses else {}
    return {"pool": True, **plain} if "gradients" in uses or not plain else plain


def _checkpoint(
    context: Context, checkpoint: Path, where: CheckpointFeatures, name: str
) -> tuple[dict[str, Any], list[pa.Table]]:
    """Features of pool and targets at one checkpoint: facts, and examples that are not finite."""
    settings, pool = context.recipe.features, context.pool
    model = load_adapter(context.model.load(), checkpoint, like_base=True)
    check_pass(model)
    moments = Moments(*load_moments(checkpoint, model))
    projection = Projection(**settings.projection.model_dump())
    identity = checkpoint_fingerprint(checkpoint)
    numbers = by_length(pool.lengths, pool.usable)
    keys = pool.store_keys(numbers)
    hashes = np.sort(key_hashes(keys))
    facts: dict[str, Any] = {"adam_step": moments.step, "stores": {}}
    not_finite: list[pa.Table] = []
    for kind, of_adam in stores(context).items():
        exact = kind == "exact"
        columns, products = _exact_products(context, model) if exact else ([], None)
        adam = (moments, settings.adam, settings.momentum) if of_adam else ()
        extractor = FeatureExtractor(model, products or projection, *adam)
        if of_adam:
            few = pool.tokenized(numbers[:8])
            below_eps = extract(extractor, few, TokenBudget(1), measure_eps=True).share_below_eps
            facts["share_of_coordinates_below_eps"] = below_eps
            context.progress.say(f"  {name}: v' < {moments.eps} in {below_eps:.1%} of coordinates")
        store_settings = _store_settings(context, identity, columns, of_adam)
        store = where.create_store(kind, store_settings)
        what = name if of_adam else f"{name}, {kind}"
        _fill_store(context, extractor, numbers, keys, store, what)
        skipped = store.reader().skipped()
        not_finite.append(skipped.filter(np.isin(key_hashes(skipped), hashes)))
        rows = hashlib.sha256(hashes.tobytes()).hexdigest()
        facts["stores"][kind] = fingerprint([store_settings, rows])
    of_targets = FeatureExtractor(model, projection)
    wanted = [] if settings.mode == "exact" else context.targets
    targets = [_target(context, of_targets, target, where) for target in wanted]
    facts["not_finite"] = len(_by_key(pa.concat_tables(not_finite)))
    facts["targets"] = dict(zip((target.name for target in wanted), targets, strict=True))
    return facts, not_finite


def by_length(lengths: NDArray[np.int32], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of examples, shortest first; equal lengths stay in their order, that of keys."""
    return numbers[np.argsort(lengths[numbers], kind="stable")]


def _by_key(skipped: pa.Table) -> pa.Table:
    """Source, id and `skip_reason` of each example once, in order of (source, id)."""
    once = skipped.group_by(["source", "id"]).aggregate([("skip_reason", "min")])
    once = once.rename_columns(["source", "id", "skip_reason"])
    return once.sort_by([("source", "ascending"), ("id", "ascending")])


def _store_settings(
    context: Context, checkpoint: str, columns: list[tuple[str, str]], of_adam: bool
) -> dict[str, Any]:
    """What all rows of a datastore share; `columns` are the subtasks of exact mode."""
    settings = context.recipe.features
    shared = {
        "adam": settings.adam if of_adam else None,
        "momentum": settings.momentum if of_adam else None,
        "model": context.model_inputs,
        "checkpoint": checkpoint,
    }
    if settings.mode == "store":
        projection = {**settings.projection.model_dump(), "version": VERSION}
        return {"bits": settings.bits, "projection": projection, **shared}
    targets = {target.name: target.fingerprint for target in context.targets}
    target_mean = context.recipe.score.target_mean
    exact = {"columns": columns, "targets": targets, "target_mean": target_mean}
    return {"bits": 32, "exact": exact, **shared}


def _exact_products(
    context: Context, model: nn.Module
) -> tuple[list[tuple[str, str]], ExactProducts]:
    """Directions of all subtasks, unprojected; (target, subtask) of each.

    Raises:
        ModelError: If they don't fit into memory.
    """
    sizes = {name: layer.weight.numel() for name, layer in lora_layers(model).items()}
    groups: dict[tuple[str, str], list[TokenizedExample]] = {}
    for target in context.targets:
        for row in context.target_rows(target):
            groups.setdefault((target.name, row.example.subtask), []).append(row.encoded)
    most = max(len(group) for group in groups.values())
    _check_memory(4 * (len(groups) + most) * sum(sizes.values()), context)
    extractor = FeatureExtractor(model, Projection("none"))
    directions = []
    for group in groups.values():
        rows = extract(extractor, group, _budget(context)).rows
        mean = context.recipe.score.target_mean
        directions.append(subtask_directions(rows, ["all"] * len(rows), mean)[1])
    return list(groups), ExactProducts(torch.cat(directions).to(device()), sizes)


def _check_memory(wanted_bytes: int, context: Context) -> None:
    """Report what exact mode will take, and refuse more than there is."""
    wanted, free = wanted_bytes / 2**30, free_memory() / 2**30
    context.progress.say(f"  exact mode holds {wanted:.2f} GiB of target gradients")
    if wanted > free:
        raise ModelError(
            "The targets' gradients don't fit into memory.",
            f"features.mode exact: {wanted:.1f} GiB wanted, {free:.1f} GiB free",
            "Use features.mode: store, or fewer targets, or a smaller warmup.lora.r.",
        )


def _fill_store(
    context: Context,
    extractor: FeatureExtractor,
    numbers: NDArray[np.int64],
    keys: pa.Table,
    store: StoreWriter,
    name: str,
) -> None:
    """Add the examples that the store doesn't have yet."""
    missing = store.missing(keys)
    done = len(keys) - int(missing.sum())
    size = rows_a_shard(len(keys), extractor.width)
    budget = _budget(context)
    with context.progress.counting(name, len(keys), "rows") as report:
        report(done)
        for start in range(0, len(keys), size):
            part = start + np.flatnonzero(missing[start : start + size])
            if not len(part):
                continue
            encoded = context.pool.tokenized(numbers[part])
            features, norms, _ = extract(extractor, encoded, budget)
            if "exact" in store.settings:
                # Inner products to cosines; a row of length 0 has cosines of 0.
                features = features / norms.clamp_min(torch.finfo(norms.dtype).tiny).unsqueeze(1)
            store.write_shard(keys.take(part), features, norms)
            done += len(part)
            report(done)
    store.finish()


def rows_a_shard(rows: int, width: int) -> int:
    """Rows of a shard, for a pool of so many rows with so many values each."""
    size = min(max(rows // SHARDS_WANTED, ROWS_A_SHARD[0]), ROWS_A_SHARD[1])
    return min(size, max(1, SHARD_VALUES // width))


def _target(
    context: Context, extractor: FeatureExtractor, target: Target, where: CheckpointFeatures
) -> str:
    """Write a target's projected gradients, if they are not there; returns their identity.

    Raises:
        StoreError: If what is there is damaged.
    """
    identity = fingerprint([target.fingerprint, target.name])
    if (
        where.target_file(target.name).is_file()
        and where.target_gradients(target.name).identity == identity
    ):
        return identity
    rows = context.target_rows(target)
    features, norms, _ = extract(extractor, [row.encoded for row in rows], _budget(context))
    ids = [row.example.id for row in rows]
    subtasks = [row.example.subtask for row in rows]
    where.write_target_gradients(
        target.name, TargetGradients(ids, subtasks, features, identity), norms
    )
    return identity


def _budget(context: Context) -> TokenBudget:
    return TokenBudget(context.recipe.features.tokens_per_batch)


STAGE = Features()
