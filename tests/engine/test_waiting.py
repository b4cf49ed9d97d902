"""Which task a worker gets: the largest first; failed ones last, and on another node."""

from collections.abc import Callable
from typing import Any

from gradsieve.console import Progress
from gradsieve.engine import Job, Size
from gradsieve.engine.base import Worker
from gradsieve.engine.waiting import Seat, Waiting
from gradsieve.engine.worker import Failure, Node
from gradsieve.errors import GradsieveError


class Sized(Job[int, None]):
    """A job whose tasks are their own sizes."""

    def setup(self, progress: Progress) -> Callable[[int], None]:
        raise NotImplementedError

    def size(self, task: int) -> Size:
        return Size(task)


def seat(name: str) -> Seat:
    return Seat(None, Worker(name, name), Node(name, name, 1, ""))


def taken(waiting: Waiting, seats: list[Seat], by: Seat) -> Any:
    found = waiting.take(by, seats)
    return found and found.task


def fails(waiting: Waiting, seats: list[Seat], by: Seat) -> int:
    """A worker takes a task and is lost; returns the task."""
    attempt = waiting.take(by, seats)
    assert attempt
    assert by.node
    attempt.failures.append((by.node, Failure(GradsieveError("lost"))))
    waiting.add(attempt)
    return int(attempt.task)


def test_a_task_that_has_failed_comes_last() -> None:
    waiting, one = Waiting(Sized(), [1, 3, 2]), seat("one")
    assert fails(waiting, [one], one) == 3
    assert [taken(waiting, [one], one) for _ in range(4)] == [2, 1, 3, None]


def test_it_runs_on_another_node_if_there_is_one() -> None:
    one, other = seats = [seat("one"), seat("other")]
    waiting = Waiting(Sized(), [1])
    assert fails(waiting, seats, one) == 1
    assert taken(waiting, seats, one) is None
    assert taken(waiting, seats, other) == 1
