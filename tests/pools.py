"""Scoring tasks for methods that use words or nothing: examples need no tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import world
from gradsieve.data.examples import Example, Row
from gradsieve.data.pool.mapped import ExampleKey
from gradsieve.engine import LocalEngine
from gradsieve.methods import ScoringTask
from gradsieve.methods.base import full_text
from gradsieve.models.source import ModelSource
from gradsieve.recipe.load import check_recipe


def row(text: str, id: str = "0", source: str = "a", subtask: str = "") -> Row:
    """An example with a text; its tokens are missing."""
    turns = ({"role": "user", "content": text}, {"role": "assistant", "content": "yes"})
    example = Example(source=source, id=id, messages=turns, row={}, subtask=subtask)
    return Row(example, None, None)  # type: ignore[arg-type]


class Texts:
    """The parts of a pool that these methods read, from examples in memory."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self.lengths = np.array([len(full_text(example)) for example in examples], np.int32)

    def keys(self, numbers: Any) -> list[ExampleKey]:
        return [ExampleKey(self._examples[n].source, self._examples[n].id) for n in numbers]

    def texts(self, numbers: Any) -> list[str]:
        return [full_text(self._examples[n]) for n in numbers]

    def take(self, numbers: Any, columns: Sequence[str]) -> pa.Table:
        return pa.table({c: [getattr(self._examples[n], c) for n in numbers] for c in columns})


def task(
    rows: Sequence[Row], targets: Mapping[str, Sequence[Row]] | None = None, **given: Any
) -> ScoringTask:
    """A task without a model or gradients."""
    tree: dict[str, Any] = {"model": {"name": "m"}, "pool": [{"name": "a", "path": "a"}]}
    tree |= {"targets": [{"name": "t", "path": "t"}], "score": {"across_subtasks": "max"}}
    recipe = check_recipe({**tree, **given.pop("r", {})})
    pool: Any = Texts(sorted((row.example for row in rows), key=attrgetter("source", "id")))
    settings = {"recipe": recipe, "model": ModelSource(recipe.model), "seed": 0, **given}
    progress = world.Listening()
    settings |= {"progress": progress, "engine": LocalEngine(progress), "work": Path("unused")}
    return ScoringTask(
        pool, np.arange(len(rows)), targets or {"t": [row("a question")]}, **settings
    )
