"""Exact inner products with the targets' directions, taken while gradients are computed.

In: the directions of a target's subtasks, unprojected, [S, P]. Out: for each example its inner
products with all of them, [B, S]: scores with no projection error and no datastore of gradients, at
the price of S x P values in memory and of knowing the targets beforehand. Takes the place of
a projection in `extract.FeatureExtractor`.

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
        directions: [S, P], the weights' values side by side in order of their names, as
            `Projection("none")` gives them.
        sizes: Values of each weight, by name.
    """

    def __init__(self, directions: Float[Tensor, "S P"], sizes: Mapping[str, int]) -> None:
        names = sorted(sizes)
        parts = directions.split([sizes[name] for name in names], dim=1)
        self.directions = dict(zip(names, parts, strict=True))
        self.subtasks = len(directions)

    def accumulator(self, batch: int, device: torch.device) -> ExactAccumulator:
        """The products of a batch, to be added up."""
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
