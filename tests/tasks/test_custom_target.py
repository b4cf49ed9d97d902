"""A user's own target: any format of a pool, with a field that names the subtask."""

import json
from collections import Counter
from pathlib import Path

import pytest

from gradsieve.errors import DataError
from gradsieve.tasks import load_target, load_test_set

ROWS = [
    {"id": "a", "topic": "sums", "prompt": "1 + 1", "completion": "2"},
    {"topic": 7, "instruction": "Name a color.", "output": "blue"},
    {"id": "c", "topic": "sums", "messages": [
        {"role": "user", "content": "1 + 2"}, {"role": "assistant", "content": "3"},
        {"role": "user", "content": "plus 1"}, {"role": "assistant", "content": "4"}]},
]  # fmt: skip


def written(folder: Path, rows: list[object]) -> str:
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def refusal(path: str, field: str | None = "topic") -> DataError:
    with pytest.raises(DataError) as caught:
        load_target("mine", "custom", path, subtask_field=field)
    return caught.value


def test_subtasks_come_from_the_field_and_may_be_of_unequal_size(tmp_path: Path) -> None:
    target = load_target("mine", "custom", written(tmp_path, [*ROWS]), subtask_field="topic")
    assert target.subtasks == ("7", "sums")
    assert Counter(example.subtask for example in target.examples) == {"sums": 2, "7": 1}


def test_all_assistant_turns_are_supervised(tmp_path: Path) -> None:
    target = load_target("mine", "custom", written(tmp_path, [*ROWS]), subtask_field="topic")
    assert [example.answer_prefix for example in target.examples] == [None, None, None]
    assert [len(example.messages) for example in target.examples] == [2, 2, 4]
    assert {example.source for example in target.examples} == {"mine"}


def test_without_a_field_there_is_one_subtask(tmp_path: Path) -> None:
    assert load_target("mine", "custom", written(tmp_path, [*ROWS])).subtasks == ("all",)


@pytest.mark.parametrize("value", [None, "", ["sums"], 1.5])
def test_a_row_without_subtask_is_named(tmp_path: Path, value: object) -> None:
    bad = {**ROWS[0], "id": "the-bad-one", "topic": value}
    error = refusal(written(tmp_path, [*ROWS, bad]))
    assert error.what == "1 of 4 rows have no subtask in their field topic."
    assert f"{tmp_path / 'mine.jsonl'}:4 (id the-bad-one)" in error.where
    assert repr(value) in error.where


def test_a_wrong_field_names_those_that_there_are(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, [*ROWS]), "subject")
    assert "3 of 3 rows" in error.what
    assert error.where.endswith(
        "mine.jsonl:1 (id a): found id: 'a', topic: 'sums', prompt: '1 + 1', completion: '2'"
    )


def test_bad_rows_stop_or_are_left_out_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path, [ROWS[0], {"topic": "sums", "prompt": "no completion"}])
    assert f"{path}:2" in refusal(path).where
    target = load_target("mine", "custom", path, subtask_field="topic", on_bad_row="skip")
    assert len(target.examples) == 1
    [(where, reason)] = target.bad_rows
    assert where == f"{path}:2"
    assert "topic, prompt" in reason


def test_bad_rows_of_a_test_file_too(tmp_path: Path) -> None:
    empty = {**ROWS[1], "output": " "}
    path = written(tmp_path, [ROWS[0], empty])
    with pytest.raises(DataError, match="the answer is empty"):
        load_test_set("mine", "custom", path, path)
    test = load_test_set("mine", "custom", path, path, on_bad_row="skip")
    assert test is not None
    assert [question.example.id for question in test.questions] == [ROWS[0]["id"]]
    assert test.bad_rows == ((f"{path}:2", "the answer is empty"),)


def test_a_target_without_examples_is_an_error(tmp_path: Path) -> None:
    assert "empty" in refusal(written(tmp_path, [])).what
    path = written(tmp_path, [{"nothing": 1}])
    with pytest.raises(DataError, match="no usable row"):
        load_target("mine", "custom", path, on_bad_row="skip")
