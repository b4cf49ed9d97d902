"""The interface between stages and engines: a job, its tasks, and the engine that runs them.

In: a `Job` and its tasks, all of which can be pickled. Out: each task's result as soon as the task
ends. A task writes its own file or folder atomically and writes the same bytes if it runs twice, so
a stage that was killed runs only the tasks whose files are missing.
"""

from __future__ import annotations

import platform
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from gradsieve.console import Progress, Report, clock

Task = TypeVar("Task")
Result = TypeVar("Result")


class Size(NamedTuple):
    """The size of a task: units of its job, and tokens if they are counted."""

    units: int = 1
    tokens: int = 0


class Job(ABC, Generic[Task, Result]):
    """A description of work shared by many tasks; `unit` is what progress counts."""

    unit: str = "tasks"

    @abstractmethod
    def setup(self, progress: Progress) -> Callable[[Task], Result]:
        """Load what all tasks need; called once per worker. Returns a function that runs a task."""

    def size(self, task: Task) -> Size:
        """The size of a task."""
        return Size()

    def group(self, task: Task) -> Hashable:
        """A task's group; tasks of the same group share what a worker has loaded."""
        return None

    def smaller(self, task: Task) -> Task:
        """The same task with half the batch size, for another attempt after memory ran out."""
        return task

    def name(self, task: Task) -> str:
        """A task's name in messages."""
        return str(task)


@dataclass
class Worker:
    """A process on a node, its device, and the work it has completed since the last `take`."""

    name: str
    node: str
    device: str = "cpu"
    tasks: int = 0
    units: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, size: Size, seconds: float) -> None:
        """Count a finished task."""
        self.tasks += 1
        self.units += size.units
        self.tokens += size.tokens
        self.seconds += seconds

    def take(self) -> dict[str, Any]:
        """Return the completed work as JSON data, and reset the counts."""
        done = asdict(self)
        self.tasks = self.units = self.tokens = 0
        self.seconds = 0.0
        return {**done, "seconds": round(done["seconds"], 3)}


class Finished(NamedTuple):
    """A finished task, its result, and where and how long it ran."""

    task: Any
    result: Any
    worker: Worker
    seconds: float


class Engine(ABC):
    """Runs tasks on its `workers`. The bytes they write don't depend on the engine."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.workers: list[Worker] = []
        self._seconds = 0.0

    def map(
        self, job: Job[Task, Result], tasks: Sequence[Task], what: str = "", done: int = 0
    ) -> Iterator[Result]:
        """Run a job's tasks; if there are none, nothing is set up.

        Args:
            job: The job, which is sent to each worker once.
            tasks: Tasks in the order in which a single worker runs them; several workers run the
                largest first.
            what: Label of the progress line; if empty, no line is shown.
            done: Number of units that were completed before.

        Yields:
            Each task's result when it is ready.

        Raises:
            GradsieveError: If a task fails; tasks that finished before keep their files.
        """
        total = done + sum(job.size(task).units for task in tasks)
        start, tokens = time.monotonic(), 0
        ignored = nullcontext[Report](lambda *_: None)
        with self.progress.counting(what, total, job.unit) if what else ignored as report:
            report(done)
            for task, result, worker, seconds in self._run(job, tasks) if tasks else ():
                size = job.size(task)
                worker.add(size, seconds)
                done, tokens = done + size.units, tokens + size.tokens
                rate = tokens / max(time.monotonic() - start, 1e-9)
                report(done, f"{rate:,.0f} tokens/s" if tokens else "")
                yield result
        self._seconds += time.monotonic() - start

    def take_work(self) -> list[dict[str, Any]]:
        """Return and log the work of each worker since the last call, as JSON data."""
        wall, self._seconds = max(self._seconds, 1e-9), 0.0
        work = [worker.take() for worker in self.workers if worker.tasks]
        for one in work:
            tasks = f"{one['tasks']} task{'s' * (one['tasks'] != 1)}"
            self.progress.note(
                f"  {one['name']} ({one['node']}, {one['device']}): {tasks} in "
                f"{duration(one['seconds'], one['tokens'])}, busy {one['seconds'] / wall:.0%}"
            )
        return work

    def executor(self, start: Callable[..., object], *sent: object) -> tuple[Executor, int] | None:
        """An executor on a cluster's free cores, and their number; None if there is no cluster.

        Each of its processes calls `start(*sent)` first.
        """
        return None

    def close(self) -> None:  # noqa: B027 - optional
        """Stop everything that was started for this run."""

    @abstractmethod
    def _run(self, job: Job[Task, Result], tasks: Sequence[Task]) -> Iterator[Finished]:
        """Run a job's tasks (at least one) and yield each when it has finished."""


class LocalEngine(Engine):
    """An engine with one worker: this process, which runs tasks one after the other."""

    def _run(self, job: Job[Task, Result], tasks: Sequence[Task]) -> Iterator[Finished]:
        run = job.setup(self.progress)
        if not self.workers:
            self.workers.append(Worker("this process", platform.node()))
        worker = self.workers[0]
        for task in tasks:
            start = time.monotonic()
            result = run(task)
            worker.device = device_name()
            yield Finished(task, result, worker, time.monotonic() - start)


def duration(seconds: float, tokens: int) -> str:
    """How long work took, with its tokens per second if tokens are counted."""
    return clock(seconds) + (f", {tokens / max(seconds, 1e-9):,.0f} tokens/s" if tokens else "")


def device_name() -> str:
    """The name of the device that this process has computed on."""
    torch = sys.modules.get("torch")  # if nothing has imported it, no GPU is in use
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return "cpu"
