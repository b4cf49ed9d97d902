"""Handles signals that end a command: exit status as shells expect, and a line on what was kept."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from gradsieve.cli.shared import echo

STOPPING = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGUSR1: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
"""Signals that end a run, and their default handlers: Ctrl-C, the warnings of clusters, a closed
terminal."""

AGAIN_SECONDS = 0.1
"""Some code swallows all exceptions: pydantic while it serializes, `__del__`, a library's bare
`except`. After this many seconds, a signal's exception is raised again."""


@contextmanager
def interruptible(out: Path | None = None) -> Iterator[None]:
    """On a signal, exit with the status that shells expect, and print what a run has kept.

    A second signal, while the first is still closing files and processes, exits at once: files on
    disk are complete at any moment.
    """
    kept = f"\nstopped. Finished stages, epochs and shards are kept in {out}: "
    kept += "run the same command again to resume."

    def stop(number: int, _: Any) -> None:
        for one in STOPPING:
            signal.signal(one, lambda number, _: os._exit(128 + number))

        def raised(*_: Any) -> None:
            if not _is_closing():
                name = [signal.Signals(number).name] * (number != signal.SIGINT)
                raise KeyboardInterrupt(*name)

        signal.signal(signal.SIGALRM, raised)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
        raised()

    in_main = threading.current_thread() is threading.main_thread()
    previous = {one: signal.getsignal(one) for one in STOPPING if in_main}
    for one, handler in previous.items():
        if handler == STOPPING[one]:
            signal.signal(one, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        if out is not None:
            echo(kept, err=True)
        number = signal.Signals[error.args[0]] if error.args else signal.SIGINT
        raise typer.Exit(128 + number) from None
    finally:
        if previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in previous.items():
            if signal.getsignal(one) is stop:
                signal.signal(one, handler)


def _is_closing() -> bool:
    """Whether the signal's exception is propagating, through blocks that close open resources."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
