"""Rules that pass over examples: caps per source, and leaks of test questions.

A leak is an example of the pool that shares a run of 13 words with a test question, ignoring case
and punctuation, as in GPT-3's overlap analysis (Brown et al., 2020, appendix C). In scripts without
spaces a word is a pair of characters (`data.words`), so a run is 14 characters. Only a question's
own text is compared, not the text that a benchmark puts around every question.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradsieve.data.pool import Pool
from gradsieve.data.words import split_words

RUN = 13
"""Length of a run in words."""

AT_ONCE = 1000
"""Number of examples compared at a time."""


class Caps:
    """Limits per source: a number of rows, or a share of the selection's rows or tokens.

    Args:
        count: Number of rows to select; None if the budget is in tokens.
    """

    def __init__(
        self,
        caps: float | Mapping[str, float] | None,
        count: int | None,
        tokens: int | None,
        sources: Sequence[str],
    ) -> None:
        of = caps if isinstance(caps, Mapping) else dict.fromkeys(sources, caps)
        self._caps = [_cap(name, of.get(name), count, tokens) for name in sources]
        self._spent = [0] * len(sources)

    def full(self, source: int, tokens: int) -> str | None:
        """Why an example of a source can't be taken; None if it can be."""
        cap = self._caps[source]
        spent = self._spent[source] + (tokens if cap.of_tokens else 1)
        return cap.reason if spent > cap.most else None

    def take(self, source: int, tokens: int) -> None:
        """Count an example of a source as taken."""
        self._spent[source] += tokens if self._caps[source].of_tokens else 1


class _Cap(NamedTuple):
    most: float
    of_tokens: bool
    reason: str


def _cap(name: str, cap: float | None, count: int | None, budget: int | None) -> _Cap:
    if cap is None:
        return _Cap(math.inf, False, "")
    if isinstance(cap, int):
        return _Cap(cap, False, f"per_source: {cap} rows of {name} are selected already")
    share = cap * (count or budget or 0)
    reason = f"per_source: more than {100 * cap:g}% of the selection would be of {name}"
    return _Cap(share + 1e-9, count is None, reason)


@dataclass(frozen=True, slots=True)
class Leak:
    """The text that an example shares with a test set.

    Attributes:
        run: The shared words; in scripts without spaces, overlapping pairs of characters.
    """

    target: str
    question: str
    run: str

    @property
    def reason(self) -> str:
        """Why the example is passed over."""
        return f'drop_leaks: shares "{self.run}" with {self.target}, {self.question}'


class LeakIndex:
    """An index of the runs in test questions."""

    def __init__(self, questions: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        named = [(target, *question) for target, of in questions.items() for question in of]
        hashes, texts, _, _ = _runs([text for _, _, text in named])
        self._hashes, first = np.unique(hashes, return_index=True)
        first_texts = (named[text] for text in texts[first].tolist())
        self._questions = [(target, question) for target, question, _ in first_texts]

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, texts: Sequence[str]) -> dict[int, Leak]:
        """The leaks in some texts, by index of the text."""
        if not len(self):
            return {}
        hashes, of, starts, words = _runs(texts)
        places = np.searchsorted(self._hashes, hashes).clip(max=len(self) - 1)
        hits = np.flatnonzero(self._hashes[places] == hashes)
        hits = hits[np.unique(of[hits], return_index=True)[1]]  # the first hit of each text
        return {
            int(of[hit]): Leak(
                *self._questions[int(places[hit])],
                " ".join(words[starts[hit] : starts[hit] + RUN]),
            )
            for hit in hits
        }


def find_leaks(pool: Pool, questions: Mapping[str, Iterable[tuple[str, str]]]) -> dict[int, Leak]:
    """The pool's leaks by row number, in order of (source, id)."""
    index = LeakIndex(questions)
    found: dict[int, Leak] = {}
    for start in range(0, len(pool) if len(index) else 0, AT_ONCE):
        numbers = np.arange(start, min(start + AT_ONCE, len(pool)))
        found |= {start + place: leak for place, leak in index.find(pool.texts(numbers)).items()}
    return {
        number: found[number] for number in pool.order[np.isin(pool.order, list(found))].tolist()
    }


def _runs(
    texts: Sequence[str],
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64], list[str]]:
    """All runs in some texts, in order.

    Returns:
        A hash of each run [m], the index of its text [m], the index of its first word [m], and
        the words of all texts.
    """
    split = [split_words(text) for text in texts]
    lengths = np.fromiter(map(len, split), np.int64, len(split))
    words = list(chain.from_iterable(split))
    of = np.repeat(np.arange(len(split)), lengths)
    starts = np.flatnonzero(np.arange(len(words)) + RUN <= np.cumsum(lengths)[of])
    values = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
    hashes = np.zeros(len(starts), np.uint64)
    for word in range(RUN):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + values[starts + word]
    return hashes, of[starts], starts, words
