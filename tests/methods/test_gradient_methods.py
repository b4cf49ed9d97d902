"""LESS, its inner products and its plain gradients, each against the formula on what is stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

import gradsieve
import world
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import RunFolder
from gradsieve.store import Store, open_store

METHODS = ["less", "dot", "sgd"]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "balanced"])
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> RunFolder:
    data = world.make(tmp_path_factory.mktemp("inputs"), rows=60)
    data["features"]["projection"]["balanced"] = request.param
    recipe = world.recipe(data, score__methods=METHODS, features__bits=32)
    return gradsieve.run(
        recipe, tmp_path_factory.mktemp("run"), last="score", progress=world.Listening()
    )


def stored(run: RunFolder, store: str, cosine: bool) -> torch.Tensor:
    """Similarities of the rows with the target's mean gradient, summed over checkpoints [n]."""
    pool = Artifacts(run).pool.read()
    keys = pool.store_keys(pool.usable)
    rates = torch.tensor(run.require("warmup")["learning_rates"], dtype=torch.float32)
    total = torch.zeros(len(keys))
    for number, rate in enumerate((rates / rates.sum()).tolist(), start=1):
        folder = run.stage("features") / f"checkpoint-{number}"
        opened = open_store(folder / store)
        rows = torch.from_numpy(opened.read(opened.find(keys)))
        targets = folder / ("targets-sgd" if store == "pool-sgd" else "targets")
        with safe_open(targets / "plain.safetensors", "pt") as file:
            mean = file.get_tensor("features").mean(0)
            norms = rows.norm(dim=1) * mean.norm()
            if opened.balanced:
                norms = gradient_norms(opened)[opened.find(keys)] * file.get_tensor("mean_norms")
        total += rate * (rows @ mean) / (norms if cosine else 1)
    return total


def gradient_norms(store: Store) -> torch.Tensor:
    return torch.cat([torch.from_numpy(block.gradient_norms) for block in store.shards()])


def scores(run: RunFolder, method: str) -> np.ndarray:
    file = run.stage("score") / "plain" / f"{method}.parquet"
    return pq.read_table(file)["score"].to_numpy()


@pytest.mark.parametrize(("method", "store"), [("less", "pool"), ("sgd", "pool-sgd")])
def test_cosines_summed_over_checkpoints(run: RunFolder, method: str, store: str) -> None:
    expected = stored(run, store, cosine=True)
    assert scores(run, method) == pytest.approx(expected.numpy(), abs=1e-6)


def test_dot_is_the_sum_of_inner_products(run: RunFolder) -> None:
    expected = stored(run, "pool", cosine=False)
    assert scores(run, "dot") == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-9)


def test_plain_gradients_have_another_length_than_updates(run: RunFolder) -> None:
    folder = run.stage("features") / "checkpoint-1"
    adam, plain = (gradient_norms(open_store(folder / name)) for name in ("pool", "pool-sgd"))
    assert float(adam.median()) > 10 * float(plain.median())


def test_plain_gradients_are_never_scaled(run: RunFolder) -> None:
    """They are as large as the targets' gradients already; both keep their projection."""
    folder = run.stage("features") / "checkpoint-1"
    assert not open_store(folder / "pool-sgd").balanced
    with safe_open(folder / "targets-sgd" / "plain.safetensors", "pt") as file:
        assert "mean_norms" not in file.keys()  # noqa: SIM118
        rows, norms = file.get_tensor("features"), file.get_tensor("gradient_norms")
    torch.testing.assert_close(rows.norm(dim=1), norms, rtol=0.1, atol=0)


def test_exact_mode_refuses_what_needs_a_datastore(tmp_path: Path) -> None:
    data: dict[str, Any] = world.make(tmp_path / "inputs", rows=20)
    del data["features"]
    recipe = world.recipe(data, features__mode="exact", score__methods=["less", "dot"])
    with pytest.raises(gradsieve.errors.UsageError) as caught:
        gradsieve.run(recipe, tmp_path / "run", progress=world.Listening())
    assert "dot" in caught.value.where
