"""Training as tasks for an engine, shared by the stages `train` and `validate`.

In: rows, as messages on disk or numbers in the pool. Out: a `TrainedModel`, which appears complete
or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsieve.console import Progress
from gradsieve.data.batching import PoolTokens
from gradsieve.data.examples import Example, TokenizedExample
from gradsieve.data.formats import conversation_of
from gradsieve.data.pool import Pool
from gradsieve.data.template import ChatTemplate
from gradsieve.engine import Job
from gradsieve.errors import DataError
from gradsieve.gradients.objectives import SFT
from gradsieve.io import read_lines
from gradsieve.models import distributed
from gradsieve.models.checkpoints import save_adapter
from gradsieve.models.load import add_adapter
from gradsieve.models.source import ModelSource
from gradsieve.models.training import clear_work, train_model
from gradsieve.recipe.schema import OnBadRow, TrainConfig, TrainingConfig
from gradsieve.runs.artifacts import TrainedModel
from gradsieve.runs.context import Context

ReadRows = Callable[[], PoolTokens | Sequence[Example]]
"""Returns the rows to train on: the pool's tokens, or examples to be tokenized; can be pickled."""


@dataclass(frozen=True)
class TrainingTask:
    """One model to train; models of the same `selection` (a fingerprint) and seed are equal."""

    selection: str
    seed: int
    rows: ReadRows
    label: str
    out: TrainedModel


@dataclass(frozen=True)
class TrainingJob(Job[TrainingTask, None]):
    """Training on selections."""

    unit = "models"

    model: ModelSource
    template: ChatTemplate
    settings: TrainingConfig
    train: TrainConfig
    on_bad_row: OnBadRow

    def setup(self, progress: Progress) -> Callable[[TrainingTask], None]:
        """Nothing is shared: each training starts from the model's own weights."""
        return lambda task: self._train(task, progress)

    def name(self, task: TrainingTask) -> str:
        return f"training {task.label}, seed {task.seed}"

    def _train(self, task: TrainingTask, progress: Progress) -> None:
        out, seed, start = task.out, task.seed, time.monotonic()
        rows = self._tokenized(task, progress)
        max_steps = self.train.max_steps
        if self.settings.changes_nothing(len(rows), max_steps):
            progress.warn(f"{self.name(task)}: the only step has a learning rate of 0")
        model = self._untrained(seed)
        total, unit = (max_steps, "steps") if max_steps else (self.settings.epochs, "epochs")
        with progress.counting(self.name(task), total, unit) as report:
            steps, earlier = train_model(
                model,
                rows,
                self.settings,
                seed,
                out.partial,
                objective=SFT,
                on_step=lambda done, steps: report(round(total * done / steps, 2)),
                warn=lambda line: progress.warn(f"{self.name(task)}: {line}"),
                max_steps=max_steps,
                of=task.selection,
            )
        if distributed.is_first():
            self._save(model, out.partial)
            seconds = round(earlier + time.monotonic() - start, 3)
            clear_work(out.partial)
            facts = {"seconds": seconds, "rows": len(rows), "steps": steps}
            out.publish({**facts, "selection": task.selection})
        distributed.wait()

    def _tokenized(self, task: TrainingTask, progress: Progress) -> Sequence[TokenizedExample]:
        """The tokenized rows, without those that have no label token (train.model may cut more)."""
        read = task.rows()
        if isinstance(read, PoolTokens):
            return read
        encoded = SFT.encode(read, self.template, self.on_bad_row)
        usable = [one for one in encoded if isinstance(one, TokenizedExample) and one.n_labels]
        if reasons := [one.skip_reason for one in encoded if one.skip_reason]:
            what = f"{len(reasons)} of {len(encoded)} rows are left out, the first: {reasons[0]}"
            if not usable:
                todo = "Raise model.max_length, or train another model."
                raise DataError("There is no row to train on.", f"{self.name(task)}: {what}", todo)
            progress.warn(f"{self.name(task)}: {what}")
        return usable

    def _untrained(self, seed: int) -> Any:
        model = self.model.load(will_change=self.train.full_parameters)
        if self.train.full_parameters:
            return model.requires_grad_(True)
        return add_adapter(model, self.settings.lora, seed)

    def _save(self, model: Any, folder: Path) -> None:
        if self.train.full_parameters:
            model.save_pretrained(str(folder))
            self.template.tokenizer.save_pretrained(str(folder))
        else:
            save_adapter(model, folder)


def training_job(context: Context) -> TrainingJob:
    """The job that trains models with the recipe's settings for selections."""
    student, recipe = context.student, context.recipe
    settings = recipe.training, recipe.train_or_default, recipe.on_bad_row
    return TrainingJob(student.model, student.template, *settings)


def rows_of_pool(context: Context, numbers: NDArray[np.int64]) -> ReadRows:
    """A function that reads rows of the pool by their numbers, in this order."""
    same = context.student is context  # else the student tokenizes them again
    return partial(_read_pool, context.pool.folder, numbers, same)


def read_messages(file: Path) -> list[Example]:
    """The rows of `messages.jsonl`, in which each turn is marked as supervised or not."""
    examples = []
    for row in read_lines(file):
        said, key = conversation_of(row), (row["source"], row["id"])
        examples.append(Example(*key, said.messages, tools=said.tools, supervised=said.supervised))
    return examples


def _read_pool(
    folder: Path, numbers: NDArray[np.int64], same: bool
) -> PoolTokens | Sequence[Example]:
    pool = Pool(folder)
    return PoolTokens(pool, numbers) if same else pool.examples(numbers)
