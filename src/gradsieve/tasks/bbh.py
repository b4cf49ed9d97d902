"""BIG-Bench Hard: 27 files (23 tasks), three chain-of-thought examples each; a file is a subtask.

In: `bbh-three-shot.json`, or the published `cot-prompts/TASK.txt`. Out: three examples a file, each
asked with the other two as shots, as LESS's `get_bbh_dataset` formats them
(github.com/princeton-nlp/LESS, get_validation_dataset.py). Suzgun et al., 2022.
"""

from __future__ import annotations

import re
from pathlib import Path

from gradsieve.data.examples import Example
from gradsieve.errors import DataError
from gradsieve.tasks.layout import missing, read_json, read_text
from gradsieve.tasks.questions import Question, QuestionSet

SHOTS = 3
ANSWER_PREFIX = "A:"
THREE_SHOT = "bbh-three-shot.json"
RULE = re.compile(r"^-{3,}\n", re.MULTILINE)
"""The line of the published prompts under which the text starts."""


def read(name: str, path: str) -> list[Example]:
    """The examples of all files.

    Raises:
        DataError: If the folder has neither layout, or a text doesn't hold three examples.
    """
    return [
        example
        for task, (where, text) in sorted(_texts(name, Path(path)).items())
        for example in _examples(name, task, where, text)
    ]


def test_set(name: str, path: str) -> QuestionSet | None:
    """The questions of `bbh/TASK.json` after three worked ones; None if they are not there.

    Asked as LESS's eval/bbh does: chain of thought, what follows "the answer is" must match.
    """
    folder = Path(path)
    questions = [
        _question(name, task, number, row, text)
        for task, (_, text) in sorted(_texts(name, folder).items())
        for file in (folder / f"{task}.json", folder / "bbh" / f"{task}.json")
        if file.is_file()
        for number, row in enumerate(_rows(file))
    ]
    if not questions:
        return None
    return QuestionSet(
        tuple(questions),
        ("exact_match",),
        average="subtasks",
        stops=("\n\n",),
        max_tokens=512,
        extract=r"[Tt]he answer is (.*?)\.",
    )


def _rows(file: Path) -> list[dict[str, str]]:
    """The questions of a file.

    Raises:
        DataError: If it holds something else.
    """
    rows = read_json(file).get("examples")
    good = isinstance(rows, list) and all(
        isinstance(row, dict) and isinstance(row.get(key), str)
        for row in rows
        for key in ("input", "target")
    )
    if not good or not isinstance(rows, list):
        raise DataError(
            "Expected questions: {examples: [{input, target}]}, both texts.",
            str(file),
            "Give BBH's files as they are published.",
        )
    return rows


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
    shots = text.strip().removeprefix(instruction).strip()
    asked = f"{instruction}\n\n{shots}\n\n{question}"
    return Question(example, (row["target"],), with_shots=asked, texts=(row["input"],))


def _texts(name: str, path: Path) -> dict[str, tuple[str, str]]:
    """Each task's text, and where it stands."""
    if path.is_file():
        return _from_json(path)
    folders = (path, path / "bbh")
    for folder in folders:
        if (folder / THREE_SHOT).is_file():
            return _from_json(folder / THREE_SHOT)
    for folder in folders:
        if prompts := sorted((folder / "cot-prompts").glob("*.txt")):
            return {file.stem: (str(file), _below_rule(file)) for file in prompts}
    expected = f"the folder that holds {THREE_SHOT} or cot-prompts/TASK.txt"
    raise missing("There are no BBH prompts here.", name, path, expected)


def _from_json(file: Path) -> dict[str, tuple[str, str]]:
    return {task: (f"{file}, {task}", str(text)) for task, text in read_json(file).items()}


def _below_rule(file: Path) -> str:
    text = read_text(file).replace("\r\n", "\n")
    above, *below = RULE.split(text, maxsplit=1)
    return below[0] if below else above


def _examples(name: str, task: str, where: str, text: str) -> list[Example]:
    pieces = text.split("\n\n")
    instruction, shots = pieces[:-SHOTS], pieces[-SHOTS:]
    pairs = [shot.split(f"\n{ANSWER_PREFIX}") for shot in shots]
    if len(shots) < SHOTS or any(len(pair) != 2 for pair in pairs):
        raise DataError(
            f"Expected {SHOTS} examples, each a question and an answer after a line's "
            f'"{ANSWER_PREFIX}".',
            where,
            "Give BBH's prompts as they are published.",
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
    shots = "".join(f"{asked}\n{ANSWER_PREFIX}{said}\n\n" for asked, said in others)
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
