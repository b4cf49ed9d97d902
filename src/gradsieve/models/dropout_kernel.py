# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"
"""Dropout masks of a full batch in one launch, as a Triton kernel for GPUs.

In: a seed for each example of a batch, a layer's number and the share to keep. Out: a mask in which
an example's part depends only on its seed, the layer, the position and the unit. Imported only if
Triton is installed, as PyTorch's CUDA packages do.

Rejected: PyTorch's generators, which have one seed per launch, so a mask takes three launches per
example: with 32 examples, most of the launches in a training step of a small model.

Source: Philox 4x32 (Salmon et al., SC 2011), as implemented in `triton.language.rand`.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Int64
from torch import Tensor

BLOCK = 1024
"""Units per program."""


@triton.jit(do_not_specialize=["layer", "units", "share"])
def _keep(seeds_pointer, out_pointer, layer, units, share, BLOCK: tl.constexpr):
    example = tl.program_id(1).to(tl.int64)
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.rand(tl.load(seeds_pointer + example) + layer, unit)
    kept = (number < share).to(tl.int8)
    tl.store(out_pointer + example * units + unit, kept, mask=unit < units)


def keep_by_example(
    seeds: Int64[Tensor, " B"], layer: int, shape: tuple[int, ...], share: float
) -> Bool[Tensor, "B T C"]:
    """A mask with this share of True; an example's part is the same in any batch or padding."""
    units = math.prod(shape[1:])
    out = torch.empty(shape, dtype=torch.int8, device=seeds.device)
    grid = (triton.cdiv(units, BLOCK), len(seeds))
    settings = {"BLOCK": BLOCK, "enable_fp_fusion": True}  # as in gradients/kernels.py
    with torch.cuda.device_of(out):
        _keep[grid](seeds, out, layer, units, share, **settings)
    return out.view(torch.bool)
