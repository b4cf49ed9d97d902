"""Models without feature support are refused by name, from their configurations alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoHaConfig, LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    FuyuConfig,
    Gemma3Config,
    GemmaConfig,
    Llama4TextConfig,
    MixtralConfig,
    T5Config,
    ViTConfig,
)

import tiny
from gradsieve.errors import ModelError
from gradsieve.models import layers
from gradsieve.models.checkpoints import save_checkpoint
from gradsieve.models.load import add_adapter
from gradsieve.models.source import ModelSource
from gradsieve.models.support import check_support
from gradsieve.recipe import schema as recipe

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def model(folder: Path, config: Any = "llama-gqa-tied", **keys: Any) -> ModelSource:
    """A model that consists of its configuration only."""
    config = tiny.CONFIGS[config] if isinstance(config, str) else config
    config.save_pretrained(folder / "model")
    return ModelSource(recipe.ModelConfig(name=str(folder / "model"), **keys))


def warmup(targets: Any = ("q_proj", "v_proj"), **keys: Any) -> recipe.WarmupConfig:
    targets = targets if isinstance(targets, str) else list(targets)
    return recipe.WarmupConfig(lora=recipe.LoraConfig(r=4, target_modules=targets), **keys)


def checkpoint(
    folder: Path, config: LoraConfig, name: str = "llama-gqa-tied"
) -> recipe.WarmupConfig:
    """A user's checkpoint: an adapter saved by peft, with an optimizer state."""
    adapted = get_peft_model(tiny.model(name), config)
    adapted.save_pretrained(str(folder / "adapter"))
    weights = tiny.weights(adapted).values()
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW(weights)
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "adapter" / "optimizer.pt")
    return recipe.WarmupConfig(checkpoints=[str(folder / "adapter")])


@pytest.mark.parametrize("name", tiny.CONFIGS)
@pytest.mark.parametrize("targets", ["named", "all-linear"])
def test_nothing_is_wrong_with_the_covered_families(
    tmp_path: Path, name: str, targets: str
) -> None:
    named = tiny.MODULES.get(name, ["q_proj", "k_proj", "v_proj", "o_proj"])
    settings = warmup(named if targets == "named" else targets)
    assert check_support(model(tmp_path, name), settings) == []


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (T5Config(), "type t5: an encoder-decoder"),
        (BertConfig(**SIZES), "type bert: its attention is bidirectional"),
        (GemmaConfig(**SIZES, use_bidirectional_attention=True), "attention is bidirectional"),
        (ViTConfig(), "type vit: no causal language model"),
    ],
)
def test_models_that_are_not_causal(tmp_path: Path, config: Any, named: str) -> None:
    (problem,) = check_support(model(tmp_path, config), warmup())
    assert named in problem.where


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    (problem,) = check_support(
        ModelSource(recipe.ModelConfig(name=str(tmp_path / "nothing"))), warmup()
    )
    assert "does not exist" in str(problem)


def test_each_name_that_no_layer_has_is_reported_with_the_nearest(tmp_path: Path) -> None:
    problems = check_support(model(tmp_path), warmup(["q_proj", "qproj", "c_attn"]))
    first, second = problems
    assert first.where.endswith("qproj")
    assert first.todo == "Did you mean q_proj?"
    assert second.where.endswith("c_attn")
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in second.todo


@pytest.mark.parametrize("targets", [r".*\.(q|v)_proj", r"model\.layers\.[01]\..*_proj"])
def test_a_regular_expression_names_layers(tmp_path: Path, targets: str) -> None:
    settings = warmup(targets)
    assert check_support(model(tmp_path), settings) == []
    adapted = add_adapter(tiny.model(), settings.lora, 0)
    assert {n.split(".")[-1] for n in adapted.targeted_module_names} >= {"q_proj", "v_proj"}
    assert all(re.fullmatch(targets, name) for name in adapted.targeted_module_names)


def test_a_regular_expression_that_nothing_matches(tmp_path: Path) -> None:
    (problem,) = check_support(model(tmp_path), warmup("q_proj"))
    assert problem.where == "warmup.lora.target_modules: q_proj"
    assert "model.layers.0.self_attn.q_proj" in problem.todo
    assert "written as a list: [q_proj]" in problem.todo


@pytest.mark.parametrize("exclude", [["v_proj"], r".*\.v_proj"])
def test_excluded_layers_get_no_adapter(tmp_path: Path, exclude: Any) -> None:
    lora = recipe.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], exclude_modules=exclude)
    assert check_support(model(tmp_path), recipe.WarmupConfig(lora=lora)) == []
    names = add_adapter(tiny.model(), lora, 0).targeted_module_names
    assert {name.split(".")[-1] for name in names} == {"q_proj"}


@pytest.mark.parametrize("exclude", [["vproj"], r".*\.vproj"])
def test_excluded_names_that_no_layer_has_are_reported(tmp_path: Path, exclude: Any) -> None:
    lora = recipe.LoraConfig(r=4, target_modules=["q_proj"], exclude_modules=exclude)
    (problem,) = check_support(model(tmp_path), recipe.WarmupConfig(lora=lora))
    assert problem.where.startswith("warmup.lora.exclude_modules: ")


GEMMA3 = Gemma3Config(
    text_config={**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    vision_config={
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    mm_tokens_per_image=1,
)


def test_the_refusal_of_a_tower_names_the_line_that_helps(tmp_path: Path) -> None:
    """Adding its line to the recipe unchanged solves the problem."""
    (problem,) = check_support(model(tmp_path, GEMMA3), warmup())
    assert "layers for images or sound" in problem.what
    assert "model.vision_tower." in problem.where
    excluded = yaml.safe_load(problem.todo.partition("LoraConfig: ")[2])
    assert excluded == {"exclude_modules": r"(?!model\.language_model\.).*"}
    lora = recipe.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **excluded)
    assert check_support(model(tmp_path, GEMMA3), recipe.WarmupConfig(lora=lora)) == []
    lora = recipe.LoraConfig(r=4, target_modules=r"model\.language_model\..*\.(q|v)_proj")
    assert check_support(model(tmp_path, GEMMA3), recipe.WarmupConfig(lora=lora)) == []


def test_a_tower_of_one_layer_is_excluded_by_its_line(tmp_path: Path) -> None:
    text = {**SIZES, "model_type": "persimmon"}
    fuyu = FuyuConfig(**SIZES, text_config=text, image_size=28, patch_size=14)
    (problem,) = check_support(model(tmp_path, fuyu), warmup("all-linear"))
    excluded = yaml.safe_load(problem.todo.partition("LoraConfig: ")[2])
    lora = recipe.LoraConfig(r=4, target_modules="all-linear", **excluded)
    assert check_support(model(tmp_path, fuyu), recipe.WarmupConfig(lora=lora)) == []


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (["q_proj", "embed_tokens"], "embeddings"),
        (["q_proj", "lm_head"], "the output layer"),
        (["q_proj", "self_attn"], "Target module Qwen3Attention"),
    ],
)
def test_layers_that_cannot_be_followed(tmp_path: Path, targets: list[str], reason: str) -> None:
    (problem,) = check_support(model(tmp_path, "qwen3"), warmup(targets))
    assert reason in str(problem)


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("experts", nn.ModuleDict({"low": nn.Linear(32, 32)}), "experts of a mixture"),
        ("low", nn.Conv1d(32, 32, 3), "layers of type Conv1d"),
    ],
)
def test_layers_of_other_kinds(name: str, layer: nn.Module, reason: str) -> None:
    base = tiny.model()
    setattr(base.model.layers[0].mlp, name, layer)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["low", "q_proj"]))
    (problem,) = layers.layer_problems(adapted, "here")
    assert reason in problem.what
    assert f"model.layers.0.mlp.{name}" in problem.where


def test_fused_experts(tmp_path: Path) -> None:
    """Mixtral's experts are parameters, not layers; peft's all-linear adapts them nevertheless."""
    mixtral = MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4)
    (problem,) = check_support(model(tmp_path, mixtral), warmup(["q_proj", "w1"]))
    assert problem.where.endswith("w1")
    (problem,) = check_support(model(tmp_path, mixtral), warmup("all-linear"))
    assert "experts of a mixture" in problem.what
    names = yaml.safe_load(problem.todo.partition("target_modules: ")[2].removesuffix("."))
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj"]  # exclude_modules would not help
    assert check_support(model(tmp_path, mixtral), warmup(names)) == []


def test_a_router_that_is_linear_by_class_only(tmp_path: Path) -> None:
    """The router returns two tensors; peft fails when it adds LoRA's output to them."""
    llama4 = Llama4TextConfig(**tiny.SMALL, head_dim=8, num_local_experts=2)
    (problem,) = check_support(model(tmp_path, llama4), warmup("all-linear"))
    assert problem.what.endswith("layers of type Llama4Router.")
    assert "target_modules: [q_proj, k_proj, v_proj, o_proj, " in problem.todo


def test_a_shared_layer_is_refused() -> None:
    base = tiny.model()
    base.model.layers[1] = base.model.layers[0]
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    (problem,) = layers.layer_problems(adapted, "here")
    assert "shared" in problem.what
    assert "layers.0.self_attn.q_proj, model.layers.1.self_attn.q_proj" in problem.where


@pytest.mark.parametrize(
    "keys",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [0]},
        {"target_modules": r".*\.(q|down)_proj"},
        {"init_lora_weights": "pissa"},
    ],
)
def test_a_users_plain_adapter_is_taken(tmp_path: Path, keys: dict[str, Any]) -> None:
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **keys})
    assert check_support(model(tmp_path), checkpoint(tmp_path, config)) == []


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "fully trained modules"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"lora_bias": True}, "biases of LoRA matrices"),
        ({"trainable_token_indices": [3]}, "trained embeddings of tokens"),
        ({"target_parameters": ["mlp.gate_proj.weight"]}, "MoE experts"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "replicated layers"),
        ({"task_type": "SEQ_CLS"}, "adapters for SEQ_CLS"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"a_key_of_next_year": 7}, "a_key_of_next_year"),
        ({"peft_type": "LOHA"}, "LOHA adapters"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING adapters"),
    ],
)
def test_other_adapters_are_refused_by_name(
    tmp_path: Path, keys: dict[str, Any], named: str
) -> None:
    settings = checkpoint(tmp_path, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    (problem,) = check_support(model(tmp_path), settings)
    assert named in problem.what
    assert str(file) in problem.where


@pytest.mark.parametrize("config", [LoHaConfig(r=2), PrefixTuningConfig(num_virtual_tokens=2)])
def test_adapters_of_other_kinds_as_peft_saves_them(tmp_path: Path, config: Any) -> None:
    config.save_pretrained(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "optimizer.pt").write_bytes(b"")
    settings = recipe.WarmupConfig(checkpoints=[str(tmp_path / "adapter")])
    (problem,) = check_support(model(tmp_path), settings)
    assert f"{config.peft_type.value} adapters" in problem.what


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_adapted_embeddings_of_a_checkpoint(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"])
    (problem,) = check_support(model(tmp_path, "qwen3"), checkpoint(tmp_path, config, "qwen3"))
    assert "embeddings" in problem.what


def test_an_adapter_of_another_model_names_a_weight_and_both_shapes(tmp_path: Path) -> None:
    settings = checkpoint(tmp_path, LoraConfig(r=4, target_modules=["q_proj"]))
    wider = tiny.LlamaConfig(**{**tiny.SMALL, "hidden_size": 64})
    (problem,) = check_support(model(tmp_path, wider), settings)
    assert problem.what == "The adapter is of another model."
    assert "[4, 32]" in problem.where or "[32, 4]" in problem.where


@pytest.mark.parametrize(
    ("lost", "what"),
    [
        ("adapter_config.json", "no adapter here"),
        ("adapter_model.safetensors", "weights are missing"),
        ("optimizer.pt", "no optimizer state"),
    ],
)
def test_files_that_a_checkpoint_lacks(tmp_path: Path, lost: str, what: str) -> None:
    settings = checkpoint(tmp_path, LoraConfig(r=4, target_modules=["q_proj"]))
    (tmp_path / "adapter" / lost).unlink()
    (problem,) = check_support(model(tmp_path), settings)
    assert what in problem.what


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    settings = checkpoint(tmp_path, LoraConfig(r=4, target_modules=["q_proj"]))
    (tmp_path / "adapter" / name).write_bytes(b"[torn")
    (problem,) = check_support(model(tmp_path), settings)
    assert name in problem.where


def test_what_all_checkpoints_share_is_reported_once_and_each_is_looked_at(tmp_path: Path) -> None:
    folders = []
    for number in (1, 2, 3):
        adapted = tiny.adapted()
        optimizer = torch.optim.AdamW(tiny.weights(adapted).values())
        tiny.stepped(adapted, optimizer, 1)
        save_checkpoint(adapted, optimizer, tmp_path / f"{number}", 1e-5)
        folders.append(str(tmp_path / f"{number}"))
    settings = recipe.WarmupConfig(checkpoints=folders)
    assert check_support(model(tmp_path), settings) == []
    (problem,) = check_support(model(tmp_path, "gpt2"), settings)
    assert "does not fit" in problem.what
    (tmp_path / "2" / "adam.safetensors").unlink()
    (problem,) = check_support(model(tmp_path), settings)
    assert str(tmp_path / "2") in problem.where


def test_a_base_quantized_by_others_is_refused_by_name(tmp_path: Path) -> None:
    config = tiny.LlamaConfig(**tiny.SMALL, quantization_config={"quant_method": "gptq", "bits": 4})
    (problem,) = check_support(model(tmp_path, config), warmup())
    assert "quantized by gptq" in problem.what


def test_bitsandbytes_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (problem,) = check_support(model(tmp_path, quantization="4bit"), warmup())
    assert problem.todo == "pip install 'gradsieve[quantized]'"


def test_no_weight_is_read_or_made(tmp_path: Path) -> None:
    """A model with 7 billion parameters is checked in a few seconds with almost no memory."""
    llama = model(tmp_path, tiny.LlamaConfig())
    assert check_support(llama, warmup()) == []
    with pytest.raises(ModelError, match="holds no weights"):
        llama.load()
