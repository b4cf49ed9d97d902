"""From a few timings to many: straight lines, and samples that stand for the whole.

In: calls and how much they were given. Out: seconds as a function of how much there is to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsieve.pipeline.planning.work import Training


@dataclass(frozen=True)
class Linear:
    """Seconds as a function of how much there is to do.

    Attributes:
        once: What the first call takes beside: libraries are loaded.
        start: What each call takes.
        each: What each unit takes.
    """

    once: float
    start: float
    each: float

    def seconds(self, units: float, calls: int = 1) -> float:
        """Of so many units, over so many calls."""
        return self.once + calls * self.start + units * self.each


def linear(call: Callable[[int], object], few: int, more: int) -> Linear:
    """Time a call with few units, again, and with more."""
    first, again = timed(lambda: call(few)), timed(lambda: call(few))
    each = again / few
    if more > few:
        slope = (timed(lambda: call(more)) - again) / (more - few)
        each = min(max(slope, 0.0), each)
    start = max(0.0, again - few * each)
    return Linear(max(0.0, first - again), start, each)


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass(frozen=True)
class TrainingTimes:
    """What trainings take.

    Attributes:
        start: Loading, and all that is before the first step and after the last.
        step: What a step takes, however small.
        token: What a token takes, padding included.
        epoch: The end of an epoch: checkpoints.
    """

    start: float
    step: float
    token: float
    epoch: float

    def seconds(self, training: Training, tokens_an_epoch: float) -> float:
        """Of one training."""
        steps = training.steps_an_epoch * self.step + tokens_an_epoch * self.token
        return self.start + training.epochs * (steps + self.epoch)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many of them, at equal distances: rows in order of length keep its distribution."""
    places = (np.arange(count) + 0.5) * len(items) / count
    return [items[int(place)] for place in places]


def padded_tokens(lengths: Sequence[int], training: Training) -> float:
    """Tokens of an epoch of random batches drawn from rows of these lengths, padding included."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.array(lengths), size=(64, training.batch_size))
    whole, rest = divmod(training.rows, training.batch_size)
    longest = float(drawn.max(axis=1).mean()) * training.batch_size * whole
    return longest + (float(drawn[:, :rest].max(axis=1).mean()) * rest if rest else 0.0)
