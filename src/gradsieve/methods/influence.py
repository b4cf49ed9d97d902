"""LESS and its two ablations: without the cosine, and without Adam (method.md, steps 4 and 5).

In: the datastores, and the targets' projected gradients, of each checkpoint. Out: for each row and
subtask sum_i eta_i cos(gbar_j,i , Gamma_i(z)), all targets in one pass over each datastore. Several
subtasks become one score by their maximum (or mean).

- `less`: the paper's.
- `dot`: inner products instead of cosines; long gradients, of short answers, count more.
- `sgd`: rows' plain gradients instead of Adam's updates, from a datastore of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradsieve.errors import StoreError
from gradsieve.gradients.similarity import subtask_directions
from gradsieve.methods.base import Features, Scores, ScoringTask, Uses, over_subtasks
from gradsieve.store import Store, open_store
from gradsieve.store.targets import read_target_gradients, target_file

Column = tuple[str, str]
"""(target, subtask) of a column of scores."""

Blocks = Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Positions of rows in the datastore, and what they add to each column [n, S]."""


@dataclass(frozen=True)
class Influence:
    """Similarity of gradients, summed over checkpoints.

    Attributes:
        source: Who proposed it.
        uses: Which gradients of the rows.
        cosine: Whether lengths are divided out.
    """

    source: str
    uses: Uses = "gradients"
    cosine: bool = True

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Add up the checkpoints' similarities, for all targets of a datastore at once."""
        assert task.features is not None, "the features stage comes first"
        keys, scores = task.pool.store_keys(task.numbers), {}
        of_updates = self.cosine and self.uses == "gradients"
        exact = [name for name in task.targets if of_updates and name in task.features.exact]
        others = [name for name in task.targets if name not in exact]
        kind = "pool-sgd" if self.uses == "plain gradients" else "pool"
        for store, targets in (("exact", exact), (kind, others)):
            if not targets:
                continue
            columns, total = self._total(task, task.features, keys, store, targets)
            for target in targets:
                own = [index for index, (owner, _) in enumerate(columns) if owner == target]
                subtasks = [columns[index][1] for index in own]
                # Columns of a target are neighbors: a slice is no copy.
                by_subtask = total[:, own[0] : own[-1] + 1].astype(np.float32)
                scores[target] = over_subtasks(task, subtasks, by_subtask)
        return scores

    def _total(
        self, task: ScoringTask, features: Features, keys: pa.Table, kind: str, targets: list[str]
    ) -> tuple[list[Column], NDArray[np.float64]]:
        columns: list[Column] = []
        total = np.zeros((0, 0))
        rates = np.array(features.weights, dtype=np.float64)
        for number, rate in enumerate(rates / rates.sum(), start=1):
            where = features.folders[number - 1]
            store = open_store(where / kind)
            positions = store.positions(keys)
            if (positions < 0).any():
                raise _rows_missing(where, keys.filter(positions < 0), len(keys))
            order, done = np.argsort(positions), 0
            if kind == "exact":
                columns, blocks = _exact(store, positions)
            else:
                columns, directions = self._directions(task, where, kind, targets)
                blocks = self._similarities(store, directions, positions)
            total = total if total.size else np.zeros((len(keys), len(columns)))
            what = f"scores, checkpoint {number} of {len(rates)}"
            with task.progress.counting(what, len(keys), "rows") as report:
                for block, similarities in blocks:
                    # Blocks come in order of position.
                    total[order[done : done + len(block)]] += rate * similarities
                    done += len(block)
                    report(done)
        return columns, total

    def _similarities(
        self, store: Store, directions: NDArray[np.float32], positions: NDArray[np.int64]
    ) -> Blocks:
        """Blocks of rows with their similarity to each direction."""
        for part in store.similarities(directions, positions, store.balanced):
            values = part.cosines if self.cosine else part.cosines * part.norms[:, None]
            yield part.positions, values

    def _directions(
        self, task: ScoringTask, where: Path, kind: str, targets: list[str]
    ) -> tuple[list[Column], NDArray[np.float32]]:
        """The columns at one checkpoint and the direction of each, all targets together."""
        columns: list[Column] = []
        parts = []
        for target in targets:
            made = read_target_gradients(target_file(where, kind, target))
            mean = task.recipe.score.target_mean if self.cosine else "mean"
            found, directions = subtask_directions(made.rows, made.subtasks, mean, made.norms)
            columns += [(target, subtask) for subtask in found]
            parts.append(directions.numpy())
        return columns, np.concatenate(parts)


def _exact(store: Store, positions: NDArray[np.int64]) -> tuple[list[Column], Blocks]:
    """The cosines that exact mode has stored; its columns are the rows' subtasks."""
    columns = [(target, subtask) for target, subtask in store.settings["exact"]["columns"]]
    blocks = store.shards(positions)
    return columns, ((b.positions, b.directions * b.feature_norms[:, None]) for b in blocks)


def _rows_missing(where: Path, missing: pa.Table, rows: int) -> StoreError:
    source, id = missing["source"][0], missing["id"][0]
    return StoreError(
        f"The datastore lacks {len(missing)} of {rows} rows.",
        f"{where}, e.g. {source} {id}",
        "Run `gradsieve features` again: it adds only what is missing.",
    )


LESS = Influence("LESS (Xia et al., ICML 2024, arXiv 2402.04333)")
DOT = Influence("LESS without the cosine (the paper's section 6)", cosine=False)
SGD = Influence("LESS without Adam: plain gradients of the rows", "plain gradients")
