"""Batches of examples of similar length, filled up to a number of tokens.

In: tokenized examples, in memory or in the pool. Out: positions, and right-padded tensors. In a
causal model no real token attends to padding on its right, so any token can be the padding token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gradsieve.data.examples import TokenizedExample
from gradsieve.data.pool import Pool


class PoolTokens(Sequence[TokenizedExample]):
    """Tokenized examples [n] of the pool, given by their row numbers and read on access."""

    def __init__(self, pool: Pool, numbers: NDArray[np.int64]) -> None:
        self._pool, self._numbers = pool, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """The number of tokens of each example [n]."""
        return self._pool.lengths[self._numbers]

    def __getitems__(self, positions: Sequence[int] | NDArray[np.int64]) -> list[TokenizedExample]:
        """Several examples at once; torch's `DataLoader` calls this for a batch."""
        return self._pool.tokenized(self._numbers[positions])

    @overload
    def __getitem__(self, position: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, position: slice) -> PoolTokens: ...
    def __getitem__(self, position: int | slice) -> TokenizedExample | PoolTokens:
        if isinstance(position, slice):
            return PoolTokens(self._pool, self._numbers[position])
        return self.__getitems__([position])[0]


def length_sorted_batches(
    lengths: Sequence[int] | NDArray[np.int32], tokens_per_batch: int
) -> list[NDArray[np.int64]]:
    """Positions of the examples in each batch, shortest examples first.

    A batch has at most `tokens_per_batch` tokens, padding included; a longer example is put in a
    separate batch.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    batches: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        batches.append(np.array(fill_batch(order, lengths, start, tokens_per_batch)))
        start += len(batches[-1])
    return batches


def fill_batch(
    order: Sequence[int] | NDArray[np.int64],
    lengths: Sequence[int] | NDArray[np.int32],
    start: int,
    tokens: int,
) -> list[int]:
    """The next positions in `order`, shortest first, that fit into a batch; at least one."""
    stop = start + 1
    while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= tokens:
        stop += 1
    return [int(position) for position in order[start:stop]]


def collate(encoded: Sequence[TokenizedExample]) -> dict[str, Tensor]:
    """`input_ids`, `labels` and `attention_mask`, int64 [B, T], padded on the right."""
    input_ids = [torch.frombuffer(example.input_ids, dtype=torch.int32) for example in encoded]
    labels = [torch.frombuffer(example.labels, dtype=torch.int32) for example in encoded]
    return {
        "input_ids": pad_sequence(input_ids, batch_first=True).long(),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100).long(),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in input_ids], True).long(),
    }


def batches_of(
    encoded: Sequence[TokenizedExample], tokens_per_batch: int
) -> Iterator[tuple[NDArray[np.int64], dict[str, Tensor]]]:
    """Positions and collated tensors of each batch, shortest examples first."""
    of_pool = encoded if isinstance(encoded, PoolTokens) else None
    for batch in length_sorted_batches(lengths_of(encoded), tokens_per_batch):
        read = of_pool.__getitems__(batch) if of_pool else [encoded[place] for place in batch]
        yield batch, collate(read)


def lengths_of(encoded: Sequence[TokenizedExample]) -> NDArray[np.int32]:
    """The number of tokens of each example [n]."""
    if isinstance(encoded, PoolTokens):
        return encoded.lengths
    return np.array([len(example.input_ids) for example in encoded], dtype=np.int32)
