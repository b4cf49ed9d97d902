"""MMLU: 57 subjects with 5 development questions each; each subject is a subtask.

In: a folder with `dev/SUBJECT_dev.csv` (question, four choices, letter; no header), or cais/mmlu on
the hub. Out: examples as LESS's `get_mmlu_dataset` formats them (github.com/princeton-nlp/LESS,
get_validation_dataset.py): zero-shot, the answer's letter after "The answer is:". Hendrycks et
al., ICLR 2021.

The csv module reads a choice "None" as text; pandas, which the released code uses, reads it as a
missing value (10 cells of the test set).
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from gradsieve.data.examples import Example
from gradsieve.errors import DataError
from gradsieve.tasks import hub
from gradsieve.tasks.layout import missing, read_text, visible
from gradsieve.tasks.questions import Question, QuestionSet, Shots, question_and_answer

SHOTS = 5
"""Development questions per subject, as in the paper."""

LETTERS = ("A", "B", "C", "D")
SUBTASKS = 57
ON_HUB, CONFIG = "cais/mmlu", "all"
TODO = "Use MMLU's published CSV files."


def read(name: str, path: str) -> tuple[list[Example], list[str]]:
    """The development questions of all subjects, and no warnings.

    Raises:
        DataError: If the folder or a file has another layout.
    """
    subjects = _subjects(name, path, "dev")
    if not subjects:
        expected = f"the folder that holds dev/SUBJECT_dev.csv, or {ON_HUB}"
        raise missing("There are no MMLU development questions here.", name, Path(path), expected)
    examples = [
        _example(name, subject, number, row)
        for subject, rows in sorted(subjects.items())
        for number, row in enumerate(rows[:SHOTS])
    ]
    return examples, []


def test_set(name: str, path: str) -> QuestionSet | None:
    """The test questions, with their subject's development questions as shots; None if none exist.

    As in LESS's eval/mmlu, the answer is the most likely letter after "The answer is:".

    Raises:
        DataError: If a subject has no development questions, or as in `read`.
    """
    try:
        tests = _subjects(name, path, "test")
    except hub.NotThere:
        return None
    if not tests:
        return None
    dev = _subjects(name, path, "dev")
    if bare := sorted(set(tests) - set(dev)):
        of = f"{len(bare)} of {len(tests)} subjects"
        what = f"There are test questions but no development questions for {of}."
        todo = "Add the dev part of every subject of the test part."
        raise DataError(what, f"target {name}: {path}, e.g. {bare[0]}", todo)
    questions = []
    for subject, rows in sorted(tests.items()):
        shown_first = tuple(f"{_asked(row)} {row[-1]}\n\n" for row in dev[subject][:SHOTS])
        for number, row in enumerate(rows):
            example = _example(name, subject, number, row)
            shots = Shots(_header(subject), shown_first, _asked(row))
            questions.append(Question(example, (row[-1],), LETTERS, shots, (row[0],)))
    return QuestionSet(tuple(questions), ("accuracy",))


def _subjects(name: str, path: str, part: str) -> dict[str, list[list[str]]]:
    """The rows of each subject in a part: dev or test."""
    suffix = f"_{part}.csv"
    files = visible((Path(path) / part).glob(f"*{suffix}"))
    subjects = {file.name.removesuffix(suffix): read_questions(file) for file in files}
    if subjects or not hub.is_data_set(path):
        return subjects
    for number, row in enumerate(hub.read_split(name, path, CONFIG, part), start=1):
        subject, read = _from_hub(row, f"{hub.place(name, path, CONFIG, part)}, row {number}")
        subjects.setdefault(subject, []).append(read)
    return subjects


def _from_hub(row: dict[str, Any], where: str) -> tuple[str, list[str]]:
    match row:
        case {
            "subject": str(subject),
            "question": str(question),
            "choices": [str(a), str(b), str(c), str(d)],
            "answer": int(answer),
        } if answer in range(len(LETTERS)):
            return subject, [question, a, b, c, d, LETTERS[answer]]
    expected = "subject, question, choices (four texts) and answer (0 to 3)"
    raise hub.other_columns(expected, where, row, ON_HUB)


def read_questions(file: Path) -> list[list[str]]:
    """The rows of a CSV file: question, four choices and the answer's letter.

    Raises:
        DataError: If a row has another form; names the line at which it starts.
    """
    # The csv module needs the original line endings: a field may contain some.
    reader = csv.reader(io.StringIO(read_text(file), newline=""))
    rows, line = [], 1
    try:
        for row in reader:
            if row:
                rows.append(_checked(row, f"{file}:{line}"))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"Not CSV: {error}.", f"{file}:{line}", TODO) from None
    if not rows:
        raise DataError("The file has no questions.", str(file), TODO)
    return rows


def _checked(row: list[str], where: str) -> list[str]:
    if len(row) != len(LETTERS) + 2 or row[-1] not in LETTERS:
        what = "Expected 6 columns: a question, four choices and a letter from A to D."
        raise DataError(what, f"{where}: {len(row)} columns, the last {row[-1]!r}", TODO)
    return row


def _header(subject: str) -> str:
    # A space before each word gives two spaces after "about", as in MMLU's and LESS's code.
    topic = "".join(f" {word}" for word in subject.split("_"))
    return f"The following are multiple choice questions (with answers) about {topic}.\n\n"


def _asked(row: list[str]) -> str:
    choices = "".join(f"\n{letter}. {row[i + 1]}" for i, letter in enumerate(LETTERS))
    return f"{row[0]}{choices}\nAnswer:"


def _example(name: str, subject: str, number: int, row: list[str]) -> Example:
    question, *choices, letter = row
    return question_and_answer(
        name,
        subject,
        f"{subject}-{number}",
        _header(subject) + _asked(row),
        "The answer is:",
        f" {letter}",
        {"subject": subject, "question": question, "choices": choices, "answer": letter},
    )
