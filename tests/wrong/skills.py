"""Wrong targets, benchmarks and held-out questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from wrong import Case, Desk
from wrong.sources import GOOD, TOO_LONG

Spoil = Callable[[Desk], object]

QUESTION = "q,a,b,c,d,A\n"
PROMPTS = {"cot-prompts/x.txt": "do it" + "\n\nQ: a\nA: b" * 3}
ONE_SHOT = {"english": [{"context": "c", "question": "q", "answers": [{"text": "a"}]}]}
TYDIQA = {"tydiqa-one-shot.json": json.dumps(ONE_SHOT)}


def target(rows: list[dict[str, Any]], **changes: Any) -> Spoil:
    """Sets the second target to these rows."""

    def spoil(desk: Desk) -> None:
        desk.write("mine.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        desk.set("targets.1", {"name": "plain", "path": "mine.jsonl", **changes})

    return spoil


def benchmark(task: str, files: Mapping[str, str], **changes: Any) -> Spoil:
    """Sets the second target to a benchmark with these files."""

    def spoil(desk: Desk) -> None:
        desk.write(f"{task}/notes.txt", "")
        for name, text in files.items():
            desk.write(f"{task}/{name}", text)
        desk.set("targets.1", {"name": task, "task": task, "path": task, **changes})

    return spoil


def unasked(desk: Desk) -> None:
    desk.set("evaluate", {"tasks": ["mine"]})


def unknown_cap(desk: Desk) -> None:
    desk.set("pool.0.source_field", "kind")
    desk.set("select", {"count": 2, "per_source": {"one/leters": 1}})


TARGETS = (
    Case(
        "a cap on a source that no row names",
        unknown_cap,
        ("No row is of this source", "select.per_source: one/leters", "Did you mean one/letters?"),
        on=("new",),
    ),
    Case("a target without examples", target([]), ("file is empty", "mine.jsonl")),
    Case(
        "a target that is not there",
        lambda desk: desk.set("targets.1.path", "target.json"),
        ("The file does not exist", "target.json", "mean target.jsonl?"),
    ),
    Case(
        "a target of examples that are all too long",
        target([TOO_LONG]),
        ("no example with label tokens", "target plain", "first 64 tokens", "max_length"),
    ),
    Case(
        "a subtask field that rows lack",
        lambda desk: desk.set("targets.1.subtask", "topic"),
        (
            "6 of 6 rows have no subtask in their field topic",
            "target.jsonl:1 (id",
            "messages: [",
            "to another field",
        ),
    ),
    Case(
        "a subtask that is a list",
        target([{"topic": ["x"], **GOOD}], subtask="topic"),
        ("no subtask in their field topic", "topic: ['x']"),
    ),
    Case(
        "held-out examples that are not there",
        lambda desk: desk.set("targets.1.test", "tset.jsonl"),
        ("The file does not exist", "tset.jsonl"),
    ),
    Case(
        "held-out examples that can't be read",
        lambda desk: desk.write("test.jsonl", "{}\n") or desk.set("targets.1.test", "test.jsonl"),
        ("1 of 1 rows of test.jsonl", "test.jsonl:1", "expected messages"),
    ),
    Case(
        "a target to evaluate without questions",
        unasked,
        ("no held-out questions", "evaluate.tasks: mine", "test: FILE"),
    ),
    Case(
        "more rows wanted than there are",
        lambda desk: desk.set("select", {"count": 1000}),
        ("fewer rows than are to be selected", "select.count 1000, rows 40", "Lower"),
    ),
    Case(
        "fewer tokens wanted than the best row has",
        lambda desk: desk.set("select", {"tokens": 1}),
        ("Not even the best row", "select.tokens 1", "23 tokens", "Raise select.tokens"),
        late=True,
    ),
    Case(
        "caps that leave no source a row",
        lambda desk: desk.set("select", {"count": 3, "per_source": 0.25}),
        ("no source may have one", "of 3: per_source: more than 25%", "Raise select.per_source"),
        on=("new",),
    ),
    Case(
        "caps of tokens that leave no row",
        lambda desk: desk.set("select", {"tokens": 30, "per_source": 0.25}),
        ("all are passed over", "per_source: more than 25%", "Loosen that key"),
        late=True,
    ),
)

BENCHMARKS = (
    Case(
        "MMLU without its folder dev",
        benchmark("mmlu", {"test/x_test.csv": QUESTION}),
        ("no MMLU development questions", "found notes.txt, test/", "dev/SUBJECT_dev.csv"),
    ),
    Case(
        "MMLU with a subject's development questions missing",
        benchmark("mmlu", {"test/x_test.csv": QUESTION, "dev/y_dev.csv": QUESTION}),
        ("test questions but no development questions", "mmlu, e.g. x", "Add the dev part"),
    ),
    Case(
        "MMLU with other columns",
        benchmark("mmlu", {"dev/x_dev.csv": QUESTION + "a,b\n"}),
        ("Expected 6 columns", "x_dev.csv:2: 2 columns"),
    ),
    Case(
        "MMLU with test questions elsewhere, where there are none",
        benchmark("mmlu", {"dev/x_dev.csv": QUESTION}, test="mmlu-test"),
        ("no test questions here", "mmlu-test: no such folder", "Use the folder"),
    ),
    Case(
        "BBH without its prompts",
        benchmark("bbh", {}),
        ("no BBH prompts", "found notes.txt", "bbh-three-shot.json or cot-prompts/TASK.txt"),
    ),
    Case(
        "BBH with two examples",
        benchmark("bbh", {"cot-prompts/x.txt": "do it" + "\n\nQ: a\nA: b" * 2}),
        ("Expected 3 examples", "x.txt", "published prompts"),
    ),
    Case(
        "BBH with other questions",
        benchmark("bbh", {**PROMPTS, "bbh/x.json": '{"examples": [{"input": "a"}]}'}),
        ("Expected questions", "bbh/bbh/x.json", "published questions"),
    ),
    Case(
        "TyDiQA without its file",
        benchmark("tydiqa", {}),
        ("no TyDiQA target here", "found notes.txt", "tydiqa-one-shot.json"),
    ),
    Case(
        "TyDiQA in an unknown language",
        benchmark("tydiqa", {"tydiqa-one-shot.json": '{"englsh": [{}]}'}),
        ("The language englsh is unknown", "tydiqa-one-shot.json", "mean english?"),
    ),
    Case(
        "TyDiQA with its questions as the examples",
        benchmark("tydiqa", {"tydiqa-one-shot.json": '{"data": []}'}),
        ("not its one-shot examples", "tydiqa-one-shot.json", "Use the folder that holds"),
    ),
    Case(
        "TyDiQA without answers",
        benchmark("tydiqa", {"tydiqa-one-shot.json": '{"english": [{"context": "c"}]}'}),
        ("at least one answer", "english-0: found context"),
    ),
    Case(
        "TyDiQA with other questions",
        benchmark("tydiqa", {**TYDIQA, "tydiqa-goldp-v1.1-dev.json": '{"data": [{}]}'}),
        ("Expected {data:", "tydiqa-goldp-v1.1-dev.json", "Use the published file"),
    ),
)
