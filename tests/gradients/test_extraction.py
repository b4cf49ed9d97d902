"""Batches of any size give the same features; memory determines the size, not the result."""

from array import array
from typing import Any

import pytest
import torch

import tiny
from gradsieve.data.examples import TokenizedExample
from gradsieve.errors import ModelError
from gradsieve.gradients import extract as extraction
from gradsieve.gradients.adam import Moments
from gradsieve.gradients.extract import TokenBudget, extract
from gradsieve.gradients.features import FeatureExtractor
from gradsieve.gradients.per_example import lora_layers
from gradsieve.gradients.projection import Projection

LENGTHS = [5, 30, 12, 12, 7, 25, 30, 4, 18]


def examples() -> list[TokenizedExample]:
    made = []
    for row, length in enumerate(LENGTHS):
        ids = array("i", [(row * 7 + i * 3) % 90 + 1 for i in range(length)])
        made.append(TokenizedExample(ids, ids[:]))
    return made


class Short:
    """An extractor that runs out of memory above a number of tokens."""

    def __init__(self, real: FeatureExtractor, tokens: int) -> None:
        self.real, self.tokens, self.sizes = real, tokens, []  # type: ignore[var-annotated]
        self.objective, self.widths = real.objective, real.widths

    def __call__(self, batch: dict[str, torch.Tensor], measure_eps: bool) -> Any:
        if batch["input_ids"].numel() > self.tokens:
            raise torch.OutOfMemoryError
        self.sizes.append(len(batch["input_ids"]))
        return self.real(batch, measure_eps)


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor(tiny.adapted(dropout=0.0), Projection("sketch", 256))


def test_the_order_is_the_examples(extractor: FeatureExtractor) -> None:
    found = extract(extractor, examples(), TokenBudget(64))
    for position, example in enumerate(examples()):
        alone = extract(extractor, [example], TokenBudget(1))
        torch.testing.assert_close(found.rows[position], alone.rows[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.gradient_norms[position], alone.gradient_norms[0])


def test_the_share_below_eps_is_the_mean_over_examples() -> None:
    model = tiny.adapted(dropout=0.0)
    sizes = {name: layer.weight.shape for name, layer in lora_layers(model).items()}
    zeros = {name: torch.zeros(size) for name, size in sizes.items()}
    moments = Moments(step=20, exp_avg=zeros, exp_avg_sq=zeros, eps=1e-7)
    of_adam = FeatureExtractor(model, Projection("sketch", 256), moments)
    alone, unequal, together = (
        extract(of_adam, examples(), TokenBudget(tokens), measure_eps=True).share_below_eps
        for tokens in (1, 60, 1000)
    )
    assert 0.1 < together < 0.9
    assert alone == pytest.approx(together, rel=1e-4)
    assert unequal == pytest.approx(together, rel=1e-4)


def test_a_batch_for_which_memory_runs_out_is_made_smaller(extractor: FeatureExtractor) -> None:
    short = Short(extractor, 40)
    budget = TokenBudget(1000)
    found = extract(short, examples(), budget)  # type: ignore[arg-type]
    assert sum(short.sizes) == len(LENGTHS)
    assert budget.tokens <= 40 * 2
    whole = extract(extractor, examples(), TokenBudget(1000))
    torch.testing.assert_close(found.rows, whole.rows, rtol=1e-4, atol=1e-6)


def test_a_single_example_that_does_not_fit_is_named(extractor: FeatureExtractor) -> None:
    with pytest.raises(ModelError) as caught:
        extract(Short(extractor, 20), examples(), TokenBudget(1000))  # type: ignore[arg-type]
    assert caught.value.where.startswith("25 tokens")


def test_auto_grows_while_memory_lasts(
    extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:

    shares = iter([0.1, 0.2, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    monkeypatch.setattr(extraction, "memory_used", lambda: next(shares))
    budget = TokenBudget("auto")
    budget.tokens, budget._grows = 10, True  # as on a GPU
    short = Short(extractor, 10_000)
    extract(short, examples(), budget)  # type: ignore[arg-type]
    assert budget.tokens == 40  # doubled twice
    assert short.sizes == [2, 1, 2, 1, 1, 1, 1]  # at most 10, 20, then 40 tokens


def test_auto_does_not_grow_on_a_cpu() -> None:
    budget = TokenBudget("auto")
    if not torch.cuda.is_available():
        budget.used(0.0)
        assert budget.tokens == extraction.FIRST["cpu"]
    budget.too_many(1000)
    assert budget.tokens == 500
    budget.used(0.0)
    assert budget.tokens == 500  # no growth after it was halved
