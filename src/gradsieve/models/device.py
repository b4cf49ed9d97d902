"""The device that this process computes on, and its memory.

A worker that was given several GPUs puts a model over all of them; the first is its device, where
batches go and features are added up.
"""

from __future__ import annotations

import os

import torch

from gradsieve.models import distributed


def device() -> torch.device:
    """The CUDA device of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", distributed.local_rank())


SPREAD = "GRADSIEVE_SPREAD_MODELS"
"""Set in the environment of workers that have several GPUs each."""


def spreads_models() -> bool:
    """Whether models are put over all GPUs that this process sees."""
    return SPREAD in os.environ and torch.cuda.device_count() > 1


def free_memory() -> int:
    """Bytes that are free on that device."""
    if device().type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_used() -> float:
    """The most memory that this process has held on one of its GPUs, as a share; 0 on the CPU."""
    shares = (
        torch.cuda.max_memory_reserved(gpu) / torch.cuda.mem_get_info(gpu)[1] for gpu in _gpus()
    )
    return max(shares, default=0.0)


def forget_memory_used() -> None:
    """Return unused memory to the GPU, and measure `memory_used` from now on."""
    if device().type == "cuda":
        torch.cuda.empty_cache()
    for gpu in _gpus():
        torch.cuda.reset_peak_memory_stats(gpu)


def _gpus() -> list[torch.device]:
    """What a model is on."""
    if device().type != "cuda":
        return []
    if not spreads_models():
        return [device()]
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
