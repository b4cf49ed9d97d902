"""Random shares of a pool, which neither row order nor added examples change much."""

import hashlib
from typing import Any

import pytest

import gradsieve
import world
from gradsieve.data.pool import Pool
from gradsieve.data.pool.shares import random_share
from gradsieve.runs.artifacts import Artifacts


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world.make(tmp_path_factory.mktemp("inputs"), rows=60)


@pytest.fixture(scope="module")
def pool(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return made(inputs, tmp_path_factory)


def made(inputs: dict[str, Any], folders: pytest.TempPathFactory) -> Pool:
    run = gradsieve.run(world.recipe(inputs), folders.mktemp("run"), last="pool")
    return Artifacts(run).pool.read()


def test_the_examples_with_the_smallest_hashes(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradsieve.data.pool.shares.HASHED_AT_ONCE", 7)
    keys = sorted(
        pool.keys(pool.usable),
        key=lambda key: hashlib.sha256("\x1f".join(("3", *key)).encode()).digest(),
    )
    assert pool.keys(random_share(pool, pool.usable, 0.25, seed=3)) == keys[:15]
    assert len(random_share(pool, pool.usable, 0.001, seed=3)) == 1


def test_order_makes_no_difference(
    inputs: dict[str, Any], pool: Pool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = made(world.shuffled(inputs, tmp_path_factory.mktemp("other")), tmp_path_factory)
    assert other.keys(range(60)) != pool.keys(range(60))
    shares = [one.keys(random_share(one, one.usable, 0.25, seed=0)) for one in (pool, other)]
    assert shares[0] == shares[1]
