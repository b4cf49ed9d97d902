"""Influence of training rows on target subtasks (method.md, step 4; the paper's definition 3.1).

In: projected updates of the pool's rows and projected gradients of the target's examples, at each
checkpoint. Out: Inf(z, j) = sum_i eta_i cos(gbar_j,i , Gamma_i(z)).

Letters: N checkpoints, n rows, S subtasks, k target examples, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

TargetMean = Literal["cosine_of_mean", "mean_of_cosines"]

TINY = 1e-12
"""The smallest norm to divide by, as in torch's `normalize`: a zero row has cosines of 0."""


class Norms(NamedTuple):
    """Norms of gradients before scaling and projection.

    Attributes:
        of_rows: Norm of each target example's gradient [k].
        of_means: Norm of each subtask's mean gradient [S], in alphabetical order.
    """

    of_rows: Float[Tensor, " k"]
    of_means: Float[Tensor, " S"]


def mean_norms(
    plain: Float[Tensor, "k d"], norms: Float[Tensor, " k"], subtasks: Sequence[str]
) -> Float[Tensor, " S"]:
    """Norms of subtasks' means, from unscaled projected rows; relative error 1 / sqrt(2 d).

    Each row is rescaled to its norm before projection, so that the mean of a single example has
    its exact norm.
    """
    rows = divided(plain, None) * norms.unsqueeze(1)
    means = subtask_directions(rows, subtasks, "mean")[1]
    found: Tensor = torch.linalg.vector_norm(means, dim=1)
    return found


def subtask_directions(
    rows: Float[Tensor, "k d"],
    subtasks: Sequence[str],
    target_mean: TargetMean | Literal["mean"] = "cosine_of_mean",
    norms: Norms | None = None,
) -> tuple[list[str], Float[Tensor, "S d"]]:
    """One direction per subtask, whose inner product with a UNIT row is the cosine.

    `cosine_of_mean` averages a subtask's gradients, then takes the cosine (the paper);
    `mean_of_cosines` averages the cosines with each example (the released code); `mean` is the
    mean gradient, not normalized, for inner products. `norms` are the gradients' norms before
    projection; by default the rows' own norms are used. Names are in alphabetical order.
    """
    names = sorted(set(subtasks))
    position = {name: index for index, name in enumerate(names)}
    of_row = torch.tensor([position[name] for name in subtasks], device=rows.device)
    if target_mean == "mean_of_cosines":
        rows = divided(rows, norms and norms.of_rows)
    sums = torch.zeros(len(names), rows.shape[1], device=rows.device).index_add(0, of_row, rows)
    means = sums / torch.bincount(of_row, minlength=len(names)).unsqueeze(1)
    if target_mean == "cosine_of_mean":
        means = divided(means, norms and norms.of_means)
    return names, means


def example_directions(
    rows: Float[Tensor, "k d"],
    subtasks: Sequence[str],
    target_mean: TargetMean | Literal["mean"] = "cosine_of_mean",
    norms: Norms | None = None,
) -> Float[Tensor, "k d"]:
    """Each example's part of its subtask's direction; the parts sum to `subtask_directions`."""
    position = {name: index for index, name in enumerate(sorted(set(subtasks)))}
    of_row = torch.tensor([position[name] for name in subtasks], device=rows.device)
    if target_mean == "mean_of_cosines":
        rows = divided(rows, norms and norms.of_rows)
    parts = rows / torch.bincount(of_row)[of_row].unsqueeze(1)
    if target_mean != "cosine_of_mean":
        return parts
    sums = torch.zeros(len(position), rows.shape[1], device=rows.device).index_add(0, of_row, parts)
    lengths = norms.of_means if norms else torch.linalg.vector_norm(sums, dim=1)
    return parts / lengths.clamp_min(TINY)[of_row].unsqueeze(1)


def divided(rows: Float[Tensor, "n d"], norms: Float[Tensor, " n"] | None) -> Tensor:
    """Rows divided by norms; by default by their own norms."""
    if norms is None:
        return functional.normalize(rows, dim=1, eps=TINY)
    return rows / norms.clamp_min(TINY).unsqueeze(1)


def influence(
    train: Float[Tensor, "N n d"],
    target: Float[Tensor, "N S d"],
    weights: Float[Tensor, " N"],
) -> Float[Tensor, "n S"]:
    """sum_i weights_i cos(target_i, train_i), with everything held in memory.

    Args:
        train: Projected updates Gamma.
        target: Mean gradients of the subtasks, of any norm.
        weights: The checkpoints' learning rates; they are normalized to sum to 1.
    """
    weights = weights / weights.sum()
    cosines = functional.normalize(train, dim=2) @ functional.normalize(target, dim=2).mT
    return torch.einsum("i,ins->ns", weights, cosines)
