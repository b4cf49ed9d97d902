"""The fused kernel gives the results of the PyTorch steps; run by Triton's interpreter on a CPU.

The interpreter must be requested before Triton is imported, so the comparison runs in a process of
its own. Triton comes only with PyTorch's CUDA packages; on a CPU, `pip install triton` (a gigabyte,
hence not a test dependency).
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from gradsieve.gradients import adam
from gradsieve.gradients.adam import Moments
from gradsieve.gradients.features import Totals
from gradsieve.gradients.projection import SMALLEST_SCALE, Balance, Projection

CONSTANTS = {"betas": (0.8, 0.95), "eps": 1e-5}
"""Constants of an optimizer without torch's defaults."""

SHAPES = {"q.lora_A": (4, 37), "q.lora_B": (50, 4), "v.lora_A": (3, 7)}


def largest_gap(
    dim: int, batch: int, reading: str, momentum: str, plain: bool, balanced: bool
) -> float:
    """Relative errors of rows and norms against the PyTorch path; returns the larger one."""
    from gradsieve.gradients.kernels import FusedTotals

    generator = torch.Generator().manual_seed(0)
    draw = {name: torch.randn(batch, *shape, generator=generator) for name, shape in SHAPES.items()}
    gradients = {name: values * 1e-3 for name, values in draw.items()}
    m, v = (
        {name: function(shape, generator=generator) * size for name, shape in SHAPES.items()}
        for function, size in ((torch.randn, 1e-3), (torch.rand, 1e-6))
    )
    v["v.lora_A"].zero_()  # like a weight that has never had a gradient
    moments = None if plain else Moments(m, v, step=7, **CONSTANTS)
    balance = Balance.of(v, CONSTANTS["eps"] if reading == "official" else 0.0)
    projection, device = Projection("sketch", dim, 5), torch.device("cpu")
    if balanced:
        projection.balance = balance.of_targets() if plain else balance

    def update(name: str, g: torch.Tensor) -> torch.Tensor:
        if moments is None:
            return g
        m, v = moments.exp_avg[name], moments.exp_avg_sq[name]
        return adam.update(g, m, v, 7, reading, momentum, **CONSTANTS)  # type: ignore[arg-type]

    fused = FusedTotals(projection, moments, reading, momentum, batch, device)  # type: ignore[arg-type]
    wanted = Totals([projection], update, batch, device)
    for name, g in gradients.items():
        fused.add(name, g.clone())
        wanted.add(name, g.clone())
    gaps = [
        float((mine - theirs).norm() / theirs.norm())
        for mine, theirs in ((fused.rows(), wanted.rows()), (fused.norms(), wanted.norms()))
    ]
    return max(gaps)


CASES = [
    (64, 5, "torch", "keep", False, False),
    (8, 1, "torch", "drop", False, True),
    (24, 4, "official", "keep", False, False),
    (512, 3, "official", "drop", False, True),
    (40, 6, "torch", "keep", True, False),
    (64, 5, "official", "keep", True, True),
]
"""dim, number of examples, and how the update is computed and scaled; some sizes are below those of
a weight or a kernel program, some above."""


def test_equals_the_steps_in_pytorch() -> None:
    if not importlib.util.find_spec("triton"):
        pytest.skip("triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    found = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    gaps = [float(line) for line in found.stdout.split()]
    assert len(gaps) == len(CASES)
    assert max(gaps) <= 1e-6


@pytest.mark.parametrize("architecture", [80, 90])
def test_compiles_for_gpus_that_are_not_here(architecture: int) -> None:
    if not importlib.util.find_spec("triton"):
        pytest.skip("triton is not installed")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gradsieve.gradients.kernels import _update_and_sketch as kernel

    types = {
        **dict.fromkeys(("gradient_pointer", "m_pointer", "v_pointer", "rows_pointer"), "*fp32"),
        **dict.fromkeys(("sign_key", "rotation_key"), "i64"),
        **dict.fromkeys(("p", "batch"), "i32"),
        **dict.fromkeys(("first", "second", "unit", "added"), "fp32"),
        "squares_pointer": "*fp64",
    }
    switches = {"OFFICIAL": False, "KEEP": True, "ADAM": True, "SCALED": True, "INVERSE": False}
    constants = {
        **switches,
        "DIM": 8192,
        "BLOCK": 256,
        "EXAMPLES": 4,
        "SMALLEST": SMALLEST_SCALE,
        "BETA1": 0.9,
        "BETA2": 0.999,
        "EPS": 1e-8,
    }
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    options = {"enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    assert made.asm["cubin"]

    from gradsieve.models.dropout_kernel import _keep as mask

    types = {"seeds_pointer": "*i64", "out_pointer": "*i8", "share": "fp32"}
    source = ASTSource(
        fn=mask,
        signature={**dict.fromkeys(("layer", "units"), "i32"), **types, "BLOCK": "constexpr"},
        constexprs={(mask.arg_names.index("BLOCK"),): 1024},
    )
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    assert made.asm["cubin"]


if __name__ == "__main__":
    for case in CASES:
        print(largest_gap(*case))
