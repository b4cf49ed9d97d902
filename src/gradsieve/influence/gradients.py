"""Per-example gradients of LoRA weights from one batched backward pass.

In: a peft model and a right-padded batch of token ids and labels. Out: for each LoRA weight and
each example z the gradient g(z) of that example's own loss, the mean cross-entropy over its label
tokens (docs/method.md, notation). The loss that is differentiated is the SUM over examples of
those means, so that examples don't mix.

How: inside `per_example_pass` every LoRA layer runs as `_PerExampleLinear`, whose backward forms
G_i = dY_i^T X_i for each example (one batched product, the cost of the ordinary weight gradient)
and hands it to a callback at once, layer by layer. No frozen weight gets a gradient, and logits are
made at label positions only: with a small model and a large vocabulary the head costs most.

Rejected: torch.func.vmap over the model (needs eager attention, copies activations), a loop with
batch size 1 (kept below as the oracle), and one gradient of the whole batch's parameters.

Letters: B examples, T tokens, P trainable values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from gradsieve.errors import ModelError

IGNORED = -100
"""Label of a position that is not learnt (transformers' and PyTorch's convention)."""

Sink = Callable[[str, Tensor], None]
"""Called with a weight's name and its per-example gradient [B, out, in], once a backward pass."""

Losses = Callable[[Tensor, Tensor], Tensor]
"""(input_ids [B, T], labels [B, T]) -> each example's loss [B], in nats."""


class _PerExampleLinear(torch.autograd.Function):
    """y = x W^T, whose backward gives each example's gradient of W to a sink.

    `anchor` is an empty tensor that requires grad: without it nothing below the first adapter
    would, and autograd would skip that adapter.
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
        ctx.sink(ctx.name, torch.bmm(dy.transpose(1, 2).float(), x.float()))
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None


def lora_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The LoRA layers by the name of their weight, in the model's order.

    Raises:
        ModelError: If something is trainable that is no plain LoRA matrix (DoRA's magnitudes,
            modules_to_save, biases, embeddings), or if nothing is.
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
            ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else ""),
            "Use plain LoRA: no DoRA, bias, modules_to_save or adapted embeddings.",
        )
    if not layers:
        raise ModelError(
            "The model has no trainable LoRA weights.",
            type(model).__name__,
            "Give it an adapter (peft.get_peft_model), or load one with is_trainable=True.",
        )
    return layers


@contextmanager
def per_example_pass(model: nn.Module, sink: Sink) -> Iterator[Losses]:
    """Open a model for per-example gradients; yields the function that gives the losses.

    `losses(input_ids, labels)` returns each example's loss [B]; `.sum().backward()` on it hands
    every LoRA weight's per-example gradients to `sink`. The batch is padded on the right and needs
    no attention mask: in a causal model no real token sees the padding after it. The model is in
    eval mode meanwhile (no dropout) and is put back at the end.

    Raises:
        ModelError: If the model has trainable weights of other kinds, or a LoRA layer that runs
            twice a pass or not on [B, T, in].
    """
    labelled: list[Tensor] = []  # the mask of the pass under way, for the head's hook
    seen: set[str] = set()

    def once(name: str, gradient: Tensor) -> None:
        if name in seen or len(gradient) != len(labelled[0]):
            raise ModelError(
                "A LoRA layer does not run once a pass on [examples, tokens, features]; its "
                "per-example gradient cannot be told apart.",
                name,
                "Leave shared layers and experts out of warmup.lora.target_modules.",
            )
        seen.add(name)
        sink(name, gradient)

    def losses(input_ids: Tensor, labels: Tensor) -> Tensor:
        seen.clear()
        predicts = functional.pad(labels[:, 1:] != IGNORED, (0, 1))
        labelled[:] = [predicts]
        logits = model(input_ids=input_ids, use_cache=False).logits[0]
        wanted = labels[:, 1:][predicts[:, :-1]]
        of_token = functional.cross_entropy(logits.float(), wanted, reduction="none")
        counts = predicts.sum(1)
        example = torch.arange(len(labels), device=labels.device).repeat_interleave(counts)
        sums = torch.zeros(len(labels), device=labels.device).index_add(0, example, of_token)
        return sums / counts

    was_training = model.training
    model.eval()
    with ExitStack() as undo:
        undo.callback(model.train, was_training)
        for name, layer in lora_layers(model).items():
            layer.forward = _replacement(layer, name, once)  # type: ignore[assignment]
            undo.callback(layer.__dict__.pop, "forward")
        # Only labelled positions reach the head. Whatever the model does to logits afterwards
        # (scaling, soft caps) it does position by position, so it need not know.
        hook = _head(model).register_forward_pre_hook(
            lambda _, given: (given[0][labelled[0]].unsqueeze(0), *given[1:])
        )
        undo.callback(hook.remove)
        yield losses


def _replacement(layer: nn.Linear, name: str, sink: Sink) -> Callable[[Tensor], Tensor]:
    anchor = torch.empty(0, device=layer.weight.device, requires_grad=True)

    def forward(x: Tensor) -> Tensor:
        # The weight is detached: its summed gradient would cost as much again, for nothing.
        weight = layer.weight.detach()
        y: Tensor = _PerExampleLinear.apply(x, weight, anchor, name, sink)  # type: ignore[no-untyped-call]
        return y

    return forward


def _head(model: nn.Module) -> nn.Module:
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Module) or any("lora_" in name for name, _ in head.named_modules()):
        raise ModelError(
            "The output layer cannot be followed: there is none, or LoRA adapts it.",
            type(model).__name__,
            "Use a causal language model, and leave lm_head out of warmup.lora.target_modules.",
        )
    return head


def per_example(
    model: nn.Module, batch: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "B out in"]]:
    """Per-example gradients of all LoRA weights, in float32.

    Holds B x P values; the datastore is built without that, by `extract.FeatureExtractor`.

    Args:
        model: A peft model with LoRA adapters.
        batch: `input_ids` and `labels` [B, T], padded on the right; labels are -100 where not
            learnt. Each example needs a label at a position after the first.

    Raises:
        ModelError: As `per_example_pass`.
    """
    gradients: dict[str, Tensor] = {}
    with per_example_pass(model, gradients.__setitem__) as losses:
        losses(batch["input_ids"], batch["labels"]).sum().backward()
    return {name: gradients[name] for name in lora_layers(model)}


def per_example_loop(
    model: nn.Module, batch: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "B out in"]]:
    """The oracle: one example at a time through the model's own loss and autograd."""
    was_training = model.training
    model.eval()
    weights = {name: layer.weight for name, layer in lora_layers(model).items()}
    rows: list[tuple[Tensor, ...]] = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        length = (
            int(batch["attention_mask"][len(rows)].sum()) if "attention_mask" in batch else None
        )
        one = {"input_ids": ids[None, :length], "labels": labels[None, :length]}
        loss = model(**one, use_cache=False).loss
        rows.append(torch.autograd.grad(loss, list(weights.values())))
    model.train(was_training)
    stacked = (torch.stack(gradients).float() for gradients in zip(*rows, strict=True))
    return dict(zip(weights, stacked, strict=True))
