"""Columns of subtasks: whatever these are called, they come back."""

from gradsieve.runs.score_table import FIXED, column_of, subtask_of

NAMES = [*FIXED, "letters", "subtask:x", "subtask:id", "subtask:subtask:id", "subtask:", ""]


def test_names_come_back_and_share_no_column() -> None:
    columns = [column_of(name) for name in NAMES]
    assert [subtask_of(column) for column in columns] == NAMES
    assert len({*columns, *FIXED}) == len(NAMES) + len(FIXED)
    assert column_of("letters") == "letters"
