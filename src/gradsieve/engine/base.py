"""What a stage hands to an engine: a job, and the tasks to run with it.

In: a `Job`, which can be pickled, and its tasks, which can be pickled too. Out: each task's result,
in the order of the tasks. A task writes its own file or folder atomically and may run twice with
the same bytes, so a stage that was killed hands out only the tasks whose files are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from gradsieve.console import Progress

Task = TypeVar("Task")
Result = TypeVar("Result")
Task_contra = TypeVar("Task_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Job(Protocol[Task_contra, Result_co]):
    """A description of work that is the same for many tasks."""

    def setup(self, progress: Progress) -> Callable[[Task_contra], Result_co]:
        """Load what all tasks need, once per worker.

        Args:
            progress: Where the worker reports.

        Returns:
            A function that runs one task.
        """


class Engine(Protocol):
    """Runs tasks. The bytes they write don't depend on the engine."""

    def map(self, job: Job[Task, Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Run a job's tasks; yields their results in order, each when it is ready.

        Raises:
            GradsieveError: What a task raises; tasks that were finished before keep their files.
        """
