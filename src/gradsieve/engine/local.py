"""Tasks one after the other in this process, on its device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradsieve.console import Progress
from gradsieve.engine.base import Job, Result, Task


@dataclass(frozen=True)
class LocalEngine:
    """One worker, this process.

    Attributes:
        progress: Where tasks report.
    """

    progress: Progress

    def map(self, job: Job[Task, Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Run a job's tasks; without tasks nothing is set up."""
        if tasks:
            yield from map(job.setup(self.progress), tasks)
