"""Baselines that ignore content: random, random with equal shares per source, and the full pool.

An example's rank comes from a hash of (seed, source, id), so it doesn't depend on the pool's order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradsieve.methods.base import Scores, ScoringTask, Uses


@dataclass(frozen=True)
class Random:
    """Random ranks."""

    source: str
    balanced: bool = False
    uses: Uses = "data"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """The same scores for every target."""
        total = draws(f"{self.source}{task.seed}", task)
        if self.balanced:
            sources = task.pool.take(task.numbers, ["source"])["source"]
            encoded = pc.dictionary_encode(sources).combine_chunks()
            total = _turns(encoded.indices.to_numpy(), total)
        return {name: Scores(total.astype(np.float32)) for name in task.targets}


class Full:
    """Selects the full pool, regardless of `select`."""

    source = "the paper's full-data baseline"
    uses: Uses = "data"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """A score of 0 for every example."""
        return {name: Scores(np.zeros(len(task), dtype=np.float32)) for name in task.targets}


def draws(seed: str, task: ScoringTask) -> NDArray[np.float64]:
    """A random number in (0, 1) for each example [n]."""
    return np.fromiter((draw(seed, key) for key in task.example_keys()), np.float64, len(task))


def draw(seed: str, key: tuple[str, str]) -> float:
    """A number in (0, 1) that depends only on seed, source and id."""
    text = "\x1f".join(("random", seed, *key))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:6], "little") + 0.5) / 2**48


def _turns(sources: NDArray[np.int32], luck: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank by `luck` and alternate between sources: first each one's best, and so on."""
    place = np.empty(len(luck))
    for source in range(int(sources.max()) + 1):
        own = np.flatnonzero(sources == source)
        place[own[np.argsort(-luck[own])]] = np.arange(len(own))
    ranks = np.empty(len(luck))
    ranks[np.lexsort((-luck, place))] = np.arange(len(luck))
    return 1 - ranks / len(luck)


RANDOM = Random("the paper's random baseline")
RANDOM_BALANCED = Random(
    "balanced random, equal rows a source (Ivison et al., 2025, arXiv 2503.01807)", balanced=True
)
FULL = Full()
