"""Processes the chunks of a pool on all cores of this machine, or of a cluster that has more.

In: a stream of chunks of raw rows. Out: finished chunks, in the same order. This process handles
small sources, since starting workers takes seconds (each loads the tokenizer's libraries).

Rejected: only the tokenizer's own threads (parsing and rendering are Python: they would keep one
core busy and leave the others idle); `multiprocessing.Pool` (waits forever for a killed worker).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import psutil

from gradsieve.console import Progress
from gradsieve.data.pool.chunks import Chunk, RawChunk, make_chunk
from gradsieve.data.template import ChatTemplate
from gradsieve.engine.base import Engine
from gradsieve.errors import DataError

WORTH_STARTING = 4
"""Minimum number of chunks in a source for which worker processes are started."""

MOST_ELSEWHERE = 16
"""Maximum number of a cluster's cores that counts. About 17 keep the process that writes the pool
busy; twice as many chunks are under way, so no more than 33 are used."""

SECONDS_TO_WARN = 60.0
"""Time without a chunk, which is less than a second's work, after which a warning is logged."""

WORKER_BYTES = 1 << 29
"""Memory per worker; the libraries take about half of it."""


class Workers:
    """Worker processes that make chunks; started when there is enough work."""

    def __init__(self, template: ChatTemplate | None, engine: Engine | None = None) -> None:
        self._template, self._engine = template, engine
        self._count = default_workers()
        self._executor: Executor | None = None
        self._warns: Progress | None = None

    def close(self) -> None:
        """End the processes."""
        if self._executor:
            self._executor.shutdown(cancel_futures=True)

    def make(self, chunks: Iterator[RawChunk], only_check: Callable[[], bool]) -> Iterator[Chunk]:
        """Make chunks, in order, which are read just far enough ahead to keep processes busy.

        `only_check` returns whether chunks that are started now need no tokenizing.

        Raises:
            DataError: If a process is killed.
        """
        first = list(islice(chunks, WORTH_STARTING))
        chunks = chain(first, chunks)
        if self._executor is None and len(first) == WORTH_STARTING:
            self._start_executor()
        if self._executor is None:
            for chunk in chunks:
                yield make_chunk(chunk, self._template, only_check())
            return
        pending: deque[Future[Chunk]] = deque()
        try:
            for chunk in chunks:
                pending.append(self._submit(chunk, only_check()))
                if len(pending) > 2 * self._count:
                    yield self._result(pending.popleft())
            while pending:
                yield self._result(pending.popleft())
        except BrokenProcessPool:
            raise DataError(
                "A process that tokenizes the pool was killed.",
                f"source {first[0].spec.name}, {self._count} processes",
                "Run the same command again: it resumes. If it is killed again, free some memory.",
            ) from None

    def _start_executor(self) -> None:
        """Start processes where there are more cores; none if there is only one."""
        engine, self._engine = self._engine, None  # asked once, not for each source
        if engine and (found := engine.executor(_start, self._template)):
            executor, free = found
            more = free > self._count
            engine.progress.note(
                f"pool: tokenized {'on the cluster' if more else 'here'}, because {free} cores are "
                f"free on the cluster, {self._count} here"
            )
            if more:
                self._executor, self._count = executor, min(free, MOST_ELSEWHERE)
                self._warns = engine.progress
                return
        if self._count > 1:
            self._executor = ProcessPoolExecutor(
                self._count, _context(), initializer=_start, initargs=(self._template,)
            )

    def _submit(self, chunk: RawChunk, only_check: bool) -> Future[Chunk]:
        assert self._executor is not None
        with _main_hidden():  # this may start a process
            return self._executor.submit(_make, chunk, only_check)

    def _result(self, chunk: Future[Chunk]) -> Chunk:
        """A finished chunk; warns once if the cluster's cores have been taken meanwhile."""
        if self._warns and wait([chunk], SECONDS_TO_WARN).not_done:
            self._warns.warn(
                "pool: waiting for the cluster: none of its cores has tokenized the next rows in "
                f"{SECONDS_TO_WARN:.0f} s; other programs may use them"
            )
            self._warns = None
        return chunk.result()


def default_workers() -> int:
    """The number of cores that this process may use, limited by the memory for their workers."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(cores, int(psutil.virtual_memory().available) // WORKER_BYTES))


def _context() -> multiprocessing.context.BaseContext:
    """A context of fresh processes: a fork would copy the locks of this one's threads and CUDA."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # the libraries are loaded once and shared
    return context


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep new processes from running the user's script, which may have no `__main__` guard."""
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {
        name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)
    }
    try:
        main.__spec__ = None
        yield
    finally:
        vars(main).update(hidden)


_template: ChatTemplate | None


def _start(template: ChatTemplate | None) -> None:
    global _template
    _template = template
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each core already has a process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit with the parent, which can't end its workers if it is killed."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _make(chunk: RawChunk, only_check: bool) -> Chunk:
    return make_chunk(chunk, _template, only_check)
