"""Whether this machine can build GPU kernels; if it can't, PyTorch's operations compute the same.

In: a device. Out: yes or no, and if no, one warning with the reason. Triton builds a kernel when it
is first launched, which takes a C compiler, Python's headers (many containers lack these) and a GPU
that is not too old, so a small kernel is launched to find out.
"""

from __future__ import annotations

import logging
from functools import cache

import torch

from gradsieve.errors import first_line

try:
    from gradsieve.models.dropout_kernel import keep_by_example
except ImportError:  # without Triton, as in builds of PyTorch for CPUs
    keep_by_example = None  # type: ignore[assignment]

__all__ = ["has_kernels", "keep_by_example"]

_logger = logging.getLogger(__name__)


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether kernels can be built and launched for a device."""
    if device.type != "cuda":
        return False
    try:
        _launch(device)
    except Exception as error:  # from Triton, the compiler or the driver
        _logger.warning(
            "Triton cannot build kernels for this GPU (%s): features and training take slower "
            "operations instead. It needs a C compiler and Python's headers (build-essential and "
            "python3-dev on Debian)",
            first_line(error),
        )
        return False
    return True


def _launch(device: torch.device) -> None:
    if keep_by_example is None:
        raise ImportError("it is not installed")
    keep_by_example(torch.zeros(1, dtype=torch.int64, device=device), 0, (1, 1, 1), 0.5)
