"""Predicts each stage's seconds on this machine by running it on a few of the run's own rows.

In: a run's context with a built pool, and a working folder. Out: predicted seconds of each stage.
A stage runs on two rows, twice, since the second time excludes one-time costs, and then on three
times as many (two, if three may take too long) until the time clearly differs. The time of a larger
run follows from the units that the stage's `estimate` counts for both samples and for the full run.
Rejected: FLOPs over a peak rate (small models on a CPU are far from any peak), and timing parts of
stages separately (it would duplicate the stages' code).
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gradsieve.console import Progress
from gradsieve.errors import ModelError
from gradsieve.methods import uses_gradients
from gradsieve.pipeline.gpus import DISK_BYTES_A_SECOND
from gradsieve.pipeline.run import STAGES
from gradsieve.recipe.schema import EngineConfig, Recipe, SelectConfig
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages.base import Stage
from gradsieve.stages.estimate import Estimate, by_length, questions, spread

FIRST_ROWS, GROWTH = 2, (3, 2)
CLEAR_SECONDS = 2.0
"""A sample that takes this much longer than the first one determines the time per unit."""

STAGE_SECONDS, ALL_SECONDS = 20.0, 75.0
"""Limits on the expected time of a sample alone, and together with all earlier samples."""

MOST_ANSWER_TOKENS = 32
"""Maximum tokens of an answer in a sample; the time of longer answers is extrapolated."""


class Times(NamedTuple):
    """Seconds of a stage: `once`, plus `start` per load and `unit` per unit."""

    once: float
    start: float
    unit: float

    def seconds(self, estimate: Estimate, workers: int) -> float:
        """Predicted seconds of a run with this estimate, with workers like this process."""
        own = self.start * max(1, estimate.loads) + self.unit * estimate.units
        reading = estimate.read_bytes / DISK_BYTES_A_SECOND
        return self.once + own * estimate.share(workers) + reading


class Silent(Progress):
    """Reports nothing: a sample's warnings don't apply to the run."""

    def warn(self, text: str) -> None:
        """Ignore the warning."""


@dataclass
class Samples:
    """Runs stages on samples of a run's inputs, on demand.

    Attributes:
        at_most: Stages whose time is an upper bound: a larger sample would take too long, so
            one-time costs could not be separated from costs per row.
    """

    context: Context
    scratch: Path
    at_most: list[str] = field(default_factory=list)
    _times: dict[str, Times] = field(default_factory=dict)
    _warmup: Path | None = None
    _spent: float = 0.0

    def seconds(self, name: str, estimate: Estimate, workers: int = 1) -> float:
        """Predicted seconds of a stage here, or with several workers like this process.

        Raises:
            ModelError: If memory runs out.
        """
        like = estimate.like or name
        if not estimate.units:
            return 0.0
        if like not in self._times:
            self._times[like] = self._measured(STAGES[like])
        return self._times[like].seconds(estimate, workers)

    def _measured(self, stage: Stage) -> Times:
        first, few = self._run(stage, FIRST_ROWS)
        again = self._run(stage, FIRST_ROWS)[0] if self._may_take(first) else first
        rows, last, more = FIRST_ROWS, again, few
        usable = len(self.context.pool.usable)
        while last < again + CLEAR_SECONDS and rows < usable:
            growth = next((times for times in GROWTH if self._may_take(times * last)), None)
            if growth is None:
                if rows == FIRST_ROWS:
                    self.at_most.append(stage.name)
                break
            rows = min(growth * rows, usable)
            last, more = self._run(stage, rows)
        grown = max(last - again, 0.0) / (more.units - few.units) if more.units > few.units else 0.0
        unit = min(grown, last / more.units) if more is not few else again / few.units
        return Times(max(first - again, 0.0), max(again - unit * few.units, 0.0), unit)

    def _may_take(self, seconds: float) -> bool:
        return seconds <= STAGE_SECONDS and self._spent + seconds <= ALL_SECONDS

    def _run(self, stage: Stage, rows: int) -> tuple[float, Estimate]:
        """Run a stage on a sample; returns its seconds and estimate."""
        context = self._context(stage, rows)
        try:
            self._prepare(stage, context)
            start = time.perf_counter()
            _make(stage, context)
            seconds = time.perf_counter() - start
        except torch.OutOfMemoryError:
            raise ModelError(
                f"Memory runs out while parts of {stage.name} are timed.",
                f"a sample of {rows} of the pool's rows",
                "Lower model.max_length, or plan for another machine with --gpu.",
            ) from None
        finally:
            gc.collect()  # Trainer and its model reference each other
            torch.cuda.empty_cache()
        self._spent += seconds
        if stage.name == "warmup" and self._warmup is None:
            self._warmup = context.run.stage("warmup")
        return seconds, stage.estimate(context)

    def _prepare(self, stage: Stage, context: Context) -> None:
        """Make the outputs of earlier stages that a stage reads."""
        _make(STAGES["pool"], context)
        if stage.name == "features":
            if self._warmup is None:  # not timed: it is done, or uses checkpoints
                self._run(STAGES["warmup"], FIRST_ROWS)
            assert self._warmup is not None
            shutil.copytree(self._warmup, context.run.stage("warmup"))
        if stage.name in ("select", "train"):
            _make(STAGES["score"], context)
        if stage.name == "train":
            _make(STAGES["select"], context)
        if stage.name == "evaluate":  # the untrained model is timed in place of the trained ones
            context.run.begin("train", {})
            context.run.finish("train", {"models": {}})

    def _context(self, stage: Stage, rows: int) -> Context:
        """The run's context with a few of its inputs, which are already read and tokenized."""
        pool, original = self.context.pool, self.context
        numbers = spread(by_length(original), rows)
        sources: dict[str, list[object]] = {}
        for key, row in zip(pool.keys(numbers), pool.rows(numbers), strict=True):
            sources.setdefault(key.source.partition("/")[0], []).append(row)
        context = Context(
            _small(original.recipe, stage, rows, set(sources)),
            RunFolder(tempfile.mkdtemp(dir=self.scratch)),
            Silent(quiet=True),
            replace(original.in_memory, pool=sources),
        )
        context.template = original.template
        context.model_inputs = original.model_inputs
        context.targets = [
            replace(
                target,
                examples=tuple(
                    row.example for row in spread(original.target_rows(target), max(1, rows // 8))
                ),
            )
            for target in original.targets
        ]
        context.full_test_sets = original.full_test_sets
        asked = questions(original) if stage.name == "evaluate" else {}
        context.test_sets = {
            name: replace(
                test,
                questions=tuple(spread(test.questions, max(1, rows // 2))),
                max_tokens=min(asked[name].answer, MOST_ANSWER_TOKENS),
            )
            for name, test in original.test_sets.items()
            if name in asked
        }
        context.model = original.model
        context.cache |= _shapes(original)
        if original.student is not original:
            student = context.student
            student.template, student.model = original.student.template, original.student.model
            student.cache |= _shapes(original.student)
        return context


def _shapes(context: Context) -> dict[Any, Any]:
    return {key: value for key, value in context.cache.items() if key[0] == "shape"}


def _make(stage: Stage, context: Context) -> None:
    inputs = stage.fingerprint_inputs(context)
    context.run.begin(stage.name, inputs)
    context.run.finish(stage.name, {"inputs": inputs, **stage.run(context)})


def _small(recipe: Recipe, stage: Stage, rows: int, sources: set[str]) -> Recipe:
    """A recipe for a sample: training runs for one epoch on all rows, in at least two steps."""
    scored = [name for name in recipe.score.methods if not uses_gradients(name, recipe)]
    methods = scored if stage.name == "score" and scored else ["random"]
    if stage.name == "features":
        methods = recipe.score.methods
    batch = min(recipe.warmup.batch_size, max(1, rows // 2))
    micro = min(recipe.warmup.rows_at_once(), batch)
    size = {"batch_size": batch - batch % micro, "micro_batch_size": micro}
    once = {"epochs": 1, "warmup_ratio": 0.0, "report_to": [], "fraction": 1.0, **size}
    seeds: list[int] = [] if stage.name == "evaluate" else [0]
    return recipe.model_copy(
        update={
            "pool": [source for source in recipe.pool if source.name in sources],
            "warmup": recipe.warmup.model_copy(update=once),
            "score": recipe.score.model_copy(update={"methods": methods}),
            "engine": EngineConfig(kind="local"),
            "select": SelectConfig(fraction=1.0, together=True),
            "train": recipe.train_or_default.model_copy(
                update={"epochs": 1, "max_steps": None, "seeds": seeds}
            ),
        }
    )
