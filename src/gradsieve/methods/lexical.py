"""Baselines that count words: BM25 and DSIR, by the libraries bm25s and data-selection.

Both read the text of all turns, split into words by the rules of each script (`data.words`). Stop
words are kept, since a pool may have many languages. The libraries are an optional extra:
`pip install 'gradsieve[baselines]'`.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsieve.data.words import split_words, split_words_and_punctuation
from gradsieve.errors import DataError
from gradsieve.io import needed
from gradsieve.methods.base import (
    Scores,
    ScoringTask,
    Uses,
    full_text,
    over_examples,
)
from gradsieve.methods.random import draws


class Bm25:
    """Each target example is a query; a subtask's score is the mean over its examples."""

    source = "BM25 (Robertson and Zaragoza, 2009), k1 1.5, b 0.75, by bm25s"
    uses: Uses = "data"
    library = "bm25s"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Build one index, and query it with each target example."""
        # bm25s starts JAX if it is installed, which would take three quarters of a GPU's memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        bm25s = needed("bm25s", "baselines")
        index = bm25s.BM25(k1=1.5, b=0.75)
        pool = _Words(task.texts())
        if not pool.vocab:
            raise DataError(
                "BM25 finds no word of two letters or more in the pool.",
                f"score.methods: bm25, {len(task)} rows",
                "Take bm25 out of score.methods.",
            )
        index.index(pool, show_progress=False)
        scores = {}
        for name, examples in task.targets.items():
            nothing = np.zeros(len(task), dtype=np.float32)  # bm25s can't score an empty query
            columns = [
                index.get_scores(query).astype(np.float32) if query else nothing
                for query in (_words(full_text(row.example)) for row in examples)
            ]
            scores[name] = over_examples(task, examples, np.stack(columns, axis=1))
        return scores


def _words(text: str) -> list[str]:
    """The words of two letters or more, as in bm25s."""
    return [word for word in split_words(text) if len(word) > 1]


class _Words:
    """Words of many texts in the form that bm25s indexes: iterates over lists of word ids."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.vocab: dict[str, int] = {}
        self._values, self._ends = array("i"), array("q", [0])
        for text in texts:
            numbers = (self.vocab.setdefault(word, len(self.vocab)) for word in _words(text))
            self._values.extend(numbers)
            self._ends.append(len(self._values))

    @property
    def ids(self) -> _Words:
        """This object, under the name that bm25s reads."""
        return self

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[list[int]]:
        return (self._values[start:end].tolist() for start, end in pairwise(self._ends))


class Dsir:
    """Importance weights of hashed words and word pairs; the target counts as one text.

    Gumbel noise is added to the log weight, so that the top examples are a sample without
    replacement in proportion to the weights, as the method requires.
    """

    source = "DSIR (Xie et al., NeurIPS 2023), 10,000 buckets, by data-selection"
    uses: Uses = "data"
    library = "data_selection"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Fit one estimator for all targets, and weigh each row once for each."""
        gumbel = -np.log(-np.log(draws(f"dsir{task.seed}", task)))
        ratios, featurizer = _log_ratios(task)
        weights = np.empty((len(ratios), len(task)))
        for row, text in enumerate(task.texts()):
            counts = featurizer(text)
            weights[:, row] = [np.dot(ratio, counts) for ratio in ratios]
        return {
            name: Scores((own + gumbel).astype(np.float32))
            for name, own in zip(task.targets, weights, strict=True)
        }


def _log_ratios(task: ScoringTask) -> tuple[NDArray[np.float64], Callable[[str], Any]]:
    """Each target's log ratio of a bucket's shares [targets, buckets], and what counts buckets."""
    dsir = needed("data_selection", "baselines").HashedNgramDSIR
    texts = {"pool": task.texts()} | {
        f"target-{number}": (full_text(row.example) for row in examples)
        for number, examples in enumerate(task.targets.values())
    }
    with TemporaryDirectory() as folder:
        for name, own in texts.items():
            with Path(folder, name).open("w", encoding="utf-8") as out:
                out.writelines(json.dumps({"text": text}) + "\n" for text in own)
        pool, *targets = (str(Path(folder, name)) for name in texts)
        estimator = dsir([pool], targets, cache_dir=folder, num_proc=1, separate_targets=True)
        estimator.tokenizer = split_words_and_punctuation
        estimator.fit_importance_estimator(num_tokens_to_fit="all")
    return estimator.log_diff, estimator.featurizer


BM25 = Bm25()
DSIR = Dsir()
