"""Rows of float32 to fewer bits and back.

In: rows, of any length. Out: codes and a scale a row, decoded as `codes * scale`. Rows are brought
to length sqrt(dim) first, so that values are about N(0, 1) and no float16 over- or underflows;
their lengths are kept apart, in float32. 16 bits is float16; 8, 4 and 2 are evenly spaced steps,
symmetric about 0; 1 is the sign. Only the datastore is coded so, never the target's side.

Steps were chosen by the error on N(0, 1) (Max, "Quantizing for minimum distortion", 1960).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEPS = {4: 0.3352, 2: 0.9957}
"""Max (1960), table II: the step of the best evenly spaced quantizer of N(0, 1) with 16 and 4
levels."""


def encode(
    rows: NDArray[np.float32], bits: int
) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
    """Codes [n, bytes], scales [n] and lengths [n] of rows [n, d], d a multiple of 8."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    unit = np.float32(np.sqrt(rows.shape[1])) / np.maximum(lengths, np.finfo(np.float64).tiny)
    values = (rows * unit[:, None]).astype(np.float32)
    codes, scales = _quantize(values, bits)
    return codes, scales, lengths.astype(np.float32)


def _quantize(values: NDArray[np.float32], bits: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    ones = np.ones(len(values), dtype=np.float32)
    if bits == 32:
        return values, ones
    if bits == 16:
        return values.astype(np.float16), ones
    if bits == 8:
        scales = np.maximum(np.abs(values).max(axis=1), np.finfo(np.float32).tiny) / 127
        return np.rint(values / scales[:, None]).astype(np.int8), scales.astype(np.float32)
    if bits == 1:
        return np.packbits(values > 0, axis=1, bitorder="little"), np.abs(values).mean(axis=1)
    highest = 2**bits - 1
    # Odd codes -highest, ..., -1, 1, ..., highest, in half steps, kept as 0 .. highest.
    codes = np.clip(np.floor(values / STEPS[bits]) + (highest + 1) // 2, 0, highest)
    return _pack(codes.astype(np.uint8), bits), ones * np.float32(STEPS[bits] / 2)


def decode(codes: NDArray[Any], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Rows [n, d] of length about sqrt(d)."""
    return integers(codes, bits) * scales[:, None]


def integers(codes: NDArray[Any], bits: int) -> NDArray[np.float32]:
    """The codes' values before their scale, as float32 [n, d]."""
    if bits >= 8:
        return np.asarray(codes, dtype=np.float32)
    if bits == 1:
        ones = np.unpackbits(codes, axis=1, bitorder="little")
        return ones.astype(np.float32) * 2 - 1
    per_byte = 8 // bits
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    values = (codes[:, :, None] >> shifts) & (2**bits - 1)
    odd: NDArray[np.float32] = values.reshape(len(codes), -1).astype(np.float32) * 2
    return odd - np.float32(2**bits - 1)


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Lowest bits first."""
    per_byte = 8 // bits
    parts = codes.reshape(len(codes), -1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(parts << shifts, axis=2)
    return packed
