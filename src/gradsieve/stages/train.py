"""Stage 6: trains LoRA on the selections with the warm-up's settings (method.md, steps 6 and 7).

In: selections, and the selection model or another one (LESS-T). Out: one peft adapter (or, with
`full_parameters`, a full model) for each target, method and seed in
`05-train/TARGET/METHOD/seed-S/`, with its `loss.jsonl`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

from gradsieve.errors import GradsieveError
from gradsieve.io import agree, fingerprint
from gradsieve.models import distributed
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.context import Context
from gradsieve.stages import checks
from gradsieve.stages.base import Inputs, Stage, same_but
from gradsieve.stages.estimate import Estimate, student_shape, student_training, trainings
from gradsieve.stages.jobs import TrainingTask, read_messages, training_job


class Train(Stage):
    """A model for every target, method and seed."""

    name = "train"
    distributed = True

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        return {
            "train": context.recipe.train_or_default.results(),
            "seeds": context.recipe.train_or_default.seeds,
            "model": context.student.model_inputs,
            "training": context.recipe.training.results(),
            "selections": context.artifacts.selections.fingerprints,
        }

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """Whether models can be kept: seeds, methods and targets may be added or removed."""
        kept = agree(old["selections"], new["selections"])
        return kept and same_but(old, new, "seeds", "selections")

    def check(self, context: Context) -> Iterator[GradsieveError]:
        yield from checks.students(context)
        yield from checks.trackers(context.recipe)

    def estimate(self, context: Context) -> Estimate:
        """A training for each selection and seed."""
        recipe, weights = context.recipe, student_shape(context).trained_weight_bytes
        folders = len(recipe.selections) * len(recipe.train_or_default.seeds)
        return Estimate.of_trainings(
            [student_training(context, rows) for rows in trainings(context)],
            disk_bytes=folders * weights,
        )

    def run(self, context: Context) -> dict[str, Any]:
        tasks = {
            f"{name}/seed-{seed}": _task(context, name, selection, seed)
            for name, selection in context.artifacts.selections.fingerprints.items()
            for seed in context.recipe.train_or_default.seeds
        }
        missing: dict[tuple[str, int], TrainingTask] = {}
        for task in tasks.values() if distributed.is_first() else ():
            if not _reuse(context, task):
                missing.setdefault((task.selection, task.seed), task)
        todo = distributed.agreed([*missing.values()])
        done = len({(task.selection, task.seed) for task in tasks.values()}) - len(todo)
        for _ in context.engine.map(training_job(context), todo, "training", done):
            pass
        for task in tasks.values() if distributed.is_first() else ():
            _reuse(context, task)  # other targets may have the same rows
        distributed.wait()
        prints = {name: task.out.fingerprint for name, task in tasks.items()}
        facts = {name: task.out.training() for name, task in tasks.items()}
        return {
            "models": prints,
            "seconds_by_model": {name: fact["seconds"] for name, fact in facts.items()},
            "steps_by_model": {name: fact["steps"] for name, fact in facts.items()},
            "output": fingerprint(prints),
        }

    def needed(self, recipe: Recipe) -> bool:
        return bool(recipe.train or recipe.evaluate)


def _task(context: Context, name: str, selection: str, seed: int) -> TrainingTask:
    file = context.artifacts.selections.selection(*name.split("/")).messages
    out = context.artifacts.models.model(f"{name}/seed-{seed}")
    return TrainingTask(selection, seed, partial(read_messages, file), name.replace("/", ", "), out)


def _reuse(context: Context, task: TrainingTask) -> bool:
    """Keep a model, or copy one of the same rows under another name; returns whether there is one.

    A selection's name changes if it joins a list of sizes, or if its target is renamed.
    """
    if task.out.exists():
        if task.out.training()["selection"] == task.selection:
            return True
        context.run.archive_part(task.out.folder)  # of a method that was removed and added again
    shutil.rmtree(task.out.folder, ignore_errors=True)  # the remains of an incomplete model
    other = context.artifacts.models.trained_on(task.selection, task.seed)
    if other is not None:
        task.out.copy_from(other)
    return other is not None


STAGE = Train()
