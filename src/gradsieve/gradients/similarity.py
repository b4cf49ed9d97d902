"""Influence of training rows on target subtasks (method.md, step 4; the paper's definition 3.1).

In: projected updates of the pool's rows and projected gradients of the target's examples, for each
checkpoint. Out: Inf(z, j) = sum_i eta_i cos(gbar_j,i , Gamma_i(z)).

Letters: N checkpoints, n rows, S subtasks, k target examples, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

TargetMean = Literal["cosine_of_mean", "mean_of_cosines"]


def subtask_directions(
    rows: Float[Tensor, "k d"],
    subtasks: Sequence[str],
    target_mean: TargetMean | Literal["mean"] = "cosine_of_mean",
) -> tuple[list[str], Float[Tensor, "S d"]]:
    """One direction for each subtask, such that its inner product with a UNIT row is the cosine.

    Args:
        rows: Gradients of the target's examples at one checkpoint.
        subtasks: The subtask of each row.
        target_mean: `cosine_of_mean` averages a subtask's gradients, then takes the cosine (the
            paper); `mean_of_cosines` averages the cosines to each example (the released code);
            `mean` is the mean gradient with its length, for inner products.

    Returns:
        The subtasks' names in alphabetical order, and their directions.
    """
    names = sorted(set(subtasks))
    position = {name: index for index, name in enumerate(names)}
    of_row = torch.tensor([position[name] for name in subtasks], device=rows.device)
    rows = functional.normalize(rows, dim=1) if target_mean == "mean_of_cosines" else rows
    sums = torch.zeros(len(names), rows.shape[1], device=rows.device).index_add(0, of_row, rows)
    means = sums / torch.bincount(of_row, minlength=len(names)).unsqueeze(1)
    return names, functional.normalize(means, dim=1) if target_mean == "cosine_of_mean" else means


def example_directions(
    rows: Float[Tensor, "k d"],
    subtasks: Sequence[str],
    target_mean: TargetMean | Literal["mean"] = "cosine_of_mean",
) -> Float[Tensor, "k d"]:
    """What each example adds to its subtask's direction: they sum to `subtask_directions`."""
    position = {name: index for index, name in enumerate(sorted(set(subtasks)))}
    of_row = torch.tensor([position[name] for name in subtasks], device=rows.device)
    rows = functional.normalize(rows, dim=1) if target_mean == "mean_of_cosines" else rows
    parts = rows / torch.bincount(of_row)[of_row].unsqueeze(1)
    if target_mean != "cosine_of_mean":
        return parts
    sums = torch.zeros(len(position), rows.shape[1], device=rows.device).index_add(0, of_row, parts)
    lengths: Tensor = torch.linalg.vector_norm(sums, dim=1).clamp_min(1e-12)
    return parts.div(lengths[of_row].unsqueeze(1))


def influence(
    train: Float[Tensor, "N n d"],
    target: Float[Tensor, "N S d"],
    weights: Float[Tensor, " N"],
) -> Float[Tensor, "n S"]:
    """sum_i weights_i cos(target_i, train_i), all held in memory.

    Args:
        train: Projected updates Gamma.
        target: Mean gradients of the subtasks; any length.
        weights: The checkpoints' learning rates; normalized here to sum to 1.
    """
    weights = weights / weights.sum()
    cosines = functional.normalize(train, dim=2) @ functional.normalize(target, dim=2).mT
    return torch.einsum("i,ins->ns", weights, cosines)
