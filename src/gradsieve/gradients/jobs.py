"""Feature computation as tasks of an engine, each of which any worker can run independently.

In: a `FeaturesJob`, and tasks that each belong to one checkpoint. Out: files that the worker writes
itself (a shard of a datastore, a target's gradients, a subtask's directions). A worker keeps a
checkpoint's model loaded until it gets a task of another checkpoint.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from gradsieve.console import Progress
from gradsieve.data.examples import TokenizedExample
from gradsieve.data.pool import Pool
from gradsieve.engine.base import Job, Size
from gradsieve.errors import ModelError
from gradsieve.gradients.extract import TokenBudget, extract
from gradsieve.gradients.features import FeatureExtractor, Projected
from gradsieve.gradients.per_example import check_pass, lora_layers
from gradsieve.gradients.projection import Balance, ExactProducts, Projection
from gradsieve.gradients.similarity import TargetMean, divided, mean_norms, subtask_directions
from gradsieve.io import atomic
from gradsieve.models.checkpoints import load_moments
from gradsieve.models.device import device, free_memory
from gradsieve.models.load import load_adapter
from gradsieve.models.source import ModelSource
from gradsieve.recipe.schema import FeaturesConfig
from gradsieve.store import open_writer, rows_where
from gradsieve.store.targets import TargetGradients, write_target_gradients

Column = tuple[str, ...]
"""A direction of exact mode: (target, subtask), or (target, subtask, example id)."""


class TargetExamples(NamedTuple):
    """A target's examples that have label tokens: the id, subtask and tokens of each [k]."""

    ids: list[str]
    subtasks: list[str]
    encoded: list[TokenizedExample]

    def of(self, subtask: str) -> tuple[list[str], list[TokenizedExample]]:
        """Ids and tokens of a subtask's examples."""
        own = [place for place, name in enumerate(self.subtasks) if name == subtask]
        return [self.ids[place] for place in own], [self.encoded[place] for place in own]


@dataclass(frozen=True)
class FeaturesJob(Job["FeatureTask", Any]):
    """What all tasks share. With `by_example`, exact mode also compares rows with each example."""

    unit = "examples"

    model: ModelSource
    checkpoints: Mapping[int, Path]
    pool: Path
    targets: Mapping[str, TargetExamples]
    settings: FeaturesConfig
    target_mean: TargetMean | Literal["none"]
    by_example: bool

    def setup(self, progress: Progress) -> Callable[[FeatureTask], Any]:
        """Return a function that runs a task; a model is loaded when a task first needs it."""
        at: AtCheckpoint | None = None

        def run(task: FeatureTask) -> Any:
            nonlocal at
            if at is None or at.number != task.checkpoint:
                at = None  # frees its memory first
                at = AtCheckpoint(self, task.checkpoint, progress)
            return task.run(at)

        return run

    def size(self, task: FeatureTask) -> Size:
        return task.size(self)

    def group(self, task: FeatureTask) -> int:
        """The checkpoint: its tasks share its model."""
        return task.checkpoint

    def smaller(self, task: FeatureTask) -> FeatureTask:
        return replace(task, halvings=task.halvings + 1)

    def name(self, task: FeatureTask) -> str:
        return f"{task}, checkpoint {task.checkpoint}"

    @property
    def columns(self) -> list[Column]:
        """Directions of exact mode: all targets' subtask means, then examples by subtask."""
        subtasks = [
            (name, subtask)
            for name, target in self.targets.items()
            for subtask in dict.fromkeys(target.subtasks)
        ]
        means: list[Column] = [*subtasks] if self.target_mean != "none" else []
        if not self.by_example:
            return means
        examples = ((*one, id) for one in subtasks for id in self.targets[one[0]].of(one[1])[0])
        return [*means, *examples]


class AtCheckpoint:
    """What a worker keeps between tasks of the same checkpoint."""

    def __init__(self, job: FeaturesJob, number: int, progress: Progress) -> None:
        self.job, self.number, self.progress = job, number, progress
        checkpoint = job.checkpoints[number]
        self.model = load_adapter(job.model.load(), checkpoint, like_base=True)
        self.sizes = {name: layer.weight.numel() for name, layer in lora_layers(self.model).items()}
        check_pass(self.model)
        self.moments = load_moments(checkpoint, self.model)
        self._budget = TokenBudget(job.settings.tokens_per_batch)
        self._extractors: dict[tuple[bool, bool, tuple[Path, ...]], FeatureExtractor] = {}

    @cached_property
    def pool(self) -> Any:
        """The pool, memory-mapped."""
        return Pool(self.job.pool)

    def budget(self, task: FeatureTask) -> TokenBudget:
        """The token budget of a task's batches."""
        if task.halvings:
            return TokenBudget(max(1, self._budget.tokens >> task.halvings))
        return self._budget

    @cached_property
    def plain(self) -> Projection:
        """The unscaled projection."""
        return Projection(**self.job.settings.projection.model_dump(exclude={"balanced"}))

    @cached_property
    def balance(self) -> Balance | None:
        """The scales of updates (targets get the inverse); None if nothing is scaled."""
        settings, moments = self.job.settings, self.moments
        if not settings.projection.balanced:
            return None
        return Balance.of(moments.exp_avg_sq, moments.eps if settings.adam == "official" else 0.0)

    def rows(
        self, of_adam: bool, projected: bool = True, directions: tuple[Path, ...] = ()
    ) -> FeatureExtractor:
        """The extractor of the pool's rows and of exact products with the directions in files.

        Adam's updates are scaled. Plain gradients never are: their sizes match the targets'.
        """
        settings, key = self.job.settings, (of_adam, projected, directions)
        if key not in self._extractors:
            parts: list[Projected] = []
            if projected:
                parts.append(replace(self.plain, balance=self.balance if of_adam else None))
            if directions:
                parts.append(self._products(directions))
            adam = (self.moments, settings.adam, settings.momentum) if of_adam else ()
            self._extractors[key] = FeatureExtractor(self.model, parts, *adam)
        return self._extractors[key]

    def targets(self, of_adam: bool) -> FeatureExtractor:
        """The extractor of a target's rows; for scaled updates, both scaled and plain gradients."""
        if of_adam and self.balance is not None:
            scaled = replace(self.plain, balance=self.balance.of_targets())
            return FeatureExtractor(self.model, [scaled, self.plain])
        return FeatureExtractor(self.model, self.plain)

    def _products(self, files: Sequence[Path]) -> ExactProducts:
        parts = [load_file(file) for file in files]
        # In the order of `FeaturesJob.columns`: first all means, then all examples.
        rows = [part[kind] for kind in ("mean", "examples") for part in parts if kind in part]
        wanted = self.check_memory(sum(map(len, rows)))
        self.progress.say(f"  exact mode holds {wanted:.2f} GiB of target gradients")
        return ExactProducts(torch.cat(rows).to(device()), self.sizes)

    def check_memory(self, rows: int) -> float:
        """Check that this many unprojected rows fit into memory; returns what they take, in GiB.

        Raises:
            ModelError: If less memory is free.
        """
        wanted, free = 4 * rows * sum(self.sizes.values()) / 2**30, free_memory() / 2**30
        if wanted > free:
            where = f"features.mode {self.job.settings.mode}"
            raise ModelError(
                "The targets' gradients don't fit into memory.",
                f"{where}: {wanted:.1f} GiB wanted, {free:.1f} GiB free",
                "Use features.mode: store, or fewer targets, or a smaller warmup.lora.r.",
            )
        return wanted


@dataclass(frozen=True)
class FeatureTask(ABC):
    """A piece of work at one checkpoint.

    Attributes:
        halvings: How many times its batches were halved after memory ran out.
    """

    checkpoint: int
    halvings: int = field(default=0, kw_only=True)

    @abstractmethod
    def run(self, at: AtCheckpoint) -> Any:
        """Run the task."""

    def size(self, job: FeaturesJob) -> Size:
        """The number of examples (of the pool or a target) and of their tokens."""
        return Size(0)


class AdamFacts(NamedTuple):
    """A checkpoint's Adam step, its eps, and the mean share of coordinates with v' < eps."""

    checkpoint: int
    step: int
    eps: float
    share_below_eps: float | None


@dataclass(frozen=True)
class AdamTask(FeatureTask):
    """Measures how much Adam's eps matters on a few examples; none if Adam isn't used."""

    numbers: NDArray[np.int64] = field(repr=False)

    def __str__(self) -> str:
        return "Adam's step and eps"

    def run(self, at: AtCheckpoint) -> AdamFacts:
        share = None
        if len(self.numbers):
            few, extractor = at.pool.tokenized(self.numbers), at.rows(of_adam=True)
            share = extract(extractor, few, at.budget(self), measure_eps=True).share_below_eps
        return AdamFacts(self.checkpoint, at.moments.step, at.moments.eps, share)


class Output(NamedTuple):
    """A datastore to write to, and which of a task's rows it lacks [n]."""

    store: Path
    settings: Mapping[str, Any]
    lacks: NDArray[np.bool_]

    @property
    def exact(self) -> bool:
        """Whether its rows are exact cosines."""
        return "exact" in self.settings


@dataclass(frozen=True)
class ShardTask(FeatureTask):
    """Computes a shard's rows in one pass: for one datastore, or for gradients and exact cosines.

    Attributes:
        outputs: The datastores to write to, that of exact cosines last.
        number: The shard's number among all shards of the pool, counted from 0.
    """

    outputs: tuple[Output, ...] = field(repr=False)
    of_adam: bool
    number: int
    numbers: NDArray[np.int64] = field(repr=False)
    tokens: int
    directions: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"shard {self.number + 1} of {' and '.join(o.store.name for o in self.outputs)}"

    def size(self, job: FeaturesJob) -> Size:
        return Size(len(self.numbers), self.tokens)

    def run(self, at: AtCheckpoint) -> None:
        encoded, keys = at.pool.tokenized(self.numbers), at.pool.store_keys(self.numbers)
        extractor = at.rows(self.of_adam, not self.outputs[0].exact, self.directions)
        features, norms, _ = extract(extractor, encoded, at.budget(self))
        parts = features.split(extractor.widths, dim=1)
        for output, part in zip(self.outputs, parts, strict=True):
            if output.exact:
                # Turn inner products into cosines; a row of norm 0 has cosines of 0.
                part = part / norms.clamp_min(torch.finfo(norms.dtype).tiny).unsqueeze(1)
            store = open_writer(output.store, output.settings)
            store.write_shard(*rows_where(output.lacks, keys, part, norms))


@dataclass(frozen=True)
class TargetTask(FeatureTask):
    """A target's projected gradients, for one datastore with these settings."""

    target: str
    identity: str
    file: Path
    store: Path
    settings: Mapping[str, Any] = field(repr=False)
    of_adam: bool

    def __str__(self) -> str:
        return f"target {self.target}"

    def size(self, job: FeaturesJob) -> Size:
        return _tokens_of(job.targets[self.target].encoded)

    def run(self, at: AtCheckpoint) -> None:
        ids, subtasks, encoded = at.job.targets[self.target]
        extractor = at.targets(self.of_adam)
        features, norms, _ = extract(extractor, encoded, at.budget(self))
        rows, *plain = (part.contiguous() for part in features.split(extractor.widths, dim=1))
        means = mean_norms(plain[0], norms, subtasks) if plain else None
        gradients = TargetGradients(ids, subtasks, rows, self.identity, norms, means)
        # Refused if another share has started the stage again with other settings.
        open_writer(self.store, self.settings)
        write_target_gradients(self.file, gradients)


@dataclass(frozen=True)
class DirectionTask(FeatureTask):
    """A subtask's unprojected directions for exact mode: of its mean and of its examples."""

    subtask: tuple[str, str]
    file: Path

    def __str__(self) -> str:
        return f"directions of {' '.join(self.subtask)}"

    def _examples(self, job: FeaturesJob) -> list[TokenizedExample]:
        target, subtask = self.subtask
        return job.targets[target].of(subtask)[1]

    def size(self, job: FeaturesJob) -> Size:
        return _tokens_of(self._examples(job))

    def run(self, at: AtCheckpoint) -> None:
        job, examples = at.job, self._examples(at.job)
        at.check_memory(len(job.columns) + len(examples))
        extractor = FeatureExtractor(at.model, Projection("none"))
        rows, directions = extract(extractor, examples, at.budget(self)).rows, {}
        if job.target_mean != "none":
            directions["mean"] = subtask_directions(rows, ["all"] * len(rows), job.target_mean)[1]
        if job.by_example:
            directions["examples"] = divided(rows, None)
        with atomic(self.file) as temporary:
            save_file(directions, temporary)


def _tokens_of(examples: Sequence[TokenizedExample]) -> Size:
    return Size(len(examples), sum(len(one.input_ids) for one in examples))
