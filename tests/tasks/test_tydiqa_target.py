"""TyDiQA's examples are prompted in their own language, with the wording of the paper's code."""

import json
from functools import partial
from pathlib import Path

import pytest

import hub_folders
from gradsieve.errors import DataError
from gradsieve.tasks import load_target, load_test_set
from gradsieve.tasks.tydiqa import DEV, WORDS


def row(context: str, question: str, *answers: str) -> dict[str, object]:
    return {"context": context, "question": question, "answers": [{"text": a} for a in answers]}


ROW = row("The sky is blue.", "Which color?", "blue")


def written(folder: Path, content: object, name: str = "tydiqa-one-shot.json") -> Path:
    (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


refusal = partial(hub_folders.refusal, "tydiqa")


def test_examples_in_full(tmp_path: Path) -> None:
    finnish = row("Taivas on sininen.", "Minkä värinen?", "sininen", "sinisen")
    target = load_target("t", "tydiqa", str(written(tmp_path, {"finnish": [finnish, ROW]})))
    first, second = target.examples
    assert first.messages[0]["content"] == (
        "Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella."
        "Kappale: Taivas on sininen.\nKysymys: Minkä värinen?"
    )
    assert first.messages[1]["content"] == "Vastaus: sininen"
    assert first.answer_prefix == "Vastaus:"
    assert (first.source, first.id, first.subtask) == ("t", "finnish-0", "finnish")
    assert (second.id, second.subtask) == ("finnish-1", "finnish")


def test_every_language_has_its_own_words(tmp_path: Path) -> None:
    target = load_target("t", "tydiqa", str(written(tmp_path, {name: [ROW] for name in WORDS})))
    assert target.subtasks == (
        "arabic",
        "bengali",
        "english",
        "finnish",
        "indonesian",
        "korean",
        "russian",
        "swahili",
        "telugu",
    )
    for part in zip(*WORDS.values(), strict=True):
        assert len(set(part)) == len(WORDS)


def test_the_chinese_variant_is_read_only_if_it_is_named(tmp_path: Path) -> None:
    chinese = {"korean": [row("天是蓝的。", "什么颜色？", "蓝")]}
    written(tmp_path, chinese, "tydiqa-one-shot-zh.json")
    assert "found tydiqa-one-shot-zh.json" in refusal(tmp_path).where
    target = load_target("t", "tydiqa", str(tmp_path / "tydiqa-one-shot-zh.json"))
    [example] = target.examples
    assert example.messages[0]["content"] == (
        "根据所给文章中的信息回答以下问题。文章: 天是蓝的。\n问题: 什么颜色？"
    )
    assert example.messages[1]["content"] == "答案: 蓝"
    assert example.subtask == "korean"


def test_a_file_of_any_other_name_is_read_as_usual(tmp_path: Path) -> None:
    written(tmp_path, {"english": [ROW]}, "mine.json")
    [example] = load_target("t", "tydiqa", str(tmp_path / "mine.json")).examples
    assert example.answer_prefix == "Answer:"


def test_an_unknown_language_names_the_nearest(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, {"english": [ROW], "finish": [ROW]}))
    assert error.what == "The language finish is unknown."
    assert error.todo == "Did you mean finnish?"
    assert "Known: english, arabic" in refusal(written(tmp_path, {"xx": [ROW]})).todo


def test_the_questions_are_no_target(tmp_path: Path) -> None:
    file = written(tmp_path, {"data": []}, "tydiqa-goldp-v1.1-dev.json") / DEV
    error = refusal(file)
    assert error.what == "These are TyDiQA's questions, not its one-shot examples."
    assert error.where == str(file)


def test_a_damaged_question_is_described(tmp_path: Path) -> None:
    written(tmp_path, {"english": [ROW]})
    damaged = {"id": "english-1-0", "question": "Why?", "answers": []}
    dev = {"data": [{"paragraphs": [{"context": "c", "qas": [damaged]}]}]}
    written(tmp_path, dev, DEV)
    with pytest.raises(DataError) as caught:
        load_test_set("t", "tydiqa", str(tmp_path), None)
    assert "english-1-0: found id: 'english-1-0'," in caught.value.where
    assert "answers: []" in caught.value.where
    assert caught.value.todo == "Use the published file."


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        (
            [ROW, {"context": "c", "question": "q"}],
            ", english-1: found context: 'c', question: 'q'",
        ),
        ([row("c", "q")], ", english-0: found context: 'c', question: 'q', answers: []"),
        (
            [{"context": None, "question": "q", "answers": [{"text": "a"}]}],
            ", english-0: found context: None, question: 'q', answers: [{'text': 'a'}]",
        ),
        (
            [{"context": "c", "question": "q", "answers": [{"text": "a"}, {}]}],
            ", english-0: found context: 'c', question: 'q', answers: [{'text': 'a'}, {}]",
        ),
        (["text"], ", english-0: found str"),
        (ROW, ", english"),
        ([], ", english"),
    ],
    ids=["no answers", "empty answers", "null", "no text", "no object", "no list", "empty list"],
)
def test_a_damaged_example_is_named(tmp_path: Path, rows: object, where: str) -> None:
    error = refusal(written(tmp_path, {"english": rows}))
    assert error.what.startswith("Expected")
    assert error.where == f"{tmp_path / 'tydiqa-one-shot.json'}{where}"
