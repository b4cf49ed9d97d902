"""Warnings about the inputs are collected while they are read, and reported once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import world
from gradsieve.errors import DataError
from gradsieve.recipe.schema import TrainConfig
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages import checks
from hub_folders import QUESTIONS, mmlu_rows, parquet, tydiqa, tydiqa_row


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    questions = {key: rows for key, rows in QUESTIONS.items() if key != ("law", "test")}
    train = [tydiqa_row("finnish-1-0"), tydiqa_row("finnish-2-0")]
    return {
        "mmlu": parquet(tmp_path / "mmlu", mmlu_rows(questions)),
        "tydiqa": parquet(tmp_path / "tydiqa", tydiqa(train, [tydiqa_row("finnish-3-0", "Snow.")])),
    }


def test_what_a_benchmark_lacks_is_reported_once(tmp_path: Path, data: dict[str, str]) -> None:
    recipe = world.recipe(
        world.make(tmp_path / "world"),
        targets=[{"name": f"my-{task}", "task": task, "path": path} for task, path in data.items()],
    )
    listening = world.Listening()
    context = Context(recipe, RunFolder(tmp_path / "run"), listening)
    for _ in range(2):
        assert [len(target.examples) for target in context.targets] == [3, 1]
        assert {name: len(test.questions) for name, test in context.test_sets.items()} == {
            "my-mmlu": 2,
            "my-tydiqa": 1,
        }
    assert listening.lines == []
    for _ in range(2):
        context.report_warnings()
    assert listening.lines == [
        "warning: target my-mmlu: 2 of the benchmark's 57 subtasks were found",
        "warning: target my-tydiqa: the paper's one-shot examples of 1 of 1 languages (finnish) "
        "are not among the training rows: others are used",
        "warning: target my-tydiqa: 1 of the benchmark's 9 subtasks were found",
        "warning: target my-mmlu: 1 of 2 subtasks have no held-out questions, the first law",
    ]


def test_a_language_without_an_example_is_reported(tmp_path: Path) -> None:
    rows = [tydiqa_row(f"{language}-3-0") for language in ("korean", "finnish", "arabic")]
    data = parquet(tmp_path / "data", tydiqa([tydiqa_row("finnish-1-0")], rows))
    targets = [{"name": "t", "task": "tydiqa", "path": data}]
    recipe = world.recipe(world.make(tmp_path / "world"), targets=targets)
    listening = world.Listening()
    context = Context(recipe, RunFolder(tmp_path / "run"), listening)
    assert len(context.test_sets["t"].questions) == 3
    context.report_warnings()
    assert listening.lines[-1] == (
        "warning: target t: the held-out questions of 2 of 3 subtasks are asked without a few-shot "
        "example, since the target has none of them, the first arabic"
    )


def test_another_model_is_reported_once(tmp_path: Path) -> None:
    recipe = world.recipe(world.make(tmp_path / "world"))
    long = recipe.model.model_copy(update={"max_length": 4096})
    same = recipe.model_copy(update={"model": long, "train": TrainConfig()})
    other = shutil.copytree(recipe.model.name, tmp_path / "other")
    listening = world.Listening()
    train = TrainConfig(model=str(other))
    context = Context(
        same.model_copy(update={"train": train}), RunFolder(tmp_path / "run"), listening
    )
    assert checks.students(context) == []
    for _ in range(2):
        assert context.student.template.max_length == 64
    context.report_warnings()
    assert len(listening.lines) == 1
    assert "examples are cut to 64 tokens" in listening.lines[0]
    assert context.student.student is context.student
    alone = Context(same, RunFolder(tmp_path / "run"), listening)
    assert alone.student is alone


def refusing(tmp_path: Path, **keys: Any) -> tuple[Context, world.Listening]:
    """A target whose template refuses every example that contains a d."""
    template = tmp_path / "refusing.jinja"
    template.write_text(
        "{% for m in messages %}{% if 'd' in m.content %}{{ raise_exception('no d') }}"
        "{% endif %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    )
    recipe = world.recipe(world.make(tmp_path / "world"))
    said = ["a", "d", "b", "d"]
    (tmp_path / "target.jsonl").write_text(
        "".join(json.dumps({"prompt": "a", "completion": text}) + "\n" for text in said)
    )
    changes = {"name": "my", "path": str(tmp_path / "target.jsonl"), "subtask": None}
    target = recipe.targets[0].model_copy(update=changes)
    model = recipe.model.model_copy(update={"chat_template": str(template)})
    changed = recipe.model_copy(update={"targets": [target], "model": model, **keys})
    listening = world.Listening()
    return Context(changed, RunFolder(tmp_path / "run"), listening), listening


def test_examples_that_the_template_refuses_are_bad_rows(tmp_path: Path) -> None:
    context, _ = refusing(tmp_path)
    with pytest.raises(DataError) as caught:
        context.target_rows(context.targets[0])
    assert caught.value.what == "The chat template refuses 2 of 4 examples."
    assert caught.value.where.startswith(f"{tmp_path / 'target.jsonl'}:2 (my, ")
    assert f"{tmp_path / 'target.jsonl'}:4 (my, " in caught.value.where
    assert "on_bad_row: skip" in caught.value.todo


def test_examples_that_the_template_refuses_are_skipped(tmp_path: Path) -> None:
    context, listening = refusing(tmp_path, on_bad_row="skip")
    rows = context.target_rows(context.targets[0])
    assert [row.example.messages[-1]["content"] for row in rows] == ["a", "b"]
    context.report_warnings()
    [line] = [line for line in listening.lines if "left out" in line]
    assert line.startswith("warning: target my: 2 of 4 examples left out, the first ")
    assert line.endswith(": the chat template refuses it: no d")


def test_skipped_rows_of_a_test_file_are_counted(tmp_path: Path) -> None:
    inputs = world.make(tmp_path / "world")
    good = {"prompt": "repeat : a b", "completion": "a b"}
    world.write(tmp_path / "test.jsonl", [good, {**good, "completion": None}])
    target = {**inputs["targets"][1], "test": str(tmp_path / "test.jsonl")}
    recipe = world.recipe({**inputs, "targets": [target]}, on_bad_row="skip")
    listening = world.Listening()
    context = Context(recipe, RunFolder(tmp_path / "run"), listening)
    assert len(context.test_sets["plain"].questions) == 1
    context.report_warnings()
    (line,) = listening.lines
    assert line.startswith("warning: plain, test: 1 bad rows left out, the first at ")
    assert "test.jsonl:2" in line


@pytest.mark.parametrize("part", ["path", "test"])
def test_limits_are_those_of_targets_and_questions_too(tmp_path: Path, part: str) -> None:
    data = world.make(tmp_path / "inputs", rows=4)
    long = {"kind": "long", "prompt": "How long?", "completion": "long " * 100}
    world.write(tmp_path / "long.jsonl", [long])
    data["targets"][0][part] = str(tmp_path / "long.jsonl")

    def read(row_bytes: int) -> list[str]:
        recipe = world.recipe(data, limits={"row_bytes": row_bytes}, evaluate={})
        context = Context(recipe, RunFolder(tmp_path / "run"), world.Listening())
        examples = context.targets[0].examples
        if part == "test":
            examples = [one.example for one in context.test_sets["mine"].questions]
        return [example.messages[-1]["content"] for example in examples]

    assert read(1000) == [long["completion"]]
    with pytest.raises(DataError, match="more than 500 bytes") as caught:
        read(500)
    assert "long.jsonl:1" in caught.value.where
