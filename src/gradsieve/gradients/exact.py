"""Exact inner products with the targets' directions, computed along with the gradients.

In: the unprojected directions of the targets' subtasks, [S, P]. Out: each example's inner products
with all directions, [B, S]. Scores have no projection error and need no datastore of gradients, but
S x P values are held in memory and the targets must be known in advance. `ExactProducts` replaces
a projection in `features.FeatureExtractor`.

Letters: B examples, P trainable parameters, S subtasks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


class ExactProducts:
    """Inner products with fixed directions, weight by weight.

    Args:
        directions: [S, P], the weights' values concatenated in order of the weights' names, as
            `Projection("none")` returns them.
        sizes: Number of values of each weight, by name.
    """

    def __init__(self, directions: Float[Tensor, "S P"], sizes: Mapping[str, int]) -> None:
        names = sorted(sizes)
        parts = directions.split([sizes[name] for name in names], dim=1)
        self.directions = dict(zip(names, parts, strict=True))
        self.subtasks = len(directions)

    def accumulator(self, batch: int, device: torch.device) -> ExactAccumulator:
        """An accumulator for the products of a batch."""
        return ExactAccumulator(self.directions, torch.zeros(batch, self.subtasks, device=device))


class ExactAccumulator:
    """Adds up the products of a batch; see `ExactProducts`."""

    def __init__(self, directions: Mapping[str, Tensor], out: Float[Tensor, "B S"]) -> None:
        self._directions, self._out = directions, out

    def add(self, name: str, values: Float[Tensor, "B ..."], overwrite: bool = False) -> None:
        """Add one weight's values."""
        self._out.addmm_(values.flatten(1), self._directions[name].T)

    def result(self) -> Float[Tensor, "B S"]:
        """The sum so far."""
        return self._out
