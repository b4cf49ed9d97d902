"""The queue of tasks, and the choice of a worker's next task.

In: a job's tasks and the current workers. Out: the next task for a worker: preferably one of the
group it has loaded, the largest first, and not one that has failed on its node. A task that has
failed comes last in its group: if it stops the run, the others are finished by then, and if workers
are killed one after the other, the same task is rarely hit twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradsieve.engine.base import Job, Worker
from gradsieve.engine.worker import Failure, Node


@dataclass
class Attempt:
    """A task that waits or runs, and its failures so far."""

    task: Any
    group: Hashable
    failures: list[tuple[Node, Failure]] = field(default_factory=list)


@dataclass
class Seat:
    """A worker that is starting, idle, or running an attempt."""

    actor: Any
    worker: Worker
    node: Node | None = None
    attempt: Attempt | None = None
    group: Hashable = None
    has_job: bool = False


class Waiting:
    """Waiting tasks by group: tasks of a group share what a worker has loaded."""

    def __init__(self, job: Job[Any, Any], tasks: Sequence[Any]) -> None:
        self._groups: dict[Hashable, list[Attempt]] = {}
        for task in sorted(
            tasks, key=lambda task: (job.size(task).tokens, job.size(task).units), reverse=True
        ):
            self.add(Attempt(task, job.group(task)))

    def add(self, attempt: Attempt) -> None:
        """Add an attempt at the end of its group."""
        self._groups.setdefault(attempt.group, []).append(attempt)

    def take(self, seat: Seat, seats: Sequence[Seat]) -> Attempt | None:
        """The next task: of the worker's loaded group, else of the group with most per worker.

        A task that has failed on the worker's node is left to workers on other nodes, if any.
        """
        node = seat.node
        assert node is not None
        nodes = {other.node.id for other in seats if other.node}
        busy = Counter(other.group for other in seats if other.attempt is not None)
        for group in sorted(
            self._groups,
            key=lambda one: (one != seat.group, -len(self._groups[one]) / (1 + busy[one])),
        ):
            attempts = self._groups[group]
            for place, attempt in enumerate(attempts):
                failed_on = {other.id for other, _ in attempt.failures}
                if node.id not in failed_on or nodes <= failed_on:
                    del attempts[place]
                    if not attempts:
                        del self._groups[group]
                    return attempt
        return None
