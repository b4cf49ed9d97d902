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
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradsieve.errors import GradsieveError
from gradsieve.gradients.jobs import (
    AdamFacts,
    AdamTask,
    DirectionTask,
    FeaturesJob,
    FeatureTask,
    ShardTask,
    TargetExamples,
    TargetTask,
)
from gradsieve.gradients.projection import VERSION
from gradsieve.io import fingerprint
from gradsieve.methods import find_method, needs_gradients
from gradsieve.models.checkpoints import checkpoint_fingerprint
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.artifacts import StageArtifact
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
from gradsieve.store.format import key_hashes
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
        pool, features, job = context.pool, context.artifacts.features, _job(context)
        numbers = by_length(pool.lengths, pool.usable)
        keys = pool.store_keys(numbers)
        work = [CheckpointWork(context, job, number, numbers, keys) for number in job.checkpoints]
        # A direction is as large as the adapter: those of one checkpoint at a time.
        exact = job.settings.mode == "exact"
        for some in [[one] for one in work] if exact else [work]:
            _map(context, job, some)
        facts = [one.finish() for one in work]
        table = _by_key(pa.concat_tables([skipped for one in work for skipped in one.skipped]))
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


def _job(context: Context) -> FeaturesJob:
    recipe, targets = context.recipe, {}
    for target in context.targets:
        rows = context.target_rows(target)
        ids, subtasks = [row.example.id for row in rows], [row.example.subtask for row in rows]
        targets[target.name] = TargetExamples(ids, subtasks, [row.encoded for row in rows])
    return FeaturesJob(
        context.model,
        dict(enumerate(context.artifacts.warmup.checkpoints, start=1)),
        context.artifacts.pool.folder,
        targets,
        recipe.features,
        recipe.score.target_mean,
    )


def _map(context: Context, job: FeaturesJob, some: Sequence[CheckpointWork]) -> None:
    """Hand out the work at some checkpoints, as far as it is not done."""
    count = len(job.checkpoints)
    of = f", checkpoint {some[0].number} of {count}" if len(some) < count else ""
    for one in some:
        one.clear_directions()
    directions = [task for one in some for task in one.directions()]
    for _ in context.engine.map(job, directions):
        pass
    tasks: list[FeatureTask] = [task for one in some for task in one.tasks()]
    done = sum(one.rows_done for one in some)
    for found in context.engine.map(job, tasks, f"features{of}", done):
        if isinstance(found, AdamFacts):
            some[found.checkpoint - some[0].number].adam = found
            if found.share_below_eps is not None:
                context.progress.say(
                    f"  features, checkpoint {found.checkpoint} of {count}: "
                    f"v' < {found.eps} in {found.share_below_eps:.1%} of coordinates"
                )
    for one in some:
        one.clear_directions()


class CheckpointWork:
    """The tasks at one checkpoint, and what is recorded when they are done.

    Args:
        context: The run.
        job: Of the tasks.
        number: The checkpoint's, from 1.
        numbers: The pool's usable examples, shortest first [n].
        keys: Their keys in a datastore [n].
    """

    def __init__(
        self,
        context: Context,
        job: FeaturesJob,
        number: int,
        numbers: NDArray[np.int64],
        keys: pa.Table,
    ) -> None:
        self.context, self.job, self.number = context, job, number
        self._numbers, self._hashes = numbers, np.sort(key_hashes(keys))
        self.where = context.artifacts.features.checkpoint(number)
        self.adam: AdamFacts | None = None
        self.skipped: list[pa.Table] = []
        checkpoint = checkpoint_fingerprint(job.checkpoints[number])
        self._stores = {
            kind: self.where.create_store(kind, _store_settings(context, job, checkpoint, of_adam))
            for kind, of_adam in stores(context).items()
        }
        self._missing = {kind: store.missing(keys) for kind, store in self._stores.items()}

    @property
    def rows_done(self) -> int:
        """Rows that the datastores have."""
        return sum(int((~missing).sum()) for missing in self._missing.values())

    @property
    def _exact(self) -> bool:
        return self.job.settings.mode == "exact"

    def clear_directions(self) -> None:
        """Remove the directions: they are as large as a datastore."""
        shutil.rmtree(self.where.directions, ignore_errors=True)

    def directions(self) -> list[DirectionTask]:
        """Exact mode's directions, if there are rows to compare with them."""
        if not self._exact or not any(missing.any() for missing in self._missing.values()):
            return []
        return [
            DirectionTask(self.number, subtask, file)
            for subtask, file in zip(self.job.subtasks, self._direction_files(), strict=True)
        ]

    def _direction_files(self) -> tuple[Path, ...]:
        return tuple(map(self.where.direction_file, range(len(self.job.subtasks))))

    def tasks(self) -> Iterator[FeatureTask]:
        """What is missing: Adam's facts first, then shards, then targets."""
        of_adam = any(stores(self.context).values())
        yield AdamTask(self.number, self._numbers[: 8 if of_adam else 0])
        for kind in self._stores:
            yield from self._shards(kind)
            for target in () if self._exact else self.context.targets:
                if not self._has_target(kind, target):
                    file = self.where.target_file(kind, target.name)
                    of_adam = stores(self.context)[kind]
                    yield TargetTask(self.number, target.name, _identity(target), file, of_adam)

    def _shards(self, kind: str) -> Iterator[ShardTask]:
        missing, lengths = self._missing[kind], self.context.pool.lengths
        size = rows_a_shard(len(self._numbers), width(self.context))
        for shard, start in enumerate(range(0, len(self._numbers), size)):
            part = self._numbers[start : start + size]
            wanted = missing[start : start + size]
            part = part if wanted.all() else part[wanted]
            if len(part):
                yield ShardTask(
                    self.number,
                    self.where.store_folder(kind),
                    self._stores[kind].settings,
                    stores(self.context)[kind],
                    shard,
                    part,
                    int(lengths[part].sum()),
                    self._direction_files() if self._exact else (),
                )

    def _has_target(self, kind: str, target: Target) -> bool:
        if not self.where.target_file(kind, target.name).is_file():
            return False
        return self.where.target_gradients(kind, target.name).identity == _identity(target)

    def finish(self) -> dict[str, Any]:
        """Seal the datastores; returns what is recorded of the checkpoint."""
        assert self.adam is not None, "every checkpoint has this task"
        facts: dict[str, Any] = {"adam_step": self.adam.step, "stores": {}}
        if self.adam.share_below_eps is not None:
            facts["share_of_coordinates_below_eps"] = self.adam.share_below_eps
        rows = hashlib.sha256(self._hashes.tobytes()).hexdigest()
        for kind, store in self._stores.items():
            store.finish()
            skipped = store.reader().skipped()
            self.skipped.append(skipped.filter(np.isin(key_hashes(skipped), self._hashes)))
            facts["stores"][kind] = fingerprint([store.settings, rows])
        facts["not_finite"] = len(_by_key(pa.concat_tables(self.skipped)))
        targets = () if self._exact else self.context.targets
        facts["targets"] = {target.name: _identity(target) for target in targets}
        return facts


def _identity(target: Target) -> str:
    """Of a target's gradients."""
    return fingerprint([target.fingerprint, target.name])


def by_length(lengths: NDArray[np.int32], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of examples, shortest first; equal lengths stay in their order, that of keys."""
    return numbers[np.argsort(lengths[numbers], kind="stable")]


def _by_key(skipped: pa.Table) -> pa.Table:
    """Source, id and `skip_reason` of each example once, in order of (source, id)."""
    once = skipped.group_by(["source", "id"]).aggregate([("skip_reason", "min")])
    once = once.rename_columns(["source", "id", "skip_reason"])
    return once.sort_by([("source", "ascending"), ("id", "ascending")])


def _store_settings(
    context: Context, job: FeaturesJob, checkpoint: str, of_adam: bool
) -> dict[str, Any]:
    """What all rows of a datastore share."""
    settings = context.recipe.features
    shared = {
        "adam": settings.adam if of_adam else None,
        "momentum": settings.momentum if of_adam else None,
        "model": context.model_inputs,
        "checkpoint": checkpoint,
    }
    if settings.mode == "store":
        balanced = of_adam and settings.projection.balanced
        projection = settings.projection.model_dump(exclude={"balanced"})
        projection |= {"version": VERSION[balanced], **({"balanced": True} if balanced else {})}
        return {"bits": settings.bits, "projection": projection, **shared}
    targets = {target.name: target.fingerprint for target in context.targets}
    exact = {"columns": job.subtasks, "targets": targets, "target_mean": job.target_mean}
    return {"bits": 32, "exact": exact, **shared}


def rows_a_shard(rows: int, width: int) -> int:
    """Rows of a shard, for a pool of so many rows with so many values each."""
    size = min(max(rows // SHARDS_WANTED, ROWS_A_SHARD[0]), ROWS_A_SHARD[1])
    return min(size, max(1, SHARD_VALUES // width))


STAGE = Features()
