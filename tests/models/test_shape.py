"""FLOPs and sizes computed from shapes, compared with PyTorch's own counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MambaConfig, MambaForCausalLM

import tiny
from gradsieve.gradients.per_example import lora_layers
from gradsieve.models.shape import shape_of
from gradsieve.recipe.schema import ModelConfig

MODEL = ModelConfig(name="m", dtype="float32")
FAMILIES = ["llama-gqa-tied", "gpt-neox", "gpt2", "qwen3", "phi3-fused-qkv"]


def counted(family: str, adapter: bool, backward: bool) -> int:
    """FLOPs of a pass as PyTorch counts them."""
    model = tiny.adapted(family, dropout=0) if adapter else tiny.model(family)
    model.set_attn_implementation("eager")
    ids = torch.ones(3, 40, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        loss = model(ids, labels=ids).loss
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass(family: str) -> None:
    found = shape_of(tiny.adapted(family), MODEL).forward(3, 40, 3 * 40)
    assert found == pytest.approx(counted(family, adapter=True, backward=False), rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_pass(family: str) -> None:
    shape = shape_of(tiny.adapted(family), MODEL)
    found = shape.forward_and_backward(3, 40, 3 * 40)
    assert found == pytest.approx(counted(family, adapter=True, backward=True), rel=0.1)


def test_a_training_pass_of_all_weights() -> None:
    shape = shape_of(tiny.model(), MODEL, full=True)
    found = shape.forward_and_backward(3, 40, 3 * 40)
    assert found == pytest.approx(counted("llama-gqa-tied", False, True), rel=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes(family: str) -> None:
    model = tiny.adapted(family)
    shape = shape_of(model, MODEL)
    adapter = sum(layer.weight.numel() for layer in lora_layers(model).values())
    assert shape.adapter == adapter
    assert shape.parameters == sum(p.numel() for p in model.parameters()) - adapter
    assert shape.weight_bytes == 4 * shape.parameters
    assert shape.trained_bytes == 16 * adapter
    quantized = shape_of(model, MODEL.model_copy(update={"quantization": "4bit"}))
    assert quantized.weight_bytes == round(shape.parameters / 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_generation_keeps(family: str) -> None:
    model = tiny.model(family)
    shape = shape_of(model, MODEL)
    cache = model(torch.ones(1, 5, dtype=torch.int64), use_cache=True).past_key_values
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert kept == 5 * shape.layers * shape.kept


def test_a_model_without_attention_has_a_shape() -> None:
    config = MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=99)
    with torch.device("meta"):
        assert shape_of(MambaForCausalLM(config), MODEL).vocabulary == 99
