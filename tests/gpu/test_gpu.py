"""The GPU's path: `make test-gpu` on a machine with a CUDA device; never run by `make test`."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import gradsieve
import tiny
import world
from gradsieve.data.examples import TokenizedExample
from gradsieve.gradients.adam import Moments
from gradsieve.gradients.extract import FIRST, TokenBudget, extract
from gradsieve.gradients.features import FeatureExtractor, Totals
from gradsieve.gradients.per_example import check_pass, per_example, per_example_loop
from gradsieve.gradients.projection import Projection
from gradsieve.methods.embeddings import RDS_PLUS
from gradsieve.models.dropout import example_dropout
from gradsieve.models.load import add_adapter
from gradsieve.models.source import ModelSource
from gradsieve.recipe import schema as recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_gpu(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.cuda() for key, value in batch.items()}


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([values.flatten(1) for values in gradients.values()], dim=1).cpu()


def moments(model: torch.nn.Module) -> Moments:
    generator = torch.Generator().manual_seed(3)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}

    first = next(model.parameters()).device

    def draw(function: Any, scale: float) -> dict[str, torch.Tensor]:
        return {
            name: (function(p.shape, generator=generator) * scale).to(first)
            for name, p in weights.items()
        }

    return Moments(draw(torch.randn, 1e-3), draw(torch.rand, 1e-6), step=11)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_float32_gradients_are_the_loops(name: str) -> None:
    model = tiny.adapted(name).cuda()
    check_pass(model)
    batch = on_gpu(tiny.batch())
    found, wanted = flat(per_example(model, batch)), flat(per_example_loop(model, batch))
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-4


def test_bfloat16_gradients_are_as_near_to_float32_as_the_loops() -> None:
    batch = tiny.batch()
    exact = flat(per_example_loop(tiny.adapted(dropout=0.0), batch))
    model = tiny.adapted(dropout=0.0).to("cuda", torch.bfloat16)
    made = per_example(model, on_gpu(batch))
    assert {gradient.dtype for gradient in made.values()} == {torch.float32}
    looped = flat(per_example_loop(model, on_gpu(batch)))
    ours, theirs = ((rows - exact).norm() for rows in (flat(made), looped))
    assert float(ours) <= 1.5 * float(theirs)


@pytest.mark.parametrize("kind", ["sketch", "rademacher"])
def test_the_projection_is_the_cpus(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = {"a": torch.randn(3, 40, 70, generator=generator), "b": torch.randn(3, 9, 8)}
    projection = Projection(kind, 512, 3)  # type: ignore[arg-type]
    found = projection.project({name: piece.cuda() for name, piece in rows.items()}).cpu()
    torch.testing.assert_close(found, projection.project(rows), rtol=0, atol=1e-3)


@pytest.mark.parametrize("reading", ["torch", "official"])
@pytest.mark.parametrize("momentum", ["keep", "drop"])
def test_the_kernel_gives_what_pytorch_gives(reading: Any, momentum: Any) -> None:
    from gradsieve.gradients.kernels import FusedTotals

    model = tiny.adapted().cuda()
    state, projection, device = moments(model), Projection("sketch", 256), torch.device("cuda")
    extractor = FeatureExtractor(model, projection, state, reading, momentum)
    fused = FusedTotals(projection, state, reading, momentum, 4, device)
    steps = Totals([projection], extractor._update, 4, device)
    for name, gradient in per_example(model, on_gpu(tiny.batch())).items():
        fused.add(name, gradient.clone())
        steps.add(name, gradient.clone())
    for found, wanted in ((fused.rows(), steps.rows()), (fused.norms(), steps.norms())):
        assert float((found - wanted).norm() / wanted.norm()) <= 1e-5


def test_dropout_of_an_example_is_the_same_in_any_batch() -> None:
    model = torch.nn.Dropout(0.1).cuda()
    rows = on_gpu(tiny.batch())
    ids, mask = rows["input_ids"], rows["attention_mask"]
    with example_dropout(model, 0) as begin:
        begin(ids, mask, 0)
        together = model(torch.ones(*ids.shape, 300, device="cuda"))
        for row, length in enumerate(mask.sum(1).tolist()):
            begin(ids[row : row + 1, :length], mask[row : row + 1, :length], 0)
            alone = model(torch.ones(1, length, 300, device="cuda"))
            assert torch.equal(alone[0], together[row, :length])
            assert 0.03 < float((alone == 0).float().mean()) < 0.3


def test_a_missing_compiler_is_reported(tmp_path: Path) -> None:
    """This runs in a process of its own, whose kernels are not built yet."""
    code = (
        "import torch; from gradsieve.models.kernels import has_kernels;"
        "assert not has_kernels(torch.device('cuda', 0))"
    )
    environment = {**os.environ, "CC": "/bin/false", "TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "Triton cannot build kernels for this GPU" in found.stderr


@pytest.mark.parametrize("kind", ["sketch", "rademacher", "none"])
def test_features_are_the_cpus(kind: str) -> None:
    rows = []
    for device in ("cpu", "cuda"):
        model = tiny.adapted(dropout=0.0).to(device)
        extractor = FeatureExtractor(model, Projection(kind, 256), moments(model))  # type: ignore[arg-type]
        batch = {key: value.to(device) for key, value in tiny.batch().items()}
        rows.append(extractor(batch).rows.cpu())
    assert float((rows[0] - rows[1]).norm() / rows[0].norm()) <= 1e-3


def examples(lengths: list[int]) -> list[TokenizedExample]:
    made = [array("i", [(row + i) % 90 + 1 for i in range(n)]) for row, n in enumerate(lengths)]
    return [TokenizedExample(ids, ids[:]) for ids in made]


def test_auto_grows_and_gives_what_single_examples_give() -> None:
    extractor = FeatureExtractor(tiny.adapted(dropout=0.0).cuda(), Projection("sketch", 256))
    rows = examples([60] * 600 + [7, 30, 18])
    budget = TokenBudget("auto")
    found = extract(extractor, rows, budget)
    assert budget.tokens > FIRST["cuda"]
    alone = extract(extractor, rows[-3:], TokenBudget(1))
    torch.testing.assert_close(found.rows[-3:], alone.rows, rtol=1e-3, atol=1e-5)


def test_memory_that_runs_out_halves_the_budget_and_loses_nothing() -> None:
    extractor = FeatureExtractor(tiny.adapted(dropout=0.0).cuda(), Projection("sketch", 8192))
    rows = examples([60] * 4000)
    budget = TokenBudget(1 << 18)
    whole = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((256 << 20) / whole)
    try:
        found = extract(extractor, rows, budget)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert budget.tokens < 1 << 18
    assert bool(found.gradient_norms.gt(0).all())


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantized_base(quantization: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    wide = {**tiny.SMALL, "hidden_size": 64, "intermediate_size": 128}
    LlamaForCausalLM(LlamaConfig(**wide)).save_pretrained(tmp_path)
    asked = recipe.ModelConfig.model_validate({"name": str(tmp_path), "quantization": quantization})
    lora = recipe.LoraConfig(r=4, alpha=8, target_modules="all-linear")
    model = tiny.stirred(add_adapter(ModelSource(asked).load(), lora, seed=0))
    batch = on_gpu(tiny.batch())
    found, wanted = flat(per_example(model, batch)), flat(per_example_loop(model, batch))
    cosine = torch.nn.functional.cosine_similarity(found, wanted)
    assert float(cosine.min()) >= 0.99


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_a_model_over_two_gpus(tmp_path: Path) -> None:
    LlamaForCausalLM(tiny.CONFIGS["llama-gqa-tied"]).save_pretrained(tmp_path)
    settings = recipe.ModelConfig(name=str(tmp_path), dtype="float32")
    lora = recipe.LoraConfig(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
    rows, vectors, devices = [], [], []
    for gpus in (1, 2):
        base = ModelSource(settings, gpus=gpus).load().eval()
        vectors.append(RDS_PLUS.vectors.encode(base, examples([9, 4])))
        model = tiny.stirred(add_adapter(base, lora, seed=0))
        devices.append(len({p.device for p in model.parameters()}))
        extractor = FeatureExtractor(model, Projection("sketch", 256), moments(model))
        rows.append(extractor(on_gpu(tiny.batch())).rows.cpu())
    assert devices == [1, 2]
    np.testing.assert_allclose(*vectors, rtol=1e-3, atol=1e-5)
    assert float((rows[0] - rows[1]).norm() / rows[0].norm()) <= 1e-3


def test_a_run_end_to_end_in_bfloat16(tmp_path: Path) -> None:
    data = world.make(tmp_path / "world")
    run = gradsieve.run(
        world.recipe(data, model__dtype="bfloat16", features__tokens_per_batch="auto"),
        tmp_path / "run",
    )
    assert (run.stage("select") / "mine" / "less" / "selected.jsonl").is_file()
