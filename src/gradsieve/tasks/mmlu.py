"""MMLU: 57 subjects with 5 development questions each; a subject is a subtask.

In: a folder with `dev/SUBJECT_dev.csv` (question, four choices, letter; no header). Out: examples
as LESS's `get_mmlu_dataset` formats them (github.com/princeton-nlp/LESS,
get_validation_dataset.py): zero-shot, the answer's letter after "The answer is:". Hendrycks et
al., ICLR 2021.

The csv module reads a choice "None" as the word that it is; pandas, which the released code uses,
reads it as a missing value (10 cells of the test set).
"""

from __future__ import annotations

import csv
from pathlib import Path

from gradsieve.data.examples import Example
from gradsieve.errors import DataError

SHOTS = 5
"""Development questions a subject, as in the paper."""

LETTERS = ("A", "B", "C", "D")
ANSWER_PREFIX = "The answer is:"


def read(name: str, path: str) -> list[Example]:
    """The development questions of all subjects.

    Raises:
        DataError: If the folder or a file is not as expected.
    """
    files = sorted((Path(path) / "dev").glob("*_dev.csv"))
    if not files:
        raise DataError(
            "There are no MMLU development questions here.",
            f"target {name}: {Path(path) / 'dev'}",
            "Give the folder that holds dev/SUBJECT_dev.csv.",
        )
    return [
        _example(name, file.name.removesuffix("_dev.csv"), number, row)
        for file in files
        for number, row in enumerate(read_questions(file)[:SHOTS])
    ]


def read_questions(file: Path) -> list[list[str]]:
    """Rows of question, four choices and letter.

    Raises:
        DataError: Naming the line that is not so.
    """
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.reader(lines)
        rows = []
        for row in reader:
            if len(row) != len(LETTERS) + 2 or row[-1] not in LETTERS:
                raise DataError(
                    "Expected a question, four choices and a letter from A to D.",
                    f"{file}:{reader.line_num}: {len(row)} fields, the last {row[-1:]}",
                    "Give MMLU's CSV files as they are published.",
                )
            rows.append(row)
    return rows


def format_question(subject: str, row: list[str]) -> str:
    """The prompt of one question."""
    # A space before each word gives two after "about": so it is in MMLU's and in LESS's code.
    topic = "".join(f" {word}" for word in subject.split("_"))
    header = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
    choices = "".join(f"\n{letter}. {row[i + 1]}" for i, letter in enumerate(LETTERS))
    return f"{header}{row[0]}{choices}\nAnswer:"


def _example(name: str, subject: str, number: int, row: list[str]) -> Example:
    return Example(
        source=name,
        id=f"{subject}-{number}",
        messages=(
            {"role": "user", "content": format_question(subject, row)},
            {"role": "assistant", "content": f"{ANSWER_PREFIX} {row[-1]}"},
        ),
        row={"subject": subject, "question": row[0], "choices": row[1:-1], "answer": row[-1]},
        subtask=subject,
        answer_prefix=ANSWER_PREFIX,
    )
