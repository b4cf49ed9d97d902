"""A Ray worker process, which runs a job's tasks one at a time.

In: a job, then tasks. Out: a small `Outcome` for each task: tasks write their results to files, and
failures are returned as data, so that the driver decides whether a task runs again.

Heavy libraries are imported only when a job is unpickled, after the thread limits are set.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gradsieve.console import Progress, Report, clock
from gradsieve.engine.base import Job, device_name
from gradsieve.errors import GradsieveError, RunError
from gradsieve.io import needed

VERSION = importlib.metadata.version("gradsieve")

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
"""Environment variables that limit the threads of torch, MKL, numba and tokenizers."""

NO_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Parts of error messages that mean that memory ran out."""


Line = tuple[str, bool]
"""A line that a task reported, and whether it is a warning."""


@dataclass
class Failure:
    """Why a task failed.

    Attributes:
        error: The message for the user.
        details: The traceback of an error that isn't gradsieve's own, else empty.
        again: Whether another attempt may succeed.
        memory: Whether memory ran out.
    """

    error: GradsieveError
    details: str = ""
    again: bool = True
    memory: bool = False


class Outcome(NamedTuple):
    """The result or failure of a task; `seconds` includes loading."""

    seconds: float
    device: str
    result: Any
    failure: Failure | None
    lines: list[Line]


class Node(NamedTuple):
    """Where a worker runs: Ray's node id, host name, process id, and gradsieve's version."""

    id: str
    name: str
    process: int
    version: str


class RayWorker:
    """A Ray actor that runs tasks.

    Args:
        cwd: The driver's working directory, which the recipe's paths are relative to.
        threads: Number of threads that it may use.
    """

    def __init__(self, cwd: str, threads: int) -> None:
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # this and the next as in `__main__`
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        if Path(cwd).is_dir():  # not needed if all paths are in the cloud
            os.chdir(cwd)
        self._progress = Collected()
        self._job: Job[Any, Any] | None = None
        self._run: Callable[[Any], Any] | None = None

    def node(self) -> Node:
        """Where the worker runs; the first answer means that it has started."""
        context = needed("ray", "ray").get_runtime_context()
        return Node(context.get_node_id(), platform.node(), os.getpid(), VERSION)

    def begin(self, job: Job[Any, Any] | None) -> None:
        """Accept a job; None frees what the last job holds."""
        self._job, self._run = job, None
        gc.collect()
        if torch := sys.modules.get("torch"):
            torch.cuda.empty_cache()  # does nothing if no GPU is in use

    def run(self, task: Any) -> Outcome:
        """Run a task."""
        start, result, failure = time.monotonic(), None, None
        try:
            if self._run is None:
                assert self._job is not None, "a job comes first"
                self._run = self._job.setup(self._progress)
            result = self._run(task)
        except Exception as error:
            failure = failure_of(error)
        seconds = time.monotonic() - start
        return Outcome(seconds, device_name(), result, failure, self._progress.take())


def check_version(node: str, version: str, driver: str) -> None:
    """Raise a RunError if a node's version of gradsieve is not the driver's."""
    if version != driver:
        raise RunError(
            "The nodes have different versions of gradsieve.",
            f"{node} {version}, the driver {driver}",
            "Install the same version on every node.",
        )


def failure_of(error: Exception) -> Failure:
    """The failure that an exception causes."""
    cause = error.__cause__ if isinstance(error, GradsieveError) else error
    memory = isinstance(cause, MemoryError) or any(text in str(cause) for text in NO_MEMORY)
    if isinstance(error, GradsieveError):
        # A file system may fail on one machine only, and other programs may leave a GPU more memory
        # later; other errors are the same everywhere. The copy has no traceback, whose frames would
        # keep a model.
        return Failure(copy(error), again=memory or isinstance(cause, OSError), memory=memory)
    what = f"A task failed: {type(error).__name__}: {error}".rstrip(": ")
    where = str(getattr(error, "filename", None) or "")
    return Failure(RunError(what, where), traceback.format_exc(), memory=memory)


class Collected(Progress):
    """Collects a task's messages for the driver."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self._kept: list[Line] = []

    def take(self) -> list[Line]:
        """The lines reported since the last call."""
        kept, self._kept = self._kept, []
        return kept

    def say(self, text: str) -> None:
        """Keep a line."""
        self._kept.append((text, False))

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self._kept.append((text, True))

    note = say

    @contextmanager
    def counting(self, what: str, total: int | None, unit: str) -> Iterator[Report]:
        """Keep a line with the amount of work and how long it took."""
        start, last = time.monotonic(), 0.0

        def report(done: float, also: str = "") -> None:
            nonlocal last
            last = done

        yield report
        self.say(f"  {what}: {last:,.0f} {unit} in {clock(time.monotonic() - start)}")
