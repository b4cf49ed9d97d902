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
from gradsieve.gradients.similarity import influence
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import RunFolder
from gradsieve.store import open_store

METHODS = ["less", "dot", "sgd"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    data = world.make(tmp_path_factory.mktemp("inputs"), rows=60)
    recipe = world.recipe(data, score__methods=METHODS, features__bits=32)
    return gradsieve.run(
        recipe, tmp_path_factory.mktemp("run"), last="score", progress=world.Listening()
    )


def stored(run: RunFolder, store: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [N, n, d], the target's mean gradients [N, 1, d] and the learning rates [N]."""
    pool = Artifacts(run).pool.read()
    keys = pool.store_keys(pool.usable)
    rows, means = [], []
    for number in (1, 2):
        folder = run.stage("features") / f"checkpoint-{number}"
        opened = open_store(folder / store)
        rows.append(torch.from_numpy(opened.read(opened.find(keys))))
        with safe_open(folder / "targets" / "plain.safetensors", "pt") as file:
            means.append(file.get_tensor("features").mean(0, keepdim=True))
    rates = torch.tensor(run.require("warmup")["learning_rates"], dtype=torch.float32)
    return torch.stack(rows), torch.stack(means), rates


def scores(run: RunFolder, method: str) -> np.ndarray:
    file = run.stage("score") / "plain" / f"{method}.parquet"
    return pq.read_table(file)["score"].to_numpy()


@pytest.mark.parametrize(("method", "store"), [("less", "pool"), ("sgd", "pool-sgd")])
def test_cosines_summed_over_checkpoints(run: RunFolder, method: str, store: str) -> None:
    expected = influence(*stored(run, store))[:, 0]
    assert scores(run, method) == pytest.approx(expected.numpy(), abs=1e-6)


def test_dot_is_the_sum_of_inner_products(run: RunFolder) -> None:
    rows, means, rates = stored(run, "pool")
    expected = torch.einsum("i,ind,id->n", rates / rates.sum(), rows, means[:, 0])
    assert scores(run, "dot") == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-9)


def test_plain_gradients_have_another_length_than_updates(run: RunFolder) -> None:
    adam, plain = stored(run, "pool")[0], stored(run, "pool-sgd")[0]
    assert float(adam.norm(dim=2).median()) > 10 * float(plain.norm(dim=2).median())


def test_exact_mode_refuses_what_needs_a_datastore(tmp_path: Path) -> None:
    data: dict[str, Any] = world.make(tmp_path / "inputs", rows=20)
    del data["features"]
    recipe = world.recipe(data, features__mode="exact", score__methods=["less", "dot"])
    with pytest.raises(gradsieve.errors.UsageError) as caught:
        gradsieve.run(recipe, tmp_path / "run", progress=world.Listening())
    assert "dot" in caught.value.where
