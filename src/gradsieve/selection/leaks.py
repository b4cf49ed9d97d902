"""Leaks: rows of the pool that hold a run of words of a test question.

A run is 13 words, whatever case and punctuation, as GPT-3's authors looked for (Brown et al., 2020,
appendix C). In scripts without spaces a word is a pair of characters (`data.words`), so that a run
is 14 characters. Only what a question itself says is compared, not the words that a benchmark puts
around every question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gradsieve.data.words import split_words

RUN = 13
"""Words."""


@dataclass(frozen=True, slots=True)
class Leaks:
    """What a row shares with a test set.

    Attributes:
        target: The target's name.
        question: The id of a question, the first that shares a run.
        run: The words; in scripts without spaces, overlapping pairs of characters.
    """

    target: str
    question: str
    run: str


Key = tuple[str, str]


def find_leaks(
    rows: Iterable[tuple[Key, str]], questions: Mapping[str, Iterable[tuple[str, str]]]
) -> dict[Key, Leaks]:
    """The rows that leak.

    Args:
        rows: (source, id) and text of each row.
        questions: For each target, the id and a text of each question; an id may come again.
    """
    index: dict[int, tuple[str, str]] = {}
    for target, texts in questions.items():
        for id, text in texts:
            for run in _runs(text):
                index.setdefault(hash(run), (target, id))
    if not index:
        return {}
    found = {}
    for key, text in rows:
        for run in _runs(text):
            if (hit := index.get(hash(run))) is not None:
                found[key] = Leaks(*hit, " ".join(run))
                break
    return found


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = split_words(text)
    for start in range(len(words) - RUN + 1):
        yield tuple(words[start : start + RUN])
