"""Features of any number of examples, in batches that fit into memory; results are on the CPU.

In: an extractor, tokenized examples and a token budget. Out: rows in the order of the examples.
Examples are processed shortest first, as many at a time as the budget allows. On a GPU the budget
grows while less than half of the memory is used, and is halved when memory runs out (completed
batches are kept); results are copied to the CPU while the next batch is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from gradsieve.data.batching import fill_batch
from gradsieve.data.examples import TokenizedExample
from gradsieve.gradients.features import FeatureExtractor, FeatureRows
from gradsieve.gradients.objectives import send
from gradsieve.models.device import device, forget_memory_used, memory_used, out_of_memory

FIRST = {"cpu": 1024, "cuda": 8192}
"""The initial budget of `auto`, in tokens. On a CPU it never grows: more tokens take more memory
and gain nothing (measured, see LOG)."""

MOST = 1 << 17
"""The largest budget of `auto`, in tokens: a GPU is fully used long before."""


def first_tokens(wanted: int | Literal["auto"]) -> int:
    """The number of tokens that the first forward pass may have on this machine."""
    return FIRST[device().type] if wanted == "auto" else wanted


class TokenBudget:
    """How many tokens, padding included, a forward pass may have; `tokens` is the current limit."""

    def __init__(self, wanted: int | Literal["auto"]) -> None:
        self._grows = wanted == "auto" and device().type == "cuda"
        forget_memory_used()
        self.tokens = first_tokens(wanted)

    def used(self, share_of_memory: float) -> None:
        """Record the peak memory used so far, as a share of the total; the budget may grow."""
        if self._grows and share_of_memory < 0.45 and self.tokens < MOST:
            self.tokens *= 2

    def too_many(self, tokens: int) -> None:
        """Record that memory ran out with this many tokens: the budget becomes half of it."""
        self._grows = False
        self.tokens = max(1, tokens // 2)


def extract(
    extractor: FeatureExtractor,
    encoded: Sequence[TokenizedExample],
    budget: TokenBudget,
    measure_eps: bool = False,
) -> FeatureRows:
    """Features of all examples, in their order, on the CPU.

    Raises:
        ModelError: If memory runs out even with a single example.
    """
    rows, norms = torch.empty(len(encoded), sum(extractor.widths)), torch.empty(len(encoded))
    share_below_eps = 0.0
    coming = (_sent(*one) for one in _batches(extractor, encoded, budget, measure_eps))
    now = next(coming, None)
    while now is not None:
        after = next(coming, None)  # a GPU computes this batch while the one before is copied
        batch, made, copied = now
        if copied is not None:
            copied.synchronize()
        rows[batch], norms[batch] = made.rows, made.gradient_norms
        share_below_eps += made.share_below_eps * len(batch) / len(encoded)
        now = after
    return FeatureRows(rows, norms, share_below_eps)


def _batches(
    extractor: FeatureExtractor,
    encoded: Sequence[TokenizedExample],
    budget: TokenBudget,
    measure_eps: bool,
) -> Iterator[tuple[list[int], FeatureRows]]:
    """Yield positions and features batch by batch, shortest examples first."""
    lengths = [len(example.input_ids) for example in encoded]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = 0
    while start < len(order):
        batch = fill_batch(order, lengths, start, budget.tokens)
        tensors = extractor.objective.collate([encoded[i] for i in batch])
        made = _unless_memory_runs_out(extractor, tensors, measure_eps)
        if made is None:
            if len(batch) == 1:
                raise out_of_memory(f"{lengths[batch[0]]} tokens")
            budget.too_many(len(batch) * lengths[batch[-1]])
            torch.cuda.empty_cache()
            continue
        budget.used(memory_used())
        start += len(batch)
        yield batch, made


def _unless_memory_runs_out(
    extractor: FeatureExtractor, tensors: Mapping[str, Tensor], measure_eps: bool
) -> FeatureRows | None:
    """Features of a batch, or None: a raised exception would keep the memory from being freed."""
    try:
        # Labels stay on the CPU, so that finding their positions doesn't wait for the GPU.
        sent = {k: t if k == "labels" else send(t, device()) for k, t in tensors.items()}
        return extractor(sent, measure_eps)
    except torch.OutOfMemoryError:
        return None


def _sent(
    batch: list[int], made: FeatureRows
) -> tuple[list[int], FeatureRows, torch.cuda.Event | None]:
    """A batch's features on their way to the CPU, and the event after which they have arrived."""
    if made.rows.device.type != "cuda":
        return batch, made, None
    tensors = [made.rows, made.gradient_norms]
    held = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
    for here, there in zip(held, tensors, strict=True):
        here.copy_(there, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return batch, made._replace(rows=held[0], gradient_norms=held[1]), copied
