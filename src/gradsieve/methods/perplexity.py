"""Baselines by perplexity: how surprised the model is by a row's answer, without an adapter.

`perplexity_top` takes the rows with the highest, `perplexity_middle` those nearest the median
(Marion et al., "When Less is More", 2023, arXiv 2309.04564, found the middle to prune best). The
target is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradsieve.methods.base import Problem, Scores, Uses

if TYPE_CHECKING:
    from torch import nn

    from gradsieve.data.template import TokenizedExample

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

    def score(self, problem: Problem) -> dict[str, Scores]:
        """The same numbers for every target."""
        from gradsieve.models.load import load_model

        model = load_model(problem.recipe.model)
        with problem.progress.counting("perplexity", len(problem.rows), "rows") as report:
            losses = answer_losses(model, [row.encoded for row in problem.rows], report)
        if self.middle:
            place = np.argsort(np.argsort(losses, kind="stable"))
            losses = -np.abs(place - (len(losses) - 1) / 2)
        keys = [row.key for row in problem.rows]
        return {name: Scores(keys, losses.astype(np.float32)) for name in problem.targets}


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
    import torch
    from torch.nn import functional

    from gradsieve.data.batching import collate, length_sorted_batches
    from gradsieve.models.load import device

    losses = np.empty(len(encoded))
    done = 0
    model.eval()
    with torch.inference_mode():
        for batch in length_sorted_batches([len(e.input_ids) for e in encoded], TOKENS_PER_BATCH):
            tensors = collate([encoded[i] for i in batch])
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
