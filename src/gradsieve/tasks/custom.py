"""A user's own target: examples in any format that a pool may have.

In: a file or data set, and the field that names each row's subtask (none: one subtask). Out:
examples of which every assistant turn is learnt, as of the pool's rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from gradsieve.data.examples import Example
from gradsieve.data.readers import read_source
from gradsieve.errors import DataError

ONE_SUBTASK = "all"
"""Name of the subtask where rows name none."""


def read(
    name: str, path: str, subtask_field: str | None, on_bad_row: Literal["fail", "skip"]
) -> tuple[list[Example], list[tuple[str, str]]]:
    """The examples, and the rows left out as (where, reason).

    Raises:
        DataError: If a row has no subtask, or as `read_source`.
    """
    source = read_source(name, path, on_bad_row=on_bad_row)
    examples = [
        replace(example, subtask=_subtask(example, subtask_field, path))
        for example in source.examples
    ]
    return examples, [(bad.where, bad.reason) for bad in source.bad_rows]


def _subtask(example: Example, field: str | None, path: str) -> str:
    if field is None:
        return ONE_SUBTASK
    value: Any = example.row.get(field)
    if not isinstance(value, str | int) or value == "":
        raise DataError(
            f"A target's row has no subtask in its field {field}.",
            f"{path}, row {example.id}: found {value!r}; its fields are {', '.join(example.row)}",
            "Give each row that field, or set the target's subtask to another one.",
        )
    return str(value)
