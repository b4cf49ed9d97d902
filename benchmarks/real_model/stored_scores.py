"""Methods for a recipe that return the scores of another run with the same pool.

    score: {methods: [random, "benchmarks/real_model/stored_scores.py:stored_less", ...]}

The environment variable SCORES names that run's folder `03-score`. This lets one machine train on
selections made by another, without the other machine's features.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from gradsieve.methods import Scores, ScoringTask


class Stored:
    """Stored scores of the method with this name."""

    uses = "data"

    def __init__(self, name: str) -> None:
        self.name, self.source = name, f"{name} of another run"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Return each target's scores, matched by source and id."""
        return {target: Scores(self._of(task, target)) for target in task.targets}

    def _of(self, task: ScoringTask, target: str) -> np.ndarray:
        file = Path(os.environ["SCORES"]) / target / f"{self.name}.parquet"
        columns = pq.read_table(file, columns=["source", "id", "score"]).to_pydict()
        keys = zip(columns["source"], columns["id"], strict=True)
        score = dict(zip(keys, columns["score"], strict=True))
        return np.array([score[tuple(key)] for key in task.example_keys()], dtype=np.float32)


stored_less, stored_fusion = Stored("less"), Stored("fusion")
stored_rds_plus, stored_bm25 = Stored("rds_plus"), Stored("bm25")
