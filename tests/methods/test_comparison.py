"""Similarities are the same, whether this process or an engine's workers read the shards."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import world
from gradsieve.engine import Engine, LocalEngine
from gradsieve.methods import comparison
from gradsieve.methods.comparison import Column, Comparison, Directions, Part, Stored, Subspaces
from gradsieve.store import RowKey, Store, create_store, open_store

DIMS, COLUMNS = 64, [Column("t", "a"), Column("t", "b"), Column("u", "a")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    chance = np.random.default_rng(0)
    writer = create_store(tmp_path / "s", {"bits": 8, "projection": {"kind": "sketch", "dim": 64}})
    for shard in range(5):
        keys = [RowKey("s", f"{shard}-{row}", bytes(16)) for row in range(7)]
        writer.write_shard(keys, chance.standard_normal((7, DIMS), np.float32), np.ones(7))
    return open_store(tmp_path / "s")


def comparisons() -> list[Comparison]:
    rows = np.random.default_rng(1).standard_normal((3, DIMS), np.float32)
    bases = {"t": np.linalg.qr(rows[:2].T)[0].T, "u": comparison.unit(rows[2:])}
    inside = {"t": comparison.unit(rows[:2] @ bases["t"].T), "u": np.ones((1, 1), np.float32)}
    stored = Stored([Column("t", str(place)) for place in range(DIMS)])
    return [
        Directions(COLUMNS, rows, True),
        Directions(COLUMNS, rows, False),
        Subspaces(COLUMNS, bases, inside),
        stored,
    ]


@pytest.mark.parametrize("compared", comparisons())
@pytest.mark.parametrize("at_once", [1, 10, 1000])
def test_workers_find_the_same(
    store: Store,
    compared: Comparison,
    at_once: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "TASK_ROWS", at_once)
    listening = world.Listening()
    positions = np.array([33, 2, 9, 8, 1, 20, 34])

    def found(engine: Engine) -> list[Part]:
        task: Any = SimpleNamespace(engine=engine, progress=listening, work=tmp_path)
        return list(comparison.compare(task, "scores", store, compared, positions))

    here, there = found(LocalEngine(listening)), found(world.Workers(listening))
    assert len(here) == 4  # shards that contain a wanted row
    for one, other in zip(here, there, strict=True):
        assert one.positions.tolist() == other.positions.tolist()
        assert one.similarities.tobytes() == other.similarities.tobytes()
        assert np.array_equal(one.variances, other.variances)
    assert np.concatenate([part.positions for part in here]).tolist() == sorted(positions)
