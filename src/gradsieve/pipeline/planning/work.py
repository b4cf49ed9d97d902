"""How much a recipe asks for: which rows are passed, at which lengths, how often, by which stage.

In: a run's context, its inputs read and tokenized. Out: counts, known before a model is loaded.
What only the run can tell is assumed: a selection's lengths are those of the pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from gradsieve.data.batching import fill_batch
from gradsieve.data.examples import Row
from gradsieve.methods import split_seed
from gradsieve.recipe.schema import SelectConfig
from gradsieve.runs.context import Context
from gradsieve.stages import features
from gradsieve.stages.warmup import random_share

BLIND = {"random", "random_balanced", "full", "perplexity_middle", "perplexity_top"}
"""Methods that don't look at the target: what they select is trained on once for all targets."""


@dataclass(frozen=True)
class Batch:
    """One pass: so many examples, padded to the longest."""

    examples: int
    longest: int

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.examples * self.longest


@dataclass(frozen=True)
class Training:
    """One model that is trained.

    Attributes:
        rows: Examples an epoch.
        epochs: Epochs.
        batch_size: Examples a step.
        copies: Other names that the same model is kept under.
    """

    rows: int
    epochs: int
    batch_size: int
    copies: int = 0

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps, the last perhaps with fewer examples."""
        return math.ceil(self.rows / self.batch_size)


@dataclass(frozen=True)
class Work:
    """What a run has to do.

    Attributes:
        context: The run's.
        stages: Names of the stages that are wanted.
    """

    context: Context
    stages: Sequence[str]

    @cached_property
    def rows(self) -> list[Row]:
        """The pool's usable rows, shortest first."""
        usable = (row for row in self.context.rows if not row.skip_reason)
        return sorted(usable, key=lambda row: (len(row.encoded.input_ids), row.key))

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of these rows."""
        return [len(row.encoded.input_ids) for row in self.rows]

    @cached_property
    def warmup_rows(self) -> list[Row]:
        """Those that the warm-up trains on, shortest first."""
        settings = self.context.recipe.warmup
        pool = self.context.pool
        chosen = set(random_share(pool, pool.usable, settings.fraction, settings.seed).tolist())
        pairs = zip(pool.order.tolist(), self.context.rows, strict=True)
        rows = (row for number, row in pairs if number in chosen)
        return sorted(rows, key=lambda row: len(row.encoded.input_ids))

    @cached_property
    def warmup(self) -> Training | None:
        """The warm-up; None if its checkpoints are given."""
        settings = self.context.recipe.warmup
        if settings.checkpoints is not None:
            return None
        return Training(len(self.warmup_rows), settings.epochs, settings.batch_size)

    @property
    def checkpoints(self) -> int:
        """Checkpoints that features are taken at."""
        settings = self.context.recipe.warmup
        return len(settings.checkpoints) if settings.checkpoints else settings.epochs

    @property
    def stores(self) -> int:
        """Datastores a checkpoint."""
        return len(features.stores(self.context))

    @cached_property
    def subtasks(self) -> int:
        """Of all targets together."""
        return sum(len(target.subtasks) for target in self.context.targets)

    @cached_property
    def target_rows(self) -> list[Row]:
        """The usable examples of all targets."""
        return [row for t in self.context.targets for row in self.context.target_rows(t)]

    def feature_batches(self, tokens_per_batch: int, width: int) -> list[Batch]:
        """Passes over the pool at one checkpoint, as the features stage cuts it."""
        size = features.rows_a_shard(len(self.rows), width)
        shards = (self.lengths[start : start + size] for start in range(0, len(self.rows), size))
        return [batch for shard in shards for batch in cut(shard, tokens_per_batch)]

    @property
    def shards(self) -> int:
        """Of one datastore, whatever its width."""
        return math.ceil(len(self.rows) / features.rows_a_shard(len(self.rows), 1))

    def selected(self, method: str) -> int:
        """Rows that are selected."""
        settings: SelectConfig = self.context.recipe.select
        if split_seed(method)[0] == "full":
            return len(self.rows)
        if settings.count is not None:
            return settings.count
        if settings.tokens is not None:
            return max(1, round(settings.tokens / (sum(self.lengths) / len(self.lengths))))
        return max(1, round((settings.fraction or 0) * len(self.rows)))

    @property
    def selections(self) -> int:
        """Folders of `04-select`."""
        return self._names * len(self.context.recipe.score.methods)

    @property
    def _names(self) -> int:
        recipe = self.context.recipe
        return 1 if recipe.select.together else len(recipe.targets)

    @cached_property
    def trainings(self) -> list[Training]:
        """Each model that is trained on a selection."""
        settings, warmup = self.context.recipe.train, self.context.recipe.warmup
        seeds = settings.seeds if settings else [0]
        epochs = (settings.epochs if settings else None) or warmup.epochs
        made = []
        for method in self.context.recipe.score.methods:
            blind = split_seed(method)[0] in BLIND
            copies = self._names - 1 if blind else 0
            one = Training(self.selected(method), epochs, warmup.batch_size, copies)
            made += [one] * len(seeds) * (1 if blind else self._names)
        return made

    @property
    def evaluated(self) -> int:
        """Models that are evaluated on each target: before training, warmed up, and trained."""
        recipe = self.context.recipe
        seeds = recipe.train.seeds if recipe.train else [0]
        warmed_up = "warmup" in self.stages and self.context.student.recipe.model == recipe.model
        return 1 + warmed_up + len(recipe.score.methods) * len(seeds)


def cut(lengths: Sequence[int], tokens_per_batch: int) -> list[Batch]:
    """Batches of rows that come shortest first."""
    batches, start = [], 0
    order = range(len(lengths))
    while start < len(lengths):
        taken = fill_batch(order, lengths, start, tokens_per_batch)
        batches.append(Batch(len(taken), lengths[taken[-1]]))
        start += len(taken)
    return batches
