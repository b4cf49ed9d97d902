"""Stage 6: LoRA on the selection, with the warm-up's settings (method.md, steps 6 and 7).

In: selections, and the model that selected or another one (LESS-T). Out: one peft adapter (or, with
`full_parameters`, a model) for each target, method and seed in `05-train/TARGET/METHOD/seed-S/`,
with its `loss.jsonl`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradsieve.console import Progress
from gradsieve.data.examples import Example
from gradsieve.data.formats import conversation_of
from gradsieve.data.template import ChatTemplate, TokenizedExample
from gradsieve.engine import Job
from gradsieve.errors import GradsieveError
from gradsieve.gradients.objectives import SFT
from gradsieve.io import agree, fingerprint, read_lines
from gradsieve.methods import needs_gradients
from gradsieve.models import distributed
from gradsieve.models.checkpoints import save_adapter
from gradsieve.models.load import add_adapter
from gradsieve.models.source import ModelSource
from gradsieve.models.training import clear_work, train_model
from gradsieve.recipe.schema import Recipe, TrainConfig, TrainingConfig
from gradsieve.runs.artifacts import StageArtifact, TrainedModel
from gradsieve.runs.context import Context
from gradsieve.stages import checks
from gradsieve.stages.base import Inputs, Stage
from gradsieve.stages.estimate import Estimate, student_shape, training, trainings


class Train(Stage):
    """A model for every target, method and seed."""

    name = "train"
    distributed = True

    def artifact(self, context: Context) -> StageArtifact:
        """What it leaves."""
        return context.artifacts.models

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        """What this stage depends on."""
        return {
            "train": _settings(context).results(),
            "seeds": _settings(context).seeds,
            "model": context.student.model_inputs,
            "training": context.recipe.training.results(),
            "selections": context.artifacts.selections.fingerprints,
        }

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """Whether models are kept: seeds, methods and targets may be added or removed."""
        varies = {"seeds": None, "selections": None}
        same = {**old, **varies} == {**new, **varies}
        return same and agree(old["selections"], new["selections"])

    def check(self, context: Context) -> Iterator[GradsieveError]:
        """The model to train, and trackers."""
        yield from checks.students(context)
        yield from checks.trackers(context.recipe)

    def estimate(self, context: Context) -> Estimate:
        """A training for each selection and seed."""
        recipe, shape = context.recipe, student_shape(context)
        made = list(trainings(context))
        every = [training(shape, context, one.rows, recipe.training) for one in made]
        same = context.student is context and needs_gradients(recipe)
        return replace(
            every[0],
            units=sum(one.units for one in every),
            flops=sum(one.flops for one in every),
            loads=len(every),
            steps=sum(one.steps for one in every),
            disk_bytes=sum(one.folders for one in made) * shape.trained_weight_bytes,
            like="warmup" if same and not shape.full and not recipe.warmup.checkpoints else None,
        )

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Train a model for each target, method and seed; finished ones are kept."""
        tasks = {
            f"{name}/seed-{seed}": _task(context, name, selection, seed)
            for name, selection in context.artifacts.selections.fingerprints.items()
            for seed in _settings(context).seeds
        }
        first: dict[tuple[str, int], TrainingTask] = {}
        for task in tasks.values():
            first.setdefault((task.selection, task.seed), task)
        missing: list[TrainingTask] = []
        if distributed.is_first():
            for task in tasks.values():
                _make_room(context, task)
            missing = [task for task in first.values() if not task.out.exists()]
        job = TrainingJob(
            context.student.model,
            context.student.template,
            context.recipe.training,
            _settings(context).full_parameters,
        )
        for _ in context.engine.map(job, distributed.agreed(missing)):
            pass
        for task in tasks.values() if distributed.is_first() else ():
            if not task.out.exists():  # the same rows, for another target
                task.out.copy_from(first[task.selection, task.seed].out)
        distributed.wait()
        prints = {name: task.out.fingerprint for name, task in tasks.items()}
        seconds = {name: task.out.training()["seconds"] for name, task in tasks.items()}
        return {"models": prints, "seconds_by_model": seconds, "output": fingerprint(prints)}

    def needed(self, recipe: Recipe) -> bool:
        """If models are to be trained, or evaluated."""
        return bool(recipe.train or recipe.evaluate)


@dataclass(frozen=True)
class TrainingTask:
    """One model to train; models of the same selection and seed are equal.

    Attributes:
        selection: Fingerprint of the selected rows.
        seed: Of the adapter's start, the order and the dropout.
        messages: The selected rows as chat messages.
        out: The model's folder, which appears complete or not at all.
    """

    selection: str
    seed: int
    messages: Path
    out: TrainedModel


@dataclass(frozen=True)
class TrainingJob(Job[TrainingTask, None]):
    """Training on selections.

    Attributes:
        model: The model to train.
        template: Its chat template.
        settings: Epochs, learning rate, batch size, adapter.
        full_parameters: Train all weights instead of an adapter.
    """

    model: ModelSource
    template: ChatTemplate
    settings: TrainingConfig
    full_parameters: bool

    def setup(self, progress: Progress) -> Callable[[TrainingTask], None]:
        """Nothing is shared: each training starts from the model's own weights."""
        return lambda task: self._train(task, progress)

    def _train(self, task: TrainingTask, progress: Progress) -> None:
        epochs, out, seed = self.settings.epochs, task.out, task.seed
        start = time.monotonic()
        rows = _tokenized(task.messages, self.template)
        model = self._untrained(seed)
        target, method = out.folder.parts[-3:-1]
        what = f"training {target}, {method}, seed {seed}"
        with progress.counting(what, epochs, "epochs") as report:
            train_model(
                model,
                rows,
                self.settings,
                seed,
                out.partial,
                collate=SFT.collate,
                on_step=lambda done, total: report(round(epochs * done / total, 2)),
            )
        if distributed.is_first():
            self._save(model, out.partial)
            seconds = round(time.monotonic() - start, 3)
            clear_work(out.partial)
            out.publish({"seconds": seconds, "rows": len(rows), "selection": task.selection})
        distributed.wait()

    def _untrained(self, seed: int) -> Any:
        model = self.model.load(will_change=self.full_parameters)
        if self.full_parameters:
            return model.requires_grad_(True)
        return add_adapter(model, self.settings.lora, seed)

    def _save(self, model: Any, folder: Path) -> None:
        if self.full_parameters:
            model.save_pretrained(str(folder))
            self.template.tokenizer.save_pretrained(str(folder))
        else:
            save_adapter(model, folder)


def _task(context: Context, name: str, selection: str, seed: int) -> TrainingTask:
    messages = context.artifacts.selections.selection(*name.split("/")).messages
    out = context.artifacts.models.model(f"{name}/seed-{seed}")
    return TrainingTask(selection, seed, messages, out)


def _make_room(context: Context, task: TrainingTask) -> None:
    """Remove what is left of an incomplete model; archive one of another selection."""
    if not task.out.exists():
        shutil.rmtree(task.out.folder, ignore_errors=True)
    elif task.out.training().get("selection") not in (None, task.selection):
        context.run.archive_part(task.out.folder)  # of a method that was removed and added again


def _settings(context: Context) -> TrainConfig:
    return context.recipe.train or TrainConfig()


def _tokenized(selection: Path, template: ChatTemplate) -> list[TokenizedExample]:
    """The rows of `messages.jsonl`, in which each turn is marked as supervised or not."""
    examples = []
    for rank, row in enumerate(read_lines(selection), start=1):
        found = conversation_of(row)
        examples.append(
            Example(
                "selected",
                str(rank),
                found.messages,
                tools=found.tools,
                supervised=found.supervised,
            )
        )
    return [tokens for tokens in template.encode_all(examples) if tokens.n_labels]


STAGE = Train()
