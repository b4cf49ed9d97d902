"""Loading: dtypes, quantized bases, activation checkpointing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from gradsieve.errors import UsageError
from gradsieve.models.load import add_adapter, load_adapter, load_trained
from gradsieve.models.source import ModelSource
from gradsieve.recipe import schema as recipe

LORA = recipe.LoraConfig(r=4, alpha=8, target_modules="all-linear")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    wide = {**tiny.SMALL, "hidden_size": 64, "intermediate_size": 128}
    LlamaForCausalLM(LlamaConfig(**wide)).save_pretrained(made)
    return made


def settings(folder: Path, **keys: object) -> recipe.ModelConfig:
    return recipe.ModelConfig.model_validate({"name": str(folder), **keys})


def test_an_adapter_is_float32_to_train_and_like_its_base_for_features(
    folder: Path, tmp_path: Path
) -> None:
    bfloat16 = settings(folder, dtype="bfloat16")
    trained = add_adapter(ModelSource(bfloat16).load(), LORA, seed=0)
    trained.save_pretrained(str(tmp_path))
    assert {p.dtype for p in trained.parameters() if p.requires_grad} == {torch.float32}
    for like_base, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        loaded = load_adapter(ModelSource(bfloat16).load(), tmp_path, like_base)
        assert {p.dtype for p in loaded.parameters() if p.requires_grad} == {dtype}


def test_activation_checkpointing_is_on_if_asked_for(folder: Path) -> None:
    assert not ModelSource(settings(folder)).load().is_activation_checkpointing
    assert (
        ModelSource(settings(folder, gradient_checkpointing=True))
        .load()
        .is_activation_checkpointing
    )


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantized_base_is_trained_on_and_answers(
    folder: Path, tmp_path: Path, quantization: str
) -> None:
    pytest.importorskip("bitsandbytes")
    asked = settings(folder, dtype="float32", quantization=quantization)
    model = tiny.stirred(add_adapter(ModelSource(asked).load(), LORA, seed=0))
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    assert layer.base_layer.weight.dtype in (torch.int8, torch.uint8)
    assert layer.lora_A["default"].weight.dtype == torch.float32
    model.save_pretrained(str(tmp_path))
    with torch.no_grad():
        wanted = model.eval()(**tiny.batch()).loss
        found = load_trained(ModelSource(asked), tmp_path)(**tiny.batch()).loss
    torch.testing.assert_close(found, wanted)


def test_without_bitsandbytes_the_message_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError) as caught:
        ModelSource(settings(folder, quantization="4bit")).load()
    assert caught.value.todo == "pip install 'gradsieve[quantized]'"


def test_a_model_is_known_by_every_byte_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def print_of(name: str) -> str:
        return ModelSource(recipe.ModelConfig(name=name)).fingerprint

    here, there = tmp_path / "here", tmp_path / "there"
    (here / "1_Pooling").mkdir(parents=True)
    (here / "1_Pooling" / "config.json").write_text("{}")
    weights = bytearray(20_000_000)  # more than an earlier version sampled
    (here / "model.safetensors").write_bytes(weights)
    shutil.copytree(here, there)
    monkeypatch.chdir(tmp_path)
    first = print_of(str(here))
    assert print_of(str(there)) == print_of("here") == print_of("./there") == first
    for at in (0, 10_000_001, 19_999_999):
        changed = weights.copy()
        changed[at] = 1
        (there / "model.safetensors").write_bytes(changed)
        assert print_of(str(there)) != first
    (here / "1_Pooling" / "config.json").write_text("{ }")
    assert print_of(str(here)) != first
    (here / "1_Pooling" / "config.json").write_text("{}")
    (here / "checkpoint-3").mkdir()  # left by the training that wrote the model
    (here / "checkpoint-3" / "trainer_state.json").write_text("{}")
    assert print_of(str(here)) == first


def test_importing_and_loading_leave_warnings_and_loggers_alone(folder: Path) -> None:
    code = f"""
import logging, warnings
import transformers
from transformers.utils import logging as theirs
before = warnings.filters[:], theirs.is_progress_bar_enabled(), theirs.get_verbosity()
from gradsieve.models.load import load_adapter
from gradsieve.models.source import ModelSource
from gradsieve.recipe.schema import ModelConfig
ModelSource(ModelConfig(name={str(folder)!r})).load()
ours = [f for f in warnings.filters if f not in before[0] and "gradient_checkpointing" in str(f)]
assert not ours, ours
assert theirs.is_progress_bar_enabled() == before[1]
assert theirs.get_verbosity() == before[2]
assert logging.getLogger("bitsandbytes").level == logging.NOTSET
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Loading weights" not in done.stderr
