"""TyDiQA, gold passage: nine languages, one example each; a language is a subtask.

In: `tydiqa-one-shot.json`, or another file of its kind that the path names. Out: examples as LESS's
`get_tydiqa_dataset` formats them (github.com/princeton-nlp/LESS, get_validation_dataset.py; the
words are open-instruct's). Clark et al., TACL 2020.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradsieve.data.examples import Example
from gradsieve.errors import DataError
from gradsieve.tasks.layout import did_you_mean, missing, read_json
from gradsieve.tasks.questions import Question, QuestionSet

WORDS = {
    "english": (
        "Answer the following question based on the information in the given passage.",
        "Passage:",
        "Question:",
        "Answer:",
    ),
    "arabic": (
        "أجب على السؤال التالي بناءً على المعلومات في المقطع المعطى.",
        "المقطع:",
        "السؤال:",
        "الإجابة:",
    ),
    "bengali": (
        "প্রদত্ত অধ্যায়ের তথ্যের উপর ভিত্তি করে নিম্নলিখিত প্রশ্নের উত্তর দিন।",
        "অধ্যায়:",
        "প্রশ্ন:",
        "উত্তর:",
    ),
    "finnish": (
        "Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.",
        "Kappale:",
        "Kysymys:",
        "Vastaus:",
    ),
    "indonesian": (
        "Jawab pertanyaan berikut berdasarkan informasi di bagian yang diberikan.",
        "Bagian:",
        "Pertanyaan:",
        "Jawaban:",
    ),
    "korean": (
        "주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.",
        "문단:",
        "질문:",
        "답변:",
    ),
    "russian": (
        "Ответьте на следующий вопрос на основе информации в данном отрывке.",
        "Отрывок:",
        "Вопрос:",
        "Ответ:",
    ),
    "swahili": (
        "Jibu swali lifuatalo kulingana na habari kwenye kifungu kilichotolewa.",
        "Kifungu:",
        "Swali:",
        "Jibu:",
    ),
    "telugu": (
        "ఇచ్చిన పేరాలోని సమాచారం ఆధారంగా కింది ప్రశ్నకు సమాధానం ఇవ్వండి.",
        "పేరా:",
        "ప్రశ్న:",
        "సమాధానం:",
    ),
}
"""Instruction, and headings of passage, question and answer, in each language."""


ONE_SHOT, DEV = "tydiqa-one-shot.json", "tydiqa-goldp-v1.1-dev.json"
IN_CHINESE = "tydiqa-one-shot-zh.json"
"""The released code's variant with every example in Chinese; read only if the path names it."""

TODO = "Give {language: [{context, question, answers: [{text}]}]}, as it was published."
CHINESE = ("根据所给文章中的信息回答以下问题。", "文章:", "问题:", "答案:")


def read(name: str, path: str) -> list[Example]:
    """The examples of all languages; the published file has one of each.

    Raises:
        DataError: If the file is missing, damaged, or has a language without words.
    """
    file = Path(path) if Path(path).is_file() else Path(path) / ONE_SHOT
    if not file.is_file():
        expected = f"the folder that holds {ONE_SHOT}"
        raise missing("There is no TyDiQA target here.", name, Path(path), expected)
    return [
        _example(name, language, f"{language}-{number}", row, file)
        for language, rows in sorted(read_json(file).items())
        for number, row in enumerate(_list(rows, file, language))
    ]


def test_set(name: str, path: str) -> QuestionSet | None:
    """The development questions, each after its language's example; None if they are not there.

    Asked as LESS's eval/tydiqa does: gold passage, one shot, an answer of one line.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    file = folder / DEV
    if not file.is_file():
        return None
    shots: dict[str, str] = {}
    for example in read(name, str(folder)):
        words = WORDS[example.subtask]
        shown = format_question(words, example.row["context"], example.row["question"])
        answer = example.messages[1]["content"]
        shots.setdefault(example.subtask, f"{shown}\n{answer}\n\n")
    questions = [
        _question(name, row, paragraph["context"], shots, file)
        for paragraph in _paragraphs(file)
        for row in paragraph["qas"]
    ]
    return QuestionSet(
        tuple(questions), ("f1", "exact_match"), "subtasks", stops=("\n",), max_tokens=50
    )


def _paragraphs(file: Path) -> list[dict[str, Any]]:
    """The passages of the published file, with their questions.

    Raises:
        DataError: If it holds something else.
    """
    try:
        found = [part for article in read_json(file)["data"] for part in article["paragraphs"]]
        whole = all(row["id"] and part["context"] for part in found for row in part["qas"])
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise DataError(
            "Expected {data: [{paragraphs: [{context, qas: [{id, question, answers}]}]}]}.",
            str(file),
            "Give the file as it was published.",
        )
    return found


def _question(
    name: str, row: dict[str, Any], context: str, shots: dict[str, str], file: Path
) -> Question:
    language = row["id"].partition("-")[0]
    words = _words(language, file)
    example = _example(name, language, row["id"], {**row, "context": context}, file)
    instruction = words[0]
    asked = example.messages[0]["content"].removeprefix(instruction)
    with_shots = shots[language] + asked if language in shots else ""
    answers = tuple(answer["text"] for answer in row["answers"])
    return Question(example, answers, with_shots=with_shots, texts=(context, row["question"]))


def format_question(words: tuple[str, str, str, str], context: str, question: str) -> str:
    """The prompt of one question. As in LESS's code nothing stands before the passage's heading."""
    instruction, passage_heading, question_heading, _ = words
    return f"{instruction}{passage_heading} {context}\n{question_heading} {question}"


def _example(name: str, language: str, id: str, row: Any, file: Path) -> Example:
    words = CHINESE if file.name == IN_CHINESE else _words(language, file)
    answer = _answer(row, f"{file}, {id}")
    return Example(
        source=name,
        id=id,
        messages=(
            {"role": "user", "content": format_question(words, row["context"], row["question"])},
            {"role": "assistant", "content": f"{words[3]} {answer}"},
        ),
        row=row,
        subtask=language,
        answer_prefix=words[3],
    )


def _words(language: str, file: Path) -> tuple[str, str, str, str]:
    if language not in WORDS:
        todo = did_you_mean(language, WORDS)
        raise DataError(f"The language {language} is not known.", str(file), todo)
    return WORDS[language]


def _list(rows: Any, file: Path, language: str) -> list[Any]:
    if not isinstance(rows, list) or not rows:
        found = "none" if rows == [] else type(rows).__name__
        raise DataError(f"Expected a list of examples, found {found}.", f"{file}, {language}", TODO)
    return rows


def _answer(row: Any, where: str) -> str:
    match row:
        case {"context": str(), "question": str(), "answers": [{"text": str(text)}, *_]}:
            return text
    found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
    raise DataError(
        "Expected an example with context, question and at least one answer.",
        f"{where}: found {found}",
        TODO,
    )
