"""LESS and its variants without the cosine, without Adam, and in the target's own subspace.

In: the datastores, and the targets' projected gradients, of each checkpoint. Out: for each row and
subtask sum_i eta_i cos(gbar_j,i , Gamma_i(z)), all targets in one pass over each datastore
(method.md, steps 4 and 5). `score.across_subtasks` determines how subtasks become one score.

- `less`: the paper's method.
- `dot`: inner products instead of cosines; long gradients (of short answers) count more.
- `sgd`: the rows' plain gradients instead of Adam updates, from a separate datastore.
- `gist`: like `sgd`, after projecting both sides to the subspace that the gradients of the
  target's examples span; the part of a row's gradient outside of it does not count.

Letters: N checkpoints, n rows, S columns (subtasks, or target examples), k target examples, d dims.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradsieve.errors import StoreError
from gradsieve.gradients.similarity import subtask_directions
from gradsieve.methods.base import (
    ExampleScores,
    Features,
    Scores,
    ScoringTask,
    Uses,
    combine,
    over_best_examples,
)
from gradsieve.methods.comparison import (
    Column,
    Comparison,
    Directions,
    Stored,
    Subspaces,
    compare,
    unit,
)
from gradsieve.store import Store, open_store
from gradsieve.store.targets import TargetGradients, read_target_gradients, target_file

RANK = 50
"""The largest dimension of `gist`'s subspace: `target_dim` in its authors' code."""


class Checkpoint(NamedTuple):
    """A datastore, its weight, and the positions of the task's rows in it [n]."""

    weight: float
    folder: Path
    kind: str
    store: Store
    positions: NDArray[np.int64]

    def gradients(self, target: str) -> TargetGradients:
        """A target's gradients for this datastore."""
        return read_target_gradients(target_file(self.folder, self.kind, target))


class Sums(NamedTuple):
    """Similarities summed over checkpoints.

    Attributes:
        columns: What each column is for [S].
        values: float64 [n, S].
        errors: Standard error of the values due to projection, root mean square over rows [S].
    """

    columns: list[Column]
    values: NDArray[np.float64]
    errors: NDArray[np.float64]

    def of(self, target: str, examples: bool = False) -> slice:
        """A target's columns (contiguous) for its subtasks, or for its examples."""
        own = [
            place
            for place, column in enumerate(self.columns)
            if column.target == target and (column.example is not None) == examples
        ]
        return slice(own[0], own[-1] + 1) if own else slice(0)


@dataclass(frozen=True)
class Influence:
    """Similarity of gradients, summed over checkpoints: cosines, or inner products."""

    source: str
    uses: Uses = "gradients"
    cosine: bool = True

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Sum similarities over checkpoints, for all targets of a datastore at once."""
        recipe = task.recipe
        examples = recipe.select.turns == "examples"
        exact = self.exact(task) if recipe.exact_by_example or not examples else set()
        others = [target for target in task.targets if target not in exact]
        found: dict[str, Scores] = {}
        for kind, targets in (("exact", exact), (self.kind, others)):
            if targets:
                some = {name: rows for name, rows in task.targets.items() if name in targets}
                sums = self.sums(replace(task, targets=some), examples, kind)
                found |= {target: self.scores(task, target, sums) for target in targets}
        return {target: found[target] for target in task.targets}

    def exact(self, task: ScoringTask) -> set[str]:
        """Targets whose exact cosines are stored; empty for methods that don't use them."""
        of_updates = self.cosine and self.uses == "gradients"
        return {*_features(task).exact} & {*task.targets} if of_updates else set()

    def scores(self, task: ScoringTask, target: str, sums: Sums) -> Scores:
        """A target's scores."""
        own, each = sums.of(target), sums.of(target, examples=True)
        columns = sums.columns[each]
        examples = ExampleScores(
            [column.example or "" for column in columns],
            [column.subtask for column in columns],
            sums.values[:, each].astype(np.float32),
        )
        score, is_known = task.recipe.score, bool(sums.errors.any())
        if score.target_mean == "none":
            errors = sums.errors[each] if is_known else None
            found = over_best_examples(score.across_subtasks, examples, errors)
        else:
            by_subtask = sums.values[:, own].astype(np.float32)
            subtasks = [column.subtask for column in sums.columns[own]]
            found = combine(score.across_subtasks, subtasks, by_subtask)
            found = replace(found, errors=sums.errors[own] if is_known else None)
        return (
            replace(found, examples=examples) if task.recipe.select.turns == "examples" else found
        )

    def sums(self, task: ScoringTask, examples: bool, kind: str) -> Sums:
        """Similarities to every subtask and, with `examples`, to every target example."""
        columns: list[Column] = []
        total, variance = np.zeros((0, 0)), np.zeros(0)
        for number, checkpoint in enumerate(checkpoints(task, kind), start=1):
            positions = checkpoint.positions
            order, done = np.argsort(positions), 0
            comparison = self.comparison(task, checkpoint, examples)
            columns = [*comparison.columns]
            if number == 1:
                total, variance = np.zeros((len(positions), len(columns))), np.zeros(len(columns))
            what = f"scores, checkpoint {number} of {len(_features(task).weights)}"
            for part in compare(task, what, checkpoint.store, comparison, positions):
                rows = order[done : done + len(part.positions)]
                total[rows] += checkpoint.weight * part.similarities
                variance += checkpoint.weight**2 * part.variances / len(positions)
                done += len(rows)
        return Sums(columns, total, np.sqrt(variance))

    @property
    def kind(self) -> str:
        """The kind of datastore that this method reads."""
        return "pool-sgd" if self.uses == "plain gradients" else "pool"

    def comparison(self, task: ScoringTask, checkpoint: Checkpoint, examples: bool) -> Comparison:
        """What the rows are compared with at one checkpoint."""
        if checkpoint.kind == "exact":
            columns = checkpoint.store.settings["exact"]["columns"]
            return Stored([Column(*column) for column in columns])
        return Directions(*self.directions(task, checkpoint, examples), self.cosine)

    def directions(
        self, task: ScoringTask, checkpoint: Checkpoint, examples: bool = False
    ) -> tuple[list[Column], NDArray[np.float32]]:
        """The columns of all targets, and the direction of each [S, d]."""
        columns: list[Column] = []
        parts = []
        mean = task.recipe.score.target_mean
        for target in task.targets:
            found = checkpoint.gradients(target)
            if mean != "none":
                kind = mean if self.cosine else "mean"
                names, means = subtask_directions(found.rows, found.subtasks, kind, found.norms)
                columns += [Column(target, subtask) for subtask in names]
                parts.append(means.numpy())
            if examples or mean == "none":
                columns += map(Column, [target] * len(found.ids), found.subtasks, found.ids)
                parts.append((found.units() if self.cosine else found.rows).numpy())
        return columns, np.concatenate(parts)


def checkpoints(task: ScoringTask, kind: str) -> Iterator[Checkpoint]:
    """The datastores of one kind, checkpoint by checkpoint.

    Raises:
        StoreError: If a datastore lacks a row.
    """
    features, keys = _features(task), task.pool.store_keys(task.numbers)
    for folder, weight in zip(features.folders, features.weights, strict=True):
        store = open_store(folder / kind)
        positions = store.positions(keys)
        if (positions < 0).any():
            missing = keys.filter(positions < 0)
            raise StoreError(
                f"The datastore lacks {len(missing)} of {len(keys)} rows.",
                f"{folder}, e.g. {missing['source'][0]} {missing['id'][0]}",
                "Run `gradsieve features` again: it adds only what is missing.",
            )
        yield Checkpoint(weight, folder, kind, store, positions)


def _features(task: ScoringTask) -> Features:
    assert task.features is not None, "the features stage comes first"
    return task.features


@dataclass(frozen=True)
class Gist(Influence):
    """Cosines in the subspace of the target's gradients.

    At each checkpoint the first `RANK` right singular vectors of the gradients of all the target's
    examples span the subspace. Rows and mean gradients are projected to it before they are
    compared.
    """

    def comparison(self, task: ScoringTask, checkpoint: Checkpoint, examples: bool) -> Comparison:
        """The targets' subspaces and, within them, their mean gradients."""
        columns, directions = self.directions(task, checkpoint, examples)
        owners = np.array([column.target for column in columns])
        bases = {
            target: _basis(checkpoint.gradients(target).rows.numpy()) for target in task.targets
        }
        inside = {t: unit(directions[owners == t] @ basis.T) for t, basis in bases.items()}
        return Subspaces(columns, bases, inside)


def _basis(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first right singular vectors [r, d], without those with negligible singular values."""
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    count = int((values[:RANK] > 1e-5 * values[0]).sum())
    found: NDArray[np.float32] = vectors[: max(count, 1)]
    return found


LESS = Influence("LESS (Xia et al., ICML 2024, arXiv 2402.04333)")
DOT = Influence("LESS without the cosine (the paper's section 6)", cosine=False)
SGD = Influence("LESS without Adam: plain gradients of the rows", "plain gradients")
GIST = Gist("GIST (Min et al., ICML 2026, arXiv 2602.18584), rank up to 50", "plain gradients")
