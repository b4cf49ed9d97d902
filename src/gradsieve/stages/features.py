"""Stages 2 and 3 of the paper: the gradient datastore, and the targets' gradients.

In: the warm-up's checkpoints, pool and targets. Out, in `02-features/`: `checkpoint-i/pool/` (the
datastore), `checkpoint-i/targets/NAME.safetensors` (the target examples' projected gradients) and
`skipped.parquet` (the examples whose features are not finite).

With `features.mode: exact` the datastore is `checkpoint-i/exact/`, whose rows are exact cosines
with the targets' subtasks or examples, and the targets' gradients are not kept. `both` writes both
in one pass; its exact cosines are with the targets of the first pass, as long as these are in the
recipe.

The pool is split into shards of examples of similar length. The split depends only on the pool, so
a killed run resumes with the next shard and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradsieve.errors import GradsieveError
from gradsieve.gradients.extract import first_tokens
from gradsieve.gradients.jobs import (
    AdamFacts,
    AdamTask,
    DirectionTask,
    FeaturesJob,
    FeatureTask,
    Output,
    ShardTask,
    TargetExamples,
    TargetTask,
)
from gradsieve.gradients.projection import VERSION
from gradsieve.io import fingerprint, is_whole
from gradsieve.methods import all_members, find_method, needs_gradients
from gradsieve.models.checkpoints import checkpoint_fingerprint
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.context import Context
from gradsieve.runs.files import damaged_by_name
from gradsieve.stages import checks
from gradsieve.stages.base import Inputs, Stage, same_but
from gradsieve.stages.estimate import (
    Estimate,
    by_length,
    checkpoints,
    exact_bytes,
    exact_columns,
    lengths,
    selecting_shape,
    store_bytes,
    target_rows,
    width,
)
from gradsieve.store import StoreWriter, create_store, sound_store
from gradsieve.store.format import key_hashes
from gradsieve.tasks import Target

Numbers = NDArray[np.int64]

SHARDS_WANTED = 50
ROWS_A_SHARD = (64, 4096)
SHARD_VALUES = 1 << 26
"""A shard is the most work that a kill can lose, and the unit of reading, so a pool is split into
about 50, within these limits on rows and values."""

EPS_ROWS = 8
"""Rows on which the effect of Adam's eps is measured at each checkpoint."""


class Features(Stage):
    """Per-example features of the pool, and the targets' gradients, at every checkpoint."""

    name = "features"
    reads = "warmup"
    refreshes_pool = True

    def needed(self, recipe: Recipe) -> bool:
        return needs_gradients(recipe)

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        settings, mean = context.recipe.features, context.recipe.score.target_mean
        by_turns = context.recipe.exact_by_example and mean != "none"  # else `target_mean` says it
        return {
            "features": settings.results(),
            "model": context.model_inputs,
            "checkpoints": context.artifacts.warmup.metadata["output"],
            "pool": context.pool_inputs,
            "targets": context.target_inputs,
            "target_mean": mean if settings.mode != "store" else None,
            "stores": list(stores(context)),
            **({"examples": True} if by_turns else {}),
        }

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """Whether old outputs can be kept: rows and, outside exact mode, targets may change."""
        others = () if new["features"]["mode"] == "exact" else ("targets", "stores")
        return same_but(old, new, "pool", *others)

    def check(self, context: Context) -> Iterator[GradsieveError]:
        yield from checks.adapted_models(context)
        yield from checks.targets(context)
        yield from checks.methods(context.recipe)

    def estimate(self, context: Context) -> Estimate:
        """Per checkpoint, passes over the pool by group of datastores, targets and rows for eps."""
        settings, shape, pool = context.recipe.features, selecting_shape(context), context.pool
        names, values, rows = stores(context), width(context), target_rows(context)
        made, taken = len(groups(names)), checkpoints(context)
        of_values = {"sketch": 4, "none": 2, "rademacher": 2 * values}[settings.projection.kind]
        columns = exact_columns(context) if "exact" in names else 0
        work = 2 * columns + (0 if settings.mode == "exact" else made * of_values)
        labels = pool.n_label_tokens[pool.usable].astype(np.float64)
        own = made * shape.forward_and_backward(1, lengths(context), labels).sum()
        own += (work + 10 * made) * shape.adapter * len(pool.usable)
        first = by_length(context)[: EPS_ROWS if any(names.values()) else 0]
        alone = [(int(pool.lengths[row]), int(pool.n_label_tokens[row])) for row in first]
        alone += [(len(row.encoded.input_ids), row.encoded.n_labels) for row in rows]
        flops = taken * float(own + sum(shape.forward_and_backward(1, *one) for one in alone))
        tokens = max(int(lengths(context).max()), first_tokens(settings.tokens_per_batch))
        size = rows_a_shard(len(pool.usable), values)
        of_adapter = 13 + 4 * settings.projection.balanced + 4 * columns
        held = shape.weight_bytes + of_adapter * shape.adapter
        gradients = len(names) - ("exact" in names)
        left = gradients * (store_bytes(context) + 4 * values * len(rows))
        left += exact_bytes(context) if "exact" in names else 0
        return Estimate(
            units=flops,
            flops=flops,
            hidden=shape.hidden,
            loads=taken,
            tasks=taken * made * math.ceil(len(pool.usable) / size),
            disk_bytes=taken * left,
            memory_bytes=held + shape.activation_bytes(tokens, tokens),
            weight_bytes=shape.weight_bytes,
        )

    def run(self, context: Context) -> dict[str, Any]:
        pool, work = context.pool, _work(context)
        _hand_out(context, work)
        facts = [one.finish() for one in work]
        table = _by_key(pa.concat_tables([skipped for one in work for skipped in one.skipped]))
        context.artifacts.features.write_skipped(table)
        return {
            "rows": len(pool),
            "skipped": len(pool) - len(pool.usable) + len(table),
            "truncated": int(pool.column("truncated").sum()),
            "checkpoints": facts,
            "exact_targets": work[0].exact_targets,
            "output": {
                f"{part}.{name}": fingerprint([fact[part][name] for fact in facts])
                for part in ("stores", "targets")
                for name in facts[0][part]
            },
        }


def take_share(context: Context) -> None:
    """Compute the features of this process's share, while other processes compute theirs."""
    _hand_out(context, _work(context))


def is_missing(context: Context) -> bool:
    """Whether shards or targets' gradients are missing, in `context.share` if it is set."""
    return any(not isinstance(task, AdamTask) for one in _work(context) for task in one.tasks())


def stores(context: Context) -> dict[str, bool]:
    """The datastores that the recipe's methods read, and whether each holds Adam's updates."""
    recipe, mode = context.recipe, context.recipe.features.mode
    if mode == "exact":
        return {"exact": True}
    uses = {find_method(name, recipe).uses for name in all_members(recipe)}
    found = {"pool-sgd": False} if "plain gradients" in uses else {}
    if mode == "both" or "gradients" in uses or not found:
        found = {"pool": True, **found}
    return {**found, "exact": True} if mode == "both" else found


def groups(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of datastores filled in one pass: `pool` with `exact`, each of the others alone."""
    together = ("pool", "exact") if {"pool", "exact"} <= {*names} else ()
    alone = [(name,) for name in names if name not in together]
    return [together, *alone] if together else [*alone]


def _work(context: Context) -> list[CheckpointWork]:
    recipe, targets = context.recipe, {}
    for target in context.targets:
        rows = context.target_rows(target)
        ids, subtasks = [row.example.id for row in rows], [row.example.subtask for row in rows]
        targets[target.name] = TargetExamples(ids, subtasks, [row.encoded for row in rows])
    job = FeaturesJob(
        context.model,
        dict(enumerate(context.artifacts.warmup.checkpoints, start=1)),
        context.artifacts.pool.folder,
        targets,
        recipe.features,
        recipe.score.target_mean,
        recipe.exact_by_example,
    )
    numbers = by_length(context)
    keyed = numbers, context.pool.store_keys(numbers)
    return [CheckpointWork(context, job, number, keyed) for number in job.checkpoints]


def _hand_out(context: Context, work: Sequence[CheckpointWork]) -> None:
    """Hand the missing tasks to the engine."""
    job = work[0].job
    # Directions are as large as the adapter, so only one checkpoint's exist at a time.
    rounds = [[one] for one in work] if "exact" in stores(context) else [work]
    for some in rounds:
        of = f", checkpoint {some[0].number} of {len(work)}" if len(rounds) > 1 else ""
        for _ in context.engine.map(job, [task for one in some for task in one.directions()]):
            pass
        tasks: list[FeatureTask] = [task for one in some for task in one.tasks()]
        done = sum(one.rows_done for one in some)
        for found in context.engine.map(job, tasks, f"features{of}", done):
            if isinstance(found, AdamFacts):
                work[found.checkpoint - 1].adam = found
                if found.share_below_eps is not None:
                    context.progress.say(
                        f"  features, checkpoint {found.checkpoint} of {len(work)}: "
                        f"v' < {found.eps} in {found.share_below_eps:.1%} of coordinates"
                    )
        for one in some:
            one.clear_directions()


class CheckpointWork:
    """The tasks at one checkpoint, counted from 1, and its metadata when they are done.

    `rows` are the usable examples' numbers in the pool, shortest first, and their keys [n].
    """

    def __init__(
        self, context: Context, job: FeaturesJob, number: int, rows: tuple[Numbers, pa.Table]
    ) -> None:
        self.context, self.job, self.number = context, job, number
        self._numbers, keys = rows
        self._hashes = np.sort(key_hashes(keys))
        self.where = context.artifacts.features.checkpoint(number)
        self._own = self.where.directions(context.share)
        self.adam: AdamFacts | None = None
        self.skipped: list[pa.Table] = []
        self._of_adam = stores(context)
        checkpoint = checkpoint_fingerprint(job.checkpoints[number])
        self._stores = {kind: self._opened(kind, checkpoint, keys) for kind in self._of_adam}
        self._missing = {kind: store.missing(keys) for kind, store in self._stores.items()}
        self._groups = groups(self._stores)

    def _opened(self, kind: str, checkpoint: str, keys: pa.Table) -> StoreWriter:
        """A datastore; an existing exact one is reused if it fits these rows and targets."""
        settings = self._settings(kind, checkpoint)
        folder, mode = self.where.store_folder(kind), self.job.settings.mode
        for file in damaged_by_name(folder) if self.context.share is None else ():
            self.context.run.archive_part(file)
            self.context.progress.say(f"  {file} is damaged: its rows are computed again")
        existing = sound_store(folder) if kind == "exact" and mode == "both" else None
        if existing is not None:
            known, wanted = existing.settings["exact"]["targets"], settings["exact"]["targets"]
            if {**existing.settings, "exact": ()} == {**settings, "exact": ()}:
                if known.items() <= wanted.items() or not existing.missing(keys).any():
                    return existing
                # New rows can't be compared with targets that the recipe no longer has.
                shutil.rmtree(folder)
        return create_store(folder, settings)

    def _settings(self, kind: str, checkpoint: str) -> dict[str, Any]:
        """The settings that all rows of a datastore share."""
        job, settings, of_adam = self.job, self.job.settings, self._of_adam[kind]
        shared = {
            "adam": settings.adam if of_adam else None,
            "momentum": settings.momentum if of_adam else None,
            "model": self.context.model_inputs,
            "checkpoint": checkpoint,
        }
        if kind != "exact":
            balanced = of_adam and settings.projection.balanced
            projection = settings.projection.model_dump(exclude={"balanced"})
            projection |= {"version": VERSION[balanced], **({"balanced": True} if balanced else {})}
            return {"bits": settings.bits, "projection": projection, **shared}
        targets = self.context.target_inputs
        exact = {"columns": job.columns, "targets": targets, "target_mean": job.target_mean}
        return {"bits": 32, "exact": exact, **shared}

    @property
    def exact_targets(self) -> list[str]:
        """Targets whose exact cosines are stored."""
        exact = self._stores.get("exact")
        known = exact.settings["exact"]["targets"] if exact else {}
        return [t.name for t in self.context.targets if known.get(t.name) == t.fingerprint]

    @property
    def rows_done(self) -> int:
        """The number of rows that need no pass, summed over the groups of datastores."""
        return sum(int((~self._lacking(kinds)).sum()) for kinds in self._groups)

    def _lacking(self, kinds: tuple[str, ...]) -> NDArray[np.bool_]:
        """Rows that at least one of these datastores lacks [n]."""
        return np.asarray(np.any([self._missing[kind] for kind in kinds], axis=0))

    @property
    def _directions(self) -> dict[tuple[str, str], Path]:
        """The file with each subtask's directions, by target and subtask."""
        columns, folder = self._stores["exact"].settings["exact"]["columns"], self._own
        subtasks = dict.fromkeys((of, one) for of, one, *_ in columns)
        return {subtask: folder / f"{n}.safetensors" for n, subtask in enumerate(subtasks)}

    def clear_directions(self) -> None:
        """Remove the directions, which are as large as a datastore."""
        shutil.rmtree(self._own, ignore_errors=True)

    def directions(self) -> list[DirectionTask]:
        """Tasks for exact mode's directions, if rows need them; removes old directions."""
        self.clear_directions()
        if "exact" not in self._stores or not self._missing["exact"].any():
            return []
        return [DirectionTask(self.number, *of_subtask) for of_subtask in self._directions.items()]

    def tasks(self) -> Iterator[FeatureTask]:
        """The tasks to run: Adam's facts first, then missing shards, then missing targets."""
        if self.context.share is None:
            of_adam = any(self._of_adam.values())
            yield AdamTask(self.number, self._numbers[: EPS_ROWS if of_adam else 0])
        for kinds in self._groups:
            yield from self._shards(kinds)
        for kind, of_adam in self._of_adam.items():
            store = self.where.store_folder(kind), self._stores[kind].settings
            for place, target in enumerate(() if kind == "exact" else self.context.targets):
                if self.context.takes(place) and not self._has_target(kind, target):
                    about = target.name, _identity(target)
                    file = self.where.target_file(kind, target.name)
                    yield TargetTask(self.number, *about, file, *store, of_adam)

    def _shards(self, kinds: tuple[str, ...]) -> Iterator[ShardTask]:
        lacking, lengths = self._lacking(kinds), self.context.pool.lengths
        size = rows_a_shard(len(self._numbers), width(self.context))
        for shard, start in enumerate(range(0, len(self._numbers), size)):
            places = start + np.flatnonzero(lacking[start : start + size])
            outputs = tuple(
                Output(self.where.store_folder(kind), self._stores[kind].settings, rows)
                for kind in kinds
                if (rows := self._missing[kind][places]).any()
            )
            if outputs and self.context.takes(shard):
                part, of_adam = self._numbers[places], self._of_adam[kinds[0]]
                directions = tuple(self._directions.values()) if outputs[-1].exact else ()
                tokens = int(lengths[part].sum())
                yield ShardTask(self.number, outputs, of_adam, shard, part, tokens, directions)

    def _has_target(self, kind: str, target: Target) -> bool:
        kept = is_whole(self.where.target_file(kind, target.name))
        return kept and self.where.target_gradients(kind, target.name).identity == _identity(target)

    def finish(self) -> dict[str, Any]:
        """Seal the datastores; returns the checkpoint's metadata."""
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
        targets = () if {*self._stores} == {"exact"} else self.context.targets
        facts["targets"] = {target.name: _identity(target) for target in targets}
        return facts


def _identity(target: Target) -> str:
    """A fingerprint that identifies a target's gradients."""
    return fingerprint([target.fingerprint, target.name])


def _by_key(skipped: pa.Table) -> pa.Table:
    """Source, id and `skip_reason`, once per example, in order of (source, id)."""
    once = skipped.group_by(["source", "id"]).aggregate([("skip_reason", "min")])
    once = once.rename_columns(["source", "id", "skip_reason"])
    return once.sort_by([("source", "ascending"), ("id", "ascending")])


def rows_a_shard(rows: int, width: int) -> int:
    """The number of rows per shard, given the pool's rows and the values per row."""
    size = int(np.clip(rows // SHARDS_WANTED, *ROWS_A_SHARD))
    return min(size, max(1, SHARD_VALUES // width))


STAGE = Features()
