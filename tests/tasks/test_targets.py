"""Behavior that all targets share, and the paper's three targets from their real files.

The real ones are compared byte for byte with texts that are built here independently, following the
paper's code (github.com/princeton-nlp/LESS, get_validation_dataset.py): first by concatenation,
then through the chat template that a run uses.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import get_args

import pandas
import pytest
from transformers import AutoTokenizer

from gradsieve.data.examples import Example
from gradsieve.data.template import ChatTemplate
from gradsieve.errors import DataError
from gradsieve.recipe.schema import TargetConfig as TargetSection
from gradsieve.tasks import TASKS, Target, load_target, tydiqa

Expected = dict[str, tuple[str, str]]
"""id -> (text before the supervised part, supervised text)."""


def mmlu_expected(folder: Path) -> Expected:
    texts = {}
    for file in (folder / "dev").iterdir():
        subject = file.name[: -len("_dev.csv")]
        table = pandas.read_csv(file, header=None, dtype=str, keep_default_na=False)
        for number, (question, a, b, c, d, letter) in enumerate(table.head(5).to_numpy().tolist()):
            texts[f"{subject}-{number}"] = (
                "<|user|>\nThe following are multiple choice questions (with answers) about  "
                f"{subject.replace('_', ' ')}.\n\n{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\n"
                "Answer:\n<|assistant|>\nThe answer is:",
                f" {letter}",
            )
    return texts


def bbh_expected(folder: Path) -> Expected:
    texts = {}
    for task, text in json.loads((folder / "bbh-three-shot.json").read_text("utf-8")).items():
        head, *shots = text.rsplit("\n\n", 3)
        for number, shot in enumerate(shots):
            question, _, answer = shot.partition("\nA:")
            others = "".join(f"{other}\n\n" for other in shots if other != shot)
            texts[f"{task}-{number}"] = (
                f"<|user|>\n{head.strip()}\n\n{others}{question}\n<|assistant|>\nA:",
                answer,
            )
    return texts


def tydiqa_expected(folder: Path) -> Expected:
    texts = {}
    for language, [row] in json.loads((folder / "tydiqa-one-shot.json").read_text("utf-8")).items():
        instruction, passage, question, answer = tydiqa.WORDS[language]
        texts[f"{language}-0"] = (
            "<|user|>\n" + instruction + passage + " " + row["context"] + "\n"
            + question + " " + row["question"] + "\n" + "<|assistant|>\n" + answer,
            " " + row["answers"][0]["text"],
        )  # fmt: skip
    return texts


REAL = [("mmlu", mmlu_expected, 57, 5), ("bbh", bbh_expected, 27, 3), ("tydiqa", tydiqa_expected, 9, 1)]  # fmt: skip  # noqa: E501


def tulu(example: Example) -> str:
    user, assistant = (turn["content"] for turn in example.messages)
    return f"<|user|>\n{user}\n<|assistant|>\n{assistant}"


@pytest.mark.parametrize(("task", "expected", "subtasks", "each"), REAL)
def test_real_targets_are_the_papers(
    shared_data: Path,
    task: str,
    expected: Callable[[Path], Expected],
    subtasks: int,
    each: int,
) -> None:
    folder = shared_data / "eval" / task
    target = load_target(task, task, str(folder))
    assert set(Counter(example.subtask for example in target.examples).values()) == {each}
    assert len(target.subtasks) == subtasks
    texts = expected(folder)
    assert {example.id: tulu(example) for example in target.examples} == {
        key: prompt + answer for key, (prompt, answer) in texts.items()
    }
    for example in target.examples:
        assert texts[example.id][0].endswith(f"<|assistant|>\n{example.answer_prefix}")


@pytest.mark.parametrize(("task", "expected", "subtasks", "each"), REAL)
def test_real_targets_pass_through_the_template_unchanged(
    shared_data: Path,
    task: str,
    expected: Callable[[Path], Expected],
    subtasks: int,
    each: int,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(shared_data / "models" / "stories260K"))
    template = ChatTemplate(tokenizer, "tulu")
    folder = shared_data / "eval" / task
    texts = expected(folder)
    examples = load_target(task, task, str(folder)).examples
    assert len(examples) == subtasks * each
    for example in examples:
        rendered = template.render(example)
        [(start, end)] = rendered.spans
        assert (rendered.text[:start], rendered.text[start:end]) == texts[example.id]
        assert end == len(rendered.text)


def test_real_bbh_layouts_are_equal(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "eval" / "bbh"
    (tmp_path / "cot-prompts").symlink_to((folder / "cot-prompts").resolve())
    assert load_target("t", "bbh", str(tmp_path)) == load_target("t", "bbh", str(folder))


def test_real_choices_that_say_none_are_words(shared_data: Path) -> None:
    from gradsieve.tasks.mmlu import read_questions

    files = sorted((shared_data / "eval" / "mmlu" / "test").glob("*.csv"))
    choices = Counter(cell for file in files for row in read_questions(file) for cell in row[1:5])
    # pandas would lose exactly these.
    lost = sum(
        int(pandas.read_csv(file, header=None).iloc[:, 1:5].isna().to_numpy().sum())
        for file in files
    )
    assert choices["None"] == lost == 10


def test_tasks_are_the_recipes() -> None:
    assert set(TASKS) == set(get_args(TargetSection.model_fields["task"].annotation))


@pytest.mark.parametrize(
    ("task", "todo"), [("mlmu", "Did you mean mmlu?"), ("x", "Known: mmlu, bbh, tydiqa, custom.")]
)
def test_an_unknown_task_names_the_nearest(tmp_path: Path, task: str, todo: str) -> None:
    with pytest.raises(DataError) as caught:
        load_target("t", task, str(tmp_path))
    assert (caught.value.where, caught.value.todo) == ("target t", todo)


def example(number: int, text: str = "yes", subtask: str = "all") -> Example:
    return Example("t", f"{number}", ({"role": "assistant", "content": text},), {}, subtask)


def test_fingerprint_is_of_the_content_alone() -> None:
    first = Target("t", "custom", (example(1), example(2)))
    assert len(first.fingerprint) == 64
    assert Target("u", "custom", (example(2), example(1))).fingerprint == first.fingerprint
    for other in (example(2, "no"), example(2, subtask="some"), example(3)):
        assert Target("t", "custom", (example(1), other)).fingerprint != first.fingerprint


def test_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Target("t", "custom", ()).name = "u"  # type: ignore[misc]
