"""Near duplicates by stored updates: the best row of each group is kept, whoever compares them."""

from pathlib import Path

import numpy as np
import pytest

import world
from gradsieve.engine import Engine, LocalEngine
from gradsieve.selection import near_duplicates
from gradsieve.selection.near_duplicates import NearDuplicates
from gradsieve.store import create_store, open_store

DIM = 256


@pytest.mark.parametrize("engine", [LocalEngine, world.Workers])
@pytest.mark.parametrize("at_once", [1, 37, 1000])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_best_of_a_group_is_kept(
    engine: type[Engine],
    at_once: int,
    bits: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(40, DIM))
    group = rng.integers(0, 40, 300)
    # Within a group cosines are about 0.99, between groups about 0.
    rows = (centers[group] + 0.1 * rng.normal(size=(300, DIM))) * rng.uniform(0.1, 9, (300, 1))
    pool = world.pool_of(tmp_path, ["rising : a b"] * 300)
    ids = [int(key.id) for key in pool.keys(range(300))]
    store = create_store(tmp_path / "store", {"bits": bits})
    for part in np.array_split(np.arange(300), 4):
        store.write_shard(
            pool.store_keys(part), rows[ids][part].astype(np.float32), np.ones(len(part))
        )
    order = rng.permutation(300)
    monkeypatch.setattr(near_duplicates, "AHEAD", at_once)
    monkeypatch.setattr(near_duplicates, "TASK_ROWS", 50)
    place = 0

    def ahead(count: int) -> np.ndarray:
        return np.arange(place + 1, min(place + 1 + count, 300))

    check = NearDuplicates(
        engine(world.Listening()), open_store(tmp_path / "store"), pool, order, ahead, 0.95
    )
    kept, seen = [], set()
    for place, number in enumerate(order.tolist()):
        reason = check(place)
        of = int(group[ids[number]])
        assert (reason is None) == (of not in seen), number
        if reason is None:
            kept.append(number)
            seen.add(of)
        else:
            first = next(other for other in kept if group[ids[other]] == of)
            assert reason.startswith("near_duplicates: cosine 0.9")
            assert reason.endswith(f"with s {ids[first]:03}")
    assert len(kept) == len(set(group.tolist()))


def nothing(count: int) -> np.ndarray:
    """A stand-in for `ahead` that returns no lines."""
    return np.empty(0, np.int64)


def test_a_row_without_a_gradient_is_kept(tmp_path: Path) -> None:
    pool = world.pool_of(tmp_path, ["rising : a b", "rising : c d"])
    store = create_store(tmp_path / "store", {"bits": 8})
    store.write_shard(pool.store_keys([0]), np.ones((1, DIM), np.float32), np.ones(1))
    check = NearDuplicates(
        LocalEngine(world.Listening()),
        open_store(tmp_path / "store"),
        pool,
        np.array([0, 1]),
        nothing,
        0.5,
    )
    assert [check(place) for place in range(2)] == [None, None]


def test_rows_that_are_not_asked_after_are_not_kept(tmp_path: Path) -> None:
    pool = world.pool_of(tmp_path, ["rising : a b"] * 3)
    store = create_store(tmp_path / "store", {"bits": 8})
    store.write_shard(pool.store_keys(range(3)), np.ones((3, DIM), np.float32), np.ones(3))
    check = NearDuplicates(
        LocalEngine(world.Listening()),
        open_store(tmp_path / "store"),
        pool,
        np.array([2, 1, 0]),
        nothing,
        0.5,
    )
    assert check(1) is None
    assert check(2) == f"near_duplicates: cosine 1.000 with s {pool.keys([1])[0].id}"


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32])
def test_equal_rows_are_near_at_every_cosine(bits: int, tmp_path: Path) -> None:
    """Rounding makes their cosine slightly less than 1; rows of zeros are near nothing."""
    rows = np.random.default_rng(bits).normal(size=(40, DIM)).astype(np.float32)
    rows = np.concatenate([rows, 3.7 * rows, np.zeros_like(rows)])
    pool = world.pool_of(tmp_path, ["rising : a b"] * 120)
    store = create_store(tmp_path / "store", {"bits": bits})
    store.write_shard(pool.store_keys(range(120)), rows, np.ones(120))
    engine, store = LocalEngine(world.Listening()), open_store(tmp_path / "store")
    check = NearDuplicates(engine, store, pool, np.arange(120), lambda _: np.arange(120), 1.0)
    reasons = [check(line) for line in range(120)]
    assert [reason is None for reason in reasons] == [True] * 40 + [False] * 40 + [True] * 40
