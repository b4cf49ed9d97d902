"""Answers to held-out questions, side by side by model.

In: the samples of the evaluate stage, from the first seed of each method. Out: for each target some
of its questions, with references, answers and the answers' scores.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from gradsieve.methods import split_seed
from gradsieve.report.texts import turns
from gradsieve.runs.context import Context
from gradsieve.tasks import Question, QuestionSet

QUESTIONS = 100
"""Maximum questions per target on the page, evenly spaced: as many as a person may read."""

ANSWER = 600
"""Maximum characters of an answer on the page; the rest is only counted."""


def answers(context: Context, target: str, methods: Collection[str]) -> dict[str, Any] | None:
    """The answers of a target's models by `methods`; None if no question was answered.

    They are for the questions that were asked, regardless of `evaluate.limit` now; None if the test
    file no longer contains these.
    """
    results, test = context.artifacts.results, context.full_test_sets.get(target)
    names: dict[str, str] = {}
    for row in results.rows():
        method = split_seed(row["method"])[0]
        if row["target"] == target and method in methods:
            names.setdefault(method, results.name(row))
    names = {method: name for method, name in names.items() if results.samples_file(name).is_file()}
    if test is None or not names:
        return None
    asked = _asked(test, results.samples(next(iter(names.values()))))
    if asked is None:
        return None
    count = len(asked)
    places = np.linspace(0, count - 1, min(count, QUESTIONS)).round().astype(int).tolist()
    wanted = set(places)
    samples = [
        [one for place, one in enumerate(results.samples(name)) if place in wanted]
        for name in names.values()
    ]
    # The first metric that is not the same for all answers.
    scores = {m: {one[m] for of_model in samples for one in of_model} for m in test.metrics}
    metric = next((name for name, found in scores.items() if len(found) > 1), test.metrics[0])
    questions = []
    for place, *found in zip(places, *samples, strict=True):
        example = asked[place].example
        kept, more = turns(example.messages[:-1])
        references = [text[:ANSWER] for text in asked[place].answers]
        shown = [_shown(sample, metric) for sample in found]
        questions.append([example.id, example.subtask, more, kept, references, shown])
    return {"models": list(names), "metric": metric, "of": count, "questions": questions}


def _asked(test: QuestionSet, samples: Iterable[Mapping[str, Any]]) -> list[Question] | None:
    """The questions of a model's samples, in their order; None if some no longer exist."""
    known = {(one.example.id, one.example.subtask, one.answers): one for one in test.questions}
    keys = [(one["id"], one["subtask"], tuple(one["references"])) for one in samples]
    return [known[key] for key in keys] if known.keys() >= {*keys} else None


def _shown(sample: Mapping[str, Any], metric: str) -> list[Any]:
    """[score, characters left out, text, final answer (null if it is the whole text)]."""
    text, final = sample["answer"], sample["final"]
    own = None if final == text.strip() else final[:ANSWER]
    return [sample[metric], max(0, len(text) - ANSWER), text[:ANSWER], own]
