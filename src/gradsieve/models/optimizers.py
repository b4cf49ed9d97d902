"""Adam's moments and constants in an optimizer's state.

In: a parameter's state and the param groups, as in `torch.optim.Optimizer.state_dict`. Out: m, v,
the step, and the constants with which `gradients.adam.update` equals the optimizer's own step.
Any other optimizer is refused: a wrong Gamma would silently rank examples wrongly.

Variants of Adam (NAdam, RAdam, AMSGrad, Adam with L2 regularization) have the same moments but a
different step. A state or param group must have the keys of AdamW's and no others, with settings
that leave its step alone. bitsandbytes' Adam computes torch's step from 8-bit moments, which its
own code dequantizes.

Rejected: the steps of those variants (each is little used), a list of optimizers by name (it goes
out of date), and one Gamma for several learning rates (LoRA+): eta_i is one number per checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

STATE_KEYS = {
    *("step", "exp_avg", "exp_avg_sq", "gnorm_vec"),
    *("state1", "qmap1", "absmax1", "state2", "qmap2", "absmax2"),
}
"""Keys in a state of torch's AdamW, and in one of bitsandbytes'."""

GROUP_KEYS = {
    *("params", "param_names", "name", "lr", "initial_lr", "betas", "eps", "weight_decay"),
    *("amsgrad", "maximize", "decoupled_weight_decay"),
    *("foreach", "capturable", "differentiable", "fused"),
    *("alpha", "t_alpha", "t_beta3"),
}
"""Keys in a param group of torch's Adam and AdamW; the last three are bitsandbytes'."""

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

    Without param groups (the file has none), torch's defaults are assumed. `where` is the file or
    the optimizer's class, for messages.

    Raises:
        ModelError: If the optimizer is not Adam with one learning rate and one set of constants.
    """
    used = [group for group in groups if len(group["params"])]
    trained = [state for state in states if state]
    unlike = set[str]().union(*(_unlike_adamw(state, used) for state in trained or [{}]))
    if unlike:
        what = "The optimizer's step is not that of AdamW."
        raise ModelError(what, f"{where}: {', '.join(sorted(unlike))}", USE_ADAMW)
    # `lr` and `initial_lr`: a schedule may end at 0 for all groups, or make their rates diverge.
    for key in ("lr", "initial_lr", "betas", "eps"):
        values = {_numbers(group[key]) for group in used if key in group}
        if len(values) > 1:
            raise ModelError(
                "The optimizer's param groups have different settings, as in LoRA+; the update of "
                "an example is defined for one.",
                f"{where}: {key} {' and '.join(str(value) for value in sorted(values))}",
                "Train all LoRA weights with one learning rate, betas and eps.",
            )
    return checked_constants(used[0], where) if used else Constants()


def _numbers(value: Any) -> float | tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)


def _unlike_adamw(state: State, groups: Sequence[Group]) -> Iterator[str]:
    """Yield the keys and settings by which an optimizer's step differs from that of AdamW."""
    flat, keys = _flat(state), {key for group in groups for key in group}
    yield from (flat.keys() - STATE_KEYS) | (keys - GROUP_KEYS)
    is_quantized = "state1" in flat
    wanted = {"state1", "state2"} if is_quantized else {"exp_avg", "exp_avg_sq"}
    yield from (f"no {key}" for key in wanted - flat.keys())
    for group in groups:
        if "amsgrad" not in group and not is_quantized:
            yield "no amsgrad"  # RAdam
        yield from (f"{key}={group[key]}" for key in NOT_SET if group.get(key))
        if len(group.get("betas", ())) > 2:
            yield f"{len(group['betas'])} betas"
        # torch before 2.7 doesn't record whether it is AdamW; Trainer's Adam is always AdamW.
        if group.get("weight_decay") and not group.get("decoupled_weight_decay", True):
            yield f"weight_decay={group['weight_decay']:g} (L2 regularization)"


NOT_SET = ("amsgrad", "maximize", "alpha")
"""Settings that change the step; `alpha` is AdEMAMix's."""


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
    least = 0.0 if kind == "exp_avg_sq" else -math.inf
    if not bool((torch.isfinite(moment) & (moment >= least)).all()):
        what = f"Adam's {kind} has numbers that are not finite, or mean squares below 0."
        todo = "Use a checkpoint from before the training diverged, or copy it again."
        raise ModelError(what, where, todo)
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
