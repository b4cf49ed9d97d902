"""LESS's features with rules against redundant rows: KNN-KDE and a greedy choice.

- `knn_kde`: each target example shares a unit of probability among its nearest rows, a row of a
  dense region getting less; rows are ranked by their sum (TSDS, on LESS's cosines as in "A Critical
  Look at Targeted Instruction Selection").
- `less_greedy`: rows are added one by one, each time the one with which the sum of all updates has
  the highest cosine to the target's mean gradients. A row like one that is in already adds little.

Both compare rows with each other, so that only the best `CANDIDATES` of a large pool take part;
the others follow in LESS's order. Ranks become scores: 1 for the first, then evenly down.

Letters: N checkpoints, n rows, C candidates, k target examples, d dims.
"""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

from gradsieve.methods.base import Scores, ScoringTask, Uses, by_rank
from gradsieve.methods.influence import LESS, Checkpoint, checkpoints

CANDIDATES = 8192
"""Rows compared with each other: N matrices of 8192 x 8192 values take N x 256 MiB."""

VALUES = 1 << 27
"""Most values of the candidates' features held at a time (512 MiB): with more than 16,384 dims
there are fewer candidates."""

ALPHA, C, SIGMA, NEAREST, DENSITY_NEAREST = 0.01, 5.0, 0.75, 5000, 1000
"""KNN-KDE's constants in the study's code (and TSDS's alpha and C), neighbors at most a tenth."""


class KnnKde:
    """Ranks by probability in TSDS's optimal transport with kernel density estimates."""

    source = (
        "KNN-KDE of TSDS (Liu et al., NeurIPS 2024, arXiv 2410.11303) on LESS's cosines, with the "
        "constants of Harvard DCML's study (ICML 2026)"
    )
    uses: Uses = "gradients"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """One pass over the datastore for the cosines; one over the neighbors for densities."""
        sums = LESS.sums(task, examples=True)
        return {
            target: by_rank(
                LESS.scores(task, target, sums),
                self._order(task, sums.values[:, sums.of(target, True)]),
            )
            for target in task.targets
        }

    def _order(self, task: ScoringTask, cosines: NDArray[np.float64]) -> NDArray[np.int64]:
        """All rows, best first; those without probability by their highest cosine."""
        if len(cosines) == 1:
            return np.zeros(1, dtype=np.int64)
        neighbors = nearest(cosines, _candidates(task))
        members = np.unique(neighbors)
        places = np.searchsorted(members, neighbors)
        kernel = np.zeros((len(members), len(members)), dtype=np.float32)
        for checkpoint in checkpoints(task, LESS.kind):
            units = _units(checkpoint, members)
            kernel += np.float32(checkpoint.weight) * products(units, units)
        densities = density(kernel, len(cosines))
        distances = 1 - np.take_along_axis(cosines, neighbors, axis=0)
        shares = probabilities(np.maximum(distances, 0).T, 1 / densities[places].T)
        total = np.zeros(len(cosines))
        np.add.at(total, neighbors.T, shares)
        return np.lexsort((-cosines.max(axis=1), -total))


def nearest(cosines: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Of cosines [n, k] each example's nearest rows [K, k], nearest first; at most `most` rows."""
    count = min(NEAREST, max(2, len(cosines) // 10), len(cosines))
    columns = [np.argsort(-column, kind="stable")[:count] for column in cosines.T]
    order = np.stack(columns, axis=1)
    while count > 2 and len(np.unique(order[:count])) > most:
        count = max(2, count * 9 // 10)
    return order[:count]


def density(cosines: NDArray[np.float32], rows: int) -> NDArray[np.float64]:
    """Each candidate's density: a kernel summed over its nearest, itself included [C].

    `cosines` are those of candidates with each other [C, C]; the pool's `rows` limit the nearest.
    """
    count = min(DENSITY_NEAREST, max(1, rows // 10), len(cosines))
    top = np.partition(cosines, len(cosines) - count, axis=1)[:, -count:]
    kernel = np.maximum(1 - 2 * (1 - np.sort(top, axis=1).astype(np.float64)) / SIGMA**2, 0)
    found: NDArray[np.float64] = np.maximum(kernel.sum(axis=1), 1e-9)
    return found


def probabilities(
    distances: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Each example's share of its neighbors, in proportion to their weights [k, K]; all sum to 1.

    Neighbors are taken in by all examples alike, up to the same sum of weights, until the cost of
    transport is worth the gain in diversity (TSDS, algorithm 2).

    Args:
        distances: Of each example to its neighbors, nearest first [k, K].
        weights: Of the neighbors: 1 / density [k, K].
    """
    examples, count = distances.shape
    sums = np.cumsum(weights, axis=1)[:, :-1]
    costs = sums * np.diff(distances, axis=1)
    number, place = np.indices(sums.shape).reshape(2, -1)
    order = np.lexsort((number, place, sums.ravel()))
    over = ALPHA / C * np.cumsum(costs.ravel()[order]) >= (1 - ALPHA) * examples
    stop = int(over.argmax()) if over.any() else len(order)
    limit = sums.ravel()[order[min(stop, len(order) - 1)]]
    reached = np.zeros(examples, dtype=np.int64)
    np.maximum.at(reached, number[order[:stop]], place[order[:stop]])
    inside = np.arange(count) <= reached[:, None]
    shares: NDArray[np.float64] = np.where(inside, weights, 0) / (examples * limit)
    rest = np.maximum(1 / examples - shares.sum(axis=1), 0)
    shares[np.arange(examples), reached + 1] += rest
    return shares


class LessGreedy:
    """Ranks by when a row is added to the sum of updates that best follows the target.

    The sum of the candidates' updates of length 1 is treated as one row, whose score is LESS's,
    averaged over subtasks.
    """

    source = (
        "greedy choice of rows whose summed updates have the highest LESS score (gradient matching "
        "as in CRAIG and GRAD-MATCH, Mirzasoleiman et al., 2020, Killamsetty et al., 2021)"
    )
    uses: Uses = "gradients"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """LESS's scores give the candidates; their inner products with each other the order."""
        return {
            target: by_rank(found, self._order(task, target, found))
            for target, found in LESS.score(task).items()
        }

    def _order(self, task: ScoringTask, target: str, found: Scores) -> NDArray[np.int64]:
        assert found.by_subtask is not None
        means = found.by_subtask.mean(axis=1)
        order = np.argsort(-means, kind="stable")
        members = np.sort(order[: _candidates(task)])  # in order of (source, id)
        weights, each_other, aims = [], [], []
        for checkpoint in checkpoints(task, LESS.kind):
            columns, directions = LESS.directions(task, checkpoint)
            own = [place for place, column in enumerate(columns) if column.target == target]
            units = _units(checkpoint, members)
            weights.append(checkpoint.weight)
            each_other.append(products(units, units))
            aims.append(products(units, directions[own].mean(axis=0)))
        chosen = members[greedy(each_other, np.stack(aims), np.array(weights))]
        return np.concatenate([chosen, order[~np.isin(order, members)]])


def products(rows: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products with rows or one vector, equal for equal rows, of which a BLAS may round some
    otherwise.
    """
    found: NDArray[np.float32] = rows @ others.T
    first, same = _first_equal(rows), others is rows
    if (first != np.arange(len(rows))).any():
        found = found[first][:, first] if same else found[first]
    return found


def _first_equal(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """Of each row [C, d] the first that equals it [C]."""
    seen: dict[str, int] = {}
    hashes = (xxhash.xxh3_128_hexdigest(row.tobytes()) for row in rows)
    return np.array([seen.setdefault(own, place) for place, own in enumerate(hashes)])


def greedy(
    each_other: list[NDArray[np.float32]], aims: NDArray[np.float32], weights: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The order in which candidates are added so that their sum follows the aim [C].

    After each step sum_i weights_i <s_i, aim_i> / |s_i| is as high as one more candidate can make
    it, s_i being the sum at checkpoint i; of equal ones the first is added.

    Args:
        each_other: Inner products of the candidates with each other, [C, C] at each checkpoint.
        aims: Their inner products with the aim [N, C].
        weights: Of the checkpoints [N].
    """
    count = aims.shape[1]
    own = np.stack([np.diagonal(matrix) for matrix in each_other]).astype(np.float64)
    with_sum, along, squares = np.zeros_like(own), np.zeros(len(own)), np.zeros(len(own))
    is_left = np.ones(count, dtype=bool)
    order = np.empty(count, dtype=np.int64)
    for step in range(count):
        lengths = np.sqrt(np.maximum(squares[:, None] + 2 * with_sum + own, 1e-12))
        values = weights @ ((along[:, None] + aims) / lengths)
        best = order[step] = np.where(is_left, values, -np.inf).argmax()
        is_left[best] = False
        squares += 2 * with_sum[:, best] + own[:, best]
        along += aims[:, best]
        for sums, matrix in zip(with_sum, each_other, strict=True):
            sums += matrix[best]
    return order


def _candidates(task: ScoringTask) -> int:
    """How many rows are compared with each other."""
    first = next(checkpoints(task, LESS.kind))
    dims = first.gradients(next(iter(task.targets))).rows.shape[1]
    return max(2, min(CANDIDATES, VALUES // dims))


def _units(checkpoint: Checkpoint, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Features of some of the task's rows, with length 1 [C, d]."""
    found = checkpoint.store.read(checkpoint.positions[rows])
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-30))
    return found


KNN_KDE = KnnKde()
LESS_GREEDY = LessGreedy()
