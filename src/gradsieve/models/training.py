"""Training an adapter, or all weights, with transformers' Trainer (the paper's steps 1 and 6).

In: a model and tokenized rows. Out: the trained model, its loss curve, and optionally a
checkpoint with Adam's moments after each epoch. A killed training resumes after its last complete
epoch and ends with the same weights: Trainer saves the optimizer, the schedule and all random
states. A mark in each complete checkpoint identifies the training and holds the hashes of all saved
files: if the training is another one or files are damaged, it starts from the beginning. Under
`accelerate launch` the processes share each batch. The caller's random states are restored
afterwards.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import get_available_reporting_integrations

from gradsieve.data.batching import lengths_of
from gradsieve.errors import ModelError, UsageError
from gradsieve.gradients.objectives import Objective
from gradsieve.io import file_hash, read_sealed, sync_tree, write_sealed, write_text
from gradsieve.models import distributed
from gradsieve.models.device import device, out_of_memory
from gradsieve.models.dropout import Begin, example_dropout
from gradsieve.models.load import own_randomness
from gradsieve.models.moments import KeepMoments
from gradsieve.recipe import schema as recipe
from gradsieve.recipe.training import largest_divisor

MARK = "gradsieve-whole"
"""Name of the file that marks a Trainer's checkpoint as complete."""


def train_model(
    model: PeftModel | PreTrainedModel,
    rows: Sequence[Any],
    settings: recipe.TrainingConfig,
    seed: int,
    folder: Path,
    objective: Objective,
    on_step: Callable[[int, int], None],
    keep_checkpoints: bool = False,
    max_steps: int | None = None,
    of: str = "",
    warn: Callable[[str], None] = lambda _: None,
) -> tuple[int, float]:
    """Train; writes `loss.jsonl`, and `checkpoint-1..N` with Adam's moments on request.

    Args:
        model: The model with a fresh adapter, or with all weights trainable; trained in place.
        rows: Tokenized examples, whose `__getitems__`, if defined, reads several at once. Rows of
            an optimizer step are processed longest first, so micro-batches need little padding.
        settings: Epochs, learning rate, batch size.
        seed: The seed of the order and of dropout.
        folder: Where to write. Working files, from which a training resumes, are in
            `folder/trainer`; once the result is saved, `clear_work` removes them.
        objective: Makes batches of rows and computes their loss.
        on_step: Called with the number of completed steps and the total.
        keep_checkpoints: Keep a checkpoint after each epoch.
        max_steps: Number of optimizer steps; None means as many as `settings.epochs` take.
        of: Identifies the training, if `folder` may hold an unfinished training of another kind.
        warn: Called with a line if memory runs out. Training then resumes after the last complete
            epoch with half the rows per forward pass.

    Returns:
        The number of optimizer steps made, and the seconds that an interrupted training of the
        same kind had taken before.

    Raises:
        ModelError: If memory runs out with a single row per forward pass, or if one of several
            processes runs out of memory.
    """
    work = folder / "trainer"
    untrained = _copies(model) if distributed.count() == 1 else []  # several are not tried again

    def attempt(last: str | None, earlier: float) -> Trainer | None:
        """The trainer after training; None, not an error, frees the memory that ran out."""
        with own_randomness(), example_dropout(model, seed) as begin:
            trainer = _Trainer(
                objective,
                begin,
                model=model,
                args=_arguments(settings, seed, work, max_steps),
                train_dataset=rows,
                data_collator=objective.collate,
                callbacks=[
                    *([KeepMoments(folder)] if keep_checkpoints else []),
                    _Resumable(on_step, of, earlier),
                ],
            )
            trainer.remove_callback(PrinterCallback)  # it prints each log to standard output
            try:
                trainer.train(resume_from_checkpoint=last)
            except torch.OutOfMemoryError:
                return None
        return trainer

    last, earlier = _last_complete(work, of) if distributed.is_first() else (None, 0.0)
    trainer = attempt(distributed.agreed(last), earlier)
    while trainer is None:
        settings = _smaller(settings, rows)
        warn(
            "memory ran out; training resumes with fewer rows per forward pass "
            f"(warmup.micro_batch_size: {settings.micro_batch_size})"
        )
        gc.collect()  # Trainer and its model reference each other
        torch.cuda.empty_cache()
        for weight, copy in untrained:
            weight.data.copy_(copy)
            weight.grad = None
        trainer = attempt(*_last_complete(work, of))
    if distributed.is_first():
        if "wandb" in settings.report_to:
            importlib.import_module("wandb").finish()  # its callback leaves the run open
        keys = ("step", "epoch", "loss", "learning_rate")
        curve = [log for log in trainer.state.log_history if "loss" in log]
        lines = [json.dumps({key: log[key] for key in keys}) + "\n" for log in curve]
        write_text(folder / "loss.jsonl", "".join(lines))
    distributed.wait()
    return int(trainer.state.global_step), earlier


def _copies(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """The trainable weights, each with a copy in the machine's memory."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [(weight, weight.detach().to("cpu", copy=True)) for weight in weights]


def _smaller(settings: recipe.TrainingConfig, rows: Sequence[Any]) -> recipe.TrainingConfig:
    """The same settings with at most half as many rows per forward pass."""
    micro = settings.rows_at_once(distributed.count())
    if micro == 1:
        raise out_of_memory(f"at most {lengths_of(rows).max()} tokens")
    if distributed.count() > 1:  # the other processes wait for this one
        raise ModelError(
            "Memory runs out.",
            f"warmup.micro_batch_size {micro}, {device()}",
            "Set a smaller warmup.micro_batch_size, or model.gradient_checkpointing.",
        )
    less = largest_divisor(settings.batch_size, micro // 2)
    return settings.model_copy(update={"micro_batch_size": less})


class StepsByLength(Sampler[int]):
    """A new random order each epoch, in which each optimizer step's rows are sorted by length.

    Each step has the same rows as with accelerate's SeedableRandomSampler. A step's gradients are
    summed, so the order within it changes results only by rounding; micro-batches need less
    padding, and if one is too large for memory, that is the first of its step.

    Args:
        lengths: Number of tokens of each row [n].
        rows: Number of rows of an optimizer step, over all processes.
        seed: The seed of the order.
    """

    def __init__(self, lengths: NDArray[np.int32], rows: int, seed: int) -> None:
        self.lengths, self.rows, self.seed, self.epoch = lengths, rows, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch; a resumed training starts at a later one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self), generator=chance).numpy()
        for start in range(0, len(self), self.rows):
            step = order[start : start + self.rows]
            yield from step[np.argsort(-self.lengths[step], kind="stable")].tolist()


class _Trainer(Trainer):
    """Trainer with an objective's loss; a model that doesn't fit it uses its own loss."""

    def __init__(
        self, objective: Objective, begin: Begin, *, model: nn.Module, **others: Any
    ) -> None:
        self.objective, self.begin = objective if objective.fits(model) else None, begin
        super().__init__(model=model, **others)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        micro, steps = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        rows = micro * steps * distributed.count()
        return StepsByLength(lengths_of(self.train_dataset), rows, self.args.seed)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The loss of a micro-batch, normalized over its step as Trainer does."""
        self.begin(inputs["input_ids"], inputs["attention_mask"], self.state.global_step)
        if self.objective is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self.objective.batch_loss(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None:  # counts all processes, whose gradients are averaged
            loss = loss * distributed.count()
        return loss


def clear_work(folder: Path) -> None:
    """Remove a finished training's working files, except TensorBoard's."""
    work = folder / "trainer"
    if (work / "runs").is_dir():  # the default folder of TensorBoard's callback
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        (work / "runs").rename(folder / "tensorboard")
    for mark in work.glob(f"*/{MARK}"):
        mark.unlink()  # a partly removed checkpoint must not count as complete
    shutil.rmtree(work, ignore_errors=True)


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose library isn't installed."""
    there = get_available_reporting_integrations()
    missing = [name for name in names if name not in there]
    if missing:
        todo = f"pip install {' '.join(missing)}, or remove it from the list."
        where = f"warmup.report_to: {', '.join(names)}"
        raise UsageError(f"The library {missing[0]} is not installed.", where, todo)


def _arguments(
    settings: recipe.TrainingConfig, seed: int, work: Path, max_steps: int | None
) -> TrainingArguments:
    shares = distributed.count()
    micro = settings.rows_at_once(shares)
    if settings.batch_size % (micro * shares):
        raise UsageError(
            "A batch cannot be shared evenly.",
            f"warmup.batch_size {settings.batch_size}, micro_batch_size {micro}, "
            f"{shares} processes",
            "Choose a number of processes so that micro_batch_size x processes divides batch_size.",
        )
    made = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // (micro * shares),
        num_train_epochs=settings.epochs,
        max_steps=max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_ratio,
        weight_decay=0.0,
        optim="adamw_torch",
        save_strategy="epoch",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to),
        run_name=str(work.parent).removesuffix(".tmp"),  # the folder's final name
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        seed=seed,
        data_seed=seed,
    )
    # Trainer would use every visible GPU, each with its own micro-batches, which changes the step.
    made._n_gpu = min(made.n_gpu, 1)
    return made


@dataclass
class _Resumable(TrainerCallback):
    """Reports progress, marks Trainer's own checkpoints as complete, and keeps the last one."""

    on_step: Callable[[int, int], None]
    of: str
    earlier: float
    started: float = field(default_factory=time.monotonic)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report progress."""
        self.on_step(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Stop a training that diverged, since its weights are useless."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise ModelError(
                f"The training diverged: its loss is {loss}.",
                f"step {state.global_step} of {state.max_steps}, {args.run_name}",
                "Lower the learning rate (of warmup, or of train), or set model.dtype: bfloat16.",
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint that Trainer has written after an epoch; remove older ones."""
        distributed.wait()  # each process writes its own random state
        if not distributed.is_first():
            return
        current = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        folder = current.parent.parent
        sync_tree(folder)
        seconds = self.earlier + time.monotonic() - self.started
        # Hash KeepMoments' checkpoints too: a resumed training doesn't write them again.
        saved = [*current.rglob("*"), *folder.glob("checkpoint-*/*")]
        files = {str(f.relative_to(folder)): file_hash(f) for f in saved if f.is_file()}
        write_sealed(current / MARK, {"of": self.of, "seconds": seconds, "files": files})
        for older in set(current.parent.glob("checkpoint-*")) - {current}:
            shutil.rmtree(older)


def _last_complete(work: Path, of: str) -> tuple[str | None, float]:
    """The newest valid checkpoint of this training, and its seconds; invalid ones are removed."""
    found: list[tuple[int, str, float]] = []
    for folder in work.glob("checkpoint-*"):
        seconds = _seconds_of(folder, of)
        if seconds is None:
            shutil.rmtree(folder)
        else:
            found.append((int(folder.name.rpartition("-")[2]), str(folder), seconds))
    return max(found)[1:] if found else (None, 0.0)


def _seconds_of(checkpoint: Path, of: str) -> float | None:
    """Seconds a checkpoint's training took; None if it is another's, incomplete or damaged."""
    try:
        mark = read_sealed(checkpoint / MARK)
        if mark is None or mark["of"] != of:
            return None
        folder = checkpoint.parent.parent
        sound = all(file_hash(folder / name) == h for name, h in mark["files"].items())
        return float(mark["seconds"]) if sound else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
