"""Held-out questions of a target, and how an answer is judged.

In: what a model said. Out: 1 or 0 (accuracy, exact match) or a share (F1). Normalization and F1 are
SQuAD v1.1's (rajpurkar.github.io/SQuAD-explorer, evaluate-v1.1.py), which TyDiQA's gold-passage
task uses too.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from gradsieve.data.examples import Example
from gradsieve.rundir import fingerprint


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out question.

    Attributes:
        example: Question and right answer, written as the target's few-shot examples are.
        answers: Every answer that counts as right; a choice's letter where there are choices.
        choices: What may be chosen; empty: the answer is free text.
        with_shots: What the user says if worked examples stand before the question; empty: there
            are none.
        texts: What the question itself says, without the words that stand around every one.
    """

    example: Example
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    with_shots: str = ""
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The held-out questions of a target.

    Attributes:
        questions: All of them.
        metrics: Names of what is measured, the one to report first; higher is better.
        average: Over all questions, or over the subtasks' means, as the benchmark reports it.
        stops: Texts at which an answer ends.
        max_tokens: Tokens an answer may have.
        extract: Regular expression whose group 1 is the answer within what was said; the whole if
            it is None or isn't found.
    """

    questions: tuple[Question, ...]
    metrics: tuple[str, ...]
    average: Literal["questions", "subtasks"] = "questions"
    stops: tuple[str, ...] = ()
    max_tokens: int = 64
    extract: str | None = None

    @property
    def fingerprint(self) -> str:
        """Changes if any question does, or how it is asked."""
        asked = [
            [
                *(q.example.id, q.example.subtask, q.example.messages, q.example.answer_prefix),
                *(q.answers, q.choices, q.with_shots, q.texts),
            ]
            for q in self.questions
        ]
        how = [self.metrics, self.average, self.stops, self.max_tokens, self.extract]
        return fingerprint([asked, *how])

    def limited(self, limit: int | None) -> QuestionSet:
        """The first questions of each subtask."""
        seen: Counter[str] = Counter()
        kept = []
        for question in self.questions:
            seen[question.example.subtask] += 1
            if limit is None or seen[question.example.subtask] <= limit:
                kept.append(question)
        return replace(self, questions=tuple(kept))

    def weights(self) -> list[float]:
        """What each question counts in the average; they sum to 1."""
        sizes = Counter(question.example.subtask for question in self.questions)
        if self.average == "questions":
            return [1 / len(self.questions)] * len(self.questions)
        return [1 / len(sizes) / sizes[q.example.subtask] for q in self.questions]

    def judge(self, said: str, answers: tuple[str, ...]) -> dict[str, float]:
        """Score a free answer against the right ones: the best match counts."""
        found = re.search(self.extract, said, re.DOTALL) if self.extract else None
        said = found[1] if found else said
        scores = {
            "exact_match": max(float(normalized(said) == normalized(gold)) for gold in answers),
            "f1": max(f1(said, gold) for gold in answers),
        }
        return {metric: scores[metric] for metric in self.metrics}


def normalized(text: str) -> str:
    """Lower case, without punctuation, English articles and extra space."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(said: str, gold: str) -> float:
    """Harmonic mean of precision and recall of words."""
    words, right = normalized(said).split(), normalized(gold).split()
    common = sum((Counter(words) & Counter(right)).values())
    if not words or not right:
        return float(words == right)
    return 2 * common / (len(words) + len(right))
