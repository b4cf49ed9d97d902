"""Folders in the Hub's format, and functions that load them; tests have no network."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from gradsieve.errors import DataError
from gradsieve.tasks import QuestionSet, Target, load_target, load_test_set

Splits = dict[str, list[dict[str, Any]]]
"""The rows of each split."""

Write = Callable[[Path, dict[str, Splits]], str]
"""Writes a data set (splits by configuration) and returns its path."""


def parquet(folder: Path, data: dict[str, Splits]) -> str:
    for config, splits in data.items():
        for split, rows in splits.items():
            (folder / config).mkdir(parents=True, exist_ok=True)
            file = folder / config / f"{split}-00000-of-00001.parquet"
            datasets.Dataset.from_list(rows).to_parquet(file)
    return str(folder)


def jsonl_with_card(folder: Path, data: dict[str, Splits]) -> str:
    card = ["---", "configs:"]
    for config, splits in data.items():
        card += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            card += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
            (folder / config).mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / config / f"{split}.jsonl").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return str(folder)


def saved(folder: Path, data: dict[str, Splits]) -> str:
    for config, splits in data.items():
        made = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
        datasets.DatasetDict(made).save_to_disk(folder / config)
    return str(folder)


WAYS = [parquet, jsonl_with_card, saved]


def both(task: str, path: str | Path) -> tuple[Target, QuestionSet]:
    test = load_test_set(task, task, str(path), None)
    assert test is not None
    return load_target(task, task, str(path)), test


def refusal(task: str, path: str | Path) -> DataError:
    with pytest.raises(DataError) as caught:
        load_target("t", task, str(path))
    return caught.value


LETTERS = "ABCD"
QUESTIONS = {
    ("law", "dev"): [["Who?", "None", "a, b", "nan", "", "A"], ["What?", "1", "2", "3", "4", "D"]],
    ("law", "test"): [["Why?", "so", "null", "N/A", "None", "D"]],
    ("law_a", "dev"): [['"Two\nlines"', "é", "三", " x ", "None", "B"]],
    ("law_a", "test"): [["How?", "None", "b", "c", "d", "A"], ["When?", "1", "2", "3", "4", "C"]],
}


def mmlu_rows(questions: dict[tuple[str, str], list[list[str]]]) -> dict[str, Splits]:
    splits: Splits = {"dev": [], "test": []}
    for (subject, part), rows in questions.items():
        for question, *choices, letter in rows:
            answer = LETTERS.index(letter)
            row = {"question": question, "subject": subject, "choices": choices, "answer": answer}
            splits[part].append(row)
    return {"all": splits}


def mmlu_files(folder: Path) -> Path:
    for (subject, part), rows in QUESTIONS.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        file = folder / part / f"{subject}_{part}.csv"
        with file.open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened).writerows(rows)
    return folder


def tydiqa_row(id: str, context: str = "Rain fell.", *answers: str) -> dict[str, Any]:
    texts = list(answers) or ["Rain"]
    found = {"text": texts, "answer_start": [0] * len(texts)}
    return {"id": id, "title": "Rain", "context": context, "question": "What?", "answers": found}


def tydiqa(train: list[dict[str, Any]], tests: list[dict[str, Any]]) -> dict[str, Splits]:
    return {"secondary_task": {"train": train, "validation": tests}}


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row in the format of the published files."""
    columns = row["answers"]
    answers = [
        dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)
    ]
    return {key: row[key] for key in ("id", "context", "question")} | {"answers": answers}


def tydiqa_files(folder: Path, data: dict[str, Splits]) -> Path:
    folder.mkdir()
    splits = data["secondary_task"]
    shown: Splits = {}
    for row in splits["train"]:
        language = row["id"].partition("-")[0]
        shown.setdefault(language, []).append({**plain(row), "lang": language})
    (folder / "tydiqa-one-shot.json").write_text(json.dumps(shown), encoding="utf-8")
    paragraphs = [
        {
            "context": row["context"],
            "qas": [{k: v for k, v in plain(row).items() if k != "context"}],
        }
        for row in splits["validation"]
    ]
    dev = {"data": [{"paragraphs": paragraphs}]}
    (folder / "tydiqa-goldp-v1.1-dev.json").write_text(json.dumps(dev), encoding="utf-8")
    return folder
