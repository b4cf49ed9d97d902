"""Training on several devices: the processes of `accelerate launch` form one run, led by the first.

In: the launcher's environment variables. Out: this process's place in the run. All processes go
through the same steps, since a training step needs all of them; only the first reads the run's
state and writes. Rejected: our own launcher (people know `accelerate launch` and `torchrun`).
"""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list


def count() -> int:
    """The number of processes that work together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine, which is the number of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this process leads, i.e. writes and reports."""
    return int(os.environ.get("RANK", "0")) == 0


def wait() -> None:
    """Wait until every process reaches this call."""
    if count() > 1:
        _state().wait_for_everyone()


def agreed(value: Any) -> Any:
    """The first process's value, in every process."""
    if count() == 1:
        return value
    _state()
    return broadcast_object_list([value])[0]


def _state() -> PartialState:
    """The process group; on CPUs accelerate creates one only on request."""
    return PartialState(cpu=not torch.cuda.is_available())
