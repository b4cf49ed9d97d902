"""LESS, its inner products and its plain gradients, each against the formula on stored data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import gradsieve
import world
from gradsieve.gradients.projection import Projection
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import RunFolder
from gradsieve.stages.score import _noise_warning
from gradsieve.store import Store, open_store

METHODS = ["less", "dot", "sgd"]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "balanced"])
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> RunFolder:
    data = world.make(tmp_path_factory.mktemp("inputs"), rows=60)
    data["features"]["projection"]["balanced"] = request.param
    recipe = world.recipe(data, score__methods=METHODS, features__bits=32)
    return gradsieve.run(recipe, tmp_path_factory.mktemp("run"), last="score")


def stored(run: RunFolder, store: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [N, n, d], the target's mean gradients [N, 1, d] and the learning rates [N]."""
    pool = Artifacts(run).pool.read()
    keys = pool.store_keys(pool.usable)
    rows, means = [], []
    for number in (1, 2):
        folder = run.stage("features") / f"checkpoint-{number}"
        opened = open_store(folder / store)
        rows.append(torch.from_numpy(opened.read(opened.find(keys))))
        with safe_open(target_file(folder, store), "pt") as file:
            means.append(file.get_tensor("features").mean(0, keepdim=True))
    rates = torch.tensor(run.require("warmup")["learning_rates"], dtype=torch.float32)
    return torch.stack(rows), torch.stack(means), rates


def target_file(checkpoint: Path, store: str) -> Path:
    """Each datastore has its own target gradients."""
    return checkpoint / store.replace("pool", "targets") / "plain.safetensors"


def norms(run: RunFolder, store: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms in the cosines: of the rows [N, n, 1] and of the target's mean gradients [N, 1, 1].

    If rows were scaled, these are the norms before scaling and projection.
    """
    rows, means, _ = stored(run, store)
    if not open_store(run.stage("features") / "checkpoint-1" / store).balanced:
        return rows.norm(dim=2, keepdim=True), means.norm(dim=2, keepdim=True)
    pool = Artifacts(run).pool.read()
    keys, of_rows, of_means = pool.store_keys(pool.usable), [], []
    for number in (1, 2):
        folder = run.stage("features") / f"checkpoint-{number}"
        opened = open_store(folder / store)
        of_rows.append(gradient_norms(opened)[opened.find(keys)])
        with safe_open(target_file(folder, store), "pt") as file:
            of_means.append(file.get_tensor("mean_norms"))
    return torch.stack(of_rows)[..., None], torch.stack(of_means)[..., None]


def gradient_norms(store: Store) -> torch.Tensor:
    return torch.cat([torch.from_numpy(block.gradient_norms) for block in store.shards()])


def scores(run: RunFolder, method: str) -> np.ndarray:
    return world.table(run, method, "plain")["score"]


@pytest.mark.parametrize(("method", "store"), [("less", "pool"), ("sgd", "pool-sgd")])
def test_cosines_summed_over_checkpoints(run: RunFolder, method: str, store: str) -> None:
    rows, means, rates = stored(run, store)
    of_rows, of_means = norms(run, store)
    cosines = ((rows / of_rows) @ (means / of_means).mT)[..., 0]
    expected = torch.einsum("i,in->n", rates / rates.sum(), cosines)
    assert scores(run, method) == pytest.approx(expected.numpy(), abs=1e-6)


def test_dot_is_the_sum_of_inner_products(run: RunFolder) -> None:
    rows, means, rates = stored(run, "pool")
    expected = torch.einsum("i,ind,id->n", rates / rates.sum(), rows, means[:, 0])
    assert scores(run, "dot") == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-9)


def test_plain_gradients_have_another_length_than_updates(run: RunFolder) -> None:
    folder = run.stage("features") / "checkpoint-1"
    adam, plain = (gradient_norms(open_store(folder / name)) for name in ("pool", "pool-sgd"))
    assert float(adam.median()) > 10 * float(plain.median())


def test_plain_gradients_are_never_scaled(run: RunFolder) -> None:
    """They have the scale of the targets' gradients already; both are projected unscaled."""
    folder = run.stage("features") / "checkpoint-1"
    assert not open_store(folder / "pool-sgd").balanced
    with safe_open(target_file(folder, "pool-sgd"), "pt") as file:
        assert "mean_norms" not in file.keys()  # noqa: SIM118
        rows, of_rows = file.get_tensor("features"), file.get_tensor("gradient_norms")
    torch.testing.assert_close(rows.norm(dim=1), of_rows, rtol=0.1, atol=0)


def test_exact_mode_refuses_what_needs_a_datastore(tmp_path: Path) -> None:
    data: dict[str, Any] = world.make(tmp_path / "inputs", rows=20)
    del data["features"]
    recipe = world.recipe(data, features__mode="exact", score__methods=["less", "dot"])
    with pytest.raises(gradsieve.errors.UsageError) as caught:
        gradsieve.run(recipe, tmp_path / "run")
    assert "dot" in caught.value.where


def noise(run: RunFolder, method: str) -> dict[str, float]:
    facts = run.require("score")["tables"][f"plain/{method}"]["signal_to_noise"]
    (found,) = facts.values()  # it has only one subtask
    return dict(found)


@pytest.mark.parametrize(
    ("method", "store"), [("less", "pool"), ("dot", "pool"), ("sgd", "pool-sgd")]
)
def test_signal_to_noise(run: RunFolder, method: str, store: str) -> None:
    rows, means, rates = stored(run, store)
    weights, mean = rates / rates.sum(), means[:, 0]
    if method != "dot":
        of_rows, of_means = norms(run, store)
        rows, mean = rows / of_rows, mean / of_means[:, 0]
    products = torch.einsum("ind,id->in", rows, mean)
    squares = (rows.norm(dim=2) * mean.norm(dim=1, keepdim=True)) ** 2 + products**2
    variance = (weights**2 * squares.mean(1)).sum() / 2048
    found = noise(run, method)
    assert found["error"] == pytest.approx(float(variance.sqrt()), rel=1e-3)
    assert found["spread"] == pytest.approx(float(np.std(scores(run, method))), rel=1e-4)
    assert found["ratio"] == pytest.approx(found["spread"] / found["error"])
    balanced = open_store(run.stage("features") / "checkpoint-1" / store).balanced
    if method != "dot" and not balanced:  # cosines err by 1 / sqrt(d) or slightly more
        assert found["error"] >= float((weights**2).sum().sqrt()) / 2048**0.5


def test_the_known_error_is_the_measured_one() -> None:
    """The errors of cosines that are projected with different seeds, at two dimensions."""
    rng = np.random.default_rng(0)
    row, mean = torch.tensor(rng.normal(size=(2, 1, 4000)), dtype=torch.float32)
    exact = float(torch.cosine_similarity(row, mean))
    for dim in (64, 256):
        found = []
        for seed in range(300):
            projection = Projection("sketch", dim, seed)
            projected = [projection.project({"w": part.clone()})[0] for part in (row, mean)]
            found.append(float(torch.dot(*projected)) / float(row.norm() * mean.norm()))
        expected = ((1 + exact**2) / dim) ** 0.5
        assert np.std(found) == pytest.approx(expected, rel=0.15)


def test_scores_that_are_noise_are_a_warning(tmp_path: Path) -> None:
    data = world.make(tmp_path / "inputs", rows=40)
    data["features"]["projection"]["dim"] = 8
    progress = world.Listening()
    run = gradsieve.run(world.recipe(data), tmp_path / "run", last="score", progress=progress)
    (line,) = [line for line in progress.lines if "warning: less, target plain: " in line]
    ratio = noise(run, "less")["ratio"]
    assert ratio < 2
    assert (
        f"spread over rows {int(10 * ratio) / 10} times as much as the projection to 8 dims errs"
        in line
    )
    assert "features.mode: exact" in line
    just_below = _noise_warning(world.recipe(data), {"all": {"ratio": 1.99}})
    assert just_below is not None
    assert "rows 1.9 times as" in just_below


def test_gist_is_a_cosine_in_the_targets_subspace(tmp_path: Path) -> None:
    data = world.make(tmp_path / "inputs", rows=40)
    recipe = world.recipe(data, score__methods=["gist", "sgd"], features__bits=32)
    run = gradsieve.run(recipe, tmp_path / "run", last="score")
    rows, _, rates = stored(run, "pool-sgd")
    expected = np.zeros(len(rows[0]))
    for number, rate in enumerate(rates / rates.sum()):
        file = target_file(run.stage("features") / f"checkpoint-{number + 1}", "pool-sgd")
        with safe_open(file, "pt") as opened:
            target = opened.get_tensor("features").double()
        basis = torch.linalg.svd(target, full_matrices=False).Vh
        inside, mean = rows[number].double() @ basis.T, target.mean(0) @ basis.T
        cosines = torch.cosine_similarity(inside, mean[None])
        expected += float(rate) * cosines.numpy()
    assert scores(run, "gist") == pytest.approx(expected, abs=1e-5)
    assert np.abs(scores(run, "gist")).max() > np.abs(scores(run, "sgd")).max()
