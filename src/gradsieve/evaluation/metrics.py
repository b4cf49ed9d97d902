"""Score an answer against its references.

In: a model's answer. Out: 1 or 0 (exact match) or a share (F1). F1 is that of SQuAD v1.1
(rajpurkar.github.io/SQuAD-explorer, evaluate-v1.1.py), which TyDiQA's gold-passage task also uses.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable

from gradsieve.data.content import after_reasoning
from gradsieve.tasks.questions import QuestionSet, matched


def judge(test: QuestionSet, answer: str, right: tuple[str, ...]) -> dict[str, float]:
    """Score a `final_answer` against the references; the best match counts."""
    reduce = _REDUCTIONS[test.match]
    scores = {
        "exact_match": max(float(same(answer, gold, reduce)) for gold in right),
        "f1": max(f1(answer, gold) for gold in right),
    }
    return {metric: scores[metric] for metric in test.metrics}


def final_answer(test: QuestionSet, text: str) -> str:
    """The answer within a generated text, without the reasoning before it."""
    text = after_reasoning(text)
    return (matched(test.extract, text) or text).strip()


def words(text: str) -> str:
    """Lower-case text with single spaces and composed characters, which many tokenizers produce."""
    return " ".join(unicodedata.normalize("NFC", text.lower()).split())


def letters(text: str) -> str:
    """Like `words`, without ASCII punctuation."""
    return words(text.translate(_NO_PUNCTUATION))


def normalized(text: str) -> str:
    """Like `letters`, without English articles: SQuAD's normalization."""
    return words(re.sub(r"\b(a|an|the)\b", " ", letters(text)))


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_REDUCTIONS = {"words": words, "letters": letters, "squad": normalized}


def same(answer: str, gold: str, reduce: Callable[[str], str]) -> bool:
    """Whether two answers are the same after reduction.

    A reference that reduces to an empty string, such as BBH's brackets, is compared with `words`:
    otherwise an empty answer would be right.
    """
    right = reduce(gold)
    return reduce(answer) == right if right else words(answer) == words(gold)


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of precision and recall over SQuAD-normalized words."""
    found, right = normalized(answer).split(), normalized(gold).split()
    if not right:
        return float(same(answer, gold, normalized))
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right))
