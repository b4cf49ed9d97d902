"""Terminal and log: Python's `logging` for lines, rich's progress bars for long work.

Standard output is reserved for results: everything here goes to standard error and `RUN/log.txt`.
Modules log to `logging.getLogger(__name__)`, below the logger `gradsieve`; a `Progress` shows these
records while it is active. Rejected: tqdm, whose lines pile up in log files.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import TaskID

from gradsieve.console.bars import STAGES, amount, clock, make_bars, shortened, status
from gradsieve.console.lines import (
    ConsoleHandler,
    clean,
    clean_lines,
    file_handler,
    log,
    third_parties_to,
)
from gradsieve.errors import UsageError

__all__ = ["Progress", "Report", "clean", "clean_lines", "clock", "log", "progress_for"]

SECONDS_BETWEEN_LINES = 10.0
"""How often progress is reported in the log file, and on standard error if it is no terminal."""

Report = Callable[..., None]
"""Called with the units done so far, and optionally text that is added to the progress line."""


class Progress:
    """Reports what a run does: bars and lines on a terminal, lines elsewhere, and the log file.

    Args:
        quiet: Show warnings only.
    """

    def __init__(self, quiet: bool = False) -> None:
        terminal = sys.stderr.isatty()
        # Keeps the stream: sys.stderr is replaced while another library is silenced.
        self._console = Console(file=sys.stderr, force_terminal=terminal, force_jupyter=False)
        self._has_bars = terminal and not quiet and not self._console.is_dumb_terminal
        self._bars = make_bars(self._console, disable=not self._has_bars)
        self._lines = ConsoleHandler(self._console, logging.WARNING if quiet else logging.INFO)
        self._stages: TaskID | None = None
        self._active = False
        self._on_line: Callable[[], None] = lambda: None

    @contextmanager
    def running(self, stages: Sequence[str], log_file: Path | None) -> Iterator[None]:
        """During a run, show its stages, write a log file, and silence other libraries."""
        file = file_handler(log_file)
        with closing(file), third_parties_to(file), self._activated(file):
            if stages:
                self._stages = self._bars.add_task(
                    "checking the inputs", total=len(stages), unit=STAGES
                )
            try:
                yield
            finally:
                if self._stages is not None:
                    self._bars.remove_task(self._stages)
                    self._stages = None

    @contextmanager
    def _activated(self, *handlers: logging.Handler) -> Iterator[None]:
        """Show bars, and send gradsieve's records only here; restores the logger afterwards."""
        before, level, propagate = log.handlers[:], log.level, log.propagate
        log.handlers[:] = [self._lines, *handlers]
        log.setLevel(logging.DEBUG)
        log.propagate = False
        self._active = True
        try:
            with self._bars:
                yield
        finally:
            self._active = False
            log.handlers[:] = before
            log.setLevel(level)
            log.propagate = propagate

    def begin(self, stage: str) -> None:
        """Report that a stage starts."""
        self._advance_stages(0, stage)
        self.say(f"{stage}: starting")

    def end(self, stage: str, how: str) -> None:
        """Report how a stage has ended, e.g. `done in 42 s`."""
        self._advance_stages(1, stage)
        self.say(f"{stage}: {how}")

    def _advance_stages(self, steps: int, stage: str) -> None:
        if self._stages is not None:
            self._bars.update(self._stages, advance=steps, description=stage)

    def say(self, text: str) -> None:
        """Log a line."""
        self._log(logging.INFO, text)

    def warn(self, text: str) -> None:
        """Log a warning, which is shown even if quiet."""
        self._log(logging.WARNING, text)

    def note(self, text: str) -> None:
        """Log a line to the log file only."""
        self._log(logging.DEBUG, text)

    def _log(self, level: int, text: str) -> None:
        if self._active:
            log.log(level, text)
        else:
            with self._activated():
                log.log(level, text)

    @contextmanager
    def on_line(self, call: Callable[[], None]) -> Iterator[None]:
        """Call `call` whenever progress is reported."""
        before, self._on_line = self._on_line, call
        try:
            yield
        finally:
            self._on_line = before

    @contextmanager
    def counting(self, what: str, total: int | None, unit: str) -> Iterator[Report]:
        """Count units of work (a plural); without a total (0 or None) no time left is shown."""
        say = self.note if self._has_bars else self.say
        with ExitStack() as stack:
            if not self._active:
                stack.enter_context(self._activated())
            # Rich times a task even if no bar is shown.
            row = self._bars.add_task(shortened(what), total=total or None, unit=unit, also="")
            stack.callback(self._bars.remove_task, row)
            task = next(task for task in self._bars.tasks if task.id == row)
            shown = time.monotonic()

            def report(done: float, also: str = "") -> None:
                nonlocal shown
                self._bars.update(row, completed=done, also=also)
                if time.monotonic() - shown >= SECONDS_BETWEEN_LINES:
                    shown = time.monotonic()
                    self._on_line()
                    say(f"  {what}: {status(task)}")

            yield report
            if task.completed:
                also = f", {task.fields['also']}" if task.fields["also"] else ""
                say(f"  {what}: {amount(task)} in {clock(task.elapsed or 0.0)}{also}")


def progress_for(given: Progress | None) -> Progress:
    """The given progress, or one that reports to standard error; refuses flags and bars."""
    if not isinstance(given, Progress | None):
        todo = "Give gradsieve.Progress(), or gradsieve.Progress(quiet=True) for warnings alone."
        raise UsageError("This is not a gradsieve.Progress.", f"progress: {given!r}", todo)
    return given or Progress()
