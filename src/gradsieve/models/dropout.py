"""Dropout by example: the mask doesn't depend on how a batch is cut into micro-batches.

In: a model that is trained, and before each pass the micro-batch and the optimizer step. Out: units
of each example are dropped by a generator whose seed is (seed, step, the example's tokens, layer).
So neither the size of micro-batches, nor padding, nor the number of processes, nor a resumption
changes them. Dropout inside attention kernels, which some old models have (GPT-2, OPT), stays
PyTorch's.

Rejected: a hash of (example, position, unit) for each number, which is several times slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional

Begin = Callable[[Tensor, Tensor, int], None]
"""Called before a pass, with `input_ids` and `attention_mask` [B, T] and the step."""


class _Pass:
    """The examples of the current pass: seeds and numbers of tokens."""

    seeds: list[int]
    lengths: list[int]


@contextmanager
def example_dropout(model: nn.Module, seed: int) -> Iterator[Begin]:
    """Within the block, the model's dropout layers drop by example.

    Args:
        model: A model that is trained.
        seed: Another one drops other units.
    """
    now = _Pass()

    def begin(input_ids: Tensor, attention_mask: Tensor, step: int) -> None:
        now.lengths = attention_mask.sum(1).tolist()
        rows = zip(input_ids.cpu().numpy(), now.lengths, strict=True)
        salt = seed << 32 | step
        now.seeds = [xxhash.xxh3_64_intdigest(ids[:n].tobytes(), salt) >> 1 for ids, n in rows]

    layers = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p]
    for number, layer in enumerate(layers):
        layer.forward = _dropout(layer, number, now)  # type: ignore[assignment,method-assign]
    try:
        yield begin
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _dropout(layer: nn.Dropout, number: int, now: _Pass) -> Callable[[Tensor], Tensor]:
    generators: dict[torch.device, torch.Generator] = {}

    def forward(x: Tensor) -> Tensor:
        if not layer.training:
            return x
        count = len(now.seeds)
        # Some models lay all tokens out as one row.
        rows = x.unflatten(0, (count, -1)) if x.dim() == 2 and len(x) % count == 0 else x
        if rows.dim() < 3 or len(rows) != count or rows.shape[1] < max(now.lengths):
            return functional.dropout(x, layer.p, training=True)
        if x.device not in generators:
            generators[x.device] = torch.Generator(x.device)
        keep = torch.ones(rows.shape, dtype=torch.bool, device=x.device)
        for row, seed, length in zip(keep, now.seeds, now.lengths, strict=True):
            generator = generators[x.device].manual_seed(seed + number)
            row[:length].bernoulli_(1 - layer.p, generator=generator)
        return (rows.masked_fill(~keep, 0.0) / (1 - layer.p)).view_as(x)

    return forward
