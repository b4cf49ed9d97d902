"""What a stage hands to an engine: a job, and the tasks to run with it.

In: a `Job`, which can be pickled, and its tasks, which can be pickled too. Out: each task's result
as soon as the task has ended. A task writes its own file or folder atomically and may run twice
with the same bytes, so a stage that was killed hands out only the tasks whose files are missing.
"""

from __future__ import annotations

import platform
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from gradsieve.console import Counter, Progress, clock

Task = TypeVar("Task")
Result = TypeVar("Result")


class Size(NamedTuple):
    """How much work a task is: units of the job, and tokens where these are counted."""

    units: int = 1
    tokens: int = 0

    @property
    def work(self) -> int:
        """By which tasks are compared."""
        return self.tokens or self.units


class Job(ABC, Generic[Task, Result]):
    """A description of work that is the same for many tasks; `unit` is what progress counts."""

    unit: str = "tasks"

    @abstractmethod
    def setup(self, progress: Progress) -> Callable[[Task], Result]:
        """Load what all tasks need, once per worker; returns a function that runs one task."""

    def size(self, task: Task) -> Size:
        """How much work a task is."""
        return Size()

    def group(self, task: Task) -> Hashable:
        """Tasks of the same group share what a worker keeps for them."""
        return None

    def smaller(self, task: Task) -> Task:
        """The task with half the batch, for another attempt after memory has run out."""
        return task

    def name(self, task: Task) -> str:
        """A task's name in messages."""
        return str(task)


@dataclass
class Worker:
    """A process on a node, the device it computes on, and what it has done since `take`."""

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
        """What it has done as JSON data, and count from here."""
        done = asdict(self)
        self.tasks = self.units = self.tokens = 0
        self.seconds = 0.0
        return {**done, "seconds": round(done["seconds"], 3)}


class Finished(NamedTuple):
    """A task that has ended, its result, and where and how long it ran."""

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
        """Run a job's tasks; without tasks nothing is set up.

        Args:
            job: Sent to each worker once.
            tasks: In order of one worker; several workers take the largest first.
            what: Label of the progress line; empty: there is none.
            done: Units that were finished before.

        Yields:
            Each task's result when it is ready.

        Raises:
            GradsieveError: What a task raises; tasks that were finished before keep their files.
        """
        total = done + sum(job.size(task).units for task in tasks)
        start, tokens = time.monotonic(), 0
        counting: AbstractContextManager[Counter] = nullcontext(_unreported)
        if what:
            counting = self.progress.counting(what, total, job.unit)
        with counting as report:
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
        """What each worker has done since the last call, as JSON data; it is logged too."""
        wall, self._seconds = max(self._seconds, 1e-9), 0.0
        work = [worker.take() for worker in self.workers if worker.tasks]
        for one in work:
            speed = f", {one['tokens'] / max(one['seconds'], 1e-9):,.0f} tokens/s"
            self.progress.note(
                f"  {one['name']} ({one['node']}, {one['device']}): {one['tasks']} tasks in "
                f"{clock(one['seconds'])}{speed if one['tokens'] else ''}, "
                f"busy {one['seconds'] / wall:.0%}"
            )
        return work

    def close(self) -> None:  # noqa: B027 - optional
        """End what was started for this run."""

    @abstractmethod
    def _run(self, job: Job[Task, Result], tasks: Sequence[Task]) -> Iterator[Finished]:
        """Run a job's tasks, at least one, and yield each that has ended."""


def _unreported(done: float, also: str = "") -> None:
    """In place of a progress line."""


class LocalEngine(Engine):
    """One worker: this process, which runs the tasks one after the other on its device."""

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


def device_name() -> str:
    """What this process computes on, once it has computed."""
    torch = sys.modules.get("torch")  # where nothing has imported it, no GPU is in use
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return "cpu"
