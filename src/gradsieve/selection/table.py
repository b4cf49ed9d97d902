"""Columns of a table of scores, `03-score/TARGET/METHOD.parquet`.

The first four are fixed, the others are subtasks by their names. A subtask that is called like one
of the four, or like a marked name, has a mark before its name; no two share a column.
"""

from __future__ import annotations

FIXED = ("source", "id", "score", "subtask")
MARK = "subtask:"


def column_of(subtask: str) -> str:
    """The column of a subtask."""
    return MARK + subtask if subtask in FIXED or subtask.startswith(MARK) else subtask


def subtask_of(column: str) -> str:
    """The subtask of a column."""
    return column.removeprefix(MARK)
