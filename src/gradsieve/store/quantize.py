"""Quantizes float32 rows to 32, 16, 8, 4, 2 or 1 bits, and decodes them.

In: rows of any norm. Out: codes, the norm of the codes and the norm of the row. A row is decoded as
`codes / code_norm * feature_norm`, so its norm is exact. Rows are first scaled to norm sqrt(dim),
so values are about N(0, 1) and float16 doesn't over- or underflow. 16 bits are float16; 8, 4 and 2
bits are evenly spaced levels, symmetric about 0; 1 bit is the sign. Targets are never quantized.

Step sizes minimize the error on N(0, 1) (Max, "Quantizing for minimum distortion", 1960).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = {4: 0.3352, 2: 0.9957}
"""Step of the best evenly spaced quantizer of N(0, 1), 16 and 4 levels: Max (1960), table II."""

TINY = np.finfo(np.float32).tiny

ROWS = 256
"""Rows encoded at a time: intermediate values take several times a row's memory."""


def encode(
    rows: NDArray[np.float32], bits: int
) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
    """Codes [n, bytes], their norms [n] and the rows' norms [n]; d * bits must divide by 8."""
    own = row_norms(rows)
    unit = np.sqrt(rows.shape[1]) / np.maximum(own, 1e-300)
    codes, norms = np.empty((0, 0)), np.empty(len(rows), dtype=np.float32)
    for start in range(0, max(len(rows), 1), ROWS):
        piece = slice(start, start + ROWS)
        part = _quantize((rows[piece] * unit[piece, None]).astype(np.float32), bits)
        norms[piece] = np.linalg.norm(decode(part, bits), axis=1)
        if start == 0:
            codes = np.empty((len(rows), part.shape[1]), dtype=part.dtype)
        codes[piece] = part
    return codes, norms, own.astype(np.float32)


def row_norms(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Norms [n] in float64: in float32 the squares of rows with norm 1e20 would overflow."""
    squares: NDArray[np.float64] = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.sqrt(squares)


def _quantize(values: NDArray[np.float32], bits: int) -> NDArray[Any]:
    if bits == 32:
        return values
    if bits == 16:
        return values.astype(np.float16)
    if bits == 8:
        largest = np.maximum(np.abs(values).max(axis=1, keepdims=True), np.float32(1e-30))
        steps: NDArray[np.int8] = np.rint(values * (127 / largest)).astype(np.int8)
        return steps
    if bits == 1:
        return np.packbits(values > 0, axis=1, bitorder="little")
    highest = 2**bits - 1
    # Values are the odd numbers -highest ... highest in half steps; codes are 0 ... highest.
    codes = np.clip(np.floor(values / STEPS[bits]) + (highest + 1) // 2, 0, highest)
    return _pack(codes.astype(np.uint8), bits)


def decode(codes: NDArray[Any], bits: int) -> NDArray[np.float32]:
    """The values that codes represent, float32 [n, d], on an arbitrary scale."""
    if bits >= 8:
        return np.asarray(codes, dtype=np.float32)
    values: NDArray[np.float32] = integers_of_byte(bits)[codes].astype(np.float32)
    return values.reshape(len(codes), -1)


def integers_of_byte(bits: int) -> NDArray[np.int8]:
    """The odd integers that each byte of packed codes represents, [256, 8 / bits]."""
    per_byte, highest = 8 // bits, 2**bits - 1
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    codes = (np.arange(256, dtype=np.uint8)[:, None] >> shifts) & highest
    odd: NDArray[np.int8] = (2 * codes.astype(np.int8) - np.int8(highest)).astype(np.int8)
    return odd


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack codes into bytes, lowest bits first."""
    per_byte = 8 // bits
    parts = codes.reshape(len(codes), -1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(parts << shifts, axis=2)
    return packed
