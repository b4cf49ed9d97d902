"""Checkpoints of a warm-up: the adapter, and Adam's moments by weight name.

In: a peft model and its optimizer, or the folder of an existing run. Out: `checkpoint-i/` with
`adapter_model.safetensors`, `adapter_config.json` and `adam.safetensors`, whose tensors are
`exp_avg/NAME` and `exp_avg_sq/NAME` (NAME as in the adapter file) and whose metadata holds the
step, the optimizer's betas and eps, and the epoch's mean learning rate.

Existing runs: any optimizer file that transformers' Trainer writes is read with `weights_only`.
`optimizer.pt` numbers the weights in the order of the optimizer's param groups; `optimizer.bin`
(FSDP) names them. Support for existing runs is what users of LESS's released code missed most (its
issues 4, 10 and 44).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - only to catch it
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer

from gradsieve.errors import ModelError, first_line
from gradsieve.gradients.adam import Moments
from gradsieve.io import atomic, folder_fingerprint, write_json
from gradsieve.models.optimizers import (
    Constants,
    Group,
    State,
    adam_constants,
    adam_state,
    checked_constants,
)

METADATA = "gradsieve"
"""The key of adam.safetensors' metadata, a JSON object: step, betas, eps, learning_rate."""


def save_checkpoint(
    model: PeftModel, optimizer: torch.optim.Optimizer, folder: Path, learning_rate: float
) -> None:
    """Write a checkpoint from which features can be computed."""
    states = adam_states(model, optimizer)
    save_adapter(model, folder)
    tensors = {
        f"{kind}/{saved_name(name)}": moment.detach().cpu().contiguous()
        for kind, moments in (("exp_avg", states.exp_avg), ("exp_avg_sq", states.exp_avg_sq))
        for name, moment in moments.items()
    }
    facts = {"step": states.step, "betas": states.betas, "eps": states.eps}
    metadata = json.dumps({**facts, "learning_rate": learning_rate})
    # A single key: safetensors writes several in an order that changes from run to run.
    with atomic(folder / "adam.safetensors") as temporary:
        save_file(tensors, temporary, {METADATA: metadata})


def adam_states(model: PeftModel, optimizer: torch.optim.Optimizer) -> Moments:
    """Adam's state of each trainable weight in a running training.

    Raises:
        ModelError: If the optimizer is not Adam or AdamW, or its weights are sharded.
    """
    # accelerate wraps the optimizer; messages name the class of the wrapped one.
    where = type(getattr(optimizer, "optimizer", optimizer)).__name__
    states = {name: optimizer.state.get(p, {}) for name, p in _trainable(model).items()}
    constants = adam_constants(states.values(), optimizer.param_groups, where)
    return _states_of(model, states, constants, where)


def _states_of(
    model: PeftModel, states: Mapping[str, State], constants: Constants, where: str
) -> Moments:
    """The states of the model's trainable weights, checked, on the first weight's device."""
    exp_avg: dict[str, Tensor] = {}
    exp_avg_sq: dict[str, Tensor] = {}
    steps: set[int] = set()
    first = next(model.parameters()).device  # features are added up here if there are several
    for name, weight in _trainable(model).items():
        m, v, step = adam_state(states[name], weight.shape, f"{where}: {name}")
        exp_avg[name], exp_avg_sq[name] = m.to(first), v.to(first)
        steps.add(step)
    if len(steps) > 1:
        raise ModelError(
            "The adapter's weights were trained for different numbers of steps.",
            f"{where}: from {min(steps)} to {max(steps)}",
            "Adapt only layers that every batch uses.",
        )
    return Moments(exp_avg, exp_avg_sq, steps.pop(), *constants)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the active adapter with peft, with the same bytes in every process."""
    name = model.active_adapter
    model.save_pretrained(str(folder), selected_adapters=[name])
    if (own := folder / name).is_dir():  # of an adapter that isn't named `default`
        for file in own.iterdir():
            file.rename(folder / file.name)
        own.rmdir()
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    # peft keeps these in a set, whose order changes from process to process.
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_json(file, config)


def saved_name(parameter: str) -> str:
    """A parameter's name in adapter files, which leave out the adapter's own name."""
    return re.sub(r"(lora_[AB])\.[^.]+\.", r"\1.", parameter)


def load_moments(folder: Path, model: PeftModel) -> Moments:
    """Adam's moments and constants of a checkpoint, for the model's trainable weights.

    The checkpoint is gradsieve's or one of transformers' Trainer; the model has its adapter, as
    trainable.

    Raises:
        ModelError: If there is no optimizer state, if it belongs to another optimizer, or if it
            doesn't fit (the message names the parameter and both shapes).
    """
    file = optimizer_file(folder)
    with _reading(file):
        by_name, constants = _READERS[file.name](file, model)
        states = {name: by_name.get(saved_name(name), {}) for name in _trainable(model)}
        return _states_of(model, states, constants, str(file))


def optimizer_file(folder: Path) -> Path:
    """The file with Adam's moments."""
    file = next((folder / name for name in _READERS if (folder / name).is_file()), None)
    if file is not None:
        return file
    for pattern, (what, todo) in _SHARDED.items():
        for found in sorted(folder.glob(pattern)):
            raise ModelError(f"The checkpoint's optimizer state is {what}.", str(found), todo)
    raise ModelError(
        "The checkpoint has no optimizer state, which Adam's update needs.",
        f"{folder}: none of {', '.join(_READERS)}",
        "Name checkpoints saved with save_only_model=False, or let gradsieve warm up.",
    )


_SHARDED = {
    "global_step*/*optim_states.pt": (
        "sharded by DeepSpeed ZeRO",
        "Train without DeepSpeed (a LoRA adapter's state is small), or leave warmup.checkpoints "
        "out: gradsieve then runs its own warm-up.",
    ),
    "optimizer*/*.distcp": (
        "sharded by FSDP",
        "Merge it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
        "CHECKPOINT/optimizer_0 CHECKPOINT/optimizer.bin; or train with FSDP's state_dict_type "
        "FULL_STATE_DICT.",
    ),
}
"""Files that sharded trainings write instead of one file: what they are, and what to do."""


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Report a damaged file, whatever the code that reads it raises."""
    try:
        yield
    except _UNREADABLE as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, UnpicklingError):
            unknown = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
            holds = unknown[1] if unknown else "no pickle, or one of a class"
            reason = f"{holds}, which would run code"
        raise ModelError(
            "The optimizer state cannot be read.",
            f"{file}: {reason}",
            "Copy the checkpoint again. Its optimizer must be AdamW, saved by transformers' "
            "Trainer.",
        ) from None


def load_learning_rates(folders: Iterable[Path]) -> list[float] | None:
    """The mean learning rate between each checkpoint and the previous one; None if unknown.

    gradsieve's checkpoints store it with the moments; for a Trainer's run `trainer_state.json` is
    used. It is unknown if that file is missing or has no log between two checkpoints.

    Raises:
        ModelError: If a file is damaged or holds invalid learning rates, or if the checkpoints of
            one training are out of order.
    """
    rates: list[float] = []
    last_steps: dict[Path, int] = {}  # by training: checkpoints may come from several
    for folder in folders:
        ours, theirs = folder / "adam.safetensors", folder / "trainer_state.json"
        file = ours if ours.is_file() else theirs
        if not file.is_file():
            return None
        with _reading(file):
            if file == ours:
                rate: float | None = float(_our_facts(ours)["learning_rate"])
            else:
                since = last_steps.get(folder.parent, 0)
                rate, last_steps[folder.parent] = _mean_rate(file, since)
        if rate is None:
            return None
        if not 0 <= rate < math.inf:
            raise ModelError(
                "The learning rate of a checkpoint is not a number above 0.",
                f"{file}: {rate}",
                "Use checkpoints of a training that succeeded, or copy them again.",
            )
        rates.append(rate)
    return rates


def _our_facts(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        return dict(json.loads(opened.metadata()[METADATA]))


def _mean_rate(file: Path, last_step: int) -> tuple[float | None, int]:
    """The mean learning rate that a Trainer logged after `last_step`, and the current step."""
    state = json.loads(file.read_text(encoding="utf-8"))
    step = state["global_step"]
    if step <= last_step:
        raise ModelError(
            "The checkpoints are not in the order of their training.",
            f"{file}: step {step} after step {last_step}",
            "Name warmup.checkpoints by rising step, each once.",
        )
    logs = [log for log in state["log_history"] if "learning_rate" in log]
    since = [float(log["learning_rate"]) for log in logs if log["step"] > last_step]
    return (sum(since) / len(since) if since else None), step


def checkpoint_fingerprint(folder: Path) -> str:
    """A fingerprint that identifies a checkpoint by its adapter and optimizer state."""
    return folder_fingerprint(folder, ("adapter_*", *_READERS))


def _trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


States = tuple[Mapping[str, State], Constants]
"""Optimizer states by the names in adapter files, and the optimizer's constants."""


def _read_ours(file: Path, _: PeftModel) -> States:
    states: dict[str, dict[str, Any]] = {}
    facts = _our_facts(file)
    for key, tensor in load_file(file).items():
        kind, _, name = key.partition("/")
        states.setdefault(name, {"step": facts["step"]})[kind] = tensor
    return states, checked_constants(facts, str(file))


def _read_trainer(file: Path, model: PeftModel) -> States:
    """Read optimizer.pt or optimizer.bin, which number or name the weights."""
    saved: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    saved = saved.get("optimizer", saved)
    state: Mapping[Any, State] = saved["state"]
    groups: Sequence[Group] = saved.get("param_groups", [])
    constants = adam_constants(state.values(), groups, str(file))
    if any(isinstance(key, int) for key in state):
        names = _names_by_number(model, groups, file)
        state = {names[key]: values for key, values in state.items()}
    by_name = {saved_name(_without_wrappers(name)): values for name, values in state.items()}
    return by_name, constants


def _names_by_number(model: PeftModel, groups: Sequence[Group], file: Path) -> dict[int, str]:
    """Parameter names by their numbers in an optimizer state, which follow the param groups.

    If the groups name their parameters (torch 2.6, from `named_parameters`), those names are used.
    Otherwise there must be one group in the model's order, or Trainer's two: with and without
    weight decay. Other groups could have any order, and weights of equal shape would swap moments.
    """
    names = list(_trainable(model))
    numbers = [number for group in groups for number in group["params"]]
    if len(names) != len(numbers):
        raise ModelError(
            "The optimizer state is of another adapter.",
            f"{file}: {len(numbers)} weights in the optimizer state, {len(names)} in the adapter "
            f"(from {names[0]} on)",
            "Give the optimizer state that was saved with this adapter.",
        )
    used = [group for group in groups if group["params"]]
    if all("param_names" in group for group in used):
        names = [name for group in used for name in group["param_names"]]
    elif len(used) > 1:
        decayed = set(Trainer.get_decay_parameter_names(None, model))
        names.sort(key=lambda name: name not in decayed)
        sizes = [sum(name in decayed for name in names), sum(name not in decayed for name in names)]
        if [len(group["params"]) for group in groups] != sizes:
            raise ModelError(
                "The optimizer state numbers its weights by param groups whose order is unknown.",
                f"{file}: groups of {', '.join(str(len(group['params'])) for group in used)} "
                "weights, not Trainer's",
                "Use gradsieve.KeepMoments in the training, which saves by name; or create the "
                "optimizer from model.named_parameters().",
            )
    return dict(zip(numbers, names, strict=True))


def _without_wrappers(name: str) -> str:
    """A parameter's name without the parts that DDP, FSDP and torch.compile add."""
    parts = name.removeprefix("module.").split(".")
    return ".".join(part for part in parts if part not in ("_fsdp_wrapped_module", "_orig_mod"))


# Errors that torch.load, safetensors and the code reading their results raise for damaged files.
_UNREADABLE = (
    *(UnpicklingError, SafetensorError, AttributeError, KeyError, TypeError),
    *(RuntimeError, ValueError, EOFError, OSError),
)

_READERS = {
    "adam.safetensors": _read_ours,
    "optimizer.pt": _read_trainer,
    "optimizer.bin": _read_trainer,
}
