"""TyDiQA, gold passage: nine languages with one example each; each language is a subtask.

In: `tydiqa-one-shot.json`, the path of a file in that format, or a copy on the hub. Out:
examples as LESS's `get_tydiqa_dataset` formats them (github.com/princeton-nlp/LESS,
get_validation_dataset.py; the prompts are open-instruct's). Clark et al., TACL 2020.

LESS's nine examples are rows of the training set: on the hub they are found by their ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradsieve.data.examples import Example
from gradsieve.errors import DataError, did_you_mean
from gradsieve.tasks import hub
from gradsieve.tasks.layout import missing, read_json, shown
from gradsieve.tasks.questions import Question, QuestionSet, Shots, question_and_answer

WORDS = {
    "english": ("Answer the following question based on the information in the given passage.",
        "Passage:", "Question:", "Answer:"),
    "arabic": ("أجب على السؤال التالي بناءً على المعلومات في المقطع المعطى.",
        "المقطع:", "السؤال:", "الإجابة:"),
    "bengali": ("প্রদত্ত অধ্যায়ের তথ্যের উপর ভিত্তি করে নিম্নলিখিত প্রশ্নের উত্তর দিন।",
        "অধ্যায়:", "প্রশ্ন:", "উত্তর:"),
    "finnish": ("Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.",
        "Kappale:", "Kysymys:", "Vastaus:"),
    "indonesian": ("Jawab pertanyaan berikut berdasarkan informasi di bagian yang diberikan.",
        "Bagian:", "Pertanyaan:", "Jawaban:"),
    "korean": ("주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.",
        "문단:", "질문:", "답변:"),
    "russian": ("Ответьте на следующий вопрос на основе информации в данном отрывке.",
        "Отрывок:", "Вопрос:", "Ответ:"),
    "swahili": ("Jibu swali lifuatalo kulingana na habari kwenye kifungu kilichotolewa.",
        "Kifungu:", "Swali:", "Jibu:"),
    "telugu": ("ఇచ్చిన పేరాలోని సమాచారం ఆధారంగా కింది ప్రశ్నకు సమాధానం ఇవ్వండి.",
        "పేరా:", "ప్రశ్న:", "సమాధానం:"),
}  # fmt: skip
"""By language: the instruction, and the headings of passage, question and answer."""

CHINESE = ("根据所给文章中的信息回答以下问题。", "文章:", "问题:", "答案:")

ONE_SHOT, DEV = "tydiqa-one-shot.json", "tydiqa-goldp-v1.1-dev.json"
IN_CHINESE = "tydiqa-one-shot-zh.json"
"""The released code's variant with all examples in Chinese; read only if `path` names it."""

SUBTASKS = 9
ON_HUB, CONFIG = "google-research-datasets/tydiqa", "secondary_task"

PAPERS = frozenset(
    {
        "arabic-8351649714847405776-0",
        "bengali--1673457935685231953-2",
        "english--2241320068429927714-0",
        "finnish-869940681011188970-16",
        "indonesian--7112565968699695234-0",
        "korean-5259095402185878855-0",
        "russian-8439185404748145887-1",
        "swahili-608099184454860095-20",
        "telugu--1689521902545555601-0",
    }
)
"""Ids of the training rows in LESS's `tydiqa-one-shot.json`."""

SHORT_BYTES = 1300
"""Preferred maximum of a shot's passage in UTF-8 bytes; the paper's longest has 1,292."""

TODO = "Use the published format: {language: [{context, question, answers: [{text}]}]}."

Words = tuple[str, str, str, str]


def read(name: str, path: str) -> tuple[list[Example], list[str]]:
    """The target examples of all languages (one each in the published file), and warnings.

    Raises:
        DataError: If the file is missing or damaged, or has a language without a prompt.
    """
    file = Path(path) if Path(path).is_file() else Path(path) / ONE_SHOT
    notes: list[str] = []
    if file.is_file():
        shots = read_json(file)
        if "data" in shots:
            what = "These are TyDiQA's questions, not its one-shot examples."
            raise DataError(what, str(file), f"Use the folder that holds {ONE_SHOT} and {DEV}.")
    elif hub.is_data_set(path):
        shots, notes = _one_shots(name, path)
    else:
        expected = f"the folder that holds {ONE_SHOT}, or {ON_HUB}"
        raise missing("There is no TyDiQA target here.", name, Path(path), expected)
    examples = [
        _example(name, language, f"{language}-{number}", row, file)
        for language, rows in sorted(shots.items())
        for number, row in enumerate(_list(rows, file, language))
    ]
    return examples, notes


def test_set(name: str, path: str) -> QuestionSet | None:
    """The development questions, each after its language's example; None if there are none.

    As in LESS's eval/tydiqa: gold passage, one shot, an answer of one line. Here the shot is the
    target example; LESS draws one from the training set, and truncates passages to 512 tokens.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    file = folder / DEV
    if file.is_file():
        rows = _local_questions(file)
        if Path(path).name == IN_CHINESE:  # questions are asked in their own languages
            path = str(folder)
    elif (folder / ONE_SHOT).is_file() or not hub.is_data_set(path):
        return None
    else:
        file, rows = Path(path), _hub_questions(name, path)
    if not rows:
        return None
    shots: dict[str, str] = {}
    for example in read(name, path)[0]:
        question = _asked(WORDS[example.subtask], example.row)
        answer = example.messages[1]["content"]
        shots.setdefault(example.subtask, f"{question}\n{answer}\n\n")
    return QuestionSet(
        tuple(_question(name, row, shots, file) for row in rows),
        ("f1", "exact_match"),
        average="subtasks",
        stops=("\n",),
        max_tokens=50,
        match="squad",
    )


def _local_questions(file: Path) -> hub.Rows:
    """The questions of the published file.

    Raises:
        DataError: If it has another format.
    """
    with suppress(KeyError, TypeError):
        found = [part for article in read_json(file)["data"] for part in article["paragraphs"]]
        rows = [{**row, "context": part["context"]} for part in found for row in part["qas"]]
        if all(isinstance(row["id"], str) for row in rows):
            return rows
    what = "Expected {data: [{paragraphs: [{context, qas: [{id, question, answers}]}]}]}."
    raise DataError(what, str(file), "Use the published file.")


def _question(name: str, row: dict[str, Any], shots: dict[str, str], file: Path) -> Question:
    language = _language(row)
    example = _example(name, language, row["id"], row, file)
    after = None
    if language in shots:
        words = WORDS[language]
        after = Shots(f"{words[0]}\n\n", (shots[language],), _asked(words, row))
    answers = tuple(answer["text"] for answer in row["answers"])
    return Question(example, answers, shots=after, texts=(row["context"], row["question"]))


def _language(row: dict[str, Any]) -> str:
    """The language of a row, which is the first part of its id."""
    return str(row["id"]).partition("-")[0]


# --- the hub --------------------------------------------------------------------------------------


def _one_shots(name: str, path: str) -> tuple[dict[str, hub.Rows], list[str]]:
    """One training row per language, the paper's if it is available; and warnings."""
    languages: dict[str, hub.Rows] = {}
    for row in _hub_rows(name, path, "train"):
        languages.setdefault(_language(row), []).append(row)
    asked = {row["context"] for row in _hub_questions(name, path)}

    def rank(row: dict[str, Any]) -> tuple[bool, bool, bool, str]:
        long = len(row["context"].encode()) > SHORT_BYTES
        digest = hashlib.sha256(row["id"].encode()).hexdigest()
        return row["id"] not in PAPERS, row["context"] in asked, long, digest

    chosen = {language: min(rows, key=rank) for language, rows in languages.items()}
    others = sorted(language for language, row in chosen.items() if row["id"] not in PAPERS)
    note = (
        f"the paper's one-shot examples of {len(others)} of {len(chosen)} languages "
        f"({', '.join(others)}) are not among the training rows: others are used"
    )
    shots = {language: [{**row, "lang": language}] for language, row in chosen.items()}
    return shots, [note] if others else []


def _hub_questions(name: str, path: str) -> hub.Rows:
    try:
        return _hub_rows(name, path, "validation")
    except hub.NotThere:
        return []


def _hub_rows(name: str, path: str, split: str) -> hub.Rows:
    where = hub.place(name, path, CONFIG, split)
    rows = hub.read_split(name, path, CONFIG, split)
    return [_from_hub(row, f"{where}, row {number}") for number, row in enumerate(rows, start=1)]


def _from_hub(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row in the format of the published files."""
    answers = row.get("answers")
    match answers:  # a list of objects; `datasets` may have turned it into an object of lists
        case {"text": [*texts], "answer_start": [*starts]} if len(texts) == len(starts):
            pairs = zip(texts, starts, strict=True)
            answers = [{"text": text, "answer_start": start} for text, start in pairs]
    found = {**row, "answers": answers}
    if isinstance(row.get("id"), str) and _is_sound(found):
        return {key: found[key] for key in ("id", "context", "question", "answers")}
    expected = "id, context, question and answers (text, answer_start)"
    raise hub.other_columns(expected, where, row, ON_HUB)


# --- the format -----------------------------------------------------------------------------------


def _asked(words: Words, row: Mapping[str, Any]) -> str:
    return f"{words[1]} {row['context']}\n{words[2]} {row['question']}"


def _example(name: str, language: str, id: str, row: Any, file: Path) -> Example:
    words = CHINESE if file.name == IN_CHINESE else _words(language, file)
    if not _is_sound(row):
        what = "Expected an example with context, question and at least one answer."
        todo = TODO if file.name != DEV else "Use the published file."
        raise DataError(what, f"{file}, {id}: found {shown(row)}", todo)
    prompt = words[0] + _asked(words, row)  # as in LESS's code, nothing separates them
    answer = f" {row['answers'][0]['text']}"
    return question_and_answer(name, language, id, prompt, words[3], answer, row)


def _is_sound(row: Any) -> bool:
    """Whether a row has a context, a question, and one or more answers, each with a text."""
    match row:
        case {"context": str(), "question": str(), "answers": [_, *_] as found}:
            return all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in found)
    return False


def _words(language: str, file: Path) -> Words:
    if language not in WORDS:
        todo = did_you_mean(language, WORDS)
        raise DataError(f"The language {language} is unknown.", str(file), todo)
    return WORDS[language]


def _list(rows: Any, file: Path, language: str) -> list[Any]:
    if not isinstance(rows, list) or not rows:
        raise DataError("Expected a list of examples.", f"{file}, {language}", TODO)
    return rows
