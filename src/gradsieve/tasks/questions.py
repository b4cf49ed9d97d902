"""Held-out questions of a target, with the benchmark's prompts and metrics."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Literal

from gradsieve.data.examples import Example, Message
from gradsieve.io import fingerprint


def matched(pattern: str | None, text: str) -> str | None:
    """The first match of a regular expression (its first group, if it has any); None if none."""
    found = re.search(pattern, text) if pattern else None
    return found[found.re.groups and 1] if found else None


def question_and_answer(
    name: str, subtask: str, id: str, prompt: str, prefix: str, answer: str, row: Mapping[str, Any]
) -> Example:
    """A benchmark's example: a prompt, and an answer that is supervised after its prefix."""
    messages: tuple[Message, ...] = (
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": prefix + answer},
    )
    return Example(name, id, messages, row, subtask, prefix)


@dataclass(frozen=True, slots=True)
class Shots:
    """A user turn with few-shot examples, each with its separator, before the question."""

    lead: str
    examples: tuple[str, ...]
    question: str

    def text(self, count: int | None = None) -> str:
        """The turn with the first `count` examples; None means all of them."""
        return self.lead + "".join(self.examples[:count]) + self.question


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out question.

    Attributes:
        example: Question and reference answer, in the format of the target's examples.
        answers: All reference answers; a choice's letter if there are choices.
        choices: The choices; empty if the answer is free text.
        shots: The question after few-shot examples; None if it has none.
        texts: The question's own text, without the benchmark's prompt.
    """

    example: Example
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    shots: Shots | None = None
    texts: tuple[str, ...] = ()

    @property
    def with_shots(self) -> str:
        """The user turn with all few-shot examples; empty if there are none."""
        return self.shots.text() if self.shots else ""


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The held-out questions of a target.

    Attributes:
        questions: The questions, in order.
        metrics: The main metric first; for each, higher is better.
        average: Whether to average over all questions or over subtask means, as in the benchmark.
        stops: Stop sequences for generation.
        max_tokens: Maximum tokens of an answer; None means as many as the longest reference takes.
        extract: Regular expression that finds the answer within the generated text (`matched`);
            the full text is the answer if it is None or doesn't match.
        match: What an exact match ignores: case, space and Unicode composition (`words`),
            punctuation too (`letters`), or articles too (`squad`).
        bad_rows: Skipped rows, as (where, reason).
    """

    questions: tuple[Question, ...]
    metrics: tuple[str, ...]
    average: Literal["questions", "subtasks"] = "questions"
    stops: tuple[str, ...] = ()
    max_tokens: int | None = 64
    extract: str | None = None
    match: Literal["words", "letters", "squad"] = "words"
    bad_rows: tuple[tuple[str, str], ...] = ()

    @property
    def fingerprint(self) -> str:
        """A fingerprint that changes with any question, prompt or setting."""
        questions = [
            [
                *(q.example.id, q.example.subtask, q.example.messages, q.example.answer_prefix),
                *(q.answers, q.choices, q.with_shots, q.texts),
            ]
            for q in self.questions
        ]
        settings = [self.metrics, self.average, self.stops, self.max_tokens]
        return fingerprint([questions, *settings, self.extract, self.match])

    def limited(self, limit: int | None) -> QuestionSet:
        """The first `limit` questions of each subtask."""
        seen: Counter[str] = Counter()
        kept = []
        for question in self.questions:
            seen[question.example.subtask] += 1
            if limit is None or seen[question.example.subtask] <= limit:
                kept.append(question)
        return replace(self, questions=tuple(kept))

    def weights(self, counted: Sequence[bool] | None = None) -> list[float]:
        """Each question's weight in the average over the counted ones (default: all); sum 1."""
        counts = [True] * len(self.questions) if counted is None else counted
        subtasks = [question.example.subtask for question in self.questions]
        sizes = Counter(compress(subtasks, counts))
        each = {name: 1 / len(sizes) / size for name, size in sizes.items()}
        if self.average == "questions":
            each = {name: 1 / sizes.total() for name in sizes}
        return [each[name] if yes else 0.0 for name, yes in zip(subtasks, counts, strict=True)]
