"""Progress of long work: a bar on a terminal, plain lines elsewhere; always on stderr.

Standard output belongs to results. Rejected: tqdm (its lines pile up in log files).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0
"""How often a plain log tells how far it is."""

Report = Callable[[float], None]
"""Called with the units done so far."""


class Progress:
    """Tells what is being done.

    Args:
        quiet: Say nothing but warnings.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """One line that is told even if quiet."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    @contextmanager
    def counting(self, what: str, total: int, unit: str) -> Iterator[Report]:
        """Count units of work, with rate and time left."""
        if self.quiet:
            yield lambda _: None
        elif self._terminal:
            with _bar(what, total, unit) as report:
                yield report
        else:
            yield self._lines(what, total, unit)

    def _lines(self, what: str, total: int, unit: str) -> Report:
        start = told = time.monotonic()
        first: float | None = None

        def report(done: float) -> None:
            nonlocal told, first
            first = done if first is None else first
            now = time.monotonic()
            if done < total and now - told < SECONDS_BETWEEN_LINES:
                return
            told = now
            rate = (done - first) / max(now - start, 1e-9)
            left = f", {clock((total - done) / rate)} left" if rate and done < total else ""
            self.say(f"  {what}: {done:g}/{total} {unit}, {rate:.3g} {unit}/s{left}")

        return report


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, {{task.fields[rate]}}"),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    first: float | None = None
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, rate="")

        def report(done: float) -> None:
            nonlocal first
            first = done if first is None else first
            rate = (done - first) / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=done, rate=f"{rate:.3g}/s")

        yield report


def clock(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
