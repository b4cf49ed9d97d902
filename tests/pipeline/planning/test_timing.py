"""From a few timings to many."""

import pytest

from gradsieve.pipeline.planning.timing import Linear, TrainingTimes, linear, padded_tokens, spread
from gradsieve.pipeline.planning.work import Training


def test_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first call takes beside is told apart from what each unit takes."""
    now = [0.0, 100.0]  # the clock, and what the first call still has to load

    def call(count: int) -> None:
        now[0] += 2 + 0.5 * count + now[1]
        now[1] = 0

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert linear(call, 10, 60) == Linear(100, 2, 0.5)
    assert linear(call, 4, 4) == Linear(0, 0, 1)  # all there is: no more can be told
    assert Linear(1, 2, 3).seconds(10, calls=4) == 1 + 8 + 30


def test_training_times() -> None:
    times = TrainingTimes(start=10, step=1, token=0.5, epoch=3)
    assert times.seconds(Training(rows=7, epochs=2, batch_size=4), 20) == 10 + 2 * (2 + 10 + 3)


def test_padded_tokens_of_random_batches() -> None:
    assert padded_tokens([7] * 50, Training(10, 1, 4)) == 70
    both = padded_tokens([1, 9], Training(1000, 1, 2))
    assert both == pytest.approx(1000 * (9 * 3 + 1) / 4, rel=0.15)


def test_spread_keeps_the_distribution() -> None:
    assert spread(range(10), 5) == [1, 3, 5, 7, 9]
    assert spread(range(3), 3) == [0, 1, 2]
