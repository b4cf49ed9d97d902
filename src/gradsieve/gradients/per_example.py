"""Per-example gradients of LoRA weights from one batched backward pass.

In: a peft model, an objective and a right-padded batch. Out: for each LoRA weight and each example
z, the gradient g(z) of that example's own loss (docs/method.md, notation). The differentiated loss
is the SUM of the examples' losses, so that examples don't mix.

How: inside `per_example_pass` every LoRA layer runs as `_PerExampleLinear`, whose backward computes
G_i = dY_i^T X_i for each example (one batched product, at the cost of the ordinary weight gradient)
and passes it to a callback immediately, layer by layer. Frozen weights get no gradient.

Rejected: torch.func.vmap over the model (needs eager attention, copies activations), a loop with
batch size 1 (kept below as the oracle), and per-example gradients kept on the parameters.

Letters: B examples, T tokens, P trainable parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from gradsieve.errors import ModelError, first_few, first_line
from gradsieve.gradients.objectives import IGNORED, SFT, Batch, Objective
from gradsieve.models.device import out_of_memory
from gradsieve.models.layers import put_forward

Sink = Callable[[str, Tensor], None]
"""Called with a weight's name and its per-example gradient [B, out, in], once per backward pass."""

Losses = Callable[[Batch], Tensor]
"""Maps a batch to each example's loss [B], in nats."""


class _PerExampleLinear(torch.autograd.Function):
    """y = x W^T; its backward passes each example's gradient of W to a sink.

    `anchor` is an empty tensor that requires grad. Without it, the input of the first adapter
    would not require grad, and autograd would skip that adapter.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, anchor: Tensor, name: str, sink: Sink
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.name, ctx.sink = name, sink
        return functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        ctx.sink(ctx.name, _outer_products(dy, x))
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None


def _outer_products(
    dy: Float[Tensor, "B T out"], x: Float[Tensor, "B T in"]
) -> Float[Tensor, "B out in"]:
    """Sums over tokens of dy_t x_t^T; products and sums are in float32."""
    if dy.is_cuda and dy.dtype == x.dtype != torch.float32:
        # Tensor cores multiply half precision exactly and add in float32, so no cast is needed.
        return torch.bmm(dy.mT, x, out_dtype=torch.float32)
    return torch.bmm(dy.mT.float(), x.float())


def lora_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The LoRA layers by weight name, in the model's order.

    Raises:
        ModelError: If any trainable parameter is not a plain LoRA matrix (DoRA's magnitudes,
            modules_to_save, biases, embeddings), or if nothing is trainable.
    """
    modules = dict(model.named_modules())
    layers: dict[str, nn.Linear] = {}
    others: list[str] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = modules.get(name.removesuffix(".weight"))
        is_lora = ".lora_A." in name or ".lora_B." in name
        if is_lora and type(layer) is nn.Linear and layer.bias is None:
            layers[name] = layer
        else:
            others.append(name)
    if others:
        raise ModelError(
            "Only LoRA matrices of linear layers can be followed; these are trainable too.",
            first_few(others),
            "Use plain LoRA: no DoRA, bias, modules_to_save or adapted embeddings.",
        )
    if not layers:
        raise ModelError(
            "The model has no trainable LoRA weights.",
            type(model).__name__,
            "Give it an adapter (peft.get_peft_model), or load one with is_trainable=True.",
        )
    return layers


@dataclass
class _Pass:
    """State of the current pass, shared by the replaced layers."""

    sink: Sink
    shape: torch.Size = field(default_factory=torch.Size)
    seen: set[str] = field(default_factory=set)

    def take(self, name: str, gradient: Tensor) -> None:
        """Pass a gradient to the sink; an error if a weight has a second one."""
        if name in self.seen:
            raise _unfollowed("A LoRA layer runs more than once a pass.", name)
        self.seen.add(name)
        self.sink(name, gradient)

    def by_example(self, name: str, x: Tensor) -> Float[Tensor, "B T in"]:
        """A layer's input as [B, T, in]: some models flatten the batch's tokens into one row.

        Others have extra dimensions in between (such as heads, in latent attention).
        """
        if x.dim() == 2 and len(x) == self.shape.numel():
            return x.view(*self.shape, -1)
        if x.dim() < 3 or len(x) != self.shape[0]:
            raise _unfollowed(f"A LoRA layer runs on {list(x.shape)}, not on each token.", name)
        return x.flatten(1, -2)


@contextmanager
def per_example_pass(model: nn.Module, sink: Sink, objective: Objective = SFT) -> Iterator[Losses]:
    """Prepare a model for per-example gradients; yields a function that computes the losses.

    `losses(batch)` returns each example's loss [B]; calling `.sum().backward()` on it passes every
    LoRA weight's per-example gradients to `sink`. The model is in eval mode (no dropout) until the
    block ends. Layers with activation checkpointing enabled use it.

    Raises:
        ModelError: If the model has trainable weights that are not LoRA's, or a LoRA layer that
            does not run exactly once per pass on every token.
    """
    now = _Pass(sink)
    layers = lora_layers(model)

    def losses(batch: Batch) -> Tensor:
        now.seen.clear()
        now.shape = batch["input_ids"].shape
        return objective.losses(model, batch)

    was_training = model.training
    model.eval()
    with ExitStack() as undo:
        undo.callback(model.train, was_training)
        for name, layer in layers.items():
            put_forward(undo, layer, _replacement(layer, name, now))
        recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        for block in model.modules():  # by default they checkpoint in training mode only
            if isinstance(block, GradientCheckpointingLayer) and block.gradient_checkpointing:
                put_forward(undo, block, partial(recomputed, block.forward))
        yield losses
    never = [name for name in layers if name not in now.seen] if now.seen else []
    if never:
        raise _unfollowed("A LoRA layer does not contribute to the logits of text.", never[0])


def _replacement(layer: nn.Linear, name: str, now: _Pass) -> Callable[[Tensor], Tensor]:
    anchor = torch.empty(0, device=layer.weight.device, requires_grad=True)

    def forward(x: Tensor) -> Tensor:
        # The weight is detached: computing its summed gradient would double the cost for nothing.
        weight = layer.weight.detach()
        y: Tensor = _PerExampleLinear.apply(  # type: ignore[no-untyped-call]
            now.by_example(name, x), weight, anchor, name, now.take
        )
        return y.view(*x.shape[:-1], -1)

    return forward


def _unfollowed(what: str, name: str) -> ModelError:
    return ModelError(
        f"{what} Its per-example gradient cannot be separated.",
        name,
        "Leave shared layers, experts, and layers for images or sound out with "
        "warmup.lora.exclude_modules, a list of names or a regular expression.",
    )


def check_pass(model: nn.Module) -> None:
    """Check the assumptions of `per_example_pass` on a few tokens, before hours are spent.

    Raises:
        ModelError: As `per_example_pass`; also if the model fails, or if a token's loss depends
            on tokens after it.
    """
    embeddings = model.get_input_embeddings().weight  # type: ignore[operator]
    ids = torch.arange(8, 12).repeat(2, 1).remainder(len(embeddings)).to(embeddings.device)
    labels = ids.clone()
    labels[:, -1] = IGNORED
    ids[1, -1] = 0  # the two rows differ only in this token, which comes after all labels
    try:
        with per_example_pass(model, lambda *_: None) as losses:
            found = losses({"input_ids": ids, "labels": labels})
            found.sum().backward()
    except ModelError:
        raise
    except torch.OutOfMemoryError as error:
        raise out_of_memory(f"{ids.shape[1]} tokens") from error
    except Exception as error:  # a model's own code may raise anything
        raise ModelError(
            "The model does not run with this adapter.",
            f"{type(model.get_base_model()).__name__}: {first_line(error)}",  # type: ignore[operator]
            "Name other layers in warmup.lora.target_modules, such as those of attention, or use "
            "another model.",
        ) from error
    one, other = found.tolist()
    # Rows of one batch are computed alike: bit-identical in all cases tried. Half precision gets a
    # larger tolerance; models that were trained to look ahead differ by far more.
    room = 1e-5 if embeddings.dtype == torch.float32 else 1e-2
    if abs(one - other) > room * abs(one):
        raise ModelError(
            "The model is not causal: a token's loss depends on tokens after it.",
            f"{type(model).__name__}: a loss of {one:.5f} becomes {other:.5f}",
            "Use a decoder that predicts each token from those before it.",
        )


def without_mask(batch: Batch) -> dict[str, Tensor]:
    """The batch without its mask, which a causal model doesn't need if padding is on the right."""
    return {key: tensor for key, tensor in batch.items() if key != "attention_mask"}


def per_example(model: nn.Module, batch: Batch) -> dict[str, Float[Tensor, "B out in"]]:
    """Per-example gradients of all LoRA weights, in float32.

    Holds B x P values in memory, unlike `features.FeatureExtractor`, which builds the datastore.

    Args:
        model: A peft model with LoRA adapters.
        batch: `input_ids` and `labels` [B, T], padded on the right; labels of unsupervised
            positions are -100. Each example needs a label after its first position.

    Raises:
        ModelError: As `per_example_pass`.
    """
    gradients: dict[str, Tensor] = {}
    with per_example_pass(model, gradients.__setitem__) as losses:
        losses(without_mask(batch)).sum().backward()
    return {name: gradients[name] for name in lora_layers(model)}


def per_example_loop(model: nn.Module, batch: Batch) -> dict[str, Float[Tensor, "B out in"]]:
    """The oracle: one example at a time, with the model's own loss and autograd."""
    was_training = model.training
    model.eval()
    weights = {name: layer.weight for name, layer in lora_layers(model).items()}
    rows: list[tuple[Tensor, ...]] = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        mask = batch.get("attention_mask")
        length = None if mask is None else int(mask[len(rows)].sum())
        one = {"input_ids": ids[None, :length], "labels": labels[None, :length]}
        loss = model(**one, use_cache=False).loss
        rows.append(torch.autograd.grad(loss, list(weights.values())))
    model.train(was_training)
    stacked = (torch.stack(gradients).float() for gradients in zip(*rows, strict=True))
    return dict(zip(weights, stacked, strict=True))
