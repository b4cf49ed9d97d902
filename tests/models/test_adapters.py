"""Saved adapters load as trained and leave the caller's model alone, or are refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora import preprocess_loraga
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import tiny
from gradsieve.errors import ModelError
from gradsieve.models.adapters import start_problem
from gradsieve.models.load import load_adapter, saved_meta_model
from gradsieve.models.source import ModelSource, model_source
from gradsieve.models.support import check_support
from gradsieve.recipe import schema as recipe

MINE = recipe.ModelConfig(name="mine", dtype="float32")


def adapter(base: PreTrainedModel, folder: Path, **keys: Any) -> PeftModel:
    """An adapter trained for a few steps and saved with an optimizer state."""
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **keys}
    model = get_peft_model(base, LoraConfig(**settings))
    optimizer = torch.optim.AdamW(tiny.weights(model).values(), lr=1e-2)
    tiny.stepped(model, optimizer)
    model.save_pretrained(str(folder))
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(tiny.batch()["input_ids"]).logits


def problems(base: PreTrainedModel, folder: Path) -> list[ModelError]:
    base.save_pretrained(str(folder / "base"))
    model = recipe.ModelConfig(name=str(folder / "base"), dtype="float32")
    return check_support(
        ModelSource(model), recipe.WarmupConfig(checkpoints=[str(folder / "adapter")])
    )


@pytest.mark.parametrize("start", [True, "gaussian", "orthogonal", "pissa", "olora"])
def test_starts_that_load_exactly(tmp_path: Path, start: Any) -> None:
    trained = adapter(tiny.model(), tmp_path / "adapter", init_lora_weights=start)
    assert problems(tiny.model(), tmp_path) == []
    base = tiny.model()
    torch.manual_seed(7)
    loaded = load_adapter(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), logits(trained), rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", [True, "pissa", "olora"])
def test_a_plan_needs_no_weights(tmp_path: Path, start: Any) -> None:
    adapter(tiny.model(), tmp_path / "adapter", init_lora_weights=start)
    tiny.model().save_pretrained(str(tmp_path / "base"))
    made = saved_meta_model(
        ModelSource(recipe.ModelConfig(name=str(tmp_path / "base"))), tmp_path / "adapter"
    )
    assert sum(p.numel() for p in tiny.weights(made).values()) == 2 * 4 * (64 + 48)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changes_the_base_leaves_the_callers_model(tmp_path: Path, start: str) -> None:
    trained = adapter(tiny.model(), tmp_path / "adapter", init_lora_weights=start)
    mine = tiny.model()
    before = {name: p.clone() for name, p in mine.named_parameters()}
    for _ in range(2):
        loaded = load_adapter(model_source(MINE, mine).load(), tmp_path / "adapter").eval()
        torch.testing.assert_close(logits(loaded), logits(trained), rtol=0, atol=1e-5)
    assert all(torch.equal(before[name], p) for name, p in mine.named_parameters())


def test_a_random_start_is_refused_and_matters(tmp_path: Path) -> None:
    trained = adapter(tiny.model(), tmp_path / "adapter", init_lora_weights="pissa_niter_1")
    (problem,) = problems(tiny.model(), tmp_path)
    assert "started by PiSSA with a random SVD (pissa_niter_1)" in problem.what
    base = tiny.model()
    torch.manual_seed(7)
    loaded = load_adapter(base, tmp_path / "adapter").eval()
    assert float((logits(loaded) - logits(trained)).norm()) > 1e-3


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_a_start_by_data_is_refused_and_the_advice_loads_it_exactly(tmp_path: Path) -> None:
    base, batch = tiny.model(), tiny.batch()
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(),
        task_type="CAUSAL_LM",
    )
    preprocess_loraga(base, config, lambda: base(**batch).loss.backward())
    model = get_peft_model(base, config)
    model.save_pretrained(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "optimizer.pt").write_bytes(b"")
    (problem,) = problems(tiny.model(), tmp_path)
    assert "started by LoRA-GA" in problem.what
    wanted = logits(model.eval())
    changed = model.unload()
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_ga"', "true"))
    loaded = load_adapter(changed, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("start", "name"),
    [("corda", "CorDA"), ("loftq", "LoftQ"), ("mica", "MiCA"), ("of_next_year", "of_next_year")],
)
def test_other_starts_are_refused_by_name(start: str, name: str) -> None:
    problem = start_problem(start, "here")
    assert problem is not None
    assert f"started by {name}" in problem.what


def resized(seed: int = 1) -> PreTrainedModel:
    """A base model with three more tokens, whose embeddings are random."""
    base = tiny.model()
    base.config = copy.deepcopy(base.config)  # all tests share it
    torch.manual_seed(seed)
    base.resize_token_embeddings(tiny.VOCABULARY + 3, mean_resizing=False)
    return base


def test_a_resized_vocabulary_is_named_and_the_advice_works(tmp_path: Path) -> None:
    trained = adapter(resized(), tmp_path / "adapter")
    trained.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)
    (problem,) = problems(tiny.model(), tmp_path)
    assert problem.what == "The adapter was trained with a resized vocabulary."
    assert "in the file [100, 32], in the model [97, 32]" in problem.where
    assert "resize_token_embeddings(100)" in problem.todo

    mine = resized(seed=5)  # different new rows: the adapter's file has the trained ones
    assert problems(mine, tmp_path) == []
    before = mine.get_input_embeddings().weight.clone()
    loaded = load_adapter(model_source(MINE, mine).load(), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), logits(trained), rtol=0, atol=1e-5)
    assert torch.equal(mine.get_input_embeddings().weight, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    adapter(tiny.model(), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"][0, 0] = value
    save_file(tensors, file, {"format": "pt"})
    tiny.model().save_pretrained(str(tmp_path / "base"))
    base = recipe.ModelConfig(name=str(tmp_path / "base"), dtype="float32")
    model = ModelSource(base).load()
    with pytest.raises(ModelError, match="not finite") as caught:
        load_adapter(model, tmp_path / "adapter")
    assert "layers.1.self_attn.v_proj.lora_B" in caught.value.where
