"""Per-example dropout: the mask doesn't depend on how a batch is split into micro-batches.

In: a model in training, and before each pass the micro-batch and the optimizer step. Out: dropout
masks from a generator per example and layer, seeded by (seed, step, the example's tokens, layer).
So masks don't depend on the micro-batch size, padding, the number of processes or resumption.
Dropout inside attention kernels, which some old models have (GPT-2, OPT), remains PyTorch's. On a
GPU one kernel makes the masks of all examples (dropout_kernel.py), if it can be built.

Rejected on a CPU: the kernel's method, which computes a number from (example, position, unit); it
is several times slower there than a sequential generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import xxhash
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional

from gradsieve.models.kernels import has_kernels, keep_by_example
from gradsieve.models.layers import put_forward

Begin = Callable[[Tensor, Tensor, int], None]
"""Called before a pass, with `input_ids` and `attention_mask` [B, T] and the step."""

Mask = Callable[[], Tensor]
"""Makes a mask of the units to keep, the same one at each call."""


class _Pass(NamedTuple):
    """The examples of the current pass: their seeds, also as a tensor, and token counts."""

    seeds: list[int]
    as_tensor: Tensor
    lengths: list[int]


class _Current:
    """Holds the current pass for the dropout layers."""

    of: _Pass


@contextmanager
def example_dropout(model: nn.Module, seed: int) -> Iterator[Begin]:
    """Within the block, the model's dropout layers use per-example masks."""
    now = _Current()

    def begin(input_ids: Tensor, attention_mask: Tensor, step: int) -> None:
        lengths = attention_mask.sum(1).tolist()
        rows = zip(input_ids.cpu().numpy(), lengths, strict=True)
        salt = seed << 32 | step
        seeds = [xxhash.xxh3_64_intdigest(ids[:n].tobytes(), salt) >> 1 for ids, n in rows]
        now.of = _Pass(seeds, torch.tensor(seeds, device=input_ids.device), lengths)

    layers = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p]
    numbers = {layer: number for number, layer in enumerate(layers)}
    adapters = [module for module in model.modules() if type(module) is Linear]
    with ExitStack() as undo:
        for layer, number in numbers.items():
            put_forward(undo, layer, _dropout(layer, number, now))
        for adapter in adapters:
            put_forward(undo, adapter, _adapter(adapter, numbers, now))
        yield begin


def _dropout(layer: nn.Dropout, number: int, now: _Current) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if not layer.training:
            return x
        mask = _mask(x, layer.p, number, now)
        if mask is None:
            return functional.dropout(x, layer.p, training=True)
        return x.masked_fill(~mask(), 0.0) / (1 - layer.p)

    return forward


def _adapter(
    module: Linear, numbers: dict[nn.Dropout, int], now: _Current
) -> Callable[..., Tensor]:
    """The forward of peft, replaced by `_LowRank` where both compute the same."""
    whole: Callable[..., Tensor] = module.forward

    def forward(x: Tensor, *args: Any, **others: Any) -> Tensor:
        names = [name for name in module.active_adapters if name in module.lora_A]
        special = args or others or module.lora_variant or module.merged or module.disable_adapters
        if len(names) != 1 or special or not module.training:
            return whole(x, *args, **others)
        (name,) = names
        down, up = module.lora_A[name], module.lora_B[name]
        dropout, scale = module.lora_dropout[name], module.scaling[name]
        mask = _mask(x, dropout.p, numbers[dropout], now) if dropout in numbers else None
        if mask is None or up.bias is not None:
            return whole(x)
        result: Tensor = _LowRank.apply(  # type: ignore[no-untyped-call]
            module.base_layer(x), x, down.weight, up.weight, mask, scale / (1 - dropout.p)
        )
        return result

    return forward


class _LowRank(torch.autograd.Function):
    """A base layer's output plus scale * up(down(dropout(x))).

    PyTorch would keep a copy of x in the adapter's dtype and a mask for each adapter until the
    backward pass. Here only x is kept, which q, k and v share; copy and mask are recomputed.
    """

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, x: Tensor, down: Tensor, up: Tensor, mask: Mask, scale: float
    ) -> Tensor:
        hidden = functional.linear(x.to(down.dtype).mul(mask()), down).mul_(scale)
        ctx.save_for_backward(x, down, up, hidden)
        ctx.mask, ctx.scale = mask, scale
        return functional.linear(hidden, up).add_(base).to(base.dtype)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, down, up, hidden = ctx.saved_tensors
        d = d_out.to(up.dtype).flatten(0, -2)
        d_up = d.T @ hidden.flatten(0, -2)
        d_hidden = (d @ up).mul_(ctx.scale)
        keep = ctx.mask()
        d_down = d_hidden.T @ x.to(down.dtype).mul(keep).flatten(0, -2)
        d_x = None
        if ctx.needs_input_grad[1]:
            d_x = (d_hidden @ down).view(x.shape).mul_(keep).to(x.dtype)
        return d_out, d_x, d_down, d_up, None, None


def _mask(x: Tensor, p: float, number: int, now: _Current) -> Mask | None:
    """The mask of a layer's input x; None if x doesn't have the shape of the pass's examples."""
    examples, device, full = now.of, x.device, x.shape
    count = len(examples.lengths)
    # Some models flatten the batch's tokens into one row.
    flat = x.dim() == 2 and len(x) % count == 0
    shape = (count, len(x) // count, x.shape[1]) if flat else tuple(x.shape)
    if len(shape) == 4 and shape[1] == 1:  # [B, 1, T, in], as in latent attention
        shape = (shape[0], *shape[2:])
    if len(shape) < 3 or shape[0] != count or shape[1] < max(examples.lengths):
        return None

    def make() -> Tensor:
        if has_kernels(device):
            seeds = examples.as_tensor.to(device)  # a model may be on several devices
            return keep_by_example(seeds, number, shape, 1 - p).view(full)
        generator = torch.Generator(device)
        keep = torch.ones(shape, dtype=torch.bool, device=device)
        for row, seed, length in zip(keep, examples.seeds, examples.lengths, strict=True):
            _keep(row[:length], 1 - p, generator.manual_seed(seed + number))
        return keep.view(full)

    return make


def _keep(out: Tensor, share: float, generator: torch.Generator) -> None:
    """Set this share to True, with 16 random bits per unit: six times as fast as `bernoulli_`."""
    words = torch.empty(-(-out.numel() // 4), dtype=torch.int64, device=out.device)
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)
    torch.lt(bits[: out.numel()].view_as(out), round(share * 2**16) - 2**15, out=out)
