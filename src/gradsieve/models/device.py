"""The device that this process computes on, and its memory.

If a model is on several GPUs, it is the first, which receives batches and accumulates features.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial

import psutil
import torch
from torch import Tensor

from gradsieve.errors import ModelError
from gradsieve.models import distributed


def device() -> torch.device:
    """The CUDA device of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", distributed.local_rank())


def slow_dtype(name: str) -> str | None:
    """A warning if this machine is slow in a dtype and another dtype would be faster."""
    if device().type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        slow, faster = name == "bfloat16" and not native, "float16, or float32"
    else:
        slow, faster = _slowdown(getattr(torch, name)) >= 4, "float32 (in memory: model.float())"
    if not slow:
        return None
    return (
        f"model.dtype {name} is slow on this machine; set model.dtype: {faster}, which takes twice "
        "the memory"
    )


@cache
def _slowdown(dtype: torch.dtype) -> float:
    """How many times longer than in float32 a matrix product takes on this processor.

    Processors without instructions for half precision take 30 to 100 times as long.
    """
    seconds = []
    for kind in (dtype, torch.float32):
        square = torch.ones(256, 256, dtype=kind)
        seconds.append(min(timeit.repeat(partial(torch.mm, square, square), number=1, repeat=3)))
    return seconds[0] / seconds[1]


def free_memory() -> int:
    """Available memory of the device, in bytes."""
    if device().type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def memory_used() -> float:
    """This process's highest peak memory on any GPU, as a share of that GPU's; 0 on the CPU."""
    held = {gpu: torch.cuda.max_memory_reserved(gpu) for gpu in range(torch.cuda.device_count())}
    # An unused GPU is not queried: that would reserve memory there.
    shares = (most / torch.cuda.mem_get_info(gpu)[1] for gpu, most in held.items() if most)
    return max(shares, default=0.0)


def forget_memory_used() -> None:
    """Return unused memory to the GPU, and reset the peak that `memory_used` reports."""
    if device().type == "cuda":
        torch.cuda.empty_cache()
        for gpu in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(gpu)


def halved_to_fit(
    compute: Callable[[dict[str, Tensor]], Tensor], batch: Mapping[str, Tensor]
) -> Tensor:
    """What `compute` returns for each row of a batch, on the CPU.

    If memory runs out, the batch's halves are computed one after the other.

    Raises:
        ModelError: If memory runs out even with a single row.
    """
    with suppress(torch.OutOfMemoryError):  # a caught one would keep memory from being freed
        return compute({key: value.to(device()) for key, value in batch.items()}).cpu()
    rows, tokens = batch["input_ids"].shape
    if rows == 1:
        raise out_of_memory(f"{tokens} tokens")
    torch.cuda.empty_cache()
    halves = (slice(rows // 2), slice(rows // 2, None))
    parts = [{key: value[half] for key, value in batch.items()} for half in halves]
    return torch.cat([halved_to_fit(compute, part) for part in parts])


def out_of_memory(size: str) -> ModelError:
    """The error that memory runs out with a single example of this size."""
    error = ModelError(
        "Memory runs out with a single example.",
        f"{size}, {device()}",
        "Lower model.max_length, use a device with more memory, or, for training and features, "
        "set model.gradient_checkpointing.",
    )
    error.__cause__ = MemoryError()  # by which a Ray worker knows that another attempt may succeed
    return error
