"""Which optimizer a state belongs to, and Adam's moments and constants in it.

In: a parameter's state and the param groups, as in `torch.optim.Optimizer.state_dict`. Out: m, v,
the step, and the constants with which `gradients.adam.update` equals the optimizer's own step.
Any other optimizer is refused by name: a wrong Gamma would silently rank examples wrongly.

Variants of Adam (NAdam, RAdam, AMSGrad, Adam with L2 regularization) have the same moments but a
different step. They are recognized by keys in a state or a param group that torch's Adam lacks.
bitsandbytes' Adam computes torch's step from 8-bit moments, which its own code dequantizes.

Rejected: the steps of those variants (each is little used), and one Gamma for several learning
rates (LoRA+): eta_i is one number per checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradsieve.errors import ModelError
from gradsieve.gradients.adam import BETA1, BETA2, EPS
from gradsieve.io import needed

State = Mapping[str, Any]
"""One parameter's optimizer state."""
Group = Mapping[str, Any]
"""One param group; its `params` are numbers, names or the parameters themselves."""

QUANTIZED = "__bnb_optimizer_quant_state__"
"""The key under which bitsandbytes saves its tensors to keep FSDP from gathering them."""
BLOCKS = (256, 2048)
"""Block sizes of bitsandbytes' 8-bit states: since version 0.44, and before."""

STATE_OF = {
    "exp_avg_sq_row": "Adafactor",
    "row_var": "Adafactor",
    "mu_product": "NAdam",
    "exp_inf": "Adamax",
    "acc_delta": "Adadelta",
    "square_avg": "RMSprop",
    "sum": "Adagrad",
    "momentum_buffer": "SGD with momentum, or Muon",
    "unorm_vec": "LAMB",
    "max1": "Adam in 8 bits without blocks (bitsandbytes before 0.44)",
    "max_exp_avg_sq": "AMSGrad (amsgrad=True)",
}
"""Optimizers, by a key that only their states have."""

GROUP_OF = {
    "momentum_decay": "NAdam",
    "correct_bias": "the AdamW of transformers before 5.0",
    "bias_correction": "FusedAdam of Apex or DeepSpeed",
    "rank": "GaLore or APOLLO",
    "train_mode": "a schedule-free optimizer",
}
"""Optimizers, by a key that only their param groups have."""

ADAM = {
    *("params", "param_names", "name", "lr", "initial_lr", "betas", "eps", "weight_decay"),
    *("amsgrad", "maximize", "decoupled_weight_decay"),
    *("foreach", "capturable", "differentiable", "fused"),
}
"""Keys in a param group of torch's Adam and AdamW; bitsandbytes' adds BITSANDBYTES."""
BITSANDBYTES = {"alpha", "t_alpha", "t_beta3"}

USE_ADAMW = (
    "Train with torch's AdamW (optim='adamw_torch'), or leave warmup.checkpoints out: gradsieve "
    "then runs its own warm-up."
)


class Constants(NamedTuple):
    """Adam's b1, b2 and eps; the defaults are torch's."""

    betas: tuple[float, float] = (BETA1, BETA2)
    eps: float = EPS


def adam_constants(states: Iterable[State], groups: Iterable[Group], where: str) -> Constants:
    """The constants with which Gamma equals the optimizer's step.

    Decoupled weight decay (AdamW) is not part of Gamma, since no example causes it.

    Args:
        states: The state of each trained parameter.
        groups: All param groups; if empty (the file has none), torch's defaults are assumed.
        where: The file or the optimizer's class, for messages.

    Raises:
        ModelError: If the optimizer is not Adam with one learning rate and one set of constants.
    """
    used = [group for group in groups if len(group["params"])]
    trained = [state for state in states if state]
    names = (_other_optimizer(state, used) for state in trained or [{}])
    if other := min(filter(None, names), default=None):
        what = f"The optimizer keeps no moments of Adam's that can be used: it is {other}."
        raise ModelError(what, where, USE_ADAMW)
    # Check both: a schedule may end at 0 for all groups, or make their rates diverge.
    now = {float(group["lr"]) for group in used if "lr" in group}
    first = {float(group["initial_lr"]) for group in used if "initial_lr" in group}
    if len(now) > 1 or len(first) > 1:
        rates = sorted(first if len(first) > 1 else now)
        raise ModelError(
            "The optimizer has several learning rates, as LoRA+ and layer-wise rates do; the "
            "update of an example is defined for one.",
            f"{where}: {', '.join(f'{rate:g}' for rate in rates)}",
            "Train all LoRA weights with one learning rate.",
        )
    found = {checked_constants(group, where) for group in used}
    if len(found) > 1:
        raise ModelError(
            "The optimizer's param groups have different betas or eps.",
            f"{where}: {'; '.join(f'betas {c.betas}, eps {c.eps:g}' for c in sorted(found))}",
            "Train all LoRA weights with the same betas and eps.",
        )
    return found.pop() if found else Constants()


def _other_optimizer(state: State, groups: Sequence[Group]) -> str | None:
    """The optimizer's name if its step differs from that of torch's Adam or AdamW, else None."""
    flat = _flat(state)
    keys = {key for group in groups for key in group}
    marks = [name for key, name in STATE_OF.items() if key in flat]
    marks += [name for key, name in GROUP_OF.items() if key in keys]
    if marks:
        return marks[0]
    if not flat:
        return "SGD, or its state is elsewhere (sharded by DeepSpeed or FSDP)"
    if "state1" in flat:
        return _other_bitsandbytes(flat, groups)
    if "exp_avg" in flat and "exp_avg_sq" not in flat:
        return "Lion"
    if not {"exp_avg", "exp_avg_sq"} <= flat.keys():
        return f"one whose state holds {', '.join(map(str, flat))}"
    unknown = (flat.keys() - {"step", "exp_avg", "exp_avg_sq"}) | (keys - ADAM)
    if unknown:
        return f"a relative of Adam, with {', '.join(sorted(unknown))}"
    return next(filter(None, map(_other_adam, groups)), None)


def _other_adam(group: Group) -> str | None:
    if "amsgrad" not in group:
        return "RAdam" if "decoupled_weight_decay" in group else "a relative of Adam"
    if group["amsgrad"]:
        return "AMSGrad (amsgrad=True)"
    if group.get("maximize"):
        return "Adam that maximizes (maximize=True)"
    # torch before 2.7 doesn't record whether it is AdamW; Trainer's Adam is always AdamW.
    if group.get("weight_decay") and not group.get("decoupled_weight_decay", True):
        return f"Adam with L2 regularization (weight_decay={group['weight_decay']:g})"
    return None


def _other_bitsandbytes(flat: State, groups: Sequence[Group]) -> str | None:
    if "state2" not in flat:
        return "Lion, or another optimizer with one moment (bitsandbytes)"
    if any(group.get("alpha") or len(group["betas"]) > 2 for group in groups):
        return "AdEMAMix"
    unknown = {key for group in groups for key in group} - ADAM - BITSANDBYTES
    return f"one of bitsandbytes', with {', '.join(sorted(unknown))}" if unknown else None


def checked_constants(group: Group, where: str) -> Constants:
    """The constants in a param group; raises `ModelError` if they are not Adam's."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    found = Constants((beta1, beta2), float(group["eps"]))
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and 0 <= found.eps < math.inf):
        raise ModelError(
            "The optimizer's constants are not Adam's.",
            f"{where}: betas {found.betas}, eps {found.eps}",
            "Copy the checkpoint again.",
        )
    return found


def adam_state(state: State, shape: torch.Size, where: str) -> tuple[Tensor, Tensor, int]:
    """A parameter's moments m and v, in float32, and its step.

    Args:
        state: A state of an optimizer that `adam_constants` accepted.
        shape: The parameter's shape.
        where: The file or the optimizer, and the parameter's name.

    Raises:
        ModelError: If a moment is missing, has another shape or is not finite, if v is below 0, or
            if the step is below 1.
    """
    flat = _flat(state)
    if "state1" in flat:
        flat |= {"exp_avg": _dequantized(flat, 1), "exp_avg_sq": _dequantized(flat, 2)}
    exp_avg = _checked("exp_avg", flat.get("exp_avg"), shape, where)
    exp_avg_sq = _checked("exp_avg_sq", flat.get("exp_avg_sq"), shape, where)
    step = float(flat.get("step", math.nan))
    if not 1 <= step < math.inf:
        raise ModelError(
            "The number of steps that the optimizer made is not positive.",
            f"{where}: step {flat.get('step')}",
            "Give the optimizer state that was saved with this adapter.",
        )
    return exp_avg, exp_avg_sq, int(step)


def _checked(kind: str, moment: Tensor | None, shape: torch.Size, where: str) -> Tensor:
    if moment is None or moment.shape != shape:
        raise ModelError(
            "The optimizer state does not fit the adapter.",
            f"{where}: {kind}, expected {tuple(shape)}, "
            f"found {'nothing' if moment is None else tuple(moment.shape)}",
            "Give the optimizer state that was saved with this adapter, unsharded.",
        )
    finite = bool(torch.isfinite(moment).all())
    if not finite or (kind == "exp_avg_sq" and bool((moment < 0).any())):
        wrong = "below 0, which no mean of squares can be" if finite else "that are not finite"
        todo = "Use a checkpoint from before the training diverged, or copy it again."
        raise ModelError(f"Adam's {kind} has numbers {wrong}.", where, todo)
    return moment.float()


def _flat(state: State) -> dict[str, Any]:
    return {**{k: v for k, v in state.items() if k != QUANTIZED}, **state.get(QUANTIZED, {})}


def _dequantized(flat: State, number: int) -> Tensor:
    """A moment of bitsandbytes' Adam, which has 8 bits, or 32 for small weights."""
    values: Tensor = flat[f"state{number}"]
    if values.dtype != torch.uint8:
        return values
    absmax, code = flat[f"absmax{number}"], flat[f"qmap{number}"]
    block = next(size for size in BLOCKS if math.ceil(values.numel() / size) == len(absmax))
    functional = needed("bitsandbytes.functional", "quantized")
    return torch.as_tensor(
        functional.dequantize_blockwise(values, absmax=absmax, code=code, blocksize=block)
    )
