"""Reciprocal ranks by hand, and a run that fuses methods."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradsieve
import world
from gradsieve.errors import RecipeError
from gradsieve.methods import Scores
from gradsieve.methods.base import ExampleScores
from gradsieve.methods.fusion import fuse


def scores(total: list[float], *columns: list[float]) -> Scores:
    table = np.array(columns, dtype=np.float32).T
    subtasks = ["a", "b"][: len(columns)]
    return Scores(np.array(total, np.float32), subtasks, table if columns else None)


def test_by_hand() -> None:
    # Ranks 1, 2, 3 and 3, 1, 2.
    fused = fuse([scores([0.9, 0.5, 0.1]), scores([10, 30, 20])])
    assert fused.total == pytest.approx([1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62])
    assert fused.by_subtask is None


def test_ties_go_in_order() -> None:
    assert fuse([scores([1, 1]), scores([2, 2])]).total == pytest.approx([2 / 61, 2 / 62])


def test_a_method_without_subtasks_ranks_all_by_its_total() -> None:
    fused = fuse([scores([3, 2, 1], [1, 2, 3], [3, 2, 1]), scores([1, 2, 3])])
    assert fused.by_subtask is not None
    assert list(fused.subtasks) == ["a", "b"]
    assert fused.by_subtask[:, 0] == pytest.approx([2 / 63, 2 / 62, 2 / 61])
    assert fused.by_subtask[:, 1] == pytest.approx([1 / 61 + 1 / 63, 2 / 62, 1 / 61 + 1 / 63])
    assert fused.best.tolist() == [1, 0, 0]


def test_scores_for_examples_are_fused_too() -> None:
    values = np.array([[1, 5], [2, 4]], dtype=np.float32)
    examples = ExampleScores(["x", "y"], ["a", "a"], values)
    one = Scores(np.array([1, 2], np.float32), ["a"], values[:, :1], examples=examples)
    found = fuse([one, scores([2, 1])]).examples
    assert found is not None
    assert (found.ids, found.subtasks) == (["x", "y"], ["a", "a"])
    assert found.values[:, 0] == pytest.approx([1 / 62 + 1 / 61] * 2)
    assert found.values[:, 1] == pytest.approx([2 / 61, 2 / 62])


def test_in_a_run(tmp_path: Path) -> None:
    data: dict[str, Any] = world.make(tmp_path / "inputs", rows=40)
    fusion = {"methods": ["fusion", "less"], "fusion": ["less", "bm25"]}
    recipe = world.recipe(data, score=fusion)
    run = gradsieve.run(recipe, tmp_path / "run", last="score")
    both = world.recipe(data, score={**fusion, "methods": ["less", "bm25"]})
    other = gradsieve.run(both, tmp_path / "other", last="score")
    parts = [Scores(world.table(other, name)["score"]) for name in ("less", "bm25")]
    expected = fuse(parts).total
    assert world.table(run, "fusion")["score"].tolist() == expected.tolist()
    assert run.require("score")["methods"]["fusion"]["gradients"] is True
    # With different parts, only the fusion is computed again.
    seconds = run.require("score")["methods"]["less"]["seconds"]
    recipe = world.recipe(data, score={**fusion, "fusion": ["less", "random"]})
    run = gradsieve.run(recipe, tmp_path / "run", last="score")
    assert run.require("score")["methods"]["less"]["seconds"] == seconds
    assert world.table(run, "fusion")["score"].tolist() != expected.tolist()


def test_a_fusion_without_gradients_needs_no_warmup(tmp_path: Path) -> None:
    data: dict[str, Any] = world.make(tmp_path / "inputs", rows=20)
    recipe = world.recipe(data, score={"methods": ["fusion"], "fusion": ["bm25", "random"]})
    run = gradsieve.run(recipe, tmp_path / "run", last="score")
    assert run.metadata("warmup") is None
    assert len(world.table(run, "fusion")["score"]) == 20


@pytest.mark.parametrize("parts", [["less"], ["less", "fusion"], ["less", "less"]])
def test_what_can_not_be_joined(parts: list[str], tmp_path: Path) -> None:
    data: dict[str, Any] = world.make(tmp_path / "inputs", rows=20)
    with pytest.raises(RecipeError, match=r"score\.fusion"):
        world.recipe(data, score={"methods": ["fusion"], "fusion": parts})
