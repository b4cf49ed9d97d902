"""Problems for methods that look at words or at nothing: rows need no tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import world
from gradsieve.data.examples import Example, Row
from gradsieve.methods import Problem
from gradsieve.recipe.load import check_recipe


def row(text: str, id: str = "0", source: str = "a", subtask: str = "") -> Row:
    """A row that says a text; its tokens are missing."""
    turns = ({"role": "user", "content": text}, {"role": "assistant", "content": "yes"})
    example = Example(source=source, id=id, messages=turns, row={}, subtask=subtask)
    return Row(example, None, None)  # type: ignore[arg-type]


def problem(
    rows: Sequence[Row], targets: Mapping[str, Sequence[Row]] | None = None, **given: Any
) -> Problem:
    """A problem without model or gradients."""
    tree = {"model": {"name": "m"}, "pool": [{"name": "a", "path": "a"}]}
    recipe = check_recipe({**tree, "targets": [{"name": "t", "path": "t"}], **given.pop("r", {})})
    rows = sorted(rows, key=lambda row: row.key)
    settings = {"recipe": recipe, "seed": 0, "progress": world.Listening(), **given}
    return Problem(rows, targets or {"t": [row("a question")]}, **settings)
