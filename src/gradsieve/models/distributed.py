"""Training on several devices: what `accelerate launch` starts is one run, led by one process.

In: the variables that the launcher sets. Every process goes through the same steps, since
a training step needs them all; the first one alone reads what is done and writes. Rejected: a
launcher of our own (`accelerate launch` and `torchrun` are what people know).
"""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list


def count() -> int:
    """Processes that work together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine: the device it uses."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this process leads: it writes and reports."""
    return int(os.environ.get("RANK", "0")) == 0


def wait() -> None:
    """Wait until every process is here."""
    if count() > 1:
        _state().wait_for_everyone()


def agreed(value: Any) -> Any:
    """The first process's value, in all of them."""
    if count() == 1:
        return value
    _state()
    return broadcast_object_list([value])[0]


def _state() -> PartialState:
    """The group of processes; of CPUs accelerate makes one only if it is asked to."""
    return PartialState(cpu=not torch.cuda.is_available())
