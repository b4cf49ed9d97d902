"""The results of a gradients.py pass, as arrays: read by finding.py and fidelity.py.

Letters: n rows of the pool, k target examples, S subtasks of a target, d dimensions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch

from gradsieve.methods.base import Scores, combine
from gradsieve.methods.fusion import fuse
from gradsieve.selection.ranking import round_robin
from gradsieve.store.quantize import decode, encode

SHARE = 0.05


@dataclass(eq=False)
class Pass:
    """The files of one checkpoint; rows are in the order of the existing shards."""

    folder: Path

    @cached_property
    def facts(self) -> dict:
        return json.loads((self.folder / "facts.json").read_text())

    @cached_property
    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("shard-?????.npz"))

    @lru_cache(maxsize=4)  # noqa: B019 - lives as long as the program
    def array(self, name: str) -> np.ndarray:
        return np.concatenate([np.load(file)[name] for file in self.shards])

    @cached_property
    def targets(self) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / "targets.pt", weights_only=True, mmap=True)

    @cached_property
    def keys(self) -> list[tuple[str, str]]:
        """(source, id) of each row [n]."""
        key_of = dict(zip(self.facts["numbers"], map(tuple, self.facts["keys"]), strict=True))
        return [key_of[number] for number in self.array("numbers").tolist()]

    @cached_property
    def sources(self) -> np.ndarray:
        """Source of each row [n]."""
        return np.array([source for source, _ in self.keys])

    def columns(self, target: str) -> tuple[list[int], list[str]]:
        """Positions of a target's examples, and the subtask of each example."""
        found = [(i, one[1]) for i, one in enumerate(self.facts["examples"]) if one[0] == target]
        return [i for i, _ in found], [subtask for _, subtask in found]

    def exact(self, reading: str, target: str, by_example: bool = False) -> np.ndarray:
        """Exact cosines to each subtask's mean gradient [n, S], or to each example's [n, k]."""
        columns, subtasks = self.columns(target)
        products = self.array(f"products-{reading}")[:, columns].astype(np.float64)
        norms = self.array(f"norm-{reading}").astype(np.float64)[:, None]
        gradients = self.targets["gradients"][columns].numpy()
        if by_example:
            return products / norms / np.linalg.norm(gradients, axis=1)
        names = sorted(set(subtasks))
        means = np.stack([gradients[np.array(subtasks) == s].mean(0) for s in names])
        sums = np.stack([products[:, np.array(subtasks) == s].mean(1) for s in names], axis=1)
        return sums / norms / np.linalg.norm(means, axis=1)

    def projected(self, key: str, target: str, bits: int = 16) -> np.ndarray:
        """Cosines [n, S]: inner products of sketches over the norms of the unscaled vectors."""
        columns, subtasks = self.columns(target)
        reading = key.split("-")[0]
        rows = self.array(f"row-{key}").astype(np.float32)
        if bits < 16:
            rows = quantized(rows, bits)
        rows *= self.array(f"length-{key}")[:, None] / self.array(f"norm-{reading}")[:, None]
        names = sorted(set(subtasks))
        of = np.array(subtasks)
        sketches = self.targets[key][columns].numpy()
        gradients = self.targets["gradients"][columns]
        means = np.stack([sketches[of == s].mean(0) for s in names])
        norms = np.array([float(gradients[torch.tensor(of == s)].mean(0).norm()) for s in names])
        return rows @ means.T / norms


def quantized(rows: np.ndarray, bits: int) -> np.ndarray:
    """Unit rows as the datastore returns them after quantization."""
    codes, norms, _ = encode(rows, bits)
    return decode(codes, bits) / norms[:, None]


def across(by_subtask: np.ndarray, how: str) -> np.ndarray:
    """One score per row, combined over subtasks as in the package."""
    names = [""] * by_subtask.shape[1]
    return combine(how, names, by_subtask.astype(np.float32)).total


def top(scores: np.ndarray, share: float = SHARE) -> np.ndarray:
    """Positions of the best rows."""
    return np.argsort(-scores, kind="stable")[: round(share * len(scores))]


def fused(*scores: np.ndarray) -> np.ndarray:
    """Reciprocal rank fusion."""
    return fuse([Scores(one) for one in scores]).total


def in_turns(columns: np.ndarray, share: float = SHARE) -> np.ndarray:
    """Positions of the best rows by round robin: each column in turn takes its best unused row."""
    return round_robin(columns.astype(np.float32))[: round(share * len(columns))]
