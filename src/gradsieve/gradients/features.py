"""Features of a batch: per-example gradients, Adam's update and projection, fused.

In: a model with its adapter, optionally Adam's moments, and a batch. Out: one projected row per
example (method.md, steps 2 and 3). As soon as the backward pass produces a LoRA weight's gradients,
they are turned into updates and added to the projection, so memory holds batch x the largest
weight, never batch x P. On a GPU, one kernel computes a sketch (kernels.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradsieve.gradients import adam
from gradsieve.gradients.objectives import SFT, Objective
from gradsieve.gradients.per_example import lora_layers, per_example_pass, without_mask
from gradsieve.gradients.projection import Accumulator, ExactProducts, Projection
from gradsieve.models.kernels import has_kernels

try:
    from gradsieve.gradients.kernels import FusedTotals
except ImportError:  # without Triton, as in builds of PyTorch for CPUs
    FusedTotals = None  # type: ignore[misc, assignment]


Projected = Projection | ExactProducts
"""Turns updates into rows."""


class FeatureRows(NamedTuple):
    """Features of examples.

    Attributes:
        rows: Projected updates (or gradients), float32 [B, d], or inner products [B, S], or
            several of these concatenated along dimension 1.
        gradient_norms: Norms before projection [B].
        share_below_eps: Mean share of coordinates with v' < eps; NaN without moments.
    """

    rows: Float[Tensor, "B d"]
    gradient_norms: Float[Tensor, " B"]
    share_below_eps: float


class FeatureExtractor:
    """Turns batches into projected rows, at one checkpoint.

    Args:
        projections: How updates become rows: projections, or inner products with directions.
        moments: Adam's state of the model's trainable weights, for rows of the pool; None for
            plain gradients (targets).
    """

    def __init__(
        self,
        model: nn.Module,
        projections: Projected | Sequence[Projected],
        moments: adam.Moments | None = None,
        reading: adam.Reading = "torch",
        momentum: adam.Momentum = "keep",
        objective: Objective = SFT,
    ) -> None:
        self.model, self.moments = model, moments
        self.projections = projections if isinstance(projections, Sequence) else [projections]
        self.reading, self.momentum, self.objective = reading, momentum, objective

    def __call__(self, batch: Mapping[str, Tensor], measure_eps: bool = False) -> FeatureRows:
        """Features of a batch that the objective's `collate` made, on the model's device.

        Labels may stay on the CPU. `measure_eps` also measures the share of coordinates with
        v' < eps, which takes one more pass over the gradients.
        """
        input_ids = batch["input_ids"]
        first = input_ids.device
        totals = self._totals(len(input_ids), first)
        below, values = 0.0, 0

        def take(name: str, gradient: Tensor) -> None:
            nonlocal below, values
            gradient = gradient.to(first)  # a model may be on several devices
            if measure_eps and self.moments is not None:
                v, beta2 = self.moments.exp_avg_sq[name], self.moments.betas[1]
                share = adam.share_below_eps(gradient, v, beta2, self.moments.eps)
                below += float(share) * gradient[0].numel()
                values += gradient[0].numel()
            totals.add(name, gradient)

        with per_example_pass(self.model, take, self.objective) as losses:
            losses(without_mask(batch)).sum().backward()
        share = below / values if values else float("nan")
        return FeatureRows(totals.rows(), totals.norms(), share)

    def _totals(self, batch: int, device: torch.device) -> Totals | FusedTotals:
        match self.projections:
            case [Projection(kind="sketch") as sketch] if has_kernels(device):
                return FusedTotals(sketch, self.moments, self.reading, self.momentum, batch, device)
        return Totals(self.projections, self._update, batch, device)

    @property
    def widths(self) -> list[int]:
        """The row width of each projection: d, or P if nothing is projected, or S."""
        return [
            sum(layer.weight.numel() for layer in lora_layers(self.model).values())
            if each.kind == "none"
            else each.dim
            for each in self.projections
        ]

    def _update(self, name: str, gradient: Tensor) -> Tensor:
        state = self.moments
        if state is None:
            return gradient
        return adam.update(
            gradient,
            state.exp_avg[name],
            state.exp_avg_sq[name],
            state.step,
            self.reading,
            self.momentum,
            betas=state.betas,
            eps=state.eps,
        )


class Totals:
    """Projections and norms of a batch's updates, summed weight by weight."""

    def __init__(
        self,
        projections: Sequence[Projected],
        update: Callable[[str, Tensor], Tensor],
        batch: int,
        device: torch.device,
    ) -> None:
        self._totals = [Accumulator(each, batch, device) for each in projections]
        self._update = update
        self._squares = torch.zeros(batch, dtype=torch.float64, device=device)

    def add(self, name: str, gradient: Float[Tensor, "B ..."]) -> None:
        """Add one weight's updates; the gradients may be overwritten."""
        update = self._update(name, gradient)
        self._squares.add_(torch.linalg.vector_norm(update.flatten(1), dim=1).double().square_())
        for total in self._totals:
            total.add(name, update, overwrite=total is self._totals[-1])

    def rows(self) -> Float[Tensor, "B d"]:
        """The projections so far, concatenated."""
        return torch.cat([total.result() for total in self._totals], dim=1)

    def norms(self) -> Float[Tensor, " B"]:
        """Norms of the updates so far."""
        return self._squares.sqrt().float()
