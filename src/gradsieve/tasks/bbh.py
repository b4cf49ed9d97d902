"""BIG-Bench Hard: 27 files (23 tasks), three chain-of-thought examples each; a file is a subtask.

In: `bbh-three-shot.json`, or the published `cot-prompts/TASK.txt`. Out: three examples a file, each
asked with the other two as shots, as LESS's `get_bbh_dataset` formats them
(github.com/princeton-nlp/LESS, get_validation_dataset.py). Suzgun et al., 2022.
"""

from __future__ import annotations

import json
from pathlib import Path

from gradsieve.data.examples import Example
from gradsieve.errors import DataError

SHOTS = 3
ANSWER_PREFIX = "A:"
RULE = "-----"
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


def _texts(name: str, path: Path) -> dict[str, tuple[str, str]]:
    """Each task's text, and where it stands."""
    file = path if path.is_file() else path / "bbh-three-shot.json"
    if file.is_file():
        try:
            texts = json.loads(file.read_text(encoding="utf-8"))
            return {task: (f"{file}, {task}", str(text)) for task, text in texts.items()}
        except (ValueError, AttributeError) as error:
            todo = "Give bbh-three-shot.json as it was published: {task: text}."
            raise DataError(f"The file cannot be read: {error}.", str(file), todo) from None
    prompts = sorted((path / "cot-prompts").glob("*.txt"))
    if not prompts:
        raise DataError(
            "There are no BBH prompts here.",
            f"target {name}: {path}",
            "Give the folder that holds bbh-three-shot.json or cot-prompts/TASK.txt.",
        )
    return {file.stem: (str(file), _below_rule(file)) for file in prompts}


def _below_rule(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    above, rule, below = text.partition(f"{RULE}\n")
    return below if rule else above


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
