"""Features as tasks of an engine: what any worker can do on its own.

In: a `FeaturesJob`, and tasks of one checkpoint each. Out: files that the worker writes itself (a
shard of a datastore, a target's gradients, a subtask's direction). A worker keeps the model of a
checkpoint until a task of another one comes.
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
from gradsieve.gradients.exact import ExactProducts
from gradsieve.gradients.extract import TokenBudget, extract
from gradsieve.gradients.features import FeatureExtractor, Projected
from gradsieve.gradients.per_example import check_pass, lora_layers
from gradsieve.gradients.projection import Balance, Projection
from gradsieve.gradients.similarity import Norms, TargetMean, divided, subtask_directions
from gradsieve.io import atomic
from gradsieve.models.checkpoints import load_moments
from gradsieve.models.device import device, free_memory
from gradsieve.models.load import load_adapter
from gradsieve.models.source import ModelSource
from gradsieve.recipe.schema import FeaturesConfig
from gradsieve.store import create_store, rows_where
from gradsieve.store.targets import TargetGradients, write_target_gradients

Column = tuple[str, ...]
"""What an exact cosine is to: (target, subtask), or (target, subtask, id of an example)."""


class TargetExamples(NamedTuple):
    """A target's examples with label tokens: id, subtask and tokens of each [k]."""

    ids: list[str]
    subtasks: list[str]
    encoded: list[TokenizedExample]

    def of(self, subtask: str) -> tuple[list[str], list[TokenizedExample]]:
        """Ids and tokens of those of a subtask."""
        own = [place for place, name in enumerate(self.subtasks) if name == subtask]
        return [self.ids[place] for place in own], [self.encoded[place] for place in own]


@dataclass(frozen=True)
class FeaturesJob(Job["FeatureTask", Any]):
    """What all tasks share; with `by_example` exact mode compares rows with single examples too."""

    unit = "examples"

    model: ModelSource
    checkpoints: Mapping[int, Path]
    pool: Path
    targets: Mapping[str, TargetExamples]
    settings: FeaturesConfig
    target_mean: TargetMean | Literal["none"]
    by_example: bool

    def setup(self, progress: Progress) -> Callable[[FeatureTask], Any]:
        """Models are loaded by the first task that needs them."""
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
        """Tasks of a checkpoint share its model."""
        return task.checkpoint

    def smaller(self, task: FeatureTask) -> FeatureTask:
        return replace(task, halvings=task.halvings + 1)

    def name(self, task: FeatureTask) -> str:
        return f"{task}, checkpoint {task.checkpoint}"

    @property
    def columns(self) -> list[Column]:
        """Of exact mode: means of subtasks of all targets, then examples, subtask by subtask."""
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
    """What a worker keeps between tasks of a checkpoint."""

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
        """Tokens of a batch."""
        if task.halvings:
            return TokenBudget(max(1, self._budget.tokens >> task.halvings))
        return self._budget

    @cached_property
    def plain(self) -> Projection:
        """The projection without scales."""
        return Projection(**self.job.settings.projection.model_dump(exclude={"balanced"}))

    @cached_property
    def balance(self) -> Balance | None:
        """The scales of updates; their inverse are those of targets. None: there are none."""
        settings, moments = self.job.settings, self.moments
        if not settings.projection.balanced:
            return None
        return Balance.of(moments.exp_avg_sq, moments.eps if settings.adam == "official" else 0.0)

    def rows(
        self, of_adam: bool, projected: bool = True, directions: tuple[Path, ...] = ()
    ) -> FeatureExtractor:
        """What makes the pool's rows, then their exact products with directions from files.

        Adam's updates are scaled; plain gradients never are: they are as large as the targets'.
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
        """What makes a target's rows: for scaled updates, both scaled and plain gradients."""
        if of_adam and self.balance is not None:
            scaled = replace(self.plain, balance=self.balance.of_targets())
            return FeatureExtractor(self.model, [scaled, self.plain])
        return FeatureExtractor(self.model, self.plain)

    def _products(self, files: Sequence[Path]) -> ExactProducts:
        parts = [load_file(file) for file in files]
        # In the order of `FeaturesJob.columns`: all means, then all examples.
        rows = [part[kind] for kind in ("mean", "examples") for part in parts if kind in part]
        wanted = self.check_memory(sum(map(len, rows)))
        self.progress.say(f"  exact mode holds {wanted:.2f} GiB of target gradients")
        return ExactProducts(torch.cat(rows).to(device()), self.sizes)

    def check_memory(self, rows: int) -> float:
        """Refuse more unprojected rows than fit.

        Returns:
            What they take, in GiB.

        Raises:
            ModelError: If there is less memory.
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
        halvings: How often its batches were halved, after memory had run out.
    """

    checkpoint: int
    halvings: int = field(default=0, kw_only=True)

    @abstractmethod
    def run(self, at: AtCheckpoint) -> Any:
        """Do it."""

    def size(self, job: FeaturesJob) -> Size:
        """Examples of pool and targets, and their tokens."""
        return Size(0)


class AdamFacts(NamedTuple):
    """Of a checkpoint: Adam's step, its eps, and the mean share of coordinates with v' < eps."""

    checkpoint: int
    step: int
    eps: float
    share_below_eps: float | None


@dataclass(frozen=True)
class AdamTask(FeatureTask):
    """How much Adam's eps matters, measured on a few examples if updates are wanted."""

    numbers: NDArray[np.int64] = field(repr=False)

    def __str__(self) -> str:
        return "Adam's step and eps"

    def run(self, at: AtCheckpoint) -> AdamFacts:
        share = None
        if len(self.numbers):
            few, extractor = at.pool.tokenized(self.numbers), at.rows(of_adam=True)
            share = extract(extractor, few, TokenBudget(1), measure_eps=True).share_below_eps
        return AdamFacts(self.checkpoint, at.moments.step, at.moments.eps, share)


class Output(NamedTuple):
    """A datastore that rows are written to, if it lacks them [n]."""

    store: Path
    settings: Mapping[str, Any]
    lacks: NDArray[np.bool_]

    @property
    def exact(self) -> bool:
        """Whether its rows are exact cosines."""
        return "exact" in self.settings


@dataclass(frozen=True)
class ShardTask(FeatureTask):
    """Rows of a datastore, or of one of gradients and one of exact cosines, in one pass.

    Attributes:
        outputs: Where they are written; exact cosines last.
        number: Of the shard, from 0, in the order of all shards of the pool.
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
                # Inner products to cosines; a row of length 0 has cosines of 0.
                part = part / norms.clamp_min(torch.finfo(norms.dtype).tiny).unsqueeze(1)
            store = create_store(output.store, output.settings)
            store.write_shard(*rows_where(output.lacks, keys, part, norms))


@dataclass(frozen=True)
class TargetTask(FeatureTask):
    """A target's projected gradients, for one datastore."""

    target: str
    identity: str
    file: Path
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
        means = Norms.of(plain[0], norms, subtasks).of_means if plain else None
        gradients = TargetGradients(ids, subtasks, rows, self.identity, norms, means)
        write_target_gradients(self.file, gradients)


@dataclass(frozen=True)
class DirectionTask(FeatureTask):
    """The directions of a subtask, unprojected, for exact mode: its mean's, its examples'."""

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
