"""Progress of long work: a display on a terminal, plain lines elsewhere; always on stderr.

Standard output belongs to results. While a run is under way all that is said is also kept in its
log, with times, and what other libraries print goes to that log alone. Rejected: tqdm (its lines
pile up in log files), and Python's `logging` for our own lines (they are for the user, and need
neither levels nor names).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path

from gradsieve.console.count import Count, Report, clock
from gradsieve.console.display import Display
from gradsieve.console.sanitize import clean_lines

__all__ = ["Progress", "Report", "clock"]

SECONDS_BETWEEN_LINES = 10.0
"""How often a plain log tells how far it is."""


class Progress:
    """Tells what is being done.

    Args:
        quiet: Say nothing but warnings.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._display: Display | None = None
        self._log: Path | None = None

    @contextmanager
    def running(self, stages: Sequence[str], log: Path | None) -> Iterator[None]:
        """While a run is under way: show its stages, and keep a log of all that is said.

        Args:
            stages: Their names, in order.
            log: A file that lines are added to; None: there is none.
        """
        from gradsieve.console.third_party_logs import third_parties_to

        self._log = log
        try:
            shown = self._shown(stages) if self._terminal else nullcontext()
            with third_parties_to(self.note), shown:
                yield
        finally:
            self._log = None

    @contextmanager
    def _shown(self, stages: Sequence[str]) -> Iterator[Display]:
        with Display(stages) as self._display:
            try:
                yield self._display
            finally:
                self._display = None

    def begin(self, stage: str) -> None:
        """A stage starts."""
        if self._display is None:
            self.say(f"{stage}: starting")
        else:
            self.note(f"{stage}: starting")
            self._display.begin(stage)

    def end(self, stage: str, how: str) -> None:
        """A stage has ended, e.g. `done in 42 s`."""
        if self._display is None:
            self.say(f"{stage}: {how}")
        else:
            self.note(f"{stage}: {how}")
            self._display.end(stage, how)

    def say(self, text: str) -> None:
        """One line."""
        self.note(text)
        if not self.quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """One line that is told even if quiet."""
        self.note(f"warning: {text}")
        self._print(f"warning: {text}")

    def note(self, text: str) -> None:
        """One line for the log alone. A log that can't be written stops nothing."""
        if self._log is not None:
            now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            # Half of a surrogate pair (of the data, or of a path's name) is written as an escape.
            line = f"{now} {text}\n".encode(errors="backslashreplace")
            with suppress(OSError), self._log.open("ab") as log:
                log.write(line)

    def _print(self, text: str) -> None:
        text = clean_lines(text)
        if self._display is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._display.print(text)

    @contextmanager
    def counting(self, what: str, total: int, unit: str) -> Iterator[Report]:
        """Count units of work, with rate and time left."""
        count = Count(what, total, unit)
        lines = self._lines(count)
        if not self._terminal:
            yield lines
        elif self._display is None:  # outside a run
            with self._shown([]) as display, display.counting(count):
                yield lines
        else:
            with self._display.counting(count):
                yield lines

    def _lines(self, count: Count) -> Report:
        """Counts, and says so at times; beside a bar only to the log."""
        told = time.monotonic()

        def report(done: float) -> None:
            nonlocal told
            count.report(done)
            if done < count.total and time.monotonic() - told < SECONDS_BETWEEN_LINES:
                return
            told = time.monotonic()
            tell = self.note if self._terminal else self.say
            tell(f"  {count.what}: {count}")

        return report
