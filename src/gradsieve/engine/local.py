"""Tasks one after the other in this process, on its device."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence

from gradsieve.engine.base import Engine, Finished, Job, Result, Task, Worker, device_name


class LocalEngine(Engine):
    """One worker: this process."""

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
