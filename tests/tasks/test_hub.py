"""MMLU through `datasets`, unreadable inputs, and all benchmarks from their real files.

The targets and questions must equal those from the paper's files. Tests have no access to the hub:
folders in its format are made from small data and from the real files.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from gradsieve.tasks import BENCHMARKS, load_target, load_test_set
from gradsieve.tasks.bbh import shipped_prompts
from hub_folders import (
    LETTERS,
    QUESTIONS,
    WAYS,
    Splits,
    Write,
    both,
    jsonl_with_card,
    mmlu_files,
    mmlu_rows,
    parquet,
    refusal,
    saved,
    tydiqa,
)


@pytest.mark.parametrize("write", WAYS)
def test_mmlu_is_the_same_both_ways(tmp_path: Path, write: Write) -> None:
    local = both("mmlu", mmlu_files(tmp_path / "local"))
    through = both("mmlu", write(tmp_path / "hub", mmlu_rows(QUESTIONS)))
    assert through == local
    assert through[0].fingerprint == local[0].fingerprint
    assert through[1].fingerprint == local[1].fingerprint
    asked = {question.example.id: question.with_shots for question in through[1].questions}
    assert asked["law-0"].endswith("Why?\nA. so\nB. null\nC. N/A\nD. None\nAnswer:")
    assert "Who?\nA. None\nB. a, b\nC. nan\nD. \nAnswer: A\n\n" in asked["law-0"]


def test_mmlu_saved_as_one_with_named_letters(tmp_path: Path) -> None:
    """The format of `load_dataset("cais/mmlu", "all").save_to_disk(...)`."""
    names = datasets.ClassLabel(names=list(LETTERS))
    made = {
        split: datasets.Dataset.from_list(rows).cast_column("answer", names)
        for split, rows in mmlu_rows(QUESTIONS)["all"].items()
    }
    datasets.DatasetDict(made).save_to_disk(tmp_path / "hub")
    assert both("mmlu", tmp_path / "hub") == both("mmlu", mmlu_files(tmp_path / "local"))


def test_mmlu_subjects_may_be_mixed(tmp_path: Path) -> None:
    first, second = QUESTIONS["law", "dev"]
    mixed = mmlu_rows(QUESTIONS)
    mixed["all"]["dev"] = [
        *mmlu_rows({("law", "dev"): [first]})["all"]["dev"],
        *mmlu_rows({("law_a", "dev"): QUESTIONS["law_a", "dev"]})["all"]["dev"],
        *mmlu_rows({("law", "dev"): [second]})["all"]["dev"],
    ]
    mixed["all"]["test"].reverse()
    plain = both("mmlu", parquet(tmp_path / "plain", mmlu_rows(QUESTIONS)))
    found = both("mmlu", parquet(tmp_path / "mixed", mixed))
    assert found[0] == plain[0]
    asked = [{question.with_shots for question in test.questions} for _, test in (plain, found)]
    assert asked[0] == asked[1]


def test_missing_subjects_are_counted(tmp_path: Path) -> None:
    target = load_target("t", "mmlu", parquet(tmp_path, mmlu_rows(QUESTIONS)))
    assert target.warnings == ("2 of the benchmark's 57 subtasks were found",)
    data = mmlu_rows(QUESTIONS)
    del data["all"]["test"]
    path = parquet(tmp_path / "without", data)
    assert load_test_set("t", "mmlu", path, None) is None
    other = parquet(tmp_path / "other", mmlu_rows(QUESTIONS))
    assert load_test_set("t", "mmlu", path, other) is not None


GOOD = mmlu_rows(QUESTIONS)["all"]["dev"][0]


@pytest.mark.parametrize(
    "bad",
    [
        {**GOOD, "choices": ["a", "b", "c"]},
        {**GOOD, "choices": ["a", None, "c", "d"]},
        {**GOOD, "answer": 4},
        {**GOOD, "answer": "A"},
        {**GOOD, "question": None},
        {"input": "q", "target": "a"},
    ],
    ids=["three choices", "null choice", "answer 4", "letter", "no question", "columns"],
)
def test_a_bad_row_of_mmlu_is_named(tmp_path: Path, bad: dict[str, Any]) -> None:
    error = refusal("mmlu", parquet(tmp_path, {"all": {"dev": [bad]}}))
    assert error.what.startswith("Expected columns subject, question, choices (four texts)")
    first = next(iter(bad))
    assert f"configuration all, split dev, row 1: found {first}: " in error.where
    assert "cais/mmlu" in error.todo


# --- what can't be read ---------------------------------------------------------------------------


@pytest.mark.parametrize("task", BENCHMARKS)
def test_a_name_that_cannot_be_reached(task: str) -> None:
    error = refusal(task, "some-body/some.thing")
    assert error.what.startswith("The data set cannot be read: ")
    assert error.where.startswith("target t: some-body/some.thing, configuration ")
    assert "HF_HUB_OFFLINE" in error.todo


@pytest.mark.parametrize("path", ["data/eval/mmlu", "../mmlu", "./mmlu", "mmlu", "/no/mmlu"])
@pytest.mark.parametrize("task", BENCHMARKS)
def test_a_path_with_a_mistake_is_not_sought_on_the_hub(task: str, path: str) -> None:
    assert "no such folder" in refusal(task, path).where


def test_what_there_is_is_named(tmp_path: Path) -> None:
    data = mmlu_rows(QUESTIONS)
    other = jsonl_with_card(tmp_path / "config", {"law": data["all"]})
    assert "BuilderConfig 'all' not found. Available: ['law']" in refusal("mmlu", other).what
    for write in (jsonl_with_card, saved):
        path = write(tmp_path / write.__name__, {"all": {"test": data["all"]["test"]}})
        error = refusal("mmlu", path)
        assert "no such configuration or split: Unknown split" in error.what
        assert "test" in error.what


def test_a_file_that_does_not_fit_its_split_says_why(tmp_path: Path) -> None:
    path = jsonl_with_card(tmp_path, mmlu_rows(QUESTIONS))
    (tmp_path / "all" / "dev.jsonl").write_text("{")
    said = refusal("mmlu", path).what
    assert said.startswith("The data set cannot be read: ")
    assert "JSON" in said


@pytest.mark.parametrize("name", ["all/dev-0.parquet", "all/dataset_dict.json", "README.md"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / name).write_bytes(b"---\nconfigs: [\n---\n")
    error = refusal("mmlu", tmp_path)
    assert error.what.startswith("The data set cannot be read: ")
    assert error.where == f"target t: {tmp_path}, configuration all, split dev"


def test_the_papers_layout_comes_first(tmp_path: Path) -> None:
    """A copy of a hub repository may contain the published files."""
    (mmlu_files(tmp_path) / "README.md").write_text("---\nlicense: mit\n---\n")
    assert len(load_target("t", "mmlu", str(tmp_path)).examples) == 3


# --- the real files -------------------------------------------------------------------------------


def real_mmlu(folder: Path) -> dict[str, Splits]:
    questions = {}
    for part in ("dev", "test"):
        for file in sorted((folder / part).glob("*.csv")):
            with file.open(encoding="utf-8", newline="") as opened:
                questions[file.name[: -len(f"_{part}.csv")], part] = list(csv.reader(opened))
    return mmlu_rows(questions)


def real_bbh(folder: Path) -> dict[str, Splits]:
    files = (folder / "bbh").glob("*.json")
    return {file.stem: {"test": json.loads(file.read_text("utf-8"))["examples"]} for file in files}


def real_tydiqa(folder: Path) -> dict[str, Splits]:
    def columns(row: dict[str, Any], context: str) -> dict[str, Any]:
        answers = {key: [answer[key] for answer in row["answers"]] for key in row["answers"][0]}
        told = {"id": row["id"], "title": "", "question": row["question"], "answers": answers}
        return {**told, "context": context}

    shown = json.loads((folder / "tydiqa-one-shot.json").read_text("utf-8"))
    articles = json.loads((folder / "tydiqa-goldp-v1.1-dev.json").read_text("utf-8"))["data"]
    train = [columns(row, row["context"]) for rows in shown.values() for row in rows]
    tests = [
        columns(row, paragraph["context"])
        for article in articles
        for paragraph in article["paragraphs"]
        for row in paragraph["qas"]
    ]
    return tydiqa(train, tests)


@pytest.mark.parametrize(
    ("task", "convert", "count"),
    [("mmlu", real_mmlu, 14042), ("bbh", real_bbh, 6511), ("tydiqa", real_tydiqa, 5077)],
)
def test_real_benchmarks_are_the_same_both_ways(
    shared_data: Path,
    tmp_path: Path,
    task: str,
    convert: Callable[[Path], dict[str, Splits]],
    count: int,
) -> None:
    folder = shared_data / "eval" / task
    local, through = both(task, folder), both(task, parquet(tmp_path, convert(folder)))
    assert through == local
    assert through[0].fingerprint == local[0].fingerprint
    assert through[1].fingerprint == local[1].fingerprint
    assert (len(through[1].questions), through[0].warnings) == (count, ())
    lost = [
        choice for q in through[1].questions if q.choices for choice in q.example.row["choices"]
    ]
    assert lost.count("None") == (10 if task == "mmlu" else 0)


def test_shipped_prompts_are_the_papers(shared_data: Path) -> None:
    file = shared_data / "eval" / "bbh" / "bbh-three-shot.json"
    shipped = {task: text for task, (_, text) in shipped_prompts().items()}
    assert shipped == json.loads(file.read_text("utf-8"))
