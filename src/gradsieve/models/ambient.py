"""Restores torch's defaults during a call, whatever the caller (such as a notebook) has set.

Gradients need autograd, and results must not depend on the caller's `torch.no_grad()`,
`torch.autocast(...)`, `torch.set_default_dtype(...)` or `torch.set_default_device(...)`, nor on a
call in another thread: all threads share torch's defaults and its random state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock

import torch

from gradsieve.models.device import device

_TURN = RLock()
"""Held by the thread whose call is running; other threads wait for it."""


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Give torch the settings of a new process inside the block. Also works as a decorator."""
    with _TURN, ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", device().type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # the context slows every operation
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        yield
