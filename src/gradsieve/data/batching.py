"""Batches of about equal length, filled by tokens.

In: tokenized examples. Out: lists of positions, and right-padded tensors. In a causal model no real
token sees padding to its right, so which token pads makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from gradsieve.data.template import TokenizedExample


def length_sorted_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Positions in batches, shortest examples first.

    Args:
        lengths: Tokens of each example.
        tokens_per_batch: Most tokens in a batch, padding included; a longer example is a batch of
            its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        batches.append(fill_batch(order, lengths, start, tokens_per_batch))
        start += len(batches[-1])
    return batches


def fill_batch(order: Sequence[int], lengths: Sequence[int], start: int, tokens: int) -> list[int]:
    """The next positions of an order, shortest first, that fit into a batch; at least one."""
    stop = start + 1
    while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= tokens:
        stop += 1
    return list(order[start:stop])


def collate(encoded: Sequence[TokenizedExample]) -> dict[str, Tensor]:
    """`input_ids`, `labels` and `attention_mask`, int64 [B, T], padded on the right."""
    import torch

    longest = max(len(example.input_ids) for example in encoded)
    shape = (len(encoded), longest)
    input_ids = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, -100)
    mask = torch.zeros(shape, dtype=torch.int64)
    for row, example in enumerate(encoded):
        length = len(example.input_ids)
        input_ids[row, :length] = torch.frombuffer(example.input_ids, dtype=torch.int32)
        labels[row, :length] = torch.frombuffer(example.labels, dtype=torch.int32)
        mask[row, :length] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask}
