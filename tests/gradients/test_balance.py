"""Scaling both sides inversely preserves inner products and reduces errors."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from gradsieve.gradients.adam import Moments
from gradsieve.gradients.features import FeatureExtractor
from gradsieve.gradients.projection import SMALLEST_SCALE, Balance, Projection
from gradsieve.gradients.similarity import (
    Norms,
    example_directions,
    mean_norms,
    subtask_directions,
)

SHAPES = {"q.lora_A": (4, 37), "q.lora_B": (50, 4), "v.lora_A": (3, 7)}


def draw(seed: int, spread: float, *lead: int) -> dict[str, torch.Tensor]:
    """Random values whose scales vary by a factor of about e^spread."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in SHAPES.items():
        size = (spread * torch.randn(shape, generator=torch.Generator().manual_seed(1))).exp()
        found[name] = size * torch.randn(*lead, *shape, generator=generator)
    return found


def second_moments() -> dict[str, torch.Tensor]:
    return {name: 1e-12 * values.square() for name, values in draw(0, 2.0).items()}


def flat(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([values[name].flatten(1) for name in sorted(values)], 1)


@pytest.mark.parametrize("kind", ["sketch", "rademacher"])
def test_estimates_are_unbiased(kind: Any) -> None:
    x, y, balance = draw(2, 0.0, 3), draw(3, 2.0, 2), Balance.of(second_moments())
    exact = flat(x) @ flat(y).T
    errors = torch.stack(
        [
            Projection(kind, 64, seed, balance).project(x)
            @ Projection(kind, 64, seed, balance.of_targets()).project(y).T
            - exact
            for seed in range(200)
        ]
    )
    standard_errors = errors.std(0) / math.sqrt(len(errors))
    assert float((errors.mean(0).abs() / standard_errors).max()) < 4


@pytest.mark.parametrize("zeros", [0.0, 0.3, 1.0])
def test_inner_products_stay_also_where_v_is_zero(zeros: float) -> None:
    v = second_moments()
    for values in v.values():
        values.flatten()[: round(zeros * values.numel())] = 0
    x, y, balance = draw(2, 0.0, 3), draw(3, 2.0, 2), Balance.of(v)
    found = Projection("none", balance=balance).project(x)
    other = Projection("none", balance=balance.of_targets()).project(y)
    torch.testing.assert_close(found @ other.T, flat(x) @ flat(y).T, rtol=1e-5, atol=1e-4)
    scales = torch.cat([balance.scale(name) for name in SHAPES])
    assert float(scales.min()) >= SMALLEST_SCALE * (1 - 1e-6)
    assert zeros == 1 or 0.5 < float(scales.square().mean()) < 2


def test_scales_are_fourth_roots_of_v_and_of_v_plus_eps() -> None:
    for added in (0.0, 1e-8):
        balance = Balance.of(second_moments(), added)
        for name, v in second_moments().items():
            wanted = (v + added).flatten() ** 0.25 / balance.unit**0.5
            torch.testing.assert_close(balance.scale(name), wanted.clamp_min(SMALLEST_SCALE))
            torch.testing.assert_close(balance.of_targets().scale(name) * balance.scale(name),
                                       torch.ones(v.numel()))  # fmt: skip
        assert math.log2(balance.unit).is_integer()


@pytest.mark.parametrize("mean", ["cosine_of_mean", "mean_of_cosines"])
def test_directions_are_divided_by_the_norms_before_scaling(mean: Any) -> None:
    """Without a projection the cosines are exact."""
    x, y, balance = draw(2, 0.0, 3), draw(3, 2.0, 5), Balance.of(second_moments())
    subtasks = ["b", "a", "b", "b", "a"]
    plain = Projection("none").project(y)
    names, wanted = subtask_directions(plain, subtasks, mean)
    rows = Projection("none", balance=balance.of_targets()).project(y)
    of_rows = plain.norm(dim=1)
    norms = Norms(of_rows, mean_norms(plain, of_rows, subtasks))
    _, found = subtask_directions(rows, subtasks, mean, norms)
    exact = flat(x) @ wanted.T
    torch.testing.assert_close(Projection("none", balance=balance).project(x) @ found.T, exact)
    parts = example_directions(rows, subtasks, mean, norms)
    of_first = torch.tensor([name == names[0] for name in subtasks])
    torch.testing.assert_close(parts[of_first].sum(0), found[0])


def test_a_single_examples_norm_is_exact() -> None:
    y = draw(3, 2.0, 2)
    norms = flat(y).norm(dim=1)
    found = mean_norms(Projection("sketch", 8).project(y), norms, ["b", "a"])
    torch.testing.assert_close(found, norms.flip(0))


@pytest.fixture(scope="module")
def warmed_up(shared_data: Path) -> tuple[Any, Moments, Any, Any]:
    """stories260K after 32 steps of AdamW on real rows, with rows of a pool and of a target."""
    folder = shared_data / "models" / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    )

    def batch(source: str, first: int, last: int) -> dict[str, torch.Tensor]:
        with (shared_data / "train" / f"{source}.jsonl").open(encoding="utf-8") as file:
            rows = [
                json.loads(line)["messages"] for _, line in zip(range(last), file, strict=False)
            ]
        ids = torch.zeros(last - first, 128, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, (prompt, answer, *_) in enumerate(rows[first:]):
            start = tokenizer(prompt["content"][:120])["input_ids"][:100]
            tokens = (start + tokenizer(f"\n{answer['content'][:200]}")["input_ids"])[:128]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, len(start) : len(tokens)] = ids[row, len(start) : len(tokens)]
        return {"input_ids": ids, "labels": labels}

    weights = tiny.weights(model)
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, weight_decay=0)
    for step in range(32):
        source = ("dolly", "gpteacher_code")[step % 2]
        model(**batch(source, 8 * step, 8 * step + 8)).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    states = {name: optimizer.state[p] for name, p in weights.items()}
    m, v = ({n: s[kind] for n, s in states.items()} for kind in ("exp_avg", "exp_avg_sq"))
    return model, Moments(m, v, 32), batch("dolly", 300, 332), batch("gpteacher_code", 300, 308)


@pytest.mark.parametrize("reading", ["torch", "official"])
@pytest.mark.parametrize("momentum", ["keep", "drop"])
def test_errors_fall_on_a_trained_model(warmed_up: Any, reading: Any, momentum: Any) -> None:
    model, moments, pool, target = warmed_up
    balance = Balance.of(moments.exp_avg_sq, moments.eps if reading == "official" else 0.0)

    def features(batch: Any, *projections: Projection, adam: tuple[Any, ...] = ()) -> Any:
        extractor = FeatureExtractor(model, projections, *adam)
        found = extractor(batch)
        return found.rows.split(extractor.widths, dim=1), found.gradient_norms

    adam = (moments, reading, momentum)
    whole = Projection("none")
    plain = [Projection("sketch", 512, seed) for seed in range(4)]
    scaled = [replace(each, balance=balance) for each in plain]
    inverse = [replace(each, balance=balance.of_targets()) for each in plain]
    (x, *rows), row_norms = features(pool, whole, *plain, *scaled, adam=adam)
    (y, *directions), norms = features(target, whole, *plain, *inverse)
    exact = functional.normalize(x) @ functional.normalize(y).T
    errors = []
    for number, (row, direction) in enumerate(zip(rows, directions, strict=True)):
        if number < len(plain):
            found = functional.normalize(row) @ functional.normalize(direction).T
        else:
            found = row @ direction.T / row_norms[:, None] / norms
        errors.append(float((found - exact).square().mean()))
    before, after = (math.sqrt(sum(part) / 4) for part in (errors[:4], errors[4:]))
    assert before > 1.5 * after
