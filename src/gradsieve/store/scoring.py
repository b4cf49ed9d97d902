"""Cosines of quantized rows with fixed directions, as fast as the processor multiplies.

In: a shard's codes, and directions [S, d]. Out: cosines [n, S]. Rows of 8, 4, 2 and 1 bits are
multiplied as integers: a few hundred rows at a time are unpacked to int8 through a table, into a
buffer that fits the cache, and each direction is stored as two int8 digits, 15 bits and a sign,
which is as exact as float32 (error 2e-5 of its largest value). Rows of 16 and 32 bits and their
directions are rounded to integers (error 2e-8 of a cosine) that float64 sums without error. Sums of
integers are exact in any order, so the result is the same on every device, with any number of
threads, and with any number of rows and subtasks at a time.

Rejected: sums of table entries by packed byte (57 adds per byte and subtask: four times slower than
multiplying on a processor with int8 dot products), bfloat16 (half the speed, inexact), and float32
for 16 and 32 bits (1.8 times as fast, but the last digits depend on the number of rows, directions
and threads, measured with MKL).
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gradsieve.errors import first_line
from gradsieve.store import quantize

_logger = logging.getLogger(__name__)

ROWS = 512
"""Rows unpacked at a time; with 8192 dims they take 4 MiB."""

CODES = 2.0**20
"""Integer steps per unit in codes of 16 and 32 bits, whose values are about N(0, 1)."""

LARGEST_SUM = 2.0**52
"""Float64 adds integers without error up to twice this value."""

DIMS = 1 << 16
"""Dims summed in int32 at a time: 127 * 128 * 65,536 is less than 2^31."""

STEPS = 127 * 256
"""A direction's largest value in steps; the high digit counts 256 steps, the low digit 1."""


class Cosines:
    """Cosines with fixed directions.

    Args:
        directions: float32 [S, d], not normalized here: results are multiplied by their norms.
        bits: Bits of the rows' codes.
    """

    def __init__(self, directions: NDArray[np.float32], bits: int) -> None:
        self.bits = bits
        self._count = len(directions)
        self._device = torch.device("cuda" if _has_gpu(bits) else "cpu")
        self._buffer = torch.empty(0, dtype=torch.int8)
        wanted = self._copied(directions)
        if bits > 8:
            # |codes . steps| <= |codes| |steps| (Cauchy-Schwarz), also for partial sums; codes
            # have norm sqrt(d), and with a power of 2 the steps are scaled exactly.
            norms = wanted.double().norm(dim=1, keepdim=True).clamp_min(float(quantize.TINY))
            most = 2 * CODES * directions.shape[1] ** 0.5 * norms / LARGEST_SUM
            self._step = torch.exp2(torch.log2(most).ceil())
            self._steps = (wanted.double() / self._step).round()
            return
        largest = wanted.abs().amax(1, keepdim=True).clamp_min(float(quantize.TINY))
        self._step = (largest / STEPS).double()
        steps = (wanted.double() / self._step).round().long()
        high = (steps + 128) // 256
        digits = torch.cat([high, steps - 256 * high]).to(torch.int8)
        # Padding with zeros to a multiple is faster, and some GPUs require it.
        multiple = 16 if self._device.type == "cuda" else 8
        self._digits = functional.pad(digits, (0, 0, 0, -len(digits) % multiple))

    def __call__(self, codes: NDArray[Any], code_norms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines [n, S] of rows with these codes."""
        found = np.empty((len(codes), self._count), dtype=np.float32)
        product = self._integer_product if self.bits <= 8 else self._float_product
        for start in range(0, len(codes), ROWS):
            piece = slice(start, start + ROWS)
            found[piece] = product(codes[piece]).cpu().numpy()
        found /= np.maximum(code_norms, quantize.TINY)[:, None]
        return found

    def _copied(self, values: NDArray[Any]) -> Tensor:
        """A copy on the device, since a file's bytes may be read-only or unaligned."""
        return torch.tensor(np.ascontiguousarray(values), device=self._device)

    def _float_product(self, codes: NDArray[Any]) -> Tensor:
        rows = self._copied(codes).float().mul_(CODES).round_().double()
        return ((rows @ self._steps.T) * (self._step.T / CODES)).float()

    def _integer_product(self, codes: NDArray[Any]) -> Tensor:
        rows = self._unpacked(codes)
        total = torch.zeros(1, dtype=torch.float64, device=self._device)
        for start in range(0, rows.shape[1], DIMS):
            columns = slice(start, start + DIMS)
            total = total + torch._int_mm(rows[:, columns], self._digits[:, columns].T).double()
        total = total[: len(codes)]
        high, low = total[:, : self._count], total[:, self._count : 2 * self._count]
        return ((256 * high + low) * self._step.T).float()

    def _unpacked(self, codes: NDArray[Any]) -> Tensor:
        """Rows as int8; on a GPU padded to ROWS rows, which its integer product requires."""
        if self._device.type == "cuda":
            packed = self._copied(codes)
            if self.bits < 8:
                table = torch.from_numpy(quantize.integers_of_byte(self.bits)).to(self._device)
                packed = table[packed.int()].flatten(1)
            tile: Tensor = functional.pad(packed, (0, 0, 0, ROWS - len(packed)))
            return tile
        if self.bits == 8:
            return self._copied(codes)
        if not len(self._buffer):
            self._buffer = torch.empty(ROWS, codes.shape[1] * 8 // self.bits, dtype=torch.int8)
        unpacked = self._buffer[: len(codes)]
        words = _words(self.bits)
        _unpack(np.ascontiguousarray(codes), words, unpacked.numpy().view(words.dtype))
        return unpacked


def _has_gpu(bits: int) -> bool:
    """Whether there is a GPU that can multiply rows with this many bits."""
    return torch.cuda.is_available() and (bits > 8 or _multiplies_integers())


@cache
def _multiplies_integers() -> bool:
    """Whether the GPU multiplies integers; if not, the CPU computes the same result.

    GPUs before compute capability 7.5 have no integer products, and cuBLAS lacks some of them for
    newer GPUs.
    """
    try:
        _try_integers()
    except RuntimeError as error:
        _logger.warning(
            "This GPU multiplies no integers (%s): rows are compared on the processor",
            first_line(error),
        )
        return False
    return True


def _try_integers() -> None:
    rows = torch.ones(ROWS, 64, dtype=torch.int8, device="cuda")
    torch._int_mm(rows, rows[:16].T).sum().item()


@cache
def _words(bits: int) -> NDArray[Any]:
    """The integers that each byte represents, as one word of 8 / bits bytes [256]."""
    word = {1: np.uint64, 2: np.uint32, 4: np.uint16}[bits]
    return quantize.integers_of_byte(bits).view(word)[:, 0].copy()


# Not parallel: numba would set the number of OpenMP threads, which PyTorch shares, and so change
# the last digits of everything computed afterwards in this process.
@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _unpack(codes: Any, table: Any, out: Any) -> None:
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            out[row, column] = table[codes[row, column]]
