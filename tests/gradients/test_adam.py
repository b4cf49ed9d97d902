"""Gamma is the update of torch's AdamW, and the formula in LESS's released code."""

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from gradsieve.gradients import adam
from gradsieve.gradients.per_example import per_example


@pytest.mark.parametrize(
    "constants", [{}, {"betas": (0.9, 0.95)}, {"eps": 1e-5}, {"betas": (0.8, 0.98), "eps": 1e-4}]
)
def test_torch_reading_is_a_real_adamw_step_on_one_example(constants: dict[str, Any]) -> None:
    """Weights are float64, since a step is far smaller than the weight that it is added to."""
    model = tiny.adapted(dropout=0.0).double()
    weights = tiny.weights(model)
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, weight_decay=0.0, **constants)
    tiny.stepped(model, optimizer, 5)  # nontrivial moments
    state = {
        name: {key: value.float() for key, value in optimizer.state[p].items()}
        for name, p in weights.items()
    }
    before = {name: p.detach().clone() for name, p in weights.items()}

    one = tiny.batch((15,), seed=9)
    gradients = per_example(model, one)
    optimizer.zero_grad()
    model(**one).loss.backward()
    optimizer.step()

    for name, parameter in weights.items():
        m, v = state[name]["exp_avg"], state[name]["exp_avg_sq"]
        gamma = adam.update(gradients[name], m, v, step=5, **constants)[0]
        moved = (before[name] - parameter.detach()) / 1e-3
        assert float((gamma - moved).norm() / moved.norm()) <= 1e-5, name


@pytest.mark.parametrize("momentum", ["keep", "drop"])
@pytest.mark.parametrize(
    ("constants", "b1", "b2", "eps"),
    [({}, 0.9, 0.999, 1e-8), ({"betas": (0.8, 0.95), "eps": 1e-6}, 0.8, 0.95, 1e-6)],
)
def test_official_reading_is_the_released_formula(
    momentum: str, constants: dict[str, Any], b1: float, b2: float, eps: float
) -> None:
    rng = np.random.default_rng(0)
    g, m = rng.normal(size=(3, 40)) * 1e-3, rng.normal(size=40) * 1e-3
    v = rng.random(40) * 1e-8
    kept = b1 * m if momentum == "keep" else 0.0
    wanted = (kept + (1 - b1) * g) / np.sqrt(b2 * v + (1 - b2) * g**2 + eps)
    tensors = (torch.tensor(x, dtype=torch.float32) for x in (g, m, v))
    settings = {"reading": "official", "momentum": momentum, **constants}
    found = adam.update(*tensors, step=3, **settings).numpy()
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) <= 1e-6


def test_the_gradient_is_not_changed() -> None:
    g = torch.ones(2, 3)
    adam.update(g, torch.ones(3), torch.ones(3), step=0)
    assert torch.equal(g, torch.ones(2, 3))


def test_share_below_eps_counts_coordinates() -> None:
    v = torch.tensor([0.0, 1e-6, 0.0, 1e-6])
    g = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    assert float(adam.share_below_eps(g, v)) == 0.25
    assert float(adam.share_below_eps(g, v, eps=1e-5)) == 0.75
    assert float(adam.share_below_eps(g * 1e-3, v, beta2=0.999)) == 0.5
    assert float(adam.share_below_eps(g * 1e-3, v, beta2=0.5)) == 0.25
