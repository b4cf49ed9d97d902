"""KNN-KDE and greedy selection, step by step by hand, and in a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradsieve
import world
from gradsieve.methods import diverse
from gradsieve.methods.diverse import density, greedy, nearest, probabilities, products
from gradsieve.runs.folder import RunFolder


def order(rows: list[list[float]], aim: list[float]) -> list[int]:
    """The greedy order for the rows of one checkpoint."""
    units = np.array(rows, dtype=np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    aims = units @ np.array(aim, dtype=np.float32)
    return greedy([units @ units.T], aims[None], np.ones(1)).tolist()


def test_a_redundant_row_loses_its_value() -> None:
    # To (1, 1): row 0 is nearest, row 1 is a copy of it. With row 0 in, (2, 1) + (0, 1) points
    # along (1, 1) better than twice (2, 1), though (0, 1) alone has the lower cosine.
    assert order([[2, 1], [2, 1], [0, 1]], [1, 1]) == [0, 2, 1]
    assert order([[0, 1], [2, 1], [2, 1]], [1, 1])[:2] == [1, 0]


def test_equal_rows_go_in_order() -> None:
    assert order([[1, 0]] * 4, [1, 0]) == [0, 1, 2, 3]


def test_each_step_is_the_best_there_is() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(2, 12, 5))
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    aims, weights = rng.normal(size=(2, 5)), np.array([0.7, 0.3])

    def value(members: list[int]) -> float:
        sums = rows[:, members].sum(axis=1)
        cosines = (sums * aims).sum(axis=1) / np.linalg.norm(sums, axis=1)
        return float(weights @ cosines)

    found = greedy(
        [(part @ part.T).astype(np.float32) for part in rows],
        np.einsum("ind,id->in", rows, aims).astype(np.float32),
        weights,
    ).tolist()
    for step in range(12):
        left = [row for row in range(12) if row not in found[:step]]
        best = max(value([*found[:step], row]) for row in left)
        assert value(found[: step + 1]) == pytest.approx(best, abs=1e-5)


def test_nearest_are_a_tenth_and_no_more_than_the_candidates() -> None:
    cosines = np.linspace(1, 0, 40)[:, None] * [1.0, -1.0]
    assert nearest(cosines, 100).tolist() == [[0, 39], [1, 38], [2, 37], [3, 36]]
    assert nearest(cosines, 6).tolist() == [[0, 39], [1, 38], [2, 37]]


def test_density_counts_what_is_near() -> None:
    # Kernel 1 - 2 (1 - cos) / 0.75^2: 1 for itself, 0.5 at cosine 1 - 0.140625, 0 below 0.71875.
    near = 1 - 0.140625
    cosines = np.array([[1, near, 0.5], [near, 1, 0], [0.5, 0, 1]], dtype=np.float32)
    assert density(cosines, 30) == pytest.approx([1.5, 1.5, 1.0])
    assert density(cosines, 10) == pytest.approx([1, 1, 1])  # a tenth of ten rows is the row itself


def test_probabilities_by_hand() -> None:
    # One example, three neighbors, weights 1/2, 1/2, 1: sums 1/2 and 1 before the last. Nothing
    # costs enough to stop, so the limit is 1: shares 1/2, 1/2, and nothing is left for the last.
    distances, weights = np.array([[0.1, 0.2, 0.3]]), np.array([[0.5, 0.5, 1.0]])
    assert probabilities(distances, weights) == pytest.approx(np.array([[0.5, 0.5, 0.0]]))
    # Two examples share the limit, 1.5 here; the first has reached 1 of it, the rest goes on.
    weights = np.array([[0.5, 0.5, 1.0], [0.5, 1.0, 1.0]])
    shares = probabilities(np.repeat(distances, 2, axis=0), weights)
    assert shares == pytest.approx(np.array([[1, 1, 1], [1, 2, 0]]) / np.array([[6.0], [6.0]]))


def test_far_neighbors_are_not_worth_their_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    # alpha / C x gap x weight: 0.5 x 0.1 x 1 and 0.5 x 2 x 2; over 1 - alpha = 0.5 at the second.
    monkeypatch.setattr(diverse, "ALPHA", 0.5)
    monkeypatch.setattr(diverse, "C", 1.0)
    shares = probabilities(np.array([[0.0, 0.1, 2.1, 2.2]]), np.ones((1, 4)))
    assert shares == pytest.approx(np.array([[0.5, 0.5, 0, 0]]))


def test_rows_that_are_equal_keep_their_order() -> None:
    units = np.tile(np.random.default_rng(0).normal(size=2049).astype(np.float32), (30, 1))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    found = products(units, units)
    assert np.ptp(found) == 0
    aim = np.random.default_rng(1).normal(size=2049).astype(np.float32)
    aims = products(units, aim)
    assert np.ptp(aims) == 0
    assert greedy([found], aims[None], np.ones(1)).tolist() == list(range(30))


METHODS = ["less", "knn_kde", "less_greedy", "gist"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world.make(tmp_path_factory.mktemp("inputs"), rows=60)


@pytest.fixture(scope="module")
def run(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    recipe = world.recipe(inputs, score__methods=METHODS)
    out = tmp_path_factory.mktemp("run")
    return gradsieve.run(recipe, out, last="score")


def keys(table: dict[str, np.ndarray], scores: np.ndarray) -> list[tuple[str, str]]:
    """Row keys in order of descending score."""
    best = np.argsort(-scores, kind="stable")
    return list(zip(table["source"][best], table["id"][best], strict=True))


def ranked(run: RunFolder, method: str) -> list[tuple[str, str]]:
    found = world.table(run, method)
    return keys(found, found["score"])


def test_every_row_has_its_own_rank(run: RunFolder) -> None:
    less = ranked(run, "less")
    assert len(less) == 60
    for method in METHODS[1:]:
        found = ranked(run, method)
        assert sorted(found) == sorted(less)
        assert found != less
    assert sorted(world.table(run, "knn_kde")["score"])[-2:] == pytest.approx([1 - 1 / 60, 1])


def test_rows_and_sources_in_another_order_change_nothing(
    inputs: dict[str, Any], run: RunFolder, tmp_path: Path
) -> None:
    recipe = world.recipe(world.shuffled(inputs, tmp_path / "shuffled"), score__methods=METHODS)
    other = gradsieve.run(recipe, tmp_path / "run", last="score")
    assert all(ranked(run, method) == ranked(other, method) for method in METHODS)


def test_rows_beyond_the_candidates_follow_in_less_order(
    inputs: dict[str, Any], run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diverse, "CANDIDATES", 20)
    recipe = world.recipe(inputs, score__methods=["less_greedy"], score__across_subtasks="mean")
    other = gradsieve.run(recipe, tmp_path, last="score")
    scores = world.table(run)
    less = keys(scores, (scores["letters"] + scores["numbers"]) / 2)
    found = ranked(other, "less_greedy")
    assert found[20:] == less[20:]
    assert found[0] == less[0]
    assert sorted(found[:20]) == sorted(less[:20])
