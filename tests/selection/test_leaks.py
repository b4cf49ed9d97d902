"""Runs of 13 words that a row shares with a test question."""

import unicodedata
from pathlib import Path

import pytest

from gradsieve.data.readers import read_source
from gradsieve.selection.leaks import Leaks, find_leaks
from gradsieve.tasks import load_test_set

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]
WORDS += ["eight", "nine", "ten", "eleven", "twelve", "thirteen"]
TEXT = " ".join(WORDS)


def leaks(*texts: str, question: str = TEXT) -> list[str]:
    rows = [(("a", str(n)), text) for n, text in enumerate(texts)]
    return [id for _, id in find_leaks(rows, {"t": [("q", question)]})]


def test_thirteen_words_in_a_row() -> None:
    assert leaks(TEXT, " ".join(WORDS[:12]), f"x {TEXT} y", " ".join(WORDS[::-1])) == ["0", "2"]


def test_case_and_punctuation_do_not_matter() -> None:
    assert leaks(", ".join(WORDS).upper() + "!") == ["0"]


def test_a_short_question_never_leaks() -> None:
    assert leaks("what is it", question="what is it") == []


@pytest.mark.parametrize(
    "text", ["日本国憲法は日本の現行憲法です。", "중국의 수도는 베이징이다 " * 6]
)
def test_other_scripts(text: str) -> None:
    assert leaks(f"x {text}", question=text) == ["0"]


HINDI = "भारत की राजधानी नई दिल्ली है और यहाँ हिन्दी भाषा बोली जाती है"  # 13 words
CHINESE = "中华人民共和国首都是北京市区"  # 14 characters, 13 pairs


def test_vowel_signs_belong_to_their_word() -> None:
    """Twelve Hindi words are no leak, thirteen are."""
    words = HINDI.split()
    assert len(words) == 13
    rows = [HINDI, " ".join(words[:12]), f"क्या {HINDI}?", " ".join(words[1:])]
    assert leaks(*rows, question=HINDI) == ["0", "2"]


def test_a_run_of_fourteen_characters_without_spaces() -> None:
    rows = [f"请问，{CHINESE}吗？", CHINESE[1:], f"据说{CHINESE[:13]}。", f"据说{CHINESE}很大"]
    assert leaks(*rows, question=CHINESE) == ["0", "3"]


def test_equivalent_spellings_are_the_same_text() -> None:
    text = "Việt " * 13
    assert leaks(unicodedata.normalize("NFD", text), question=text) == ["0"]


def test_what_is_told() -> None:
    found = find_leaks([(("a", "0"), f"so: {TEXT}")], {"other": [("p", "x")], "t": [("q", TEXT)]})
    assert found == {("a", "0"): Leaks("t", "q", TEXT)}


def test_planted_questions_are_found(shared_data: Path) -> None:
    """28 of the 41 rows hold text of an MMLU test question; of 600 clean ones at most a few."""
    questions = load_test_set("mmlu", "mmlu", str(shared_data / "eval" / "mmlu"), None, None)
    assert questions is not None
    texts = [(q.example.id, text) for q in questions.questions for text in q.texts]

    def found(path: str) -> int:
        examples = read_source("s", str(shared_data / path)).examples
        rows = [(e.id, " ".join(t["content"] for t in e.messages)) for e in examples]
        return len(find_leaks([(("s", id), text) for id, text in rows], {"mmlu": texts}))

    assert found("planted/planted_niv2_mmmlu.jsonl") == 28
    assert found("train/oasst1.jsonl") <= 3
