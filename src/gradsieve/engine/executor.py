"""Runs functions on the cores of a Ray cluster, as a `concurrent.futures.Executor`.

In: calls that can be pickled. Out: their results. Unlike a job's tasks (ray.py), calls need
no GPU and no long setup, there are many of them, and their results are small enough to return to
the driver. Ray repeats a call whose process or node is lost, and uses nodes that join.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import lru_cache, partial
from typing import Any

from gradsieve.engine.worker import VERSION, check_version
from gradsieve.errors import GradsieveError, RunError, first_line
from gradsieve.io import needed


class RayExecutor(Executor):
    """An executor on a cluster that `ray` is connected to; each call takes one core.

    Args:
        start: Called in each process before its first call, with `sent`.
    """

    def __init__(self, ray: Any, start: Callable[..., object], *sent: object) -> None:
        self._call = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_call)
        self._start = ray.put(partial(start, *sent))

    def submit(self, call: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        """Run `call(*args, **named)` on a free core.

        The future raises a GradsieveError of the call itself, or a RunError if the call couldn't
        run (no such version of gradsieve there, repeated losses) or failed in another way.
        """
        # In a list, Ray passes the reference itself, not its value, which a process needs once.
        running = self._call.remote(VERSION, [self._start], partial(call, *args, **named))
        found: Future[Any] = Future()
        running.future().add_done_callback(partial(_pass_on, found))
        return found


def _call(driver: str, start: list[Any], call: Callable[[], Any]) -> Any:
    check_version(platform.node(), VERSION, driver)
    _start_once(*start)
    return call()


@lru_cache(maxsize=1)
def _start_once(start: Any) -> None:
    """Prepare this process for calls of an executor, unless it was the last one prepared for."""
    needed("ray", "ray").get(start)()


def _pass_on(found: Future[Any], ended: Future[Any]) -> None:
    """Set a future's result or exception to those of Ray's future."""
    error = ended.exception()
    if error is None:
        found.set_result(ended.result())
        return
    cause = getattr(error, "cause", None) or error  # what the call raised
    if not isinstance(cause, GradsieveError):
        cause = RunError(
            "A process on the Ray cluster failed.",
            f"{type(cause).__name__}: {first_line(cause)}",
            "Run the same command again: it resumes. If it fails again, install gradsieve with its "
            "libraries on every node, and free some memory there.",
        )
        cause.__cause__ = error  # has the traceback
    found.set_exception(cause)
