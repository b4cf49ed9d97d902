"""Held-out questions: weights, limits and fingerprints."""

from dataclasses import replace
from typing import Any

import pytest

from gradsieve.data.examples import Example
from gradsieve.tasks import Question, QuestionSet, Shots


def question(answers: tuple[str, ...], subtask: str = "s", id: str = "0") -> Question:
    turns = ({"role": "user", "content": "?"}, {"role": "assistant", "content": answers[0]})
    return Question(Example("t", id, turns, {}, subtask), answers)


def test_weights_are_over_questions_or_subtasks() -> None:
    asked = tuple(question(("x",), subtask) for subtask in "aaab")
    assert QuestionSet(asked, ("f1",)).weights() == [0.25] * 4
    by_subtask = QuestionSet(asked, ("f1",), "subtasks").weights()
    assert by_subtask == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    first_and_last = [True, False, True, True]
    third = pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    assert QuestionSet(asked, ("f1",)).weights(first_and_last) == third
    by_subtask = QuestionSet(asked, ("f1",), "subtasks").weights(first_and_last)
    assert by_subtask == pytest.approx([1 / 4, 0, 1 / 4, 1 / 2])


def test_a_limit_is_for_each_subtask() -> None:
    asked = tuple(question(("x",), s, str(n)) for n, s in enumerate("aaabbc"))
    kept = QuestionSet(asked, ("f1",)).limited(2).questions
    assert [(q.example.subtask, q.example.id) for q in kept] == [
        ("a", "0"),
        ("a", "1"),
        ("b", "3"),
        ("b", "4"),
        ("c", "5"),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"example": question(("x",), id="1").example},
        {"example": question(("x",), "other").example},
        {"example": question(("y",)).example},
        {"answers": ("y",)},
        {"choices": ("x", "y")},
        {"shots": Shots("", ("?",), "?")},
        {"texts": ("?",)},
    ],
)
def test_fingerprint_sees_what_a_question_is(change: dict[str, Any]) -> None:
    one = question(("x",))
    test = QuestionSet((one,), ("f1",))
    assert QuestionSet((replace(one, **change),), ("f1",)).fingerprint != test.fingerprint
    assert QuestionSet((question(("x",)),), ("f1",)).fingerprint == test.fingerprint


def test_fingerprint_sees_how_an_answer_is_read() -> None:
    asked = (question(("x",)),)
    read = {
        QuestionSet(asked, ("f1",), extract=how).fingerprint for how in (None, "is (.*)", "(A)")
    }
    assert len(read) == 3
