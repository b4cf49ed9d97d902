"""What an example's loss is: the function whose gradient features are made of.

In: examples. Out: what is kept of them, batches, and a loss for each example of a batch. Gradients
(`per_example`), training, evaluation and the perplexity methods take the loss from here.

`sft` is supervised fine-tuning: the mean cross-entropy over an example's label tokens. Logits are
made at label positions only: with a small model and a large vocabulary the head costs most.

Letters: B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from gradsieve.data.batching import batches_of, collate
from gradsieve.data.examples import Example
from gradsieve.data.template import ChatTemplate, Refusal, TokenizedExample
from gradsieve.errors import ModelError
from gradsieve.models.device import device

IGNORED = -100
"""Label of a position that is not supervised (transformers' and PyTorch's convention)."""

Batch = Mapping[str, Tensor]


class Objective(Protocol):
    """An example's loss, and how examples become batches."""

    def encode(
        self, examples: Sequence[Example], template: ChatTemplate
    ) -> list[TokenizedExample | Refusal]:
        """Tokenize examples; those that the template refuses are marked."""

    def collate(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        """A batch, padded on the right."""

    def losses(self, model: nn.Module, batch: Batch) -> Float[Tensor, " B"]:
        """Each example's loss, in nats; differentiable."""


class Sft:
    """Supervised fine-tuning: the mean cross-entropy over an example's label tokens."""

    def encode(
        self, examples: Sequence[Example], template: ChatTemplate
    ) -> list[TokenizedExample | Refusal]:
        """Token ids and labels by the chat template."""
        return template.try_encode_all(examples)

    def collate(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        """`input_ids`, `labels` and `attention_mask`, int64 [B, T]."""
        return collate(examples)

    def losses(self, model: nn.Module, batch: Batch) -> Float[Tensor, " B"]:
        """Each example's loss; the model is used in the mode it is in.

        A batch padded on the right needs no `attention_mask`: in a causal model no real token sees
        the padding after it. Labels may stay on the CPU; then nothing waits for the GPU.

        Args:
            model: A causal language model.
            batch: `input_ids` on the model's device, `labels` and possibly `attention_mask` [B, T].
                Each example has a label after its first position.

        Raises:
            ModelError: If the model has no output layer.
        """
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        labels = batch["labels"]
        wanted = functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
        positions = (wanted != IGNORED).nonzero().squeeze(1)
        example = positions // labels.shape[1]
        counts = example.bincount(minlength=len(labels))
        with _logits_at(model, send(positions, batch["input_ids"].device)):
            logits = model(**inputs, use_cache=False).logits[0]
        wanted, example, counts = (
            send(each, logits.device) for each in (wanted[positions], example, counts)
        )
        of_token = functional.cross_entropy(logits.float(), wanted, reduction="none")
        sums = torch.zeros(len(labels), device=logits.device).index_add(0, example, of_token)
        return sums / counts


SFT = Sft()


TOKENS_PER_BATCH = 4096
"""Tokens of a batch, padding included, where only losses are computed."""


def example_losses(
    model: nn.Module,
    examples: Sequence[TokenizedExample],
    report: Callable[[float], None] = lambda _: None,
    objective: Objective = SFT,
) -> NDArray[np.float64]:
    """Each example's loss, in nats, without gradients: [n].

    Args:
        model: A causal language model; put in eval mode.
        examples: Each has a label.
        report: Called with the number of examples done.
        objective: Computes the loss.
    """
    losses = np.empty(len(examples))
    done = 0
    model.eval()
    with torch.inference_mode():
        for positions, tensors in batches_of(examples, TOKENS_PER_BATCH, objective.collate):
            batch = {key: value.to(device()) for key, value in tensors.items()}
            losses[positions] = objective.losses(model, batch).cpu().numpy()
            done += len(positions)
            report(done)
    return losses


def _logits_at(model: nn.Module, positions: Tensor) -> AbstractContextManager[Any]:
    """Within the block only these positions, of the batch as one row, reach the head: [1, n, V].

    Whatever the model does to logits afterwards (scaling, soft caps) it does position by position.
    """

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = inputs
        return hidden.flatten(0, 1).index_select(0, positions).unsqueeze(0), *others

    handle: AbstractContextManager[Any] = output_layer(model).register_forward_pre_hook(select)
    return handle


def output_layer(model: nn.Module) -> nn.Module:
    """The layer that makes logits.

    Raises:
        ModelError: If there is none.
    """
    get: Callable[[], object] = getattr(model, "get_output_embeddings", lambda: None)
    head = get()
    if not isinstance(head, nn.Module):
        raise ModelError(
            "The model has no output layer.",
            type(model).__name__,
            "Use a causal language model.",
        )
    return head


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from CPU to GPU without waiting for what the GPU is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
