"""Baselines by perplexity of an example's answers under the model, without an adapter.

`perplexity_top` takes the examples with the highest, `perplexity_middle` those nearest the median
(Marion et al., "When Less is More", 2023, arXiv 2309.04564, found the middle to prune best). The
target is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from gradsieve.data.batching import batches_of
from gradsieve.data.template import TokenizedExample
from gradsieve.methods.base import Scores, ScoringTask, Uses
from gradsieve.models.load import device, load_model

TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class Perplexity:
    """Ranks by the mean loss of the answer's tokens.

    Attributes:
        source: Who proposed it.
        middle: Whether the median leads, instead of the highest.
    """

    source: str
    middle: bool
    uses: Uses = "model"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """The same numbers for every target."""
        model = load_model(task.recipe.model)
        with task.progress.counting("perplexity", len(task), "rows") as report:
            losses = answer_losses(model, task.tokens(), report)
        if self.middle:
            place = np.argsort(np.argsort(losses, kind="stable"))
            losses = -np.abs(place - (len(losses) - 1) / 2)
        return {name: Scores(losses.astype(np.float32)) for name in task.targets}


def answer_losses(
    model: nn.Module,
    encoded: Sequence[TokenizedExample],
    report: Callable[[float], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Each example's mean cross-entropy over its label tokens, in nats: [n].

    Args:
        model: A causal language model; put in eval mode.
        encoded: Examples that have a label.
        report: Called with the examples done so far.
    """
    losses = np.empty(len(encoded))
    done = 0
    model.eval()
    with torch.inference_mode():
        for batch, tensors in batches_of(encoded, TOKENS_PER_BATCH):
            on = {key: value.to(device()) for key, value in tensors.items()}
            labels = on.pop("labels")[:, 1:]
            logits = model(**on, use_cache=False).logits[:, :-1].float()
            of_token = functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), reduction="none"
            ).view_as(labels)
            losses[batch] = (of_token.sum(1) / (labels != -100).sum(1)).cpu().numpy()
            done += len(batch)
            report(done)
    return losses


TOP = Perplexity("highest perplexity (Marion et al., 2023)", middle=False)
MIDDLE = Perplexity("perplexity nearest the median (Marion et al., 2023)", middle=True)
