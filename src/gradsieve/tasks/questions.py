"""Held-out questions of a target, and how the benchmark asks and judges them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

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
        extract: Regular expression whose group 1 is the answer within the generated text; all of
            the text if it is None or isn't found.
        match: What an exact match ignores: case and space (`words`), punctuation too (`letters`),
            or articles too (`squad`).
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
