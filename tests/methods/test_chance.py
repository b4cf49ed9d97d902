"""Random baselines: fair, seeded, and independent of the pool's order."""

from collections import Counter

import numpy as np

import pools
from gradsieve.methods import find_method

ROWS = [pools.row("x", str(number), "big" if number % 10 else "small") for number in range(2000)]
KEYS = [(row.example.source, row.example.id) for row in ROWS]


def ranked(name: str, seed: int = 0) -> list[tuple[str, str]]:
    task = pools.task(ROWS, seed=seed)
    scores = find_method(name).score(task)["t"]
    return [tuple(key) for key in task.pool.keys(np.argsort(-scores.total, kind="stable"))]


def test_each_row_is_as_likely_as_any() -> None:
    top = Counter(key for seed in range(200) for key in ranked("random", seed)[:100])
    counts = np.array([top[key] for key in KEYS])
    assert counts.mean() == 10
    # A binomial's variance is 200 * 0.05 * 0.95; the sample variance of 2000 of them is near.
    assert abs(counts.var() / 9.5 - 1) < 0.2


def test_a_seed_decides() -> None:
    assert ranked("random", 3) == ranked("random", 3)
    shared = len({*ranked("random", 0)[:200]} & {*ranked("random", 1)[:200]})
    assert 5 < shared < 40  # 20 expected by chance


def test_the_pools_other_rows_do_not_matter() -> None:
    few, every = pools.task(ROWS[::3]), pools.task(ROWS)
    alone, together = (
        dict(zip(task.example_keys(), find_method("random").score(task)["t"].total, strict=True))
        for task in (few, every)
    )
    assert len(alone) == len(ROWS[::3])
    assert alone.items() <= together.items()


def test_balanced_takes_as_many_of_each_source_as_it_has() -> None:
    order = ranked("random_balanced")
    assert Counter(source for source, _ in order[:100]) == {"big": 50, "small": 50}
    assert Counter(source for source, _ in order[:1000]) == {"big": 800, "small": 200}
    assert sorted(order) == sorted(KEYS)


def test_full_prefers_none() -> None:
    scores = find_method("full").score(pools.task(ROWS))["t"]
    assert set(scores.total.tolist()) == {0.0}
    assert len(scores.total) == len(ROWS)
