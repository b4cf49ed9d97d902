"""TyDiQA, gold passage: nine languages, one example each; a language is a subtask.

In: `tydiqa-one-shot.json`. Out: examples as LESS's `get_tydiqa_dataset` formats them
(github.com/princeton-nlp/LESS, get_validation_dataset.py; the words are open-instruct's). Clark et
al., TACL 2020.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from gradsieve.data.examples import Example
from gradsieve.errors import DataError

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


def read(name: str, path: str) -> list[Example]:
    """One example a language.

    Raises:
        DataError: If the file is missing, damaged, or has a language without words.
    """
    file = Path(path) if Path(path).is_file() else Path(path) / "tydiqa-one-shot.json"
    if not file.is_file():
        raise DataError(
            "There is no TyDiQA target here.",
            f"target {name}: {file}",
            "Give the folder that holds tydiqa-one-shot.json.",
        )
    try:
        languages = json.loads(file.read_text(encoding="utf-8"))
        return [
            _example(name, language, number, row, file)
            for language, rows in sorted(languages.items())
            for number, row in enumerate(rows)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"The file is not a TyDiQA target: {type(error).__name__}: {error}.",
            str(file),
            "Give {language: [{context, question, answers: [{text}]}]}.",
        ) from None


def format_question(words: tuple[str, str, str, str], context: str, question: str) -> str:
    """The prompt of one question. As in LESS's code nothing stands before the passage's heading."""
    instruction, passage_heading, question_heading, _ = words
    return f"{instruction}{passage_heading} {context}\n{question_heading} {question}"


def _example(name: str, language: str, number: int, row: dict[str, Any], file: Path) -> Example:
    if language not in WORDS:
        near = difflib.get_close_matches(language, WORDS, n=1)
        raise DataError(
            f"The language {language} is not known.",
            str(file),
            f"Did you mean {near[0]}?" if near else f"Known: {', '.join(WORDS)}.",
        )
    words = WORDS[language]
    answer = row["answers"][0]["text"]
    return Example(
        source=name,
        id=f"{language}-{number}",
        messages=(
            {"role": "user", "content": format_question(words, row["context"], row["question"])},
            {"role": "assistant", "content": f"{words[3]} {answer}"},
        ),
        row=row,
        subtask=language,
        answer_prefix=words[3],
    )
