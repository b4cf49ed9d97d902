"""Leaks: sequences of 13 words shared with test questions."""

import unicodedata
from pathlib import Path

import pytest

import world
from gradsieve.data.sources import read_source
from gradsieve.selection import rules
from gradsieve.selection.rules import Leak, LeakIndex, find_leaks
from gradsieve.tasks import load_test_set

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]
WORDS += ["eight", "nine", "ten", "eleven", "twelve", "thirteen"]
TEXT = " ".join(WORDS)


def leaks(*texts: str, question: str = TEXT) -> list[str]:
    return [str(place) for place in LeakIndex({"t": [("q", question)]}).find(texts)]


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


def test_the_first_question_is_named() -> None:
    index = LeakIndex({"other": [("p", "x")], "t": [("q", TEXT), ("r", TEXT)]})
    assert index.find(["", f"so: {TEXT} {TEXT}", "x"]) == {1: Leak("t", "q", TEXT)}


def test_a_run_never_spans_two_texts() -> None:
    half = " ".join(WORDS[:6]), " ".join(WORDS[6:])
    assert leaks(*half) == []
    split = LeakIndex({"t": [("q", half[0]), ("r", half[1])]})
    assert (len(split), split.find([TEXT])) == (0, {})


def test_the_first_question_and_the_first_run_count() -> None:
    index = LeakIndex({"t": [("q", f"{TEXT} more"), ("r", f"so {TEXT}")]})
    assert index.find([f"so {TEXT} more"]) == {0: Leak("t", "r", f"so {' '.join(WORDS[:12])}")}
    assert index.find([f"and {TEXT} more"]) == {0: Leak("t", "q", TEXT)}


def test_leaks_of_a_pool_are_in_order_of_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "AT_ONCE", 3)
    pool = world.pool_of(tmp_path, [TEXT if n % 2 else "rising : a b" for n in range(8)][::-1])
    found = find_leaks(pool, {"t": [("q", TEXT)]})
    assert [key.id for key in pool.keys(list(found))] == ["000", "002", "004", "006"]
    assert set(found.values()) == {Leak("t", "q", TEXT)}
    assert find_leaks(pool, {"t": [("q", "short")]}) == {}


def test_planted_questions_are_found(shared_data: Path) -> None:
    """28 of the 41 rows hold text of an MMLU test question; of 600 clean rows, at most a few."""
    questions = load_test_set("mmlu", "mmlu", str(shared_data / "eval" / "mmlu"), None)
    assert questions is not None
    texts = [(q.example.id, text) for q in questions.questions for text in q.texts]

    def found(path: str) -> int:
        examples = read_source("s", str(shared_data / path)).examples
        rows = [" ".join(t["content"] for t in e.messages) for e in examples]
        return len(LeakIndex({"mmlu": texts}).find(rows))

    assert found("planted/planted_niv2_mmmlu.jsonl") == 28
    assert found("train/oasst1.jsonl") <= 3
