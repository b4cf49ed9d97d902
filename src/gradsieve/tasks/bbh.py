"""BIG-Bench Hard: 27 files (23 tasks) of three chain-of-thought examples; a subtask per file.

In: `bbh-three-shot.json`, the published `cot-prompts/TASK.txt`, or a copy on the hub. Out: three
examples per file, each with the other two as shots, as LESS's `get_bbh_dataset` formats them
(github.com/princeton-nlp/LESS, get_validation_dataset.py). Suzgun et al., 2022.

Copies on the hub have only test questions, so the prompts are read from lm-eval's task files. After
the changes that `_shipped_prompt` makes, they equal LESS's prompts byte for byte.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gradsieve.data.examples import Example
from gradsieve.errors import DataError
from gradsieve.io import needed
from gradsieve.tasks import hub
from gradsieve.tasks.layout import missing, read_json, read_text, shown, visible
from gradsieve.tasks.questions import Question, QuestionSet, Shots, question_and_answer

SHOTS = 3
SUBTASKS = 27
ANSWER_PREFIX = "A:"
THREE_SHOT = "bbh-three-shot.json"
RULE = re.compile(r"^-{3,}\n", re.MULTILINE)
"""The line in the published prompts after which the prompt's text starts."""

ON_HUB = "lukaemon/bbh"
SPLITS = ("test", "train")
"""Splits with the questions in the hub's copies: lukaemon/bbh (test), maveriq/bigbenchhard."""

THOUGHT = "Let's think step by step."
SHIPPED = f"Q: {{{{input}}}}\nA: {THOUGHT}\n"
"""The form of a question in lm-eval's task files; the worked answer follows."""

ON_ONE_LINE = ("sports_understanding",)
"""Tasks whose published answers continue on the line of `THOUGHT`; lm-eval starts a new line."""


class Prompt(NamedTuple):
    """The text of a task's file: an instruction and three worked examples."""

    where: str
    text: str

    def parts(self) -> tuple[str, list[str]]:
        """The instruction, and the examples verbatim."""
        pieces = self.text.split("\n\n")
        return "\n\n".join(pieces[:-SHOTS]).strip(), pieces[-SHOTS:]


Questions = list[dict[str, str]]
"""Held-out questions, each with input and target."""


def read(name: str, path: str) -> tuple[list[Example], list[str]]:
    """The target examples of all tasks, and no warnings.

    Raises:
        DataError: If the prompts are missing, or a text doesn't have three examples.
        UsageError: If a copy on the hub needs lm-eval's prompts, and it is not installed.
    """
    tasks = sorted(_tasks(name, path).items())
    found = (_examples(name, task, prompt) for task, (prompt, _) in tasks)
    return [example for examples in found for example in examples], []


def test_set(name: str, path: str) -> QuestionSet | None:
    """The questions of `bbh/TASK.json`, each after three worked examples; None if there are none.

    As in LESS's eval/bbh: chain of thought; the text after "So the answer is" must match, ignoring
    case and punctuation. If an answer consists of punctuation only (dyck_languages), LESS's code
    accepts any punctuation; here it must match the answer.
    """
    questions = [
        _question(name, task, number, row, prompt)
        for task, (prompt, rows) in sorted(_tasks(name, path).items())
        for number, row in enumerate(rows)
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


def _question(name: str, task: str, number: int, row: dict[str, str], prompt: Prompt) -> Question:
    instruction, shots = prompt.parts()
    question, answer = f"Q: {row['input']}", f" So the answer is {row['target']}."
    example = question_and_answer(
        name,
        task,
        f"{task}-test-{number}",
        f"{instruction}\n\n{question}",
        ANSWER_PREFIX,
        answer,
        row,
    )
    worked = tuple(f"{shot}\n\n" for shot in "\n\n".join(shots).strip().split("\n\n"))
    after = Shots(f"{instruction}\n\n", worked, question)
    return Question(example, (row["target"],), shots=after, texts=(row["input"],))


def _examples(name: str, task: str, prompt: Prompt) -> list[Example]:
    instruction, shots = prompt.parts()
    pairs = [shot.split(f"\n{ANSWER_PREFIX}") for shot in shots]
    if len(shots) < SHOTS or any(len(pair) != 2 for pair in pairs):
        raise DataError(
            f"Expected {SHOTS} examples, each a question and an answer after a line's "
            f'"{ANSWER_PREFIX}".',
            prompt.where,
            "Use BBH's published prompts.",
        )
    return [
        question_and_answer(
            name,
            task,
            f"{task}-{number}",
            "\n\n".join([instruction, *shots[:number], *shots[number + 1 :], question]),
            ANSWER_PREFIX,
            answer,
            {"task": task, "question": question, "answer": answer},
        )
        for number, (question, answer) in enumerate(pairs)
    ]


def _tasks(name: str, path: str) -> dict[str, tuple[Prompt, Questions]]:
    folder = Path(path)
    if (prompts := _prompts(folder)) is not None:
        return {task: (found, _local_questions(folder, task)) for task, found in prompts.items()}
    if not hub.is_data_set(path):
        expected = f"the folder that holds {THREE_SHOT} or cot-prompts/TASK.txt, or {ON_HUB}"
        raise missing("There are no BBH prompts here.", name, folder, expected)
    # A single saved data set has no configurations: it would be read once for every task.
    saved_alone = (folder / hub.SAVED).is_file()
    tasks = {
        task: (prompt, questions)
        for task, prompt in shipped_prompts().items()
        if not saved_alone and (questions := _hub_questions(name, path, task))
    }
    if not tasks:
        what = f"The data set has none of BBH's {SUBTASKS} tasks as a configuration."
        raise DataError(what, f"target {name}: {path}", f"Use {ON_HUB} or a copy of it.")
    return tasks


# --- the published files --------------------------------------------------------------------------


def _prompts(path: Path) -> dict[str, Prompt] | None:
    """Each task's prompt; None if the path has neither layout."""
    folders = (path, path / "bbh")
    for file in (path, *(folder / THREE_SHOT for folder in folders)):
        if file.is_file():
            texts = read_json(file)
            return {task: Prompt(f"{file}, {task}", str(text)) for task, text in texts.items()}
    for folder in folders:
        if prompts := visible((folder / "cot-prompts").glob("*.txt")):
            return {file.stem: Prompt(str(file), _below_rule(file)) for file in prompts}
    return None


def _below_rule(file: Path) -> str:
    return RULE.split(read_text(file).replace("\r\n", "\n"), maxsplit=1)[-1]


def _local_questions(folder: Path, task: str) -> Questions:
    for file in (folder / f"{task}.json", folder / "bbh" / f"{task}.json"):
        if file.is_file():
            return _checked(read_json(file).get("examples"), str(file))
    return []


def _checked(rows: Any, where: str) -> Questions:
    """The input and target of each row."""
    rows = rows if isinstance(rows, list) else [rows]
    for number, row in enumerate(rows, start=1):
        match row:
            case {"input": str(), "target": str()}:
                continue
        raise DataError(
            "Expected questions with texts as input and target.",
            f"{where}, question {number}: found {shown(row)}",
            "Use BBH's published questions.",
        )
    return [{"input": row["input"], "target": row["target"]} for row in rows]


# --- the hub --------------------------------------------------------------------------------------


def _hub_questions(name: str, path: str, task: str) -> Questions:
    for split in SPLITS:
        with suppress(hub.NotThere):
            rows = hub.read_split(name, path, task, split)
            return _checked(rows, hub.place(name, path, task, split))
    return []


def shipped_prompts() -> dict[str, Prompt]:
    """Each task's prompt from lm-eval's task files, which contain the published prompts.

    Raises:
        UsageError: If lm-eval is not installed.
        DataError: If its files have another form than in versions 0.4.9 to 0.4.13.
    """
    package = Path(needed("lm_eval", "evaluate").__file__).parent
    folder = package / "tasks" / "bbh" / "cot_fewshot"
    prompts = dict(_shipped_prompt(file) for file in folder.glob("[!_]*.yaml"))
    if not prompts:
        raise _other_form(folder)
    return prompts


def _shipped_prompt(file: Path) -> tuple[str, Prompt]:
    match yaml.safe_load(read_text(file)):
        case {
            "dataset_name": str(task),
            "description": str(instruction),
            "doc_to_text": prompt,
            "fewshot_config": {"samples": [*samples]},
        } if prompt == SHIPPED:
            between = " " if task in ON_ONE_LINE else "\n"
            # Version 0.4.9 repeats THOUGHT in the answer.
            shots = [
                f"Q: {row['input']}\n{ANSWER_PREFIX} {THOUGHT}{between}"
                + row["target"].removeprefix(THOUGHT).lstrip()
                for row in _checked(samples, str(file))
            ]
            return task, Prompt(str(file), instruction + "\n\n".join(shots))
    raise _other_form(file)


def _other_form(path: Path) -> DataError:
    what = "This version of lm-eval has BBH's prompts in another form."
    todo = "Install lm-eval 0.4.13, or use BBH's own folder: docs/targets.md."
    return DataError(what, str(path), todo)
