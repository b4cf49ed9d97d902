"""The device that this process computes on, and its memory."""

from __future__ import annotations

import os

import torch

from gradsieve.models import distributed


def device() -> torch.device:
    """The CUDA device of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", distributed.local_rank())


def free_memory() -> int:
    """Bytes that are free on that device."""
    if device().type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_used() -> float:
    """The most memory that this process has held on a GPU, as a share of it; 0 on the CPU."""
    if device().type != "cuda":
        return 0.0
    return torch.cuda.max_memory_reserved() / torch.cuda.mem_get_info()[1]


def forget_memory_used() -> None:
    """Return unused memory to the GPU, and measure `memory_used` from now on."""
    if device().type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
