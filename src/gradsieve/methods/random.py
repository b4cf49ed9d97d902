"""Baselines that look at nothing: random rows, random rows in equal parts of the sources, all rows.

A row's place is a hash of (seed, source, id): it doesn't depend on the pool's order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradsieve.methods.base import Problem, Scores, Uses


@dataclass(frozen=True)
class Chance:
    """Random ranks.

    Attributes:
        source: Who proposed it.
        balanced: Sources take turns as long as they last.
    """

    source: str
    balanced: bool = False
    uses: Uses = "data"

    def score(self, problem: Problem) -> dict[str, Scores]:
        """The same numbers for every target."""
        keys = [row.key for row in problem.rows]
        luck = np.array([draw(f"{self.source}{problem.seed}", key) for key in keys])
        total = _turns(keys, luck) if self.balanced else luck
        return {name: Scores(keys, total.astype(np.float32)) for name in problem.targets}


@dataclass(frozen=True)
class Full:
    """Everything is taken, whatever `select` says."""

    source: str = "the paper's full-data baseline"
    uses: Uses = "data"

    def score(self, problem: Problem) -> dict[str, Scores]:
        """Zero for all."""
        keys = [row.key for row in problem.rows]
        zeros = np.zeros(len(keys), dtype=np.float32)
        return {name: Scores(keys, zeros) for name in problem.targets}


def draw(seed: str, key: tuple[str, str]) -> float:
    """A number in (0, 1) that seed, source and id decide."""
    text = "\x1f".join(("random", seed, *key))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:6], "little") + 0.5) / 2**48


def _turns(keys: Sequence[tuple[str, str]], luck: np.ndarray) -> np.ndarray:
    """Rows ranked within their source by luck; the first of each source lead, and so on."""
    place = np.empty(len(keys))
    sources = np.array([source for source, _ in keys])
    for source in set(sources.tolist()):
        own = np.flatnonzero(sources == source)
        place[own[np.argsort(-luck[own])]] = np.arange(len(own))
    ranks = np.empty(len(keys))
    ranks[np.lexsort((-luck, place))] = np.arange(len(keys))
    return 1 - ranks / len(keys)


RANDOM = Chance("the paper's random baseline")
RANDOM_BALANCED = Chance(
    "balanced random, equal rows a source (Ivison et al., 2025, arXiv 2503.01807)", balanced=True
)
FULL = Full()
