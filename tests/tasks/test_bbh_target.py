"""BBH's prompts are split into three examples, from either of their published layouts."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import hub_folders
from gradsieve.tasks import load_target

PROMPT = """Count the things.

Q: One apple.
How many?
A: Let's think.
There is one. So the answer is 1.

Q: Two pears.
A: So the answer is 2.

Q: No plums.
A: So the answer is 0."""


def three_shot(folder: Path, texts: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bbh-three-shot.json").write_text(json.dumps(texts), encoding="utf-8")
    return folder


def cot_prompts(folder: Path, texts: dict[str, str], above: str = "Canary: 1-2\n-----\n") -> Path:
    (folder / "cot-prompts").mkdir(parents=True)
    for task, text in texts.items():
        file = folder / "cot-prompts" / f"{task}.txt"
        file.write_text(above + text, encoding="utf-8", newline="")
    return folder


refusal = partial(hub_folders.refusal, "bbh")


def test_one_example_in_full(tmp_path: Path) -> None:
    target = load_target("skill", "bbh", str(three_shot(tmp_path, {"counting": PROMPT})))
    example = target.examples[1]
    assert example.messages[0]["content"] == (
        "Count the things.\n\n"
        "Q: One apple.\nHow many?\nA: Let's think.\nThere is one. So the answer is 1.\n\n"
        "Q: No plums.\nA: So the answer is 0.\n\n"
        "Q: Two pears."
    )
    assert example.messages[1]["content"] == "A: So the answer is 2."
    assert example.answer_prefix == "A:"
    assert (example.source, example.id, example.subtask) == ("skill", "counting-1", "counting")


def test_hidden_files_are_no_tasks(tmp_path: Path) -> None:
    folder = cot_prompts(tmp_path, {"counting": PROMPT, "._counting": ""})
    assert load_target("t", "bbh", str(folder)).subtasks == ("counting",)


def test_each_example_is_asked_with_the_other_two(tmp_path: Path) -> None:
    target = load_target("t", "bbh", str(three_shot(tmp_path, {"counting": PROMPT})))
    for asked, example in enumerate(target.examples):
        question = example.messages[0]["content"]
        answers = [f"So the answer is {answer}." in question for answer in (1, 2, 0)]
        assert answers == [shot != asked for shot in range(3)]


def test_instruction_may_have_several_paragraphs(tmp_path: Path) -> None:
    text = "  Count.\n\nAll of them.\n\n" + PROMPT.partition("\n\n")[2]
    example = load_target("t", "bbh", str(three_shot(tmp_path, {"counting": text}))).examples[2]
    assert example.messages[0]["content"].startswith("Count.\n\nAll of them.\n\nQ: One apple.")


TEXTS = {"dates": PROMPT.replace("apple", "day"), "counting": PROMPT}


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: three_shot(folder / "bbh", TEXTS),
        lambda folder: three_shot(folder, TEXTS) / "bbh-three-shot.json",
        lambda folder: cot_prompts(folder, TEXTS),
        lambda folder: cot_prompts(folder / "bbh", TEXTS).parent,
        lambda folder: cot_prompts(folder, TEXTS, above=""),
        lambda folder: cot_prompts(
            folder, {task: text.replace("\n", "\r\n") for task, text in TEXTS.items()}
        ),
    ],
    ids=["in bbh", "the file", "cot-prompts", "bbh/cot-prompts", "no rule", "windows line ends"],
)
def test_all_layouts_give_the_same_target(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    target = load_target("t", "bbh", str(three_shot(tmp_path / "first", TEXTS)))
    assert target.subtasks == ("counting", "dates")
    assert load_target("t", "bbh", str(write(tmp_path / "second"))) == target


def test_three_shot_file_wins_over_cot_prompts(tmp_path: Path) -> None:
    cot_prompts(tmp_path, TEXTS)
    three_shot(tmp_path, {"counting": PROMPT})
    assert load_target("t", "bbh", str(tmp_path)).subtasks == ("counting",)


@pytest.mark.parametrize(
    "text",
    [
        "Q: One.\nA: 1\n\nQ: Two.\nA: 2",
        PROMPT.replace("A: So the answer is 2.", "So the answer is 2."),
        PROMPT.replace("\nHow many?", "\nA: one?\nHow many?"),
        "",
        3,
    ],
    ids=["two examples", "no answer", "two answers", "empty", "no text"],
)
def test_text_without_three_examples_is_named(tmp_path: Path, text: object) -> None:
    error = refusal(three_shot(tmp_path, {"counting": PROMPT, "dates": text}))
    assert "Expected 3 examples" in error.what
    assert error.where == f"{tmp_path / 'bbh-three-shot.json'}, dates"


def test_a_bad_prompt_file_is_named(tmp_path: Path) -> None:
    cot_prompts(tmp_path, {"counting": PROMPT, "dates": "What day?"})
    assert refusal(tmp_path).where == str(tmp_path / "cot-prompts" / "dates.txt")
    (tmp_path / "cot-prompts" / "counting.txt").write_bytes(b"Canary\n-----\n\xff")
    error = refusal(tmp_path)
    assert "not UTF-8" in error.what
    assert error.where.endswith("counting.txt:3")


def test_a_damaged_json_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bbh-three-shot.json").write_text('{"counting":\n "Q', encoding="utf-8")
    error = refusal(tmp_path)
    assert error.where == str(tmp_path / "bbh-three-shot.json")
    assert "line 2" in error.what
    assert "found a list" in refusal(three_shot(tmp_path, [PROMPT])).what
    assert "no examples" in refusal(three_shot(tmp_path, {})).what


def test_a_wrong_folder_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "counting.json").touch()
    error = refusal(tmp_path)
    assert "found counting.json" in error.where
    assert "bbh-three-shot.json or cot-prompts/TASK.txt" in error.todo
