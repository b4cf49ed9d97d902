"""Stage 8: whether scores predict the effect of training, on this data (docs/howto/validate.md).

In: scores, the pool, and the model to train. Out: models trained on random subsets of the pool, and
on the pool without a few rows, with their losses on each target; and `07-validate/results.json`,
with for each target and method:

- LDS, the linear datamodeling score (Park et al., TRAK, ICML 2023, arXiv 2303.14186): the rank
  correlation over subsets between the sum of a subset's scores and its negated true loss;
- for each share in `leave_out`, the loss after leaving out the best rows, minus the loss after
  leaving out as many random rows: the leave-out check of bergson's leaderboard, called QLD there.

The loss is that of the target's held-out examples (`held_out_loss`) or, if it has none, of the
target's examples themselves (`target_loss`). A part of the pool is named by a hash of its members:
it is trained on once, whichever methods need it, also if methods are added later.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsieve.analysis.bootstrap import difference, spearman_interval
from gradsieve.analysis.validation import Validation
from gradsieve.console import Progress
from gradsieve.data.examples import Row
from gradsieve.data.pool.shares import random_share, share_size
from gradsieve.engine import Job
from gradsieve.errors import DataError, GradsieveError, ModelError
from gradsieve.gradients.objectives import example_losses
from gradsieve.io import fingerprint, write_json
from gradsieve.methods import split_seed
from gradsieve.models.load import load_trained
from gradsieve.recipe.schema import Recipe, ValidateConfig
from gradsieve.runs.artifacts import ValidationArtifact
from gradsieve.runs.context import Context
from gradsieve.stages import checks
from gradsieve.stages.base import Inputs, Stage, same_but
from gradsieve.stages.estimate import (
    SAME_FOR_ALL,
    Estimate,
    student_shape,
    student_training,
    target_rows,
)
from gradsieve.stages.jobs import TrainingJob, TrainingTask, rows_of_pool, training_job
from gradsieve.tasks import Target

RANDOM_PARTS = 3
"""Number of random parts per size of `leave_out`, the baseline for leaving out the best rows."""


class Validate(Stage):
    """LDS, and losses without the best rows, of every method on every target."""

    name = "validate"
    optional_before = ("select", "train", "evaluate")

    def needed(self, recipe: Recipe) -> bool:
        return recipe.validate is not None

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        return {
            "validate": _settings(context).results(("yes", "repeats", "adds")),
            "train": context.recipe.train_or_default.results(),
            "training": context.recipe.training.results(),
            "model": context.student.model_inputs,
            "pool": context.pool_inputs,
            "targets": context.target_inputs,
            "questions": {name: test.fingerprint for name, test in context.test_sets.items()},
            "scores": context.artifacts.scores.metadata["output"],
        }

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """Whether models can be kept: they depend on subsets and training, not on scores."""
        parts = old["validate"], new["validate"]
        same = same_but(old, new, "validate", "scores", "targets", "questions")
        return same and same_but(*parts, "subsets", "leave_out", "seeds")

    def check(self, context: Context) -> Iterator[GradsieveError]:
        yield from checks.students(context)
        yield from checks.targets(context)
        yield from checks.test_sets(context)

    def check_pool(self, context: Context) -> Iterator[GradsieveError]:
        yield from checks.problem_of(partial(_refuse_too_few_rows, context))

    def estimate(self, context: Context) -> Estimate:
        """A training for each part of the pool and seed, and the losses of each model."""
        recipe, settings, shape = context.recipe, _settings(context), student_shape(context)
        usable = len(context.pool.usable)
        ranking = [one for name in recipe.score.methods if (one := split_seed(name)[0]) != "full"]
        rankings = sum(1 if one in SAME_FOR_ALL else len(recipe.targets) for one in ranking)
        sizes = [share_size(usable, settings.share)] * settings.subsets
        for share in settings.leave_out:
            sizes += [usable - share_size(usable, share)] * (rankings + RANDOM_PARTS)
        each = {rows: student_training(context, rows) for rows in {*sizes}}
        made = [each[rows] for rows in sizes for _ in settings.seeds]
        tokens = np.array([len(row.encoded.input_ids) for row in target_rows(context)])
        # Assumption: questions are as long as the targets' examples.
        asked = len(tokens) + sum(len(test.questions) for test in context.test_sets.values())
        losses = len(made) * asked * float(shape.forward(1, tokens, tokens).mean())
        return Estimate.of_trainings(
            made,
            units=sum(one.units for one in made) + losses,
            flops=sum(one.flops for one in made) + losses,
            loads=2 * len(made),
            disk_bytes=0 if shape.full else len(made) * shape.trained_weight_bytes,
        )

    def run(self, context: Context) -> dict[str, Any]:
        artifact, parts = context.artifacts.validation, parts_of_pool(context)
        asked = {target.name: _asked(context, target) for target in context.targets}
        job = ValidationJob(training_job(context), artifact, asked)
        tasks = []
        for part in {part.name: part for part in parts.all()}.values():
            rows = rows_of_pool(context, part.numbers)
            for seed in _settings(context).seeds:
                out = artifact.model(part.name, seed)
                tasks.append(TrainingTask(part.name, seed, rows, part.label, out))
        missing = [task for task in tasks if job.not_measured(task)]
        done = len(tasks) - len(missing)
        for _ in context.engine.map(job, missing, "validation", done):
            pass
        found = [
            _validation(context, parts, target, method, asked[target])
            for target, method in context.recipe.scored
        ]
        results = [asdict(one) for one in found]
        artifact.write_rows(results)
        for one in found:
            context.progress.say(f"  {one.text()}")
        return {"models": len(tasks), "output": fingerprint(results)}


def _settings(context: Context) -> ValidateConfig:
    return context.recipe.validate or ValidateConfig()


# --- parts of the pool --------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Rows of the pool to train on."""

    name: str  # a hash of its members
    label: str
    numbers: NDArray[np.int64]  # in order of (source, id)


@dataclass(frozen=True)
class Parts:
    """All parts of the pool to train on.

    Attributes:
        subsets: Random subsets.
        random: The pool without random rows, by share left out.
        best: The pool without the best rows, by target, method and share left out.
    """

    subsets: list[Part]
    random: dict[float, list[Part]]
    best: dict[tuple[str, str, float], Part]

    def all(self) -> Iterator[Part]:
        yield from self.subsets
        for some in self.random.values():
            yield from some
        yield from self.best.values()


def parts_of_pool(context: Context) -> Parts:
    """The parts of the pool; the same seed, pool and scores give the same parts."""
    _refuse_too_few_rows(context)
    pool, settings = context.pool, _settings(context)
    usable, seed = pool.usable, settings.seed

    def part(label: str, members: NDArray[np.bool_]) -> Part:
        name = hashlib.sha256(np.packbits(members).tobytes()).hexdigest()[:16]
        return Part(name, label, usable[members])

    def share(size: float, of: str) -> NDArray[np.bool_]:
        return np.isin(usable, random_share(pool, usable, size, f"{of} {seed}"))

    names = [f"subset {number}" for number in range(1, settings.subsets + 1)]
    found = Parts([part(name, share(settings.share, name)) for name in names], {}, {})
    for size in settings.leave_out:
        found.random[size] = [
            part(f"without {100 * size:g}% at random", ~share(size, f"left out {number}"))
            for number in range(RANDOM_PARTS)
        ]
        for target, method in context.recipe.scored:
            table = context.artifacts.scores.table(target, method)
            if np.ptp(table.total) > 0:  # else there are no best rows
                best = table.numbers_in(pool)[table.order[: share_size(len(usable), size)]]
                label = f"without the best {100 * size:g}% for {target} by {method}"
                found.best[target, method, size] = part(label, ~np.isin(usable, best))
    return found


def _refuse_too_few_rows(context: Context) -> None:
    """Refuse a pool that leaves nothing to train on."""
    usable, most = len(context.pool.usable), max(_settings(context).leave_out, default=0)
    if usable <= share_size(usable, most):
        raise DataError(
            "The pool has too few rows to train on parts of it.",
            f"validate, {usable} rows with label tokens, of which {100 * most:g}% are left out",
            "Add rows, lower validate.leave_out, or remove the section validate.",
        )


# --- losses -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """The examples whose loss counts for a target.

    Attributes:
        of: A fingerprint of the target and its questions, on which the losses depend.
        rows: Tokenized; each has label tokens.
        weights: The weight of each row in the mean.
    """

    loss: str
    of: str
    rows: Sequence[Row]
    weights: NDArray[np.float64]


def _asked(context: Context, target: Target) -> Asked:
    test = context.test_sets.get(target.name)
    of = fingerprint([target.fingerprint, test.fingerprint if test else None])
    if test is not None:
        rows = context.student.encode([question.example for question in test.questions])
        usable = [not row.skip_reason for row in rows]
        if any(usable):
            weights = np.array(test.weights(usable))[usable]
            return Asked("held_out_loss", of, [*compress(rows, usable)], weights)
    own = context.student.target_rows(target)
    return Asked("target_loss", of, own, np.ones(len(own)))


@dataclass(frozen=True)
class ValidationJob(Job[TrainingTask, None]):
    """Training on parts of the pool, and the losses on targets."""

    unit = "models"

    training: TrainingJob
    artifact: ValidationArtifact
    asked: Mapping[str, Asked]

    def name(self, task: TrainingTask) -> str:
        return self.training.name(task)

    def not_measured(self, task: TrainingTask) -> list[str]:
        """The targets on which a model's losses are missing."""
        part, seed, exists = task.selection, task.seed, self.artifact.has_losses
        return [name for name, one in self.asked.items() if not exists(part, seed, name, one.of)]

    def setup(self, progress: Progress) -> Callable[[TrainingTask], None]:
        """Nothing is shared: each training starts from the model's own weights."""
        train = self.training.setup(progress)

        def run(task: TrainingTask) -> None:
            if not task.out.exists():
                shutil.rmtree(task.out.folder, ignore_errors=True)
                train(task)
            self._measure(task)
            if self.training.train.full_parameters:  # full models of all parts would fill the disk
                shutil.rmtree(task.out.folder)

        return run

    def _measure(self, task: TrainingTask) -> None:
        model = load_trained(self.training.model, task.out.folder)
        for target in self.not_measured(task):
            asked = self.asked[target]
            losses = example_losses(model, [row.encoded for row in asked.rows])
            if not np.isfinite(losses).all():
                raise ModelError(
                    "A model's losses are not finite numbers.",
                    f"target {target}, {task.out.folder}",
                    "Lower the learning rate of `train`.",
                )
            file = self.artifact.loss_file(task.selection, task.seed, target)
            write_json(file, {"of": asked.of, "losses": losses.tolist()}, hashed=True)


# --- results ------------------------------------------------------------------------------------


def _validation(
    context: Context, parts: Parts, target: str, method: str, asked: Asked
) -> Validation:
    seeds, artifact = _settings(context).seeds, context.artifacts.validation

    def losses(*some: Part) -> NDArray[np.float64]:
        """One row per part and seed."""
        return np.array([artifact.losses(part.name, s, target) for part in some for s in seeds])

    table = context.artifacts.scores.table(target, method)
    means = [losses(part).mean(0) for part in parts.subsets]
    true = [float(np.average(mean, weights=asked.weights)) for mean in means]
    centered = np.zeros(len(context.pool))  # a row without a score counts as having the mean score
    centered[table.numbers_in(context.pool)] = table.total - table.total.mean(dtype=np.float64)
    summed = [float(centered[part.numbers].sum()) for part in parts.subsets]
    lds = None
    if np.ptp(table.total) > 0 and np.ptp(summed) > 0 and np.ptp(true) > 0:
        lds = spearman_interval(np.array(summed), -np.array(true))
    without = {
        str(share): gap
        for share, random in parts.random.items()
        if (best := parts.best.get((target, method, share)))
        and (gap := difference(losses(best), losses(*random), asked.weights))
    }
    return Validation(
        target,
        method,
        asked.loss,
        examples=len(asked.rows),
        seeds=len(seeds),
        lds=lds,
        without=without,
        summed=summed,
        losses=true,
    )


STAGE = Validate()
