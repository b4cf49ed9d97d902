"""What is told of the inputs, once each, while they are read."""

import shutil
from pathlib import Path

import pytest

import world
from gradsieve.recipe.schema import TrainConfig
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from hub_folders import QUESTIONS, mmlu_rows, parquet, tydiqa, tydiqa_row


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    questions = {key: rows for key, rows in QUESTIONS.items() if key != ("law", "test")}
    train = [tydiqa_row("finnish-1-0"), tydiqa_row("finnish-2-0")]
    return {
        "mmlu": parquet(tmp_path / "mmlu", mmlu_rows(questions)),
        "tydiqa": parquet(tmp_path / "tydiqa", tydiqa(train, [tydiqa_row("finnish-3-0", "Snow.")])),
    }


def test_what_a_benchmark_lacks_is_told_once(tmp_path: Path, data: dict[str, str]) -> None:
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
    assert listening.lines == [
        "warning: target my-mmlu: 2 of the benchmark's 57 subtasks are there",
        "warning: target my-tydiqa: the paper's one-shot examples of 1 of 1 languages (finnish) "
        "are not among the training rows: others were taken",
        "warning: target my-tydiqa: 1 of the benchmark's 9 subtasks are there",
        "warning: target my-mmlu: 1 of 2 subtasks have no held-out questions, the first law",
    ]


def test_another_model_is_told_of_once(tmp_path: Path) -> None:
    recipe = world.recipe(world.make(tmp_path / "world"))
    long = recipe.model.model_copy(update={"max_length": 4096})
    same = recipe.model_copy(update={"model": long, "train": TrainConfig()})
    other = shutil.copytree(recipe.model.name, tmp_path / "other")
    listening = world.Listening()
    train = TrainConfig(model=str(other))
    context = Context(
        same.model_copy(update={"train": train}), RunFolder(tmp_path / "run"), listening
    )
    for _ in range(2):
        assert context.student.template.max_length == 64
    assert len(listening.lines) == 1
    assert "examples are cut to 64 tokens" in listening.lines[0]
    assert context.student.student is context.student
    alone = Context(same, RunFolder(tmp_path / "run"), listening)
    assert alone.student is alone
