"""Runs tasks on all GPUs and nodes of a Ray cluster: a pool of actors, fed by a driver.

In: a job and its tasks. Out: each task's outcome when it is ready. The largest tasks run first, and
a worker gets its next task when it has finished one, so fast and slow GPUs end at about the same
time. Only tasks and small results pass through the driver.

A failed task runs again, on another node if possible, and with smaller batches if memory ran out;
after `ATTEMPTS` failures the run stops. Lost workers are replaced, and nodes that join are used.
Rejected: `ray.data` (its blocks pass through the object store), and Ray's own retries (they
consider neither nodes nor batches).
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from gradsieve.console import Progress
from gradsieve.engine.base import Engine, Finished, Job, Result, Task, Worker, duration
from gradsieve.engine.connect import connect, named_cluster
from gradsieve.engine.executor import RayExecutor
from gradsieve.engine.waiting import Attempt, Seat, Waiting
from gradsieve.engine.worker import VERSION, Failure, Node, Outcome, RayWorker, check_version
from gradsieve.errors import GradsieveError, RunError, UsageError, first_line
from gradsieve.io import needed
from gradsieve.recipe.schema import EngineConfig

ATTEMPTS = 3
"""Number of failures of a task that stop the run, or of a node that retire its workers."""

SECONDS_BETWEEN_LOOKS = 2.0
"""How often the driver looks for nodes that have joined."""

SECONDS_TO_WARN = 60.0
"""Time without any worker after which a warning is logged."""

CORES_A_WORKER = 4
"""For machines without GPUs: more threads gain little on small models, more workers take memory."""

RESUME = "The run's log.txt has details. Run the same command again: it resumes."


class RayEngine(Engine):
    """Runs tasks on a Ray cluster, or on a Ray instance started on this machine."""

    def __init__(self, settings: EngineConfig, progress: Progress) -> None:
        super().__init__(progress)
        # Read when Ray is imported; a later change is seen only by the processes that it starts.
        if "ray" not in sys.modules and (Path.home() / ".ray" / "auth_token").is_file():
            # `ray start` uses this token by default, `ray.init` doesn't; others need no token.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        self._ray: Any = needed("ray", "ray")
        logging.getLogger("ray").propagate = True  # to log.txt; `ray.init` removes its own handler
        self._settings = settings
        self._seats: list[Seat] = []
        self._calls: dict[Any, Seat] = {}
        self._bad_nodes: Counter[str] = Counter()
        self._failed_starts = 0
        self._started = False
        self._looked, self._idle_since = -math.inf, 0.0

    def close(self) -> None:
        """Stop the workers and disconnect from Ray, which ends if it was started here."""
        for seat in self._seats:
            self._ray.kill(seat.actor)
        self._seats, self._calls = [], {}
        if self._started:
            self._ray.shutdown()
            self._started = False

    def executor(self, start: Callable[..., object], *sent: object) -> tuple[Executor, int] | None:
        """An executor on the cluster's free cores; None if Ray is only on this machine."""
        if named_cluster(self._settings)[1] is None:
            return None
        self._connect()
        free = int(self._ray.available_resources().get("CPU", 0))
        return RayExecutor(self._ray, start, *sent), free

    def _run(self, job: Job[Task, Result], tasks: Sequence[Task]) -> Iterator[Finished]:
        self._connect()
        waiting, left = Waiting(job, tasks), len(tasks)
        reference = self._ray.put(job)
        self._idle_since = time.monotonic()
        self._bad_nodes.clear()  # by now a full disk may have room again
        for seat in self._seats:
            seat.has_job = False
        try:
            while left:
                self._look_for_nodes(left)
                self._hand_out(reference, waiting)
                for seat, outcome in self._ended():
                    if finished := self._finish(job, seat, outcome, waiting):
                        left -= 1
                        yield finished
        finally:
            self._free()

    # --- the cluster ----------------------------------------------------------------------------

    def _connect(self) -> None:
        """Connect to Ray, or start it here, unless the process has done so."""
        if self._ray.is_initialized():
            return
        connect(self._ray, self._settings)
        self._started = True
        if named_cluster(self._settings)[1] is not None:  # other nodes may join
            return
        (cpus, gpus), (_, own_cpus, own_gpus) = self._resources(), self._shape()
        if own_cpus > cpus or own_gpus > gpus:
            raise UsageError(
                "No worker fits on this machine.",
                f"engine, per worker: CPUs {own_cpus:g} (here {cpus:g}), "
                f"GPUs {own_gpus:g} (here {gpus:g})",
                "Lower engine.cpus_per_worker or engine.gpus_per_worker.",
            )

    def _resources(self) -> tuple[float, float]:
        """Total CPUs and GPUs of the nodes that are alive and not left out."""
        nodes = [
            node["Resources"]
            for node in self._ray.nodes()
            if node["Alive"] and self._bad_nodes[node["NodeID"]] < ATTEMPTS
        ]
        return sum(n.get("CPU", 0) for n in nodes), sum(n.get("GPU", 0) for n in nodes)

    def _shape(self) -> tuple[int, float, float]:
        """The number of workers (of the recipe, or that fit), and the CPUs and GPUs of each."""
        settings, (all_cpus, all_gpus) = self._settings, self._resources()
        gpus = settings.gpus_per_worker
        gpus = float(all_gpus > 0) if gpus is None else gpus
        if settings.cpus_per_worker:
            cpus = settings.cpus_per_worker
        elif gpus:
            cpus = 1.0
        elif settings.workers:  # a whole number, unless there are more workers than CPUs
            cpus = all_cpus / settings.workers
            cpus = float(int(cpus)) if cpus >= 1 else cpus
        else:
            cpus = min(CORES_A_WORKER, max(all_cpus, 1))
        room = int(all_gpus / gpus if gpus else all_cpus / (cpus or 1))
        count = settings.workers or room
        if self._bad_nodes:  # workers of nodes that are left out can't be replaced
            count = min(count, room)
        return max(1, count), cpus, gpus

    def _look_for_nodes(self, tasks: int) -> None:
        """Start workers where there is room: initially, after losses, and on new nodes."""
        now = time.monotonic()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        count, cpus, gpus = self._shape()
        for _ in range(min(count, tasks) - len(self._seats)):
            self._start_worker(cpus, gpus)

    def _start_worker(self, cpus: float, gpus: float) -> None:
        all_cpus, all_gpus = self._resources()
        threads = int(all_cpus / all_gpus * gpus if gpus and all_gpus else cpus)
        actor = (
            self._ray.remote(RayWorker)
            .options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")
            .remote(str(Path.cwd()), max(1, threads))
        )
        worker = Worker(f"worker {len(self.workers) + 1}", "")
        self.workers.append(worker)
        seat = Seat(actor, worker)
        self._seats.append(seat)
        self._calls[actor.node.remote()] = seat

    # --- tasks ----------------------------------------------------------------------------------

    def _hand_out(self, job: Any, waiting: Waiting) -> None:
        for seat in list(self._seats):
            if seat.node is None or seat.attempt is not None:
                continue
            if self._is_left_out(seat.node):
                self._lose(seat)
            elif attempt := waiting.take(seat, self._seats):
                seat.attempt, seat.group = attempt, attempt.group
                if not seat.has_job:
                    self._calls[seat.actor.begin.remote(job)] = seat
                    seat.has_job = True
                self._calls[seat.actor.run.remote(attempt.task)] = seat

    def _ended(self) -> Iterator[tuple[Seat, Outcome | Exception]]:
        """Yield calls that have ended, waiting up to SECONDS_BETWEEN_LOOKS for the first."""
        self._warn_if_idle()
        ready, _ = self._ray.wait(list(self._calls), timeout=SECONDS_BETWEEN_LOOKS)
        for call in self._up_to(ready):
            seat = self._calls.pop(call)
            if seat not in self._seats:  # lost in another of its calls
                continue
            try:
                found = self._ray.get(call)
            except self._ray.exceptions.RayError as error:
                self._lose(seat)
                if seat.attempt is None:
                    self._count_failed_start(seat, error)
                else:
                    yield seat, error
                continue
            if isinstance(found, Node):
                self._welcome(seat, found)
            elif isinstance(found, Outcome):
                yield seat, found

    def _up_to(self, ready: Sequence[Any]) -> list[Any]:
        """Calls that have ended, with each worker's earlier ones, whose answers may come later."""
        known, found = list(self._calls), []
        for last in ready:
            before = known[: known.index(last)]
            found += [call for call in before if self._calls[call] is self._calls[last]] + [last]
        return list(dict.fromkeys(found))  # both calls of a worker may be ready

    def _welcome(self, seat: Seat, found: Node) -> None:
        """Register a worker that has started, and check its version of gradsieve."""
        self._failed_starts = 0
        seat.node, seat.worker.node = found, found.name
        self.progress.note(f"  {seat.worker.name} is on {found.name}, process {found.process}")
        check_version(found.name, found.version, driver=VERSION)

    def _count_failed_start(self, seat: Seat, error: Exception) -> None:
        self._failed_starts += 1
        self.progress.warn(f"{seat.worker.name} did not start: {first_line(error)}")
        if self._failed_starts >= ATTEMPTS and not any(other.node for other in self._seats):
            raise RunError(
                "No worker starts.",
                first_line(error),
                "Install gradsieve with its libraries on every node, and free some memory there.",
            )

    def _warn_if_idle(self) -> None:
        """Warn once if the cluster has no room for any worker."""
        if any(seat.node for seat in self._seats):
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > SECONDS_TO_WARN:
            (_, cpus, gpus), free = self._shape(), self._ray.available_resources()
            self.progress.warn(
                f"waiting for room for a worker: CPUs {cpus:g} ({free.get('CPU', 0):g} free on "
                f"the cluster), GPUs {gpus:g} ({free.get('GPU', 0):g} free)"
            )
            self._idle_since = math.inf

    def _finish(
        self, job: Job[Any, Any], seat: Seat, outcome: Outcome | Exception, waiting: Waiting
    ) -> Finished | None:
        """Process a call that has ended; a failed task returns to the queue."""
        attempt, node, worker = seat.attempt, seat.node, seat.worker
        assert attempt is not None
        assert node is not None
        seat.attempt = None
        if isinstance(outcome, Outcome):
            worker.device = outcome.device
            for text, is_warning in outcome.lines:
                report = self.progress.warn if is_warning else self.progress.note
                report(f"{text} ({worker.name})")
            if outcome.failure is None:
                self._bad_nodes.pop(node.id, None)
                self._note(job, attempt.task, worker, outcome.seconds)
                return Finished(attempt.task, outcome.result, worker, outcome.seconds)
            failure = outcome.failure
        else:
            cause = getattr(outcome, "cause", None) or outcome  # Ray's own text starts with ids
            error = RunError(f"Its worker was lost: {first_line(cause)}.")
            # The kernel's OOM killer leaves no message: a repeated loss counts as lack of memory.
            memory = isinstance(outcome, self._ray.exceptions.OutOfMemoryError)
            failure = Failure(error, memory=memory or bool(attempt.failures))
        self._failed(job, attempt, seat, failure)
        waiting.add(attempt)
        return None

    def _failed(self, job: Job[Any, Any], attempt: Attempt, seat: Seat, failure: Failure) -> None:
        """Count a failure, and raise it if the task may not run again."""
        node = seat.node
        assert node is not None
        name = job.name(attempt.task)
        if failure.details:
            where = f"{name} on {node.name}, {seat.worker.name}"
            self.progress.note(f"{where}: {failure.details.rstrip()}")
        if not self._is_alive(node):
            self.progress.warn(f"node {node.name} was lost; {name} runs again")
            return
        attempt.failures.append((node, failure))
        if not failure.again or len(attempt.failures) >= ATTEMPTS:
            raise _stopped(name, attempt)
        cause = failure.error.what
        self.progress.warn(
            f"{name} failed on {node.name} ({seat.worker.name}) and runs again: {cause}"
        )
        if failure.memory:
            attempt.task = job.smaller(attempt.task)
        elif seat in self._seats:  # the node is at fault: its worker still runs
            self._bad_nodes[node.id] += 1
            if self._bad_nodes[node.id] == ATTEMPTS and self._is_left_out(node):
                self.progress.warn(f"node {node.name} is left out: {ATTEMPTS} tasks failed there")

    def _is_left_out(self, node: Node) -> bool:
        """Whether tasks have failed on a node repeatedly, and there are others."""
        others = (seat.node for seat in self._seats if seat.node)
        is_other_left = any(self._bad_nodes[other.id] < ATTEMPTS for other in others)
        return is_other_left and self._bad_nodes[node.id] >= ATTEMPTS

    def _is_alive(self, node: Node) -> bool:
        return any(one["NodeID"] == node.id and one["Alive"] for one in self._ray.nodes())

    def _lose(self, seat: Seat) -> None:
        self._seats.remove(seat)
        self._ray.kill(seat.actor)

    def _free(self) -> None:
        """Stop busy workers; idle ones free their memory, and starting ones continue to start."""
        for seat in list(self._seats):
            if seat.attempt is not None:
                self._lose(seat)
            elif seat.node is not None:
                seat.actor.begin.remote(None)
        self._calls = {call: seat for call, seat in self._calls.items() if seat.node is None}

    def _note(self, job: Job[Any, Any], task: Any, worker: Worker, seconds: float) -> None:
        size = job.size(task)
        units = f": {size.units:,} {job.unit}" if size.units > 1 else ""
        done = f"{job.name(task)}{units} in {duration(seconds, size.tokens)}"
        self.progress.note(f"  {worker.name} on {worker.node}: {done}")


def _stopped(name: str, attempt: Attempt) -> GradsieveError:
    """The last failure's error, with the task and the nodes where it failed."""
    error = attempt.failures[-1][1].error
    nodes = ", ".join(dict.fromkeys(node.name for node, _ in attempt.failures))
    times = f"failed {len(attempt.failures)} times, " if len(attempt.failures) > 1 else ""
    error.where = f"{error.where}; {name}: {times}on {nodes}".lstrip("; ")
    error.todo = error.todo or RESUME
    return error
