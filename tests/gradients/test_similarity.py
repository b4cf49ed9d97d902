"""Influence is the learning-rate-weighted sum of cosines, in both interpretations of the mean."""

import numpy as np
import torch

from gradsieve.gradients.similarity import influence, subtask_directions


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_influence_is_the_papers_sum() -> None:
    rng = np.random.default_rng(0)
    train, target = rng.normal(size=(3, 5, 16)), rng.normal(size=(3, 2, 16))
    rates = np.array([3e-5, 2e-5, 1e-5])
    wanted = [
        [sum(rates[i] / rates.sum() * cosine(train[i, n], target[i, s]) for i in range(3))
         for s in range(2)]
        for n in range(5)
    ]  # fmt: skip
    found = influence(*(torch.tensor(x) for x in (train, target, rates)))
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


def test_directions_in_both_readings() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(5, 8)) * np.array([[1], [10], [1], [3], [2]])
    subtasks = ["b", "a", "b", "a", "b"]
    z = rng.normal(size=8)
    unit = torch.tensor(z / np.linalg.norm(z), dtype=torch.float32)
    tensor = torch.tensor(rows, dtype=torch.float32)

    names, of_mean = subtask_directions(tensor, subtasks, "cosine_of_mean")
    assert names == ["a", "b"]
    wanted = [cosine(z, rows[[1, 3]].mean(0)), cosine(z, rows[[0, 2, 4]].mean(0))]
    np.testing.assert_allclose((of_mean @ unit).numpy(), wanted, atol=1e-6)

    _, mean_of = subtask_directions(tensor, subtasks, "mean_of_cosines")
    wanted = [
        np.mean([cosine(z, rows[i]) for i in (1, 3)]),
        np.mean([cosine(z, rows[i]) for i in (0, 2, 4)]),
    ]
    np.testing.assert_allclose((mean_of @ unit).numpy(), wanted, atol=1e-6)
