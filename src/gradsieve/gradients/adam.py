"""Gamma(z): the Adam update that a single example would cause (method.md, step 2).

In: the example's gradient g and the optimizer's moments m, v at a checkpoint. Out: the update's
direction, to be multiplied by minus the learning rate. Equation (2) of the paper's section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""The defaults of torch.optim.AdamW, used by the paper and its code. If a checkpoint's optimizer
used other constants, those are used instead."""

Reading = Literal["torch", "official"]
Momentum = Literal["keep", "drop"]


class Moments(NamedTuple):
    """Adam's state at a checkpoint: moments m and v by weight name, and the step count."""

    exp_avg: Mapping[str, Tensor]
    exp_avg_sq: Mapping[str, Tensor]
    step: int
    betas: tuple[float, float] = (BETA1, BETA2)
    eps: float = EPS


def update(
    g: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    reading: Reading = "torch",
    momentum: Momentum = "keep",
    *,
    betas: tuple[float, float] = (BETA1, BETA2),
    eps: float = EPS,
) -> Tensor:
    """The Adam update Gamma that a gradient would cause.

    With m' = b1 m + (1-b1) g and v' = b2 v + (1-b2) g^2, the update is

    - `torch`: (m' / (1-b1^t)) / (sqrt(v' / (1-b2^t)) + eps), t = step + 1, which is what
      torch.optim.AdamW applies (times the learning rate, without weight decay);
    - `official`: m' / sqrt(v' + eps), without bias correction, as in the paper's released code.
      That code fixes the constants 0.9, 0.999 and 1e-8; here the optimizer's own are used.

    Args:
        g: Gradients, float32, any leading dimensions: [..., *shape].
        m: First moment `exp_avg`, [*shape].
        v: Second moment `exp_avg_sq`, [*shape].
        step: Number of optimizer steps made when m and v were saved.
        reading: Which of the two formulas above to use.
        momentum: `drop` leaves b1 m, which is the same for all examples, out of the numerator.
        betas: The optimizer's b1 and b2.
        eps: The optimizer's eps.
    """
    beta1, beta2 = betas
    if reading == "official":
        first, second, inside, outside = 1.0, 1.0, eps, 0.0
    else:
        first, second = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
        inside, outside = 0.0, eps
    # Bias corrections and eps are applied to the small m and v, so that the large g is read only
    # four or five times: on a CPU, memory traffic dominates the cost, not arithmetic.
    denominator = torch.addcmul(v * (beta2 / second) + inside, g, g, value=(1 - beta2) / second)
    denominator.sqrt_()
    if outside:
        denominator.add_(outside)
    if momentum == "drop":
        return torch.div(g, denominator).mul_((1 - beta1) / first)
    return torch.add(m * (beta1 / first), g, alpha=(1 - beta1) / first).div_(denominator)


def share_below_eps(g: Tensor, v: Tensor, beta2: float = BETA2, eps: float = EPS) -> Tensor:
    """The share of coordinates with v' < eps, where the `official` update is plain momentum."""
    updated = g.square().mul_(1 - beta2).add_(v, alpha=beta2)
    return (updated < eps).float().mean()
