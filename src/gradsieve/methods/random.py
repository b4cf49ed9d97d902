"""Baselines that look at nothing: random, random in equal parts of the sources, and everything.

An example's place is a hash of (seed, source, id): it doesn't depend on the pool's order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradsieve.methods.base import Scores, ScoringTask, Uses


@dataclass(frozen=True)
class Chance:
    """Random ranks."""

    source: str
    balanced: bool = False
    uses: Uses = "data"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """The same numbers for every target."""
        total = draws(f"{self.source}{task.seed}", task)
        if self.balanced:
            sources = task.pool.take(task.numbers, ["source"])["source"]
            encoded = pc.dictionary_encode(sources).combine_chunks()
            total = _turns(encoded.indices.to_numpy(), total)
        return {name: Scores(total.astype(np.float32)) for name in task.targets}


class Full:
    """Everything is taken, whatever `select` says."""

    source = "the paper's full-data baseline"
    uses: Uses = "data"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Zero for all."""
        return {name: Scores(np.zeros(len(task), dtype=np.float32)) for name in task.targets}


def draws(seed: str, task: ScoringTask) -> NDArray[np.float64]:
    """A number in (0, 1) for each example [n]."""
    return np.fromiter((draw(seed, key) for key in task.example_keys()), np.float64, len(task))


def draw(seed: str, key: tuple[str, str]) -> float:
    """A number in (0, 1) that seed, source and id decide."""
    text = "\x1f".join(("random", seed, *key))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:6], "little") + 0.5) / 2**48


def _turns(sources: NDArray[np.int32], luck: NDArray[np.float64]) -> NDArray[np.float64]:
    """Examples ranked within their source by luck; the first of each source lead, and so on."""
    place = np.empty(len(luck))
    for source in range(int(sources.max()) + 1):
        own = np.flatnonzero(sources == source)
        place[own[np.argsort(-luck[own])]] = np.arange(len(own))
    ranks = np.empty(len(luck))
    ranks[np.lexsort((-luck, place))] = np.arange(len(luck))
    return 1 - ranks / len(luck)


RANDOM = Chance("the paper's random baseline")
RANDOM_BALANCED = Chance(
    "balanced random, equal rows a source (Ivison et al., 2025, arXiv 2503.01807)", balanced=True
)
FULL = Full()
