"""Predicts the seconds of a stage on a named GPU, from the GPU's data sheet.

In: a stage's estimate, and a GPU's peak rates. Out: FLOPs divided by a share of the peak, plus
bytes divided by memory bandwidth where a model generates answers token by token. Peaks are dense
bf16 with float32 accumulation (half of what data sheets print "with sparsity").
"""

from __future__ import annotations

from dataclasses import dataclass

from gradsieve.errors import UsageError
from gradsieve.stages.estimate import Estimate

UTILIZATION, WIDE = 0.35, 4096
"""Share of the peak that forward and backward passes reach with a hidden size of `WIDE` or more;
narrower models reach less, in proportion. On an H200, features reached 0.39 to 0.41 with 4096
(benchmarks/features/gpu.md) and 0.04 to 0.05 with 576 (LOG.md)."""

DISK_BYTES_A_SECOND = 1e9
"""Assumption: one NVMe disk."""

STARTUP_SECONDS = 20.0
"""Startup time of a stage that loads a model, besides reading its weights: an assumption."""


@dataclass(frozen=True)
class Gpu:
    """One GPU and its peak rates."""

    name: str
    teraflops: float
    gib: int
    gigabytes_a_second: int
    source: str

    def seconds(self, estimate: Estimate, workers: int = 1) -> float:
        """Predicted seconds of a stage on this GPU, or on several of them."""
        reached = UTILIZATION * min(1, (estimate.hidden or WIDE) / WIDE)
        compute = estimate.flops / (self.teraflops * 1e12 * reached)
        generating = estimate.generated_bytes / (self.gigabytes_a_second * 1e9)
        starting = STARTUP_SECONDS if estimate.loads else 0.0
        read = estimate.loads * estimate.weight_bytes
        disk = (estimate.read_bytes + estimate.disk_bytes) / DISK_BYTES_A_SECOND  # not divided
        own = compute + generating + read / DISK_BYTES_A_SECOND
        return own * estimate.share(workers) + starting + disk


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A10", 125, 24, 600, "NVIDIA A10 data sheet"),
        Gpu("A100-40GB", 312, 40, 1555, "NVIDIA A100 data sheet (SXM)"),
        Gpu("A100-80GB", 312, 80, 2039, "NVIDIA A100 data sheet (SXM)"),
        Gpu("B200", 2250, 180, 8000, "NVIDIA DGX B200 data sheet, an eighth of the system"),
        Gpu("H100", 989, 80, 3350, "NVIDIA H100 data sheet (SXM)"),
        Gpu("H100-PCIe", 756, 80, 2000, "NVIDIA H100 data sheet (PCIe)"),
        Gpu("H200", 989, 141, 4800, "NVIDIA H200 data sheet (SXM)"),
        Gpu("L4", 121, 24, 300, "NVIDIA L4 data sheet"),
        Gpu("L40S", 362, 48, 864, "NVIDIA L40S data sheet"),
        Gpu("RTX-3090", 71, 24, 936, "NVIDIA Ampere GA102 whitepaper"),
        Gpu("RTX-4090", 165, 24, 1008, "NVIDIA Ada whitepaper"),
        Gpu("RTX-A6000", 155, 48, 768, "NVIDIA RTX A6000 data sheet"),
    )
}


def find_gpu(name: str) -> Gpu:
    """A GPU by its name.

    Raises:
        UsageError: If it is not in the table; lists the known names.
    """
    for known, gpu in GPUS.items():
        if known.lower() == name.lower():
            return gpu
    raise UsageError(f"There is no GPU {name} in the table.", "--gpu", f"One of {', '.join(GPUS)}.")
