# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"
"""Adam's update, its norm and its sketch in one pass over a gradient, as a Triton kernel for GPUs.

In: per-example gradients of one weight [B, p] and Adam's moments [p]. Out: the updates' sketches
are added to rows [B, d], their squared norms to another tensor; nothing of size B x p is written.
The sketch is that of `projection.Projection("sketch")`, whose hash is computed in the kernel, and
`adam.update` is the reference for the arithmetic; both paths agree up to rounding (tests run this
file on a CPU with Triton's interpreter). Imported only if Triton is installed, as PyTorch's CUDA
packages do.

How: a program computes BLOCK columns of a few examples' sketches from one of PARTS shares of the
weight's blocks, each read at its rotation, so sums need no atomics and are reproducible. Rejected:
one program per piece of the weight with atomic adds (their order changes the last digits), and
signs kept in memory (P bytes on the GPU; hashing them takes less time than reading the gradients).

Letters: B examples, p values of one weight, d dim.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gradsieve.gradients.adam import Moments, Momentum, Reading
from gradsieve.gradients.projection import SMALLEST_SCALE, Projection

BLOCK, EXAMPLES, PARTS = 256, 4, 8
"""Columns and examples per program, and the number of programs that share a weight's blocks: the
best of 60 choices over four shapes on an H200. A program reads moments and hashes signs once for
all of its examples."""


@triton.jit
def _random_word(key, position):
    """SplitMix64's output number `position`, the same as in `projection.random_words`."""
    state = (position + 1).to(tl.uint64) * 0x9E3779B97F4A7C15 + key.to(tl.uint64)
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB
    return state ^ (state >> 31)


@triton.jit(do_not_specialize=["sign_key", "rotation_key", "first", "second", "unit", "added"])
def _update_and_sketch(
    gradient_pointer,
    m_pointer,
    v_pointer,
    rows_pointer,
    squares_pointer,
    sign_key,
    rotation_key,
    p,
    batch,
    first,
    second,
    unit,
    added,
    DIM: tl.constexpr,
    OFFICIAL: tl.constexpr,
    KEEP: tl.constexpr,
    ADAM: tl.constexpr,
    SCALED: tl.constexpr,
    INVERSE: tl.constexpr,
    SMALLEST: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
    EXAMPLES: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    example = (tl.program_id(1) * EXAMPLES + tl.arange(0, EXAMPLES)).to(tl.int64)
    part = tl.program_id(2)
    total = tl.zeros([EXAMPLES, BLOCK], tl.float32)
    square = tl.zeros([EXAMPLES, BLOCK], tl.float32)
    for block in range(part, tl.cdiv(p, DIM), tl.num_programs(2)):
        number = tl.full([1], block, tl.int64)
        rotation = _random_word(rotation_key, number).to(tl.int64, bitcast=True) % DIM
        rotation = tl.where(rotation < 0, rotation + DIM, rotation)
        position = column - rotation
        position = number * DIM + tl.where(position < 0, position + DIM, position)
        inside = (column < DIM) & (position < p)
        here = (example < batch)[:, None] & inside[None, :]
        update = tl.load(gradient_pointer + example[:, None] * p + position[None, :], here, 0.0)
        if ADAM or SCALED:
            v = tl.load(v_pointer + position, inside, 1.0)[None, :]
        if ADAM:
            denominator = update * update * (1 - BETA2) + v * BETA2
            update = update * (1 - BETA1)
            if KEEP:
                m = tl.load(m_pointer + position, inside, 0.0)[None, :]
                update += m * BETA1
            if OFFICIAL:
                denominator = tl.sqrt(denominator + EPS)
            else:
                denominator = (tl.sqrt(denominator / second) + EPS) * first
            update = tl.where(here, update / denominator, 0.0)
        square += update * update
        if SCALED:
            scale = tl.sqrt(tl.maximum(tl.sqrt(v + added) / unit, SMALLEST * SMALLEST))
            update = update / scale if INVERSE else update * scale
        bit = (_random_word(sign_key, position >> 6) >> (position & 63).to(tl.uint64)) & 1
        total += tl.where((bit == 1)[None, :], update, -update)
    kept = (example < batch)[:, None] & (column < DIM)[None, :]
    rows = rows_pointer + (part * batch + example)[:, None] * DIM + column[None, :]
    tl.store(rows, tl.load(rows, kept, 0.0) + total, kept)
    squares = squares_pointer + (part * batch + example) * tl.num_programs(0) + tl.program_id(0)
    square = tl.load(squares, example < batch, 0.0) + tl.sum(square, 1)
    tl.store(squares, square, example < batch)


class FusedTotals:
    """Sketches and norms of a batch's updates; replaces `features.Totals` on a GPU."""

    def __init__(
        self,
        projection: Projection,
        moments: Moments | None,
        reading: Reading,
        momentum: Momentum,
        batch: int,
        device: torch.device,
    ) -> None:
        adam = moments or Moments({}, {}, 0)
        beta1, beta2 = adam.betas
        balance = projection.balance
        self._projection = projection
        self._exp_avg = adam.exp_avg
        self._exp_avg_sq = balance.exp_avg_sq if balance else adam.exp_avg_sq
        self._settings: dict[str, Any] = {
            "first": 1 - beta1 ** (adam.step + 1),
            "second": 1 - beta2 ** (adam.step + 1),
            "unit": balance.unit if balance else 1.0,
            "added": balance.added if balance else 0.0,
            "SCALED": balance is not None,
            "INVERSE": balance is not None and balance.inverse,
            "SMALLEST": SMALLEST_SCALE,
            "OFFICIAL": reading == "official",
            "KEEP": momentum == "keep",
            "ADAM": moments is not None,
            **{"BETA1": beta1, "BETA2": beta2, "EPS": adam.eps},
            **{"DIM": projection.dim, "BLOCK": BLOCK, "EXAMPLES": EXAMPLES},
            "enable_fp_fusion": True,  # explicit, since Triton's default is about to change
        }
        self._rows = torch.zeros(PARTS, batch, projection.dim, device=device)
        tiles = triton.cdiv(projection.dim, BLOCK)
        self._squares = torch.zeros(PARTS, batch, tiles, dtype=torch.float64, device=device)

    def add(self, name: str, gradient: Float[Tensor, "B ..."]) -> None:
        """Add one weight's updates."""
        gradient = gradient.flatten(1).contiguous()
        m, v = (of.get(name, gradient).contiguous() for of in (self._exp_avg, self._exp_avg_sq))
        batch, p = gradient.shape
        key = self._projection.key(name)
        grid = (self._squares.shape[2], triton.cdiv(batch, EXAMPLES), PARTS)
        # If a model is on several GPUs, a layer's backward pass makes its own GPU the current one.
        with torch.cuda.device_of(self._rows):
            _update_and_sketch[grid](
                *(gradient, m, v, self._rows, self._squares, key, ~key),
                *(p, batch),
                **self._settings,
            )

    def rows(self) -> Float[Tensor, "B d"]:
        """The sketches so far."""
        return self._rows.sum(0)

    def norms(self) -> Float[Tensor, " B"]:
        """Norms of the updates so far."""
        return self._squares.sum((0, 2)).sqrt().float()
