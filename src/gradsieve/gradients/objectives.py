"""The loss of an example: the function whose gradients become features.

In: examples. Out: tokenized examples, batches, and the loss of each example in a batch. Gradients
(`per_example`), training, evaluation and the perplexity methods use the loss defined here.

`sft` is supervised fine-tuning: the mean cross-entropy over an example's label tokens. Logits are
computed only at label positions: in a small model with a large vocabulary the head costs most.

Letters: B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from gradsieve.data.batching import batches_of, collate
from gradsieve.data.examples import Example, TokenizedExample
from gradsieve.data.template import ChatTemplate, Refusal
from gradsieve.errors import ModelError
from gradsieve.models.device import halved_to_fit
from gradsieve.recipe.schema import OnBadRow

IGNORED = -100
"""The label of an unsupervised position (the convention of transformers and PyTorch)."""

Batch = Mapping[str, Tensor]


class Objective(Protocol):
    """Defines an example's loss, and how examples become batches."""

    def encode(
        self, examples: Sequence[Example], template: ChatTemplate, on_bad_row: OnBadRow = "skip"
    ) -> list[TokenizedExample | Refusal]:
        """Tokenize examples; one that the template refuses becomes a `Refusal`, or an error."""

    def collate(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        """A batch, padded on the right."""

    def losses(self, model: nn.Module, batch: Batch) -> Float[Tensor, " B"]:
        """Each example's loss, in nats; differentiable."""

    def fits(self, model: Any) -> bool:
        """Whether `batch_loss` can be used; if not, training uses the model's own loss."""

    def batch_loss(self, model: nn.Module, batch: Batch, count: Tensor | None = None) -> Tensor:
        """The loss that a training step minimizes on a micro-batch; the model may be wrapped.

        `count` is the number of items that the loss averages over (`sft`: label tokens) in all
        micro-batches of the step; None means to average over this micro-batch.
        """


class Sft:
    """Supervised fine-tuning: the mean cross-entropy over an example's label tokens."""

    def encode(
        self, examples: Sequence[Example], template: ChatTemplate, on_bad_row: OnBadRow = "skip"
    ) -> list[TokenizedExample | Refusal]:
        """Token ids and labels from the chat template."""
        return template.try_encode_all(examples, on_bad_row)

    collate = staticmethod(collate)

    def losses(self, model: nn.Module, batch: Batch) -> Float[Tensor, " B"]:
        """Each example's loss; the model stays in its current mode (train or eval).

        A batch padded on the right needs no `attention_mask`: in a causal model no real token sees
        the padding after it. Each example must have a label after its first position. If labels
        stay on the CPU, nothing waits for the GPU.

        Raises:
            ModelError: If the model has no output layer.
        """
        of_token, example = _token_losses(model, batch)
        counts = example.bincount(minlength=len(batch["labels"]))
        sums = torch.zeros(len(counts), device=of_token.device).index_add(0, example, of_token)
        return sums / counts

    def fits(self, model: Any) -> bool:
        """Whether the model's own loss is this one: it has an output layer and adds no other loss.

        Mixtures of experts may add a router loss, and code that comes with a model may do
        anything, so the two losses are compared on a few tokens.
        """
        if getattr(model.config.get_text_config(), "output_router_logits", False):
            return False
        ids = torch.arange(8, device=model.device).view(2, 4)
        batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                own = model(**batch, use_cache=False).loss
                found = self.batch_loss(model, batch)
        except (ModelError, RuntimeError, ValueError, TypeError):
            return False
        finally:
            model.train(was_training)
        room = 1e-5 if found.dtype == model.dtype else 1e-2  # half precision is less exact
        return abs(float(own) - float(found)) <= room * abs(float(own))

    def batch_loss(self, model: nn.Module, batch: Batch, count: Tensor | None = None) -> Tensor:
        """The mean over label tokens, as transformers' models compute it from `labels`."""
        of_token, _ = _token_losses(model, batch)
        return of_token.mean() if count is None else of_token.sum() / count.to(of_token.device)


SFT = Sft()


TOKENS_PER_BATCH = 4096
"""Tokens per batch, padding included, when only losses are computed."""


def example_losses(model: nn.Module, examples: Sequence[TokenizedExample]) -> NDArray[np.float64]:
    """Each example's loss, in nats, without gradients: [n]."""
    losses = np.empty(len(examples))
    model.eval()
    with torch.inference_mode():
        for positions, tensors in batches_of(examples, TOKENS_PER_BATCH):
            losses[positions] = halved_to_fit(partial(SFT.losses, model), tensors).numpy()
    return losses


def _token_losses(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, " n"], Tensor]:
    """The loss of each label token, and the position of its example in the batch [n]."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    labels = batch["labels"]
    wanted = functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    positions = (wanted != IGNORED).nonzero().squeeze(1)
    with _logits_at(model, send(positions, batch["input_ids"].device)):
        logits = model(**inputs, use_cache=False).logits.squeeze(0)
    wanted, example = (
        send(each, logits.device) for each in (wanted[positions], positions // labels.shape[1])
    )
    of_token: Tensor = _CrossEntropy.apply(logits, wanted)  # type: ignore[no-untyped-call]
    return of_token, example


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of each token in float32, a block of tokens at a time.

    Only the logits are kept for the backward pass, in their own dtype, and overwritten by their
    gradient. PyTorch also keeps a float32 copy and its log softmax, and allocates the gradient: six
    times as much memory in half precision. Afterwards autograd refuses to use the logits again.
    """

    @staticmethod
    def forward(ctx: Any, logits: Float[Tensor, "n V"], wanted: Tensor) -> Float[Tensor, " n"]:
        ctx.save_for_backward(logits, wanted)
        losses = (
            functional.cross_entropy(block.float(), tokens, reduction="none")
            for block, tokens in _blocks(logits, wanted)
        )
        return torch.cat(list(losses))

    @staticmethod
    def backward(ctx: Any, d_losses: Tensor) -> tuple[Tensor, None]:
        logits, wanted = ctx.saved_tensors
        for block, tokens, d_block in _blocks(logits, wanted, d_losses):
            d = functional.softmax(block, dim=1, dtype=torch.float32)
            d[torch.arange(len(tokens), device=d.device), tokens] -= 1
            block.copy_(d.mul_(d_block.unsqueeze(1)))
        return logits, None


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split the tensors' rows into blocks of about BLOCK logits."""
    rows = max(1, BLOCK // tensors[0].shape[1])
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


BLOCK = 1 << 22
"""Number of logits whose loss is computed at once: 16 MiB in float32."""


def _logits_at(model: nn.Module, positions: Tensor) -> AbstractContextManager[Any]:
    """Within the block, only these positions of the flattened batch reach the head: [1, n, V].

    What models do to logits afterwards (scaling, soft caps) works position by position.
    """

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = inputs
        here = positions.to(hidden.device)  # a model may be on several devices
        return hidden.flatten(0, 1).index_select(0, here).unsqueeze(0), *others

    handle: AbstractContextManager[Any] = output_layer(model).register_forward_pre_hook(select)
    return handle


def output_layer(model: nn.Module) -> nn.Module:
    """The layer that computes logits.

    Raises:
        ModelError: If the model has none.
    """
    if not hasattr(model, "get_output_embeddings"):
        model = extract_model_from_parallel(model)  # slow: it iterates over all modules
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
    """The tensor on a device; copies from CPU to GPU don't wait for the GPU's current work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
