"""Held-out questions of a target, and how an answer is judged.

In: what a model said. Out: 1 or 0 (accuracy, exact match) or a share (F1). F1 is SQuAD v1.1's
(rajpurkar.github.io/SQuAD-explorer, evaluate-v1.1.py), which TyDiQA's gold-passage task uses too.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from gradsieve.data.content import after_reasoning
from gradsieve.data.examples import Example
from gradsieve.io import fingerprint


@dataclass(frozen=True, slots=True)
class Shots:
    """A question after worked examples, as the user says it.

    Attributes:
        lead: What stands before them.
        examples: Each with what parts it from the next.
        question: What stands after them.
    """

    lead: str
    examples: tuple[str, ...]
    question: str

    def text(self, count: int | None = None) -> str:
        """With the first examples only, or all."""
        return self.lead + "".join(self.examples[:count]) + self.question


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out question.

    Attributes:
        example: Question and right answer, written as the target's few-shot examples are.
        answers: Every answer that counts as right; a choice's letter where there are choices.
        choices: What may be chosen; empty: the answer is free text.
        shots: The question after worked examples; None: there are none.
        texts: What the question itself says, without the words that stand around every one.
    """

    example: Example
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    shots: Shots | None = None
    texts: tuple[str, ...] = ()

    @property
    def with_shots(self) -> str:
        """What the user says with all worked examples; empty: there are none."""
        return self.shots.text() if self.shots else ""


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The held-out questions of a target.

    Attributes:
        questions: All of them.
        metrics: Names of what is measured, the one to report first; higher is better.
        average: Over all questions, or over the subtasks' means, as the benchmark reports it.
        stops: Texts at which an answer ends.
        max_tokens: Tokens an answer may have; None: as many as the longest right answer takes.
        extract: Regular expression whose group 1 is the answer within what was said; the whole if
            it is None or isn't found.
        match: What an exact match overlooks: case and space (`words`), punctuation too
            (`letters`), or articles too (`squad`).
    """

    questions: tuple[Question, ...]
    metrics: tuple[str, ...]
    average: Literal["questions", "subtasks"] = "questions"
    stops: tuple[str, ...] = ()
    max_tokens: int | None = 64
    extract: str | None = None
    match: Literal["words", "letters", "squad"] = "words"

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
        how = [self.metrics, self.average, self.stops, self.max_tokens, self.extract, self.match]
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
        """Score a free answer against the right ones: the best match counts.

        Reasoning before the answer is not compared.
        """
        said = after_reasoning(said)
        found = re.search(self.extract, said) if self.extract else None
        said = found[1] if found else said
        reduce = _REDUCTIONS[self.match]
        scores = {
            "exact_match": max(float(same(said, gold, reduce)) for gold in answers),
            "f1": max(f1(said, gold) for gold in answers),
        }
        return {metric: scores[metric] for metric in self.metrics}


def words(text: str) -> str:
    """Lower case, without extra space."""
    return " ".join(text.lower().split())


def letters(text: str) -> str:
    """As `words`, without ASCII punctuation."""
    return words(text.translate(_NO_PUNCTUATION))


def normalized(text: str) -> str:
    """As `letters`, without English articles: SQuAD's normalization."""
    return words(re.sub(r"\b(a|an|the)\b", " ", letters(text)))


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_REDUCTIONS: dict[str, Callable[[str], str]] = {
    "words": words,
    "letters": letters,
    "squad": normalized,
}


def same(said: str, gold: str, reduce: Callable[[str], str]) -> bool:
    """Whether two answers are the same once reduced.

    A right answer of which nothing is left, as of BBH's brackets, is compared by its words:
    otherwise silence would be right.
    """
    right = reduce(gold)
    return reduce(said) == right if right else words(said) == words(gold)


def f1(said: str, gold: str) -> float:
    """Harmonic mean of precision and recall of SQuAD's words."""
    found, right = normalized(said).split(), normalized(gold).split()
    if not right:
        return float(same(said, gold, normalized))
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right))
