"""Judging answers: on SQuAD's own examples, and at both ends of the scale."""

from typing import Any

import pytest

from gradsieve.data.examples import Example
from gradsieve.evaluation.metrics import f1, final_answer, judge, normalized
from gradsieve.tasks import Question, QuestionSet


def question(answers: tuple[str, ...], subtask: str = "s", id: str = "0") -> Question:
    turns = ({"role": "user", "content": "?"}, {"role": "assistant", "content": answers[0]})
    return Question(Example("t", id, turns, {}, subtask), answers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("The  Cat.", "cat"), ("an apple, a pear", "apple pear"), ("theatre", "theatre"), ("a", "")],
)
def test_normalized(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("said", "gold", "expected"),
    [
        ("in the year 1912", "1912", 2 / 4),  # precision 1/3, recall 1/1
        ("1912", "1912", 1.0),
        ("cat cat", "cat", 2 / 3),  # a word counts as often as it occurs
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("the", "a", 0.0),  # both are only an article: their words are compared
        ("A", "a", 1.0),
        ("\u00fc", "u\u0308", 1.0),
        ("", "+", 0.0),
    ],
)
def test_f1(said: str, gold: str, expected: float) -> None:
    assert f1(said, gold) == pytest.approx(expected)


def test_the_best_of_several_answers_counts() -> None:
    asked = (question(("1912", "in 1912")),)
    test = QuestionSet(asked, ("f1", "exact_match"), match="squad")
    assert judge(test, "In 1912!", ("1912", "in 1912")) == {"f1": 1.0, "exact_match": 1.0}


def test_what_follows_the_answer_is_is_judged() -> None:
    pattern = r"So the answer is (.*?)\."
    test = QuestionSet((question(("(A)",)),), ("exact_match",), extract=pattern, match="letters")
    for text, score in (
        ("Ice melts. So the answer is (A). Q:", 1.0),
        ("So the answer is (B). Not (A).", 0.0),
        ("(A)", 1.0),  # without the phrase
    ):
        assert judge(test, final_answer(test, text), ("(A)",)) == {"exact_match": score}


@pytest.mark.parametrize(
    ("match", "said", "gold", "expected"),
    [
        ("words", " Ann  LEE", "Ann Lee", True),
        ("words", "5", "-5", False),
        ("words", "Z\u00fcrich", "Zu\u0308rich", True),  # as written by a tokenizer with NFC
        ("words", "", "+", False),
        ("letters", "(b)", "B", True),
        ("letters", "the", "a", False),
        ("letters", "", "] ]", False),
        ("letters", "> >", "] ]", False),
        ("letters", "]  ]", "] ]", True),
        ("squad", "The Moon.", "a moon", True),
    ],
)
def test_what_an_exact_match_ignores(match: Any, said: str, gold: str, expected: bool) -> None:
    test = QuestionSet((question((gold,)),), ("exact_match",), match=match)
    assert judge(test, said, (gold,)) == {"exact_match": float(expected)}
