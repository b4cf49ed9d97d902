"""Scores taken apart by target example: the parts add up, and name what cannot be taken apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import gradsieve
import world
from gradsieve.analysis.decompose import attribute, can_attribute
from gradsieve.errors import RunError
from gradsieve.gradients.similarity import example_directions, subtask_directions
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.folder import RunFolder


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
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, RunFolder]:
    data = world.make(tmp_path_factory.mktemp("inputs"), rows=60)
    recipe = world.recipe(data, score={"methods": ["less", "dot", "sgd", "random"]})
    out = tmp_path_factory.mktemp("run")
    return recipe, gradsieve.run(recipe, out, last="score", progress=world.Listening())


@pytest.mark.parametrize("method", ["less", "dot", "sgd"])
def test_parts_add_up_to_the_scores(made: tuple[Recipe, RunFolder], method: str) -> None:
    recipe, run = made
    table = pq.read_table(run.stage("score") / "mine" / f"{method}.parquet").to_pylist()
    rows = table[::7]
    found = attribute(run, recipe, "mine", [(row["source"], row["id"]) for row in rows], method)
    assert found.parts.shape == (2, len(rows), 6)
    total = found.parts.sum(axis=0)
    for subtask in ("letters", "numbers"):
        own = np.array([name == subtask for name in found.subtasks])
        wanted = np.array([row[subtask] for row in rows])
        np.testing.assert_allclose(total[:, own].sum(1), wanted, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_taken_apart_is_named(
    made: tuple[Recipe, RunFolder], tmp_path: Path
) -> None:
    recipe, run = made
    assert not can_attribute(recipe, "random")
    with pytest.raises(RunError, match="cannot be taken apart"):
        attribute(run, recipe, "mine", [("one", "0")], "random")
    with pytest.raises(RunError, match="has no gradient"):
        attribute(run, recipe, "mine", [("one", "no such id")])
