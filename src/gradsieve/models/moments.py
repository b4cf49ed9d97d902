"""A Trainer callback that keeps Adam's moments for features (the paper's step 1).

In: any fine-tuning of a peft model with Adam by transformers' Trainer (including TRL's SFTTrainer).
Out: a folder per epoch with the adapter, Adam's moments by weight name and the epoch's mean
learning rate, as `checkpoints.save_checkpoint` writes it. So an ordinary run can be the warm-up.
For an epoch that was interrupted and resumed, the mean covers only the steps after resumption.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from transformers import TrainerCallback

from gradsieve.errors import ModelError, UsageError, raise_all
from gradsieve.io import publish
from gradsieve.models.adapters import variant_problems
from gradsieve.models.checkpoints import adam_states, save_checkpoint
from gradsieve.models.layers import layer_problems


class KeepMoments(TrainerCallback):
    """Keeps the adapter and Adam's moments of a fine-tuning run, for the recipe's `warmup`.

    Args:
        folder: Where `checkpoint-1, checkpoint-2, ...` are written.
        every: `epoch`: at the end of each epoch; `save`: whenever the Trainer saves a checkpoint
            (`save_strategy`), numbered by the step.

    Raises:
        ModelError: When training starts, if the model is not a peft model, or if its active adapter
            is not plain LoRA or not the only one; after the first step, if the optimizer is not
            Adam or AdamW.
        UsageError: If nothing would be kept.

    Example:
        >>> import gradsieve
        >>> moments = gradsieve.KeepMoments("runs/warmup")
        >>> trainer = Trainer(peft_model, arguments, train_dataset=rows, callbacks=[moments])
        >>> _ = trainer.train()
        >>> moments.checkpoints
        ['runs/warmup/checkpoint-1', 'runs/warmup/checkpoint-2']
        >>> found = gradsieve.select(
        ...     trainer.model.unload(), tokenizer, pool, examples,
        ...     warmup={"checkpoints": moments.checkpoints},
        ... )
    """

    def __init__(self, folder: str | Path, every: Literal["epoch", "save"] = "epoch") -> None:
        if every not in ("epoch", "save"):
            raise UsageError(
                "KeepMoments keeps nothing.", f"every={every!r}", "Give epoch or save."
            )
        self.folder, self.every = Path(folder), every
        self._numbers: set[int] = set()
        self._rates: list[float] = []

    @property
    def checkpoints(self) -> list[str]:
        """The folders written so far, in order, for `warmup.checkpoints`."""
        return [str(self._path(number)) for number in sorted(self._numbers)]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a model without a plain adapter; list an interrupted run's checkpoints."""
        model, now = kwargs["model"], self._number(state)
        if not isinstance(model, PeftModel):
            raise ModelError(
                "The trained model has no adapter.",
                type(model).__name__,
                "Give the Trainer a peft model (peft.get_peft_model; SFTTrainer: peft_config=...).",
            )
        if len(model.active_adapters) > 1:
            raise ModelError(
                "Several adapters are active; gradsieve follows one.",
                ", ".join(model.active_adapters),
                "Activate one (set_adapter), or merge the others first (merge_and_unload).",
            )
        if self.every == "save" and args.save_strategy == "no":
            raise UsageError(
                "The Trainer saves no checkpoint, and KeepMoments none with it.",
                "every='save', save_strategy='no'",
                "Set the Trainer's save_strategy, or leave `every` out.",
            )
        adapter, where = model.peft_config[model.active_adapter].to_dict(), "the trained adapter"
        raise_all([*variant_problems(adapter, where), *layer_problems(model, where)])
        there = (int(path.name.partition("-")[2]) for path in self.folder.glob("checkpoint-*[0-9]"))
        self._numbers = {number for number in there if number <= now}
        self._rates.clear()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the step's learning rate; Trainer calls this before the schedule advances."""
        self._rates.append(kwargs["optimizer"].param_groups[0]["lr"])
        if len(self._rates) == 1:
            adam_states(kwargs["model"], kwargs["optimizer"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the epoch's checkpoint."""
        self._keep("epoch", state, **kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write a checkpoint of the step that the Trainer has saved."""
        self._keep("save", state, **kwargs)

    def _keep(self, when: str, state: Any, model: PeftModel, optimizer: Any, **_: Any) -> None:
        """Write a checkpoint; its folder appears complete or not at all."""
        if when != self.every or not self._rates or not state.is_world_process_zero:
            return
        number = self._number(state)
        complete = self._path(number)
        partial = complete.with_name(f"{complete.name}.tmp")
        for leftover in (partial, complete):
            shutil.rmtree(leftover, ignore_errors=True)
        save_checkpoint(model, optimizer, partial, sum(self._rates) / len(self._rates))
        publish(partial, complete)
        self._numbers.add(number)
        self._rates.clear()

    def _number(self, state: Any) -> int:
        if self.every == "save":
            return int(state.global_step)
        # An epoch cut short by max_steps counts as one.
        return math.ceil(round(state.epoch or 0.0, 6))

    def _path(self, number: int) -> Path:
        return self.folder / f"checkpoint-{number}"
