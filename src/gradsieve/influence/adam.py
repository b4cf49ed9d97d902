"""Gamma(z): the Adam update that one example alone would cause (method.md, step 2).

In: the example's gradient g and the optimizer's moments m, v at a checkpoint. Out: the update's
direction, to be multiplied by minus the learning rate. Equation (2) of the paper's section 2.2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""Adam's constants: the defaults of torch.optim.AdamW, used by the paper and its code."""

Reading = Literal["torch", "official"]
Momentum = Literal["keep", "drop"]


def update(
    g: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    reading: Reading = "torch",
    momentum: Momentum = "keep",
) -> Tensor:
    """The Adam update Gamma that a gradient would cause.

    m' = b1 m + (1-b1) g and v' = b2 v + (1-b2) g^2, then

    - `torch`: (m' / (1-b1^t)) / (sqrt(v' / (1-b2^t)) + eps), t = step + 1: what
      torch.optim.AdamW applies (times the learning rate, without weight decay);
    - `official`: m' / sqrt(v' + eps), no bias correction: the paper's released code.

    Args:
        g: Gradients, float32, any leading dimensions: [..., *shape].
        m: First moment `exp_avg`, [*shape].
        v: Second moment `exp_avg_sq`, [*shape].
        step: Optimizer steps made when m and v were saved.
        reading: Where eps stands.
        momentum: `drop` leaves b1 m, which all examples share, out of the numerator.
    """
    numerator = g * (1 - BETA1)
    if momentum == "keep":
        numerator.add_(m, alpha=BETA1)
    denominator = torch.mul(g, g).mul_(1 - BETA2).add_(v, alpha=BETA2)
    if reading == "official":
        return numerator.div_(denominator.add_(EPS).sqrt_())
    first, second = 1 - BETA1 ** (step + 1), 1 - BETA2 ** (step + 1)
    denominator.div_(second).sqrt_().add_(EPS).mul_(first)
    return numerator.div_(denominator)


def share_below_eps(g: Tensor, v: Tensor) -> Tensor:
    """Share of coordinates with v' < eps, where the `official` update is plain momentum."""
    updated = g.square().mul_(1 - BETA2).add_(v, alpha=BETA2)
    return (updated < EPS).float().mean()
