"""Baselines by perplexity of an example's answers under the model, without an adapter.

`perplexity_top` prefers examples with the highest perplexity, `perplexity_middle` those nearest the
median (Marion et al., "When Less is More", 2023, arXiv 2309.04564, found that keeping the middle is
best). The target is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradsieve.gradients.objectives import TOKENS_PER_BATCH, example_losses
from gradsieve.methods.base import Scores, ScoringTask, Uses
from gradsieve.methods.forward import forward


@dataclass(frozen=True)
class Perplexity:
    """Ranks by the mean loss over the answer's tokens."""

    source: str
    middle: bool
    uses: Uses = "model"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """The same scores for every target."""
        losses = np.empty(len(task))
        _, parts = forward(task, "perplexity", example_losses, TOKENS_PER_BATCH, {})
        for places, some in parts:
            losses[places] = some
        if self.middle:
            place = np.argsort(np.argsort(losses, kind="stable"))
            losses = -np.abs(place - (len(losses) - 1) / 2)
        return {name: Scores(losses.astype(np.float32)) for name in task.targets}


TOP = Perplexity("highest perplexity (Marion et al., 2023)", middle=False)
MIDDLE = Perplexity("perplexity nearest the median (Marion et al., 2023)", middle=True)
