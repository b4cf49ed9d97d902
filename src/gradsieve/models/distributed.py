"""Training on several devices: what `accelerate launch` starts is one run, led by one process.

In: what the launcher puts into the environment. Every process goes through the same steps, since
a training step needs them all; the first one alone reads what is done and writes. Rejected: a
launcher of our own (`accelerate launch` and `torchrun` are what people know).
"""

from __future__ import annotations

import os
from typing import Any


def count() -> int:
    """Processes that work together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine: the device it uses."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this process leads: it writes, it tells."""
    return int(os.environ.get("RANK", "0")) == 0


def wait() -> None:
    """Go on when every process has come here."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def agreed(value: Any) -> Any:
    """The first process's value, in all of them."""
    if count() == 1:
        return value
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState()
    return broadcast_object_list([value])[0]
