"""BIG-Bench Hard: 27 files (23 tasks), three chain-of-thought examples each; a file is a subtask.

In: `bbh-three-shot.json`, or the published `cot-prompts/TASK.txt`, or a copy on the hub. Out: three
examples per file, each with the other two as shots, as LESS's `get_bbh_dataset` formats them
(github.com/princeton-nlp/LESS, get_validation_dataset.py). Suzgun et al., 2022.

Copies on the hub have only test questions. Their prompts are read from lm-eval's task files; with
the changes of `_shipped_prompt` they equal LESS's byte for byte.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gradsieve.data.examples import Example
from gradsieve.errors import DataError
from gradsieve.io import needed
from gradsieve.tasks import hub
from gradsieve.tasks.layout import missing, read_json, read_text, shown
from gradsieve.tasks.questions import Question, QuestionSet, Shots

SHOTS = 3
SUBTASKS = 27
ANSWER_PREFIX = "A:"
THREE_SHOT = "bbh-three-shot.json"
RULE = re.compile(r"^-{3,}\n", re.MULTILINE)
"""The line of the published prompts after which the text starts."""

ON_HUB = "lukaemon/bbh"
SPLITS = ("test", "train")
"""Splits with the questions in copies on the hub: lukaemon/bbh, maveriq/bigbenchhard."""

THOUGHT = "Let's think step by step."
SHIPPED = f"Q: {{{{input}}}}\nA: {THOUGHT}\n"
"""The question in lm-eval's task files; the worked answer follows."""

ON_ONE_LINE = ("sports_understanding",)
"""Tasks whose published answers continue on the line of `THOUGHT`; in lm-eval, on the next."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task as it was read.

    Attributes:
        where: The file of the text.
        text: An instruction and three worked examples.
        questions: Held-out questions, each with input and target.
    """

    where: str
    text: str
    questions: list[dict[str, str]]


def read(name: str, path: str) -> tuple[list[Example], list[str]]:
    """The examples of all tasks; no warnings.

    Raises:
        DataError: If the prompts are missing, or a text doesn't have three examples.
        UsageError: If a copy on the hub needs lm-eval's prompts, and it is not installed.
    """
    examples = [
        example
        for task, found in sorted(_tasks(name, path).items())
        for example in _examples(name, task, found.where, found.text)
    ]
    return examples, []


def test_set(name: str, path: str) -> QuestionSet | None:
    """The questions of `bbh/TASK.json` after three worked ones; None if there are none.

    As in LESS's eval/bbh: chain of thought; the text after "So the answer is" must match, ignoring
    case and punctuation. That code accepts any punctuation for an answer of nothing else
    (dyck_languages); here it must be the answer's.
    """
    questions = [
        _question(name, task, number, row, found.text)
        for task, found in sorted(_tasks(name, path).items())
        for number, row in enumerate(found.questions)
    ]
    if not questions:
        return None
    return QuestionSet(
        tuple(questions),
        ("exact_match",),
        average="subtasks",
        stops=("\n\n",),
        max_tokens=512,
        extract=r"So the answer is (.*?)\.",
        match="letters",
    )


def _question(name: str, task: str, number: int, row: dict[str, str], text: str) -> Question:
    instruction = "\n\n".join(text.split("\n\n")[:-SHOTS]).strip()
    question = f"Q: {row['input']}"
    example = Example(
        source=name,
        id=f"{task}-test-{number}",
        messages=(
            {"role": "user", "content": f"{instruction}\n\n{question}"},
            {"role": "assistant", "content": f"{ANSWER_PREFIX} So the answer is {row['target']}."},
        ),
        row=row,
        subtask=task,
        answer_prefix=ANSWER_PREFIX,
    )
    worked = text.strip().removeprefix(instruction).strip().split("\n\n")
    shots = Shots(f"{instruction}\n\n", tuple(f"{shot}\n\n" for shot in worked), question)
    return Question(example, (row["target"],), shots=shots, texts=(row["input"],))


def _tasks(name: str, path: str) -> dict[str, Task]:
    folder = Path(path)
    texts = _texts(folder)
    if texts is None and hub.is_data_set(path):
        return _hub_tasks(name, path)
    if texts is None:
        expected = f"the folder that holds {THREE_SHOT} or cot-prompts/TASK.txt, or {ON_HUB}"
        raise missing("There are no BBH prompts here.", name, folder, expected)
    return {
        task: Task(where, text, _local_questions(folder, task))
        for task, (where, text) in texts.items()
    }


def _examples(name: str, task: str, where: str, text: str) -> list[Example]:
    pieces = text.split("\n\n")
    instruction, shots = pieces[:-SHOTS], pieces[-SHOTS:]
    pairs = [shot.split(f"\n{ANSWER_PREFIX}") for shot in shots]
    if len(shots) < SHOTS or any(len(pair) != 2 for pair in pairs):
        raise DataError(
            f"Expected {SHOTS} examples, each a question and an answer after a line's "
            f'"{ANSWER_PREFIX}".',
            where,
            "Use BBH's published prompts.",
        )
    return [
        _example(name, task, number, "\n\n".join(instruction).strip(), pairs)
        for number in range(SHOTS)
    ]


def _example(
    name: str, task: str, number: int, instruction: str, pairs: list[list[str]]
) -> Example:
    question, answer = pairs[number]
    others = pairs[:number] + pairs[number + 1 :]
    shots = "".join(f"{other}\n{ANSWER_PREFIX}{worked}\n\n" for other, worked in others)
    return Example(
        source=name,
        id=f"{task}-{number}",
        messages=(
            {"role": "user", "content": f"{instruction}\n\n{shots}{question}"},
            {"role": "assistant", "content": f"{ANSWER_PREFIX}{answer}"},
        ),
        row={"task": task, "question": question, "answer": answer},
        subtask=task,
        answer_prefix=ANSWER_PREFIX,
    )


# --- the published files --------------------------------------------------------------------------


def _texts(path: Path) -> dict[str, tuple[str, str]] | None:
    """Each task's file and text; None if the path has neither layout."""
    folders = (path, path / "bbh")
    for file in (path, *(folder / THREE_SHOT for folder in folders)):
        if file.is_file():
            texts = read_json(file)
            return {task: (f"{file}, {task}", str(text)) for task, text in texts.items()}
    for folder in folders:
        if prompts := sorted((folder / "cot-prompts").glob("*.txt")):
            return {file.stem: (str(file), _below_rule(file)) for file in prompts}
    return None


def _below_rule(file: Path) -> str:
    text = read_text(file).replace("\r\n", "\n")
    above, *below = RULE.split(text, maxsplit=1)
    return below[0] if below else above


def _local_questions(folder: Path, task: str) -> list[dict[str, str]]:
    for file in (folder / f"{task}.json", folder / "bbh" / f"{task}.json"):
        if file.is_file():
            return _checked(read_json(file).get("examples"), str(file))
    return []


def _checked(rows: Any, where: str) -> list[dict[str, str]]:
    """The input and target of each row."""
    rows = rows if isinstance(rows, list) else [rows]
    for number, row in enumerate(rows, start=1):
        match row:
            case {"input": str(), "target": str()}:
                continue
        found = shown(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(
            "Expected questions with texts as input and target.",
            f"{where}, question {number}: found {found}",
            "Use BBH's published questions.",
        )
    return [{"input": row["input"], "target": row["target"]} for row in rows]


# --- the hub --------------------------------------------------------------------------------------


def _hub_tasks(name: str, path: str) -> dict[str, Task]:
    """The tasks of a copy on the hub."""
    # One saved data set has no configurations: it would be read as every task.
    saved_alone = (Path(path) / hub.SAVED).is_file()
    tasks = {
        task: Task(str(file), text, questions)
        for task, (file, text) in shipped_prompts().items()
        if not saved_alone and (questions := _hub_questions(name, path, task))
    }
    if not tasks:
        what = f"The data set has none of BBH's {SUBTASKS} tasks as a configuration."
        todo = f"Use {ON_HUB} or a copy of it."
        raise DataError(what, f"target {name}: {path}", todo)
    return tasks


def _hub_questions(name: str, path: str, task: str) -> list[dict[str, str]]:
    for split in SPLITS:
        with suppress(hub.NotThere):
            rows = hub.read_split(name, path, task, split)
            return _checked(rows, f"target {name}: {path}, configuration {task}, split {split}")
    return []


def shipped_prompts() -> dict[str, tuple[Path, str]]:
    """Each task's file and text in lm-eval, which contains the published prompts.

    Raises:
        UsageError: If lm-eval is not installed.
        DataError: If its files differ from those of versions 0.4.9 to 0.4.13.
    """
    package = Path(needed("lm_eval", "evaluate").__file__).parent
    folder = package / "tasks" / "bbh" / "cot_fewshot"
    prompts = dict(_shipped_prompt(file) for file in folder.glob("[!_]*.yaml"))
    if not prompts:
        raise _other_form(folder)
    return prompts


def _shipped_prompt(file: Path) -> tuple[str, tuple[Path, str]]:
    match yaml.safe_load(read_text(file)):
        case {
            "dataset_name": str(task),
            "description": str(instruction),
            "doc_to_text": prompt,
            "fewshot_config": {"samples": [*samples]},
        } if prompt == SHIPPED:
            between = " " if task in ON_ONE_LINE else "\n"
            # Version 0.4.9 repeats the thought in the answer.
            shots = [
                f"Q: {row['input']}\n{ANSWER_PREFIX} {THOUGHT}{between}"
                + row["target"].removeprefix(THOUGHT).lstrip()
                for row in _checked(samples, str(file))
            ]
            return task, (file, instruction + "\n\n".join(shots))
    raise _other_form(file)


def _other_form(path: Path) -> DataError:
    return DataError(
        "This version of lm-eval has BBH's prompts in another form.",
        str(path),
        "Install lm-eval 0.4.13, or use BBH's own folder: docs/targets.md.",
    )
