"""How far a piece of work is: units done, their rate, and the time left.

What was done before counting began (by a run that was stopped) doesn't count for the rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Report = Callable[[float], None]
"""Called with the units done so far."""


@dataclass
class Count:
    """Units of work.

    Attributes:
        what: Which work.
        total: Units in all.
        unit: What they are.
        done: Units done.
    """

    what: str
    total: int
    unit: str
    done: float = 0
    _first: float | None = None
    _start: float = field(default_factory=time.monotonic)

    def report(self, done: float) -> None:
        """Note how much is done by now."""
        self._first = done if self._first is None else self._first
        self.done = done

    @property
    def rate(self) -> float:
        """Units a second; 0 as long as nothing is known."""
        return (self.done - (self._first or 0)) / max(time.monotonic() - self._start, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """As far as it can be told."""
        return (
            (self.total - self.done) / self.rate if self.rate and self.done < self.total else None
        )

    def __str__(self) -> str:
        left = f", {clock(self.seconds_left)} left" if self.seconds_left is not None else ""
        return f"{self.done:g}/{self.total} {self.unit}, {self.rate:.3g} {self.unit}/s{left}"


def clock(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
