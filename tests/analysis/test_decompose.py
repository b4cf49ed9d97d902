"""Scores decomposed by target example: contributions add up to the scores."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradsieve
import world
from gradsieve.analysis.decompose import can_decompose, decompose
from gradsieve.errors import StoreError
from gradsieve.gradients.similarity import example_directions, subtask_directions
from gradsieve.runs.context import Context


@pytest.mark.parametrize("mean", ["cosine_of_mean", "mean_of_cosines", "mean"])
def test_examples_directions_add_up_to_the_subtasks(mean: Any) -> None:
    rows = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    subtasks = ["b", "a", "b", "c", "a", "b", "a"]
    names, wanted = subtask_directions(rows, subtasks, mean)
    parts = example_directions(rows, subtasks, mean)
    for name, direction in zip(names, wanted, strict=True):
        own = torch.tensor([subtask == name for subtask in subtasks])
        assert torch.allclose(parts[own].sum(0), direction, atol=1e-6)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    data = world.make(tmp_path_factory.mktemp("inputs"), rows=60)
    recipe = world.recipe(data, score={"methods": ["less", "dot", "sgd", "random"]})
    out = tmp_path_factory.mktemp("run")
    run = gradsieve.run(recipe, out, last="score")
    return Context(recipe, run)


@pytest.mark.parametrize("method", ["less", "dot", "sgd"])
def test_contributions_add_up_to_the_scores(context: Context, method: str) -> None:
    table = context.artifacts.scores.table("mine", method)
    lines = np.arange(len(table))[::7][::-1]  # not in pool order
    numbers = table.numbers(context.pool)[lines]
    found = decompose(context, "mine", numbers, method)
    assert found.values.shape == (2, len(lines), 6)
    assert found.values.dtype == np.float32
    total = found.values.sum(axis=0)
    for column, subtask in enumerate(table.subtasks):
        own = np.array([name == subtask for name in found.subtasks])
        wanted = table.by_subtask[lines, column]
        np.testing.assert_allclose(total[:, own].sum(1), wanted, rtol=1e-4, atol=1e-6)


def test_what_can_be_decomposed(context: Context) -> None:
    exact = world.recipe(context.recipe.model_dump(mode="json"), features={"mode": "exact"})
    assert can_decompose(context.recipe, "less")
    assert not can_decompose(context.recipe, "random")
    assert not can_decompose(exact, "less")


def test_an_example_without_a_feature_is_named(context: Context, tmp_path: Path) -> None:
    """The features cover two sources, but the pool has three by now."""
    world.write(tmp_path / "new.jsonl", [{"id": "n", "prompt": "inward : 1 2", "completion": "2"}])
    tree = context.recipe.model_dump(mode="json")
    tree["pool"].append({"name": "zoo", "path": str(tmp_path / "new.jsonl")})
    out = tmp_path / "run"
    shutil.copytree(context.run.path, out)
    recipe = world.recipe(tree)
    run = gradsieve.run(recipe, out, last="pool")
    grown = Context(recipe, run)
    number = grown.pool.find("n")["zoo"]
    with pytest.raises(StoreError, match="lacks a row") as caught:
        decompose(grown, "mine", np.array([number]))
    assert "zoo n" in caught.value.where
