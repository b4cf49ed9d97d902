# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"
"""Which units dropout keeps, of a whole batch in one launch, for GPUs, in Triton.

In: a seed for each example of a batch, a layer's number and the share to keep. Out: a mask in which
an example's part depends on its seed, the layer, the position and the unit alone. Imported only
where Triton is: PyTorch's CUDA packages bring it along.

Rejected: PyTorch's generators, which have one seed a launch, so that a mask takes three launches
for each example: with 32 examples, most of what a training step of a small model launches.

Source: Philox 4x32 (Salmon et al., SC 2011), as `triton.language.rand` has it.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Int64
from torch import Tensor

BLOCK = 1024
"""Units of one program."""


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
    """True at this share; an example's are the same in any batch and with any padding."""
    units = math.prod(shape[1:])
    out = torch.empty(shape, dtype=torch.int8, device=seeds.device)
    grid = (triton.cdiv(units, BLOCK), len(seeds))
    settings = {"BLOCK": BLOCK, "enable_fp_fusion": True}  # as in gradients/kernels.py
    with torch.cuda.device_of(out):
        _keep[grid](seeds, out, layer, units, share, **settings)
    return out.view(torch.bool)
