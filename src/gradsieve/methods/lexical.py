"""Baselines that count words: BM25 and DSIR, by the libraries bm25s and data-selection.

Both read what all turns of a row say, split into words as each script has it (`data.words`). Stop
words are counted, since a pool has many languages. The libraries are an extra:
`pip install 'gradsieve[baselines]'`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gradsieve.data.examples import Row
from gradsieve.data.words import split_words, split_words_and_punctuation
from gradsieve.errors import DataError
from gradsieve.io import needed
from gradsieve.methods.base import (
    Problem,
    Scores,
    Uses,
    mean_by_subtask,
    over_subtasks,
    whole_text,
)
from gradsieve.methods.random import draw


@dataclass(frozen=True)
class Bm25:
    """Each target example is a query; a subtask's score is the mean over its examples."""

    source: str = "BM25 (Robertson and Zaragoza, 2009), k1 1.5, b 0.75, by bm25s"
    uses: Uses = "data"
    library: str = "bm25s"

    def score(self, problem: Problem) -> dict[str, Scores]:
        """One index, a query for each example."""
        bm25s = needed("bm25s", "baselines")
        index = bm25s.BM25(k1=1.5, b=0.75)
        pool = _tokens(problem.rows)
        if not any(pool):
            raise DataError(
                "BM25 finds no word of two letters or more in the pool.",
                f"score.methods: bm25, {len(pool)} rows",
                "Take bm25 out of score.methods.",
            )
        index.index(pool, show_progress=False)
        scores = {}
        for name, examples in problem.targets.items():
            queries = _tokens(examples)
            nothing = np.zeros(len(pool), dtype=np.float32)  # bm25s has no answer to no words
            columns = [
                index.get_scores(query).astype(np.float32) if query else nothing
                for query in queries
            ]
            subtasks, by_subtask = mean_by_subtask(examples, np.stack(columns, axis=1))
            scores[name] = over_subtasks(problem, subtasks, by_subtask)
        return scores


def _tokens(rows: Sequence[Row]) -> list[list[str]]:
    """The words of each row of two letters or more, as bm25s has it."""
    texts = (split_words(whole_text(row.example)) for row in rows)
    return [[word for word in words if len(word) > 1] for words in texts]


@dataclass(frozen=True)
class Dsir:
    """Importance weights of hashed words and pairs of words; the target is seen as a whole.

    To the log weight a Gumbel number is added, so that the top rows are a sample without
    replacement in proportion to the weights, as the method asks.
    """

    source: str = "DSIR (Xie et al., NeurIPS 2023), 10,000 buckets, by data-selection"
    uses: Uses = "data"
    library: str = "data_selection"

    def score(self, problem: Problem) -> dict[str, Scores]:
        """One estimator for each target."""
        keys = [row.key for row in problem.rows]
        luck = np.array([draw(f"dsir{problem.seed}", key) for key in keys])
        gumbel = -np.log(-np.log(luck))
        return {
            name: Scores(keys, (_log_weights(problem.rows, examples) + gumbel).astype(np.float32))
            for name, examples in problem.targets.items()
        }


def _log_weights(rows: Sequence[Row], examples: Sequence[Row]) -> np.ndarray:
    dsir = needed("data_selection", "baselines").HashedNgramDSIR
    with TemporaryDirectory() as folder:
        files = {"pool": rows, "target": examples}
        for file, of in files.items():
            lines = [json.dumps({"text": whole_text(row.example)}) + "\n" for row in of]
            Path(folder, file).write_text("".join(lines), encoding="utf-8")
        pool, target = ([str(Path(folder, file))] for file in files)
        estimator = dsir(pool, target, cache_dir=folder, num_proc=1)
        estimator.tokenizer = split_words_and_punctuation
        estimator.fit_importance_estimator(num_tokens_to_fit="all")
    texts = (whole_text(row.example) for row in rows)
    weights = [estimator.importance_estimator(estimator.featurizer(text)) for text in texts]
    return np.array(weights, dtype=np.float64)


BM25 = Bm25()
DSIR = Dsir()
