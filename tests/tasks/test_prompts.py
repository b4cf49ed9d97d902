"""Evaluation prompts, written independently: in full for small files, and for real ones.

The second implementation follows LESS's eval/ scripts and shares no code with the package.
"""

import csv
import json
from pathlib import Path

import pytest

from gradsieve.tasks import Question, load_test_set

COUNT = 20


def questions(task: str, path: Path) -> dict[str, Question]:
    test = load_test_set(task, task, str(path), None)
    assert test is not None
    return {question.example.id: question for question in test.questions}


@pytest.fixture
def mmlu(tmp_path: Path) -> Path:
    for part, rows in {
        "dev": ['Is 1 odd?,yes,no,"None, both",None,A'] * 6,
        "test": ["Is 2 odd?,Yes,No,None,NA,B", '"Two\nlines, even",null,nan,None,None,C'],
    }.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / f"odd_numbers_{part}.csv").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


HEADER = "The following are multiple choice questions (with answers) about  odd numbers.\n\n"
SHOT = "Is 1 odd?\nA. yes\nB. no\nC. None, both\nD. None\nAnswer: A\n\n"


def test_mmlu_in_full(mmlu: Path) -> None:
    first, second = questions("mmlu", mmlu).values()
    asked = "Is 2 odd?\nA. Yes\nB. No\nC. None\nD. NA\nAnswer:"
    assert first.with_shots == HEADER + 5 * SHOT + asked
    assert first.example.messages[0]["content"] == HEADER + asked
    assert (first.answers, first.choices) == (("B",), ("A", "B", "C", "D"))
    assert first.example.messages[1]["content"] == "The answer is: B"
    # Choices that pandas would read as missing values are text.
    assert "Two\nlines, even\nA. null\nB. nan\nC. None\nD. None\nAnswer:" in second.with_shots


def test_bbh_in_full(tmp_path: Path) -> None:
    shots = [f"Q: {n} and {n}?\nA: Let's think. So the answer is {2 * n}." for n in (1, 2, 3)]
    text = "Add.\n\n" + "\n\n".join(shots)
    (tmp_path / "bbh-three-shot.json").write_text(json.dumps({"adding": text}))
    rows = {"examples": [{"input": "4 and 4?", "target": "8"}]}
    (tmp_path / "adding.json").write_text(json.dumps(rows))
    (question,) = questions("bbh", tmp_path).values()
    assert question.with_shots == text + "\n\nQ: 4 and 4?"
    assert question.example.messages[0]["content"] == "Add.\n\nQ: 4 and 4?"
    assert question.example.messages[1]["content"] == "A: So the answer is 8."
    assert question.answers == ("8",)


def test_tydiqa_in_full(tmp_path: Path) -> None:
    shot = {"context": "Rain fell.", "question": "What fell?", "answers": [{"text": "Rain"}]}
    (tmp_path / "tydiqa-one-shot.json").write_text(json.dumps({"english": [shot]}))
    qas = [
        {
            "id": "english-77",
            "question": "Who ran?",
            "answers": [{"text": "Ann", "answer_start": 0}, {"text": "Ann Lee", "answer_start": 0}],
        }
    ]
    data = {"data": [{"paragraphs": [{"context": "Ann Lee ran.", "qas": qas}]}]}
    (tmp_path / "tydiqa-goldp-v1.1-dev.json").write_text(json.dumps(data))
    (question,) = questions("tydiqa", tmp_path).values()
    instruction = "Answer the following question based on the information in the given passage."
    assert question.with_shots == (
        f"{instruction}\n\nPassage: Rain fell.\nQuestion: What fell?\nAnswer: Rain\n\n"
        "Passage: Ann Lee ran.\nQuestion: Who ran?"
    )
    assert question.answers == ("Ann", "Ann Lee")
    assert question.example.answer_prefix == "Answer:"

    # The shot is the target's example, whatever its file is named.
    shot["question"] = "What did?"
    (tmp_path / "mine.json").write_text(json.dumps({"english": [shot]}))
    (question,) = questions("tydiqa", tmp_path / "mine.json").values()
    assert "Question: What did?\nAnswer: Rain\n\n" in question.with_shots


def spread(names: list[str]) -> list[str]:
    """Twenty names, evenly spaced."""
    return names[:: len(names) // COUNT][:COUNT]


def test_mmlu_on_real_questions(shared_data: Path) -> None:
    folder = shared_data / "eval" / "mmlu"
    asked = questions("mmlu", folder)
    assert len(asked) == 14042
    for name in spread(sorted(asked)):
        subject, _, number = name.rpartition("-")

        def rows(part: str, subject: str = subject) -> list[list[str]]:
            with (folder / part / f"{subject}_{part}.csv").open(newline="") as file:
                return list(csv.reader(file))

        def written(row: list[str]) -> str:
            return f"{row[0]}\nA. {row[1]}\nB. {row[2]}\nC. {row[3]}\nD. {row[4]}\nAnswer:"

        topic = " ".join(subject.split("_"))
        prompt = f"The following are multiple choice questions (with answers) about  {topic}.\n\n"
        for row in rows("dev")[:5]:
            prompt += written(row) + " " + row[5] + "\n\n"
        row = rows("test")[int(number)]
        assert asked[name].with_shots == prompt + written(row)
        assert asked[name].answers == (row[5],)


def test_bbh_on_real_questions(shared_data: Path) -> None:
    folder = shared_data / "eval" / "bbh"
    prompts = json.loads((folder / "bbh-three-shot.json").read_text())
    asked = questions("bbh", folder)
    assert len(asked) == 6511
    for name in spread(sorted(asked)):
        task, _, number = name.rpartition("-test-")
        row = json.loads((folder / "bbh" / f"{task}.json").read_text())["examples"][int(number)]
        assert asked[name].with_shots == prompts[task].strip() + "\n\nQ: " + row["input"]
        assert asked[name].answers == (row["target"],)


TYDIQA = {
    "english": (
        "Answer the following question based on the information in the given passage.",
        *("Passage", "Question", "Answer"),
    ),
    "finnish": (
        "Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.",
        *("Kappale", "Kysymys", "Vastaus"),
    ),
    "korean": (
        "주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.",
        *("문단", "질문", "답변"),
    ),
    "russian": (
        "Ответьте на следующий вопрос на основе информации в данном отрывке.",
        *("Отрывок", "Вопрос", "Ответ"),
    ),
    "swahili": (
        "Jibu swali lifuatalo kulingana na habari kwenye kifungu kilichotolewa.",
        *("Kifungu", "Swali", "Jibu"),
    ),
}


@pytest.mark.parametrize("language", TYDIQA)
def test_tydiqa_on_real_questions(shared_data: Path, language: str) -> None:
    folder = shared_data / "eval" / "tydiqa"
    (shot,) = json.loads((folder / "tydiqa-one-shot.json").read_text())[language]
    asked = questions("tydiqa", folder)
    assert len(asked) == 5077
    found = {
        row["id"]: (paragraph["context"], row)
        for article in json.loads((folder / "tydiqa-goldp-v1.1-dev.json").read_text())["data"]
        for paragraph in article["paragraphs"]
        for row in paragraph["qas"]
    }
    instruction, passage, question, answer = TYDIQA[language]
    for name in spread(sorted(name for name in asked if name.startswith(language))):
        context, row = found[name]
        assert asked[name].with_shots == (
            f"{instruction}\n\n"
            f"{passage}: {shot['context']}\n{question}: {shot['question']}\n"
            f"{answer}: {shot['answers'][0]['text']}\n\n"
            f"{passage}: {context}\n{question}: {row['question']}"
        )
        assert asked[name].example.answer_prefix == f"{answer}:"
        assert asked[name].answers == tuple(answer["text"] for answer in row["answers"])
