"""Checkpoints of a warm-up: the adapter, and Adam's moments by the weights' names.

In: a peft model and its optimizer, or the folder of an existing run. Out: `checkpoint-i/` with
`adapter_model.safetensors`, `adapter_config.json` and `adam.safetensors`, whose tensors are
`exp_avg/NAME` and `exp_avg_sq/NAME` (NAME as in the adapter file) and whose metadata holds the step
and the epoch's mean learning rate.

Existing runs: any optimizer file that transformers' Trainer writes is read with `weights_only`;
`optimizer.pt` numbers the weights in the optimizer's order, `optimizer.bin` (FSDP) names them.
This reading is what users of LESS's released code missed most (its issues 4, 10 and 44).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - only to catch it
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Trainer

from gradsieve.errors import ModelError
from gradsieve.io import atomic, folder_fingerprint, write_json

Moments = tuple[dict[str, Tensor], dict[str, Tensor], int]
"""exp_avg and exp_avg_sq by parameter name, and the number of optimizer steps made."""

KINDS = ("exp_avg", "exp_avg_sq")
METADATA = "gradsieve"
"""The key of adam.safetensors' metadata, a JSON object with step and learning_rate."""


def save_checkpoint(
    model: PeftModel, optimizer: torch.optim.Optimizer, folder: Path, learning_rate: float
) -> None:
    """Write a checkpoint that features can be taken from.

    Raises:
        ModelError: As `adam_states`.
    """
    states = adam_states(model, optimizer)
    save_adapter(model, folder)
    tensors: dict[str, Tensor] = {}
    steps = {0}
    for name, state in states.items():
        steps.add(int(state["step"]))
        for kind in KINDS:
            tensors[f"{kind}/{saved_name(name)}"] = state[kind].detach().float().cpu().contiguous()
    # One key: safetensors writes several in an order that changes from run to run.
    metadata = {METADATA: json.dumps({"step": max(steps), "learning_rate": learning_rate})}
    with atomic(folder / "adam.safetensors") as temporary:
        save_file(tensors, temporary, metadata)


def adam_states(
    model: PeftModel, optimizer: torch.optim.Optimizer
) -> dict[str, Mapping[str, Tensor]]:
    """Adam's state of each trainable weight, by the weight's name.

    Raises:
        ModelError: If the optimizer has none: it is another kind, or its weights are sharded.
    """
    states = {}
    for name, parameter in _trainable(model).items():
        state = optimizer.state.get(parameter, {})
        if not {"step", *KINDS} <= state.keys() or state["exp_avg"].shape != parameter.shape:
            raise ModelError(
                "The optimizer keeps no moments of Adam's that can be read.",
                f"{type(optimizer).__name__}, {name}: {', '.join(state) or 'nothing'}",
                "Train with optim='adamw_torch', without sharding (FSDP, DeepSpeed).",
            )
        states[name] = state
    return states


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter as peft does, the same bytes in every process."""
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    # peft keeps these in a set, whose order changes from process to process.
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_json(file, config)


def saved_name(parameter: str) -> str:
    """A parameter's name as adapter files have it: without the adapter's own name."""
    return re.sub(r"(lora_[AB])\.[^.]+\.", r"\1.", parameter)


def load_moments(folder: Path, model: PeftModel) -> Moments:
    """Adam's moments of a checkpoint, for the model's trainable weights, on their device.

    Args:
        folder: A checkpoint of ours or of transformers' Trainer.
        model: The peft model with this checkpoint's adapter loaded as trainable.

    Raises:
        ModelError: If there is no optimizer state, or one that doesn't fit; it names the parameter
            and both shapes.
    """
    weights = _trainable(model)
    file = optimizer_file(folder)
    try:
        states, step = _READERS[file.name](file, model)
    except UnpicklingError:
        raise _unreadable(file, "it is no pickle, or one that would run code") from None
    except _UNREADABLE as error:
        raise _unreadable(file, f"{type(error).__name__}: {str(error)[:200]}") from None
    moments: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, weight in weights.items():
        state = states.get(saved_name(name), {})
        for kind, into in zip(KINDS, moments, strict=True):
            into[name] = _fitting(state.get(kind), weight, f"{file}: {kind} of {name}")
    return *moments, step


def optimizer_file(folder: Path) -> Path:
    """The file with Adam's moments.

    Raises:
        ModelError: If there is none.
    """
    file = next((folder / name for name in _READERS if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(
            "The checkpoint has no optimizer state, which Adam's update needs.",
            f"{folder}: none of {', '.join(_READERS)}",
            "Give checkpoints saved with save_only_model=False, or let gradsieve warm up.",
        )
    return file


def _unreadable(file: Path, said: str) -> ModelError:
    todo = "Give an optimizer.pt or optimizer.bin that transformers' Trainer wrote."
    if file.suffix in (".safetensors", ".json"):
        todo = "Copy the checkpoint again."
    return ModelError("The optimizer state cannot be read.", f"{file}: {said}", todo)


def load_learning_rates(folders: Iterable[Path]) -> list[float] | None:
    """The mean learning rate before each checkpoint since the one before it; None if unknown.

    Ours keep it beside the moments; of a Trainer's run it is taken from `trainer_state.json`.

    Raises:
        ModelError: If such a file is damaged.
    """
    rates: list[float] = []
    last_step = 0
    for folder in folders:
        ours, theirs = folder / "adam.safetensors", folder / "trainer_state.json"
        file = ours if ours.is_file() else theirs
        if not file.is_file():
            return None
        try:
            rate, last_step = (_our_rate(ours), 0) if file == ours else _mean_rate(file, last_step)
        except _UNREADABLE as error:
            raise _unreadable(file, f"{type(error).__name__}: {str(error)[:200]}") from None
        if rate is None:
            return None
        rates.append(rate)
    return rates


def _our_rate(file: Path) -> float:
    with safe_open(file, "pt") as opened:
        return float(json.loads(opened.metadata()[METADATA])["learning_rate"])


def _mean_rate(file: Path, last_step: int) -> tuple[float | None, int]:
    """The mean rate that a Trainer logged since a step, and the step it has come to."""
    state = json.loads(file.read_text(encoding="utf-8"))
    logs = [log for log in state["log_history"] if "learning_rate" in log]
    since = [log["learning_rate"] for log in logs if log["step"] > last_step]
    return (sum(since) / len(since) if since else None), state["global_step"]


def checkpoint_fingerprint(folder: Path) -> str:
    """What identifies a checkpoint: its adapter and optimizer state."""
    return folder_fingerprint(folder, ("adapter_*", *_READERS))


def _trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _fitting(found: Tensor | None, weight: Tensor, where: str) -> Tensor:
    if found is None or found.shape != weight.shape:
        raise ModelError(
            "The optimizer state does not fit the adapter.",
            f"{where}: expected {tuple(weight.shape)}, "
            f"found {'nothing' if found is None else tuple(found.shape)}",
            "Give the optimizer state that was saved with this adapter.",
        )
    return found.to(weight.device, torch.float32)


States = tuple[Mapping[str, Mapping[str, Tensor]], int]


def _read_ours(file: Path, _: PeftModel) -> States:
    states: dict[str, dict[str, Tensor]] = {}
    with safe_open(file, "pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - safe_open is no mapping
            kind, _, name = key.partition("/")
            states.setdefault(name, {})[kind] = opened.get_tensor(key)
        return states, int(json.loads(opened.metadata()[METADATA])["step"])


def _read_trainer(file: Path, model: PeftModel) -> States:
    """optimizer.pt or optimizer.bin; weights are numbered or named."""
    saved: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    saved = saved.get("optimizer", saved)
    state: Mapping[Any, Mapping[str, Any]] = saved["state"]
    numbered = all(isinstance(key, int) for key in state)
    names = _optimizer_order(model, len(state)) if numbered else {key: key for key in state}
    by_name = {saved_name(_without_wrappers(names[key])): state[key] for key in state}
    steps = {int(values["step"]) for values in state.values() if "step" in values}
    return by_name, max(steps, default=0)


def _optimizer_order(model: PeftModel, count: int) -> dict[int, str]:
    """Names in the order in which Trainer's optimizer numbers them: decayed weights first."""
    names = list(_trainable(model))
    if len(names) != count:
        raise ModelError(
            "The optimizer state is of another adapter.",
            f"{count} weights in the optimizer state, {len(names)} in the adapter "
            f"(from {names[0]} on)",
            "Give the optimizer state that was saved with this adapter.",
        )
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    ordered = sorted(names, key=lambda name: name not in decayed)
    return dict(enumerate(ordered))


def _without_wrappers(name: str) -> str:
    """A parameter's name without what DDP, FSDP and torch.compile put into it."""
    parts = name.removeprefix("module.").split(".")
    return ".".join(part for part in parts if part not in ("_fsdp_wrapped_module", "_orig_mod"))


# What torch.load, safetensors and reading what they give raise for files that are damaged.
_UNREADABLE = (
    *(SafetensorError, AttributeError, KeyError, TypeError),
    *(RuntimeError, ValueError, EOFError, OSError),
)

_READERS = {
    "adam.safetensors": _read_ours,
    "optimizer.pt": _read_trainer,
    "optimizer.bin": _read_trainer,
}
