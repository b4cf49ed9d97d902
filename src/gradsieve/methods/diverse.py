"""Methods that use LESS's features and avoid redundant rows: KNN-KDE and greedy selection.

- `knn_kde`: each target example distributes a unit of probability over its nearest rows, with less
  for rows in dense regions; rows are ranked by their sum (TSDS, on LESS's cosines as in "A Critical
  Look at Targeted Instruction Selection").
- `less_greedy`: rows are added one by one, each time the row that gives the sum of all updates the
  highest cosine to the target's mean gradients. A row similar to an earlier one adds little.

Both compare rows with each other, so only the best `CANDIDATES` rows of a large pool take part;
the others follow in LESS's order. Scores are evenly spaced by rank, from 1 down.

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
"""Maximum number of feature values of candidates held in memory (512 MiB): with more than 16,384
dims there are fewer candidates."""

ALPHA, C, SIGMA, NEAREST, DENSITY_NEAREST = 0.01, 5.0, 0.75, 5000, 1000
"""Constants of the study's code (alpha and C as in TSDS); neighbors are at most a tenth of rows."""


class KnnKde:
    """Ranks by probability in TSDS's optimal transport with kernel density estimates."""

    source = (
        "KNN-KDE of TSDS (Liu et al., NeurIPS 2024, arXiv 2410.11303) on LESS's cosines, with the "
        "constants of Harvard DCML's study (ICML 2026)"
    )
    uses: Uses = "gradients"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Pass over the datastore for the cosines, and over the neighbors for the densities."""
        sums = LESS.sums(task, examples=True, kind=LESS.kind)
        return {
            target: by_rank(
                LESS.scores(task, target, sums),
                self._order(task, sums.values[:, sums.of(target, True)]),
            )
            for target in task.targets
        }

    def _order(self, task: ScoringTask, cosines: NDArray[np.float64]) -> NDArray[np.int64]:
        """All rows, best first; rows without probability are ordered by their highest cosine."""
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
    """The nearest rows of each example [K, k], nearest first, by cosines [n, k]; at most `most`."""
    count = min(NEAREST, max(2, len(cosines) // 10), len(cosines))
    columns = [np.argsort(-column, kind="stable")[:count] for column in cosines.T]
    order = np.stack(columns, axis=1)
    while count > 2 and len(np.unique(order[:count])) > most:
        count = max(2, count * 9 // 10)
    return order[:count]


def density(cosines: NDArray[np.float32], rows: int) -> NDArray[np.float64]:
    """Each candidate's density [C]: a kernel summed over its nearest candidates and itself.

    `cosines` are between candidates [C, C]; at most a tenth of the pool's `rows` count as nearest.
    """
    count = min(DENSITY_NEAREST, max(1, rows // 10), len(cosines))
    top = np.partition(cosines, len(cosines) - count, axis=1)[:, -count:]
    kernel = np.maximum(1 - 2 * (1 - np.sort(top, axis=1).astype(np.float64)) / SIGMA**2, 0)
    found: NDArray[np.float64] = np.maximum(kernel.sum(axis=1), 1e-9)
    return found


def probabilities(
    distances: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Each example's probabilities for its neighbors, proportional to weights [k, K]; sum to 1.

    All examples include neighbors up to the same sum of weights, which grows until the cost of
    transport reaches the gain in diversity (TSDS, algorithm 2).

    Args:
        distances: Distances of each example to its neighbors, nearest first [k, K].
        weights: The neighbors' weights: 1 / density [k, K].
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
    """Ranks rows in the order in which they are added, greedily, to a sum that follows the target.

    The sum of the added rows' updates, each of length 1, is scored by LESS like a single row, and
    the score is averaged over subtasks.
    """

    source = (
        "greedy choice of rows whose summed updates have the highest LESS score (gradient matching "
        "as in CRAIG and GRAD-MATCH, Mirzasoleiman et al., 2020, Killamsetty et al., 2021)"
    )
    uses: Uses = "gradients"

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Take the best candidates by LESS's scores; order them by their inner products."""
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
    """Inner products of rows with other rows or one vector. Equal rows get equal results, even
    if a BLAS would round them differently.
    """
    found: NDArray[np.float32] = rows @ others.T
    first, same = _first_equal(rows), others is rows
    if (first != np.arange(len(rows))).any():
        found = found[first][:, first] if same else found[first]
    return found


def _first_equal(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each row [C, d], the index of the first row that equals it [C]."""
    seen: dict[str, int] = {}
    hashes = (xxhash.xxh3_128_hexdigest(row.tobytes()) for row in rows)
    return np.array([seen.setdefault(own, place) for place, own in enumerate(hashes)])


def greedy(
    each_other: list[NDArray[np.float32]], aims: NDArray[np.float32], weights: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The order in which candidates are added so that their sum aligns with the aim [C].

    Each step adds the candidate that maximizes sum_i weights_i <s_i, aim_i> / |s_i|, where s_i is
    the sum at checkpoint i; the first one wins a tie.

    Args:
        each_other: Inner products between candidates, [C, C] at each checkpoint.
        aims: The candidates' inner products with the aim [N, C].
        weights: The checkpoints' weights [N].
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
    """The number of rows to compare with each other."""
    first = next(checkpoints(task, LESS.kind))
    dims = first.gradients(next(iter(task.targets))).rows.shape[1]
    return max(2, min(CANDIDATES, VALUES // dims))


def _units(checkpoint: Checkpoint, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Features of some of the task's rows, scaled to length 1 [C, d]."""
    found = checkpoint.store.read(checkpoint.positions[rows])
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-30))
    return found


KNN_KDE = KnnKde()
LESS_GREEDY = LessGreedy()
