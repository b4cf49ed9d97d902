"""The fused path gives the same result as its three steps, one after the other."""

from typing import Any

import pytest
import torch

import tiny
from gradsieve.gradients import adam
from gradsieve.gradients.adam import Moments
from gradsieve.gradients.features import FeatureExtractor
from gradsieve.gradients.objectives import Sft
from gradsieve.gradients.per_example import per_example, per_example_loop
from gradsieve.gradients.projection import Projection


def moments(model: torch.nn.Module) -> Moments:
    generator = torch.Generator().manual_seed(3)
    weights = tiny.weights(model).items()
    return Moments(
        {n: torch.randn(p.shape, generator=generator) * 1e-3 for n, p in weights},
        {n: torch.rand(p.shape, generator=generator) * 1e-6 for n, p in weights},
        step=11,
    )


@pytest.mark.parametrize("kind", ["sketch", "rademacher", "none"])
@pytest.mark.parametrize("reading", ["torch", "official"])
@pytest.mark.parametrize("momentum", ["keep", "drop"])
def test_equals_loop_update_and_projection(kind: str, reading: str, momentum: str) -> None:
    model, batch, projection = tiny.adapted(), tiny.batch(), Projection(kind, 256, 0)
    state = moments(model)
    updates = {
        name: adam.update(
            g, state.exp_avg[name], state.exp_avg_sq[name], state.step, reading, momentum
        )
        for name, g in per_example_loop(model, batch).items()
    }
    wanted = projection.project(updates)
    found = FeatureExtractor(model, projection, state, reading, momentum)(batch)
    assert float((found.rows - wanted).norm() / wanted.norm()) <= 1e-5
    whole = torch.cat([u.flatten(1) for u in updates.values()], 1)
    torch.testing.assert_close(found.gradient_norms, whole.norm(dim=1), rtol=1e-5, atol=0)


def test_the_optimizers_own_constants_are_used() -> None:
    model, batch, projection = tiny.adapted(), tiny.batch(), Projection("none")
    usual = moments(model)
    state = usual._replace(betas=(0.8, 0.95), eps=1e-4)
    updates = {
        name: adam.update(
            g, state.exp_avg[name], state.exp_avg_sq[name], 11, betas=(0.8, 0.95), eps=1e-4
        )
        for name, g in per_example_loop(model, batch).items()
    }
    wanted = projection.project(updates)
    found = FeatureExtractor(model, projection, state)(batch, measure_eps=True)
    assert float((found.rows - wanted).norm() / wanted.norm()) <= 1e-5
    assert found.share_below_eps > 0.8
    other = FeatureExtractor(model, projection, usual)(batch, measure_eps=True)
    assert float((other.rows - wanted).norm() / wanted.norm()) > 0.1
    assert other.share_below_eps < 0.1


def test_without_moments_rows_are_plain_gradients() -> None:
    model, batch, projection = tiny.adapted(), tiny.batch(), Projection("sketch", 256, 0)
    found = FeatureExtractor(model, projection)(batch).rows
    wanted = projection.project(per_example(model, batch))
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-6


def test_gradients_are_those_of_the_objective() -> None:
    class Doubled(Sft):
        def losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
            assert "attention_mask" not in batch
            return 2 * super().losses(model, batch)

    model, batch, projection = tiny.adapted(), tiny.batch(), Projection("none")
    once = FeatureExtractor(model, projection)(batch)
    twice = FeatureExtractor(model, projection, objective=Doubled())(batch)
    torch.testing.assert_close(twice.rows, 2 * once.rows)


def test_batch_order_and_padding_do_not_matter() -> None:
    model, batch = tiny.adapted(), tiny.batch()
    extract = FeatureExtractor(model, Projection("sketch", 256, 0), moments(model))
    rows = extract(batch).rows
    backwards = extract({key: value.flip(0) for key, value in batch.items()}).rows.flip(0)
    pad = {"input_ids": 5, "labels": -100, "attention_mask": 0}
    wider = {k: torch.nn.functional.pad(v, (0, 9), value=pad[k]) for k, v in batch.items()}
    alone = torch.cat([extract({k: v[i : i + 1] for k, v in batch.items()}).rows for i in range(4)])
    unit = torch.nn.functional.normalize(rows, dim=1)
    for other in (backwards, extract(wider).rows, alone):
        cosine = (unit * torch.nn.functional.normalize(other, dim=1)).sum(1)
        assert float((1 - cosine).abs().max()) <= 1e-6


def test_share_below_eps_is_measured_over_all_coordinates() -> None:
    model = tiny.adapted()
    state = moments(model)
    zero = Moments(state.exp_avg, {n: torch.zeros_like(v) for n, v in state.exp_avg_sq.items()}, 1)
    large = Moments(state.exp_avg, {n: torch.ones_like(v) for n, v in state.exp_avg_sq.items()}, 1)
    project = Projection("sketch", 256, 0)
    small_gradients = FeatureExtractor(model, project, zero)(tiny.batch(), measure_eps=True)
    assert 0.5 < small_gradients.share_below_eps <= 1
    assert FeatureExtractor(model, project, large)(tiny.batch(), True).share_below_eps == 0
