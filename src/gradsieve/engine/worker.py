"""What runs in a worker process of Ray: a job's tasks, one at a time.

In: a job, then tasks. Out: an `Outcome` for each task, which is small: results are files that tasks
write, and a failure is data, so that the driver decides whether the task runs again.

Nothing heavy is imported until a job is unpickled: threads must be limited before.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gradsieve.console import Counter, Progress, clock
from gradsieve.engine.base import Job, device_name
from gradsieve.errors import GradsieveError
from gradsieve.io import needed

VERSION = importlib.metadata.version("gradsieve")

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
"""Variables that limit the threads of torch, MKL, numba and tokenizers."""

NO_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In messages of errors that mean that memory has run out."""


Line = tuple[str, bool]
"""What a task has reported, and whether it is a warning."""


@dataclass
class Failure:
    """Why a task has failed.

    Attributes:
        error: The message for the user.
        details: Of an error that isn't gradsieve's own, the traceback.
        again: Whether another attempt may succeed.
        memory: Whether memory has run out.
    """

    error: GradsieveError
    details: str = ""
    again: bool = True
    memory: bool = False


class Outcome(NamedTuple):
    """How a task has ended: with a result or a failure; the seconds include loading."""

    seconds: float
    device: str
    result: Any
    failure: Failure | None
    lines: list[Line]


class Node(NamedTuple):
    """Where a worker runs: Ray's id of the machine, its name, the process, gradsieve's version."""

    id: str
    name: str
    process: int
    version: str


class RayWorker:
    """An actor.

    Args:
        cwd: The driver's working directory, below which names in a recipe are looked up.
        threads: That it may use.
    """

    def __init__(self, cwd: str, threads: int) -> None:
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # these two as in `__main__`
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        if Path(cwd).is_dir():  # a folder in the cloud needs none
            os.chdir(cwd)
        self._progress = Collected()
        self._job: Job[Any, Any] | None = None
        self._run: Callable[[Any], Any] | None = None

    def node(self) -> Node:
        """Where it runs; the first answer means that it has started."""
        context = needed("ray", "ray").get_runtime_context()
        return Node(context.get_node_id(), platform.node(), os.getpid(), VERSION)

    def begin(self, job: Job[Any, Any] | None) -> None:
        """Take a job, or None to free what the last one holds."""
        self._job, self._run = job, None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

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


def failure_of(error: Exception) -> Failure:
    """What an exception means for its task."""
    memory = isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY)
    if isinstance(error, GradsieveError):
        # A file system may fail on one machine only; other messages are the same anywhere.
        return Failure(error, again=isinstance(error.__cause__, OSError))
    what = f"A task failed: {type(error).__name__}: {error}".rstrip(": ")
    where = str(getattr(error, "filename", None) or "")
    return Failure(GradsieveError(what, where), traceback.format_exc(), memory=memory)


class Collected(Progress):
    """Keeps what a task reports for the driver."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self._kept: list[Line] = []

    def take(self) -> list[Line]:
        """What was reported since the last call."""
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
    def counting(self, what: str, total: int | None, unit: str) -> Iterator[Counter]:
        """Keep how long the work took."""
        start, last = time.monotonic(), 0.0

        def report(done: float, also: str = "") -> None:
            nonlocal last
            last = done

        yield report
        self.say(f"  {what}: {last:,.0f} {unit} in {clock(time.monotonic() - start)}")
