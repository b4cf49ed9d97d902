"""LESS and its two ablations: without the cosine, and without Adam (method.md, steps 4 and 5).

In: the datastores, and the targets' projected gradients, of each checkpoint. Out: for each row and
subtask sum_i eta_i cos(gbar_j,i , Gamma_i(z)), all targets in one pass over each datastore. Several
subtasks become one score by their maximum (or mean).

- `less`: the paper's.
- `dot`: inner products instead of cosines; long gradients, of short answers, count more.
- `sgd`: rows' plain gradients instead of Adam's updates, from a datastore of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gradsieve.errors import StoreError
from gradsieve.methods.base import Gradients, Problem, Scores, Uses, over_subtasks
from gradsieve.store import RowKey, open_store, read_row_keys
from gradsieve.store.targets import read_target_gradients

if TYPE_CHECKING:
    from numpy.typing import NDArray

Column = tuple[str, str]
"""(target, subtask) of a column of scores."""

Blocks = Iterator[tuple[list[RowKey], "NDArray[np.float32]"]]
"""Keys of rows, and what they add to each column [n, S]."""


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

    def score(self, problem: Problem) -> dict[str, Scores]:
        """Add up the checkpoints' similarities for every target at once."""
        assert problem.gradients is not None, "the features stage comes first"
        keys = sorted(read_row_keys(problem.gradients.rows).values())
        columns, total = self._total(problem, problem.gradients, keys)
        scores = {}
        for target in problem.targets:
            own = [index for index, (owner, _) in enumerate(columns) if owner == target]
            subtasks = [columns[index][1] for index in own]
            rows = [(key.source, key.id) for key in keys]
            scores[target] = over_subtasks(problem, subtasks, total[:, own].astype("f4"), rows)
        return scores

    def _total(
        self, problem: Problem, gradients: Gradients, keys: list[RowKey]
    ) -> tuple[list[Column], NDArray[np.float64]]:
        position = {key: index for index, key in enumerate(keys)}
        columns: list[Column] = []
        total = np.zeros((0, 0))
        rates = np.array(gradients.weights, dtype=np.float64)
        for number, rate in enumerate(rates / rates.sum(), start=1):
            where = gradients.folders[number - 1]
            columns, blocks = self._similarities(problem, where, position.keys())
            total = total if total.size else np.zeros((len(keys), len(columns)))
            added = np.zeros(len(keys), dtype=bool)
            what = f"scores, checkpoint {number} of {len(rates)}"
            with problem.progress.counting(what, len(keys), "rows") as report:
                for block, similarities in blocks:
                    here = [position[key] for key in block]
                    total[here] += rate * similarities
                    added[here] = True
                    report(int(added.sum()))
            if not added.all():
                raise _rows_missing(where, keys, added)
        return columns, total

    def _similarities(
        self, problem: Problem, where: Path, wanted: Collection[RowKey]
    ) -> tuple[list[Column], Blocks]:
        """The columns at one checkpoint, and blocks of rows with their similarity to each."""
        if problem.recipe.features.mode == "exact":
            return _exact(where / "exact", wanted)
        folder = where / ("pool-sgd" if self.uses == "plain gradients" else "pool")
        columns, directions = self._directions(problem, where / "targets")
        found = open_store(folder).similarities(directions, wanted)
        if self.cosine:
            return columns, ((part.keys, part.cosines) for part in found)
        return columns, ((p.keys, p.cosines * p.feature_norms[:, None]) for p in found)

    def _directions(
        self, problem: Problem, folder: Path
    ) -> tuple[list[Column], NDArray[np.float32]]:
        """The columns and the direction of each, all targets side by side."""
        from gradsieve.gradients.similarity import subtask_directions

        columns: list[Column] = []
        parts = []
        for target in problem.targets:
            told = read_target_gradients(folder / f"{target}.safetensors")
            mean = problem.recipe.score.target_mean if self.cosine else "mean"
            found, directions = subtask_directions(told.rows, told.subtasks, mean)
            columns += [(target, subtask) for subtask in found]
            parts.append(directions.numpy())
        return columns, np.concatenate(parts)


def _exact(where: Path, wanted: Collection[RowKey]) -> tuple[list[Column], Blocks]:
    """The cosines that exact mode has taken; its columns are the rows' subtasks."""
    store = open_store(where)
    columns = [(target, subtask) for target, subtask in store.settings["exact"]["columns"]]
    blocks = store.shards(wanted)
    return columns, ((b.keys, b.directions * b.feature_norms[:, None]) for b in blocks)


def _rows_missing(where: Path, keys: list[RowKey], added: NDArray[np.bool_]) -> StoreError:
    missing = keys[int(np.flatnonzero(~added)[0])]
    return StoreError(
        f"The datastore lacks {int((~added).sum())} of {len(added)} rows.",
        f"{where}, e.g. {missing.source} {missing.id}",
        "Run `gradsieve features` again: it adds only what is missing.",
    )


LESS = Influence("LESS (Xia et al., ICML 2024, arXiv 2402.04333)")
DOT = Influence("LESS without the cosine (the paper's section 6)", cosine=False)
SGD = Influence("LESS without Adam: plain gradients of the rows", "plain gradients")
