"""A custom target: the user's own examples, in any format that a pool may have.

In: a file, a data set or rows in memory, and the field that names each row's subtask (without it,
there is a single subtask). Out: examples, supervised on the same turns as rows of the pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from gradsieve.data.content import after_reasoning, text_of
from gradsieve.data.examples import Example
from gradsieve.data.formats import is_unicode
from gradsieve.data.sources import Source, read_source
from gradsieve.errors import DataError
from gradsieve.recipe.schema import OnBadRow
from gradsieve.tasks.layout import shown
from gradsieve.tasks.questions import Question, QuestionSet, matched

ONE_SUBTASK = "all"
"""Name of the single subtask if no field names subtasks."""


def read(
    name: str,
    path: str | Iterable[Any],
    subtask_field: str | None,
    on_bad_row: OnBadRow,
    **reading: Any,
) -> Source:
    """The source, whose examples have their subtasks.

    Raises:
        DataError: If a row has no subtask, or as in `read_source`.
    """
    source = read_source(name, path, on_bad_row=on_bad_row, **reading)
    if subtask_field is None:
        examples = [replace(one, subtask=ONE_SUBTASK) for one in source.examples]
    else:
        _refuse_missing(source.examples, subtask_field)
        examples = [replace(one, subtask=str(one.row[subtask_field])) for one in source.examples]
    return replace(source, examples=tuple(examples))


def test_set(
    name: str,
    path: str | Iterable[Any],
    subtask_field: str | None,
    answer: str | None,
    on_bad_row: OnBadRow,
    **reading: Any,
) -> QuestionSet:
    """Held-out questions: conversations whose last turn holds the reference answer.

    `answer` is a regular expression that matches the final answer within a turn; if it is None, the
    reference is the full turn without its reasoning.

    Raises:
        DataError: As in `read`, or if a reference has no final answer.
    """
    source = read(name, path, subtask_field, on_bad_row, **reading)
    examples = source.examples
    references = [after_reasoning(text_of(example.messages[-1]["content"])) for example in examples]
    if answer is not None:
        finals = [matched(answer, reference) for reference in references]
        _refuse_unmatched(examples, references, finals, answer)
        references = [final or "" for final in finals]
    questions = []
    for example, reference in zip(examples, references, strict=True):
        turns = (turn["content"] for turn in example.messages if turn["role"] != "system")
        questions.append(Question(example, (reference,), texts=tuple(map(text_of, turns))))
    return QuestionSet(
        tuple(questions),
        ("exact_match", "f1"),
        max_tokens=None,
        extract=answer,
        bad_rows=source.bad_rows,
    )


def _refuse_unmatched(
    examples: tuple[Example, ...], references: list[str], finals: list[str | None], answer: str
) -> None:
    bare = [place for place, final in enumerate(finals) if not final]
    if bare:
        first, end = examples[bare[0]], references[bare[0]].rstrip()[-60:]
        raise DataError(
            f"{len(bare)} of {len(examples)} reference answers do not match the target's `answer`.",
            f"{first.where}: {answer!r} is not in '...{end}'",
            "Correct the regular expression, or the reference answers.",
        )


def _refuse_missing(examples: tuple[Example, ...], field: str) -> None:
    bare = [
        example
        for example in examples
        if not isinstance(example.row.get(field), str | int)
        or example.row[field] == ""
        or not is_unicode(str(example.row[field]))
    ]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(examples)} rows have no subtask in their field {field}.",
            f"{bare[0].where} (id {bare[0].id}): found {shown(bare[0].row)}",
            "Add the field to each row, or set the target's `subtask` to another field.",
        )
