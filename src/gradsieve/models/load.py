"""LoRA on a model: new adapters, saved adapters, and trained models.

In: a model, and the recipe's `warmup.lora` section or a folder that peft saved. Out: a peft model
whose LoRA weights are trainable, or a model with an adapter merged into it. Weights that are not
finite are refused by name; the weights of a user-supplied model are never changed.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.pytorch_utils import Conv1D

from gradsieve.errors import ModelError, first_line
from gradsieve.models.device import device
from gradsieve.models.layers import adapted, misfit
from gradsieve.models.source import ModelSource, refuse_infinite
from gradsieve.recipe import schema as recipe

BOTH_FILES = "Name folders with adapter_config.json and adapter_model.safetensors."
IN_A_FOLDER = (
    "Name that folder. One that has the name of the adapter has no optimizer state: copy its files "
    "up, next to the optimizer's."
)
FULL_MODEL = (
    "It holds a full model: features are taken from LoRA checkpoints. Use it as model.name, "
    "without warmup.checkpoints: gradsieve then runs its own warm-up."
)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Restore the caller's random states of Python, NumPy and torch at the end of the block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device()] if device().type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def peft_warnings_hidden() -> Iterator[None]:
    """Hide a warning at each load: peft 0.21 uses a deprecated name of transformers 5.23."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        yield


def add_adapter(model: PreTrainedModel, lora: recipe.LoraConfig, seed: int) -> PeftModel:
    """Add a new LoRA adapter to a model: A is random from the seed, B is zero (peft's default)."""
    try:
        with own_randomness(), peft_warnings_hidden():
            set_seed(seed)
            adapted = get_peft_model(model, lora_config(model, lora))
    except ValueError as error:
        raise misfit(f"warmup.lora.target_modules {lora.target_modules}", error) from None
    # A model card takes longer than the rest of a save, and isn't kept.
    adapted.create_or_update_model_card = lambda _: None
    return adapted


def lora_config(model: PreTrainedModel, lora: recipe.LoraConfig) -> LoraConfig:
    """The recipe's adapter as peft's configuration."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        exclude_modules=lora.exclude_modules,
        use_rslora=lora.rslora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        bias="none",
        task_type="CAUSAL_LM",
    )


def load_adapter(model: PreTrainedModel, folder: Path, like_base: bool = False) -> PeftModel:
    """Load a saved adapter onto the model it was trained on, with trainable LoRA weights.

    With `like_base` the adapter runs in the model's dtype, as in the paper's gradient computation;
    otherwise in float32, as in training (peft's default).

    Raises:
        ModelError: If the folder holds no adapter, one of another model, or weights that are not
            finite.
    """
    file = adapter_file(folder)
    try:
        _copy_changed_weights(model, file)
        with peft_warnings_hidden():
            loaded = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except Exception as error:  # as in `layers.adapted`
        raise ModelError(
            "The adapter does not fit the model, or is damaged.",
            f"{folder}: {first_line(error)}",
            "Give the model that the adapter was trained on, as model.name; or copy the adapter "
            "again.",
        ) from None
    trained = {name: p for name, p in loaded.named_parameters() if p.requires_grad}
    refuse_infinite(trained.items(), str(folder))
    for parameter in trained.values() if like_base else ():
        parameter.data = parameter.data.to(model.dtype)
    return loaded


def load_trained(source: ModelSource, folder: Path) -> PreTrainedModel:
    """A trained model in eval mode: a folder's adapter merged into the model, or a full model.

    A quantized model keeps its LoRA layers, since merging would round the adapter's weights.
    """
    if not (folder / "adapter_config.json").is_file():
        own = {"name": str(folder), "revision": None}
        trained = ModelSource(source.settings.model_copy(update=own), gpus=source.gpus)
        return trained.load().eval()
    quantized = source.settings.quantization is not None
    adapted = load_adapter(source.load(will_change=not quantized), folder)
    merged: PreTrainedModel = adapted.get_base_model() if quantized else adapted.merge_and_unload()
    return merged.eval()


def saved_meta_model(source: ModelSource, folder: Path) -> PeftModel:
    """The model's modules with a saved adapter's layers, all without weights."""
    config: Any = PeftConfig.from_pretrained(str(folder))
    return adapted(source.meta_model(), config, str(folder))


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings; names both numbers."""
    embeddings = model.get_input_embeddings()
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1  # ids may have gaps
    rows = embeddings.weight.shape[0] if isinstance(embeddings, nn.Embedding) else tokens
    if tokens > rows:
        raise ModelError(
            "The tokenizer has more tokens than the model has embeddings.",
            f"tokenizer {tokens}, model {rows}",
            "Give the tokenizer that the model was trained with; gradsieve adds no tokens.",
        )


def adapter_config(folder: Path) -> Path:
    """The file with an adapter's configuration; raises `ModelError` if it is missing."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        is_model = (folder / "config.json").is_file()
        below = sorted(one.parent.name for one in folder.glob("*/adapter_config.json"))
        found = f"; there is one in {', '.join(below[:5])}" if below else ""
        todo = FULL_MODEL if is_model else IN_A_FOLDER if below else BOTH_FILES
        raise ModelError("There is no adapter here.", f"{file}: no such file{found}", todo)
    return file


def adapter_file(folder: Path) -> Path:
    """The file with an adapter's weights; `ModelError` if it or the configuration is missing."""
    adapter_config(folder)
    files = [folder / f"adapter_model.{kind}" for kind in ("safetensors", "bin")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise ModelError("The adapter's weights are missing.", str(files[0]), BOTH_FILES)
    return file


def _copy_changed_weights(model: PreTrainedModel, file: Path) -> None:
    """Copy the weights that loading the adapter changes in place: a user's model may share them.

    OLoRA subtracts its initial adapter from the base weights; an adapter with a resized vocabulary
    includes embeddings.
    """
    config = json.loads(adapter_config(file.parent).read_text(encoding="utf-8"))
    changed: list[nn.Module] = [model] if config.get("init_lora_weights") == "olora" else []
    if _has_embeddings(file):
        changed += [model.get_input_embeddings(), model.get_output_embeddings()]
    parameters = {p for module in changed for p in module.parameters() if p.is_floating_point()}
    for parameter in parameters:
        parameter.data = parameter.data.clone()


def _has_embeddings(file: Path) -> bool:
    if file.suffix == ".bin":
        return True  # a pickle, whose names are known only after loading
    with safe_open(file, "pt") as opened:
        return any("lora_" not in name for name in opened.keys())  # noqa: SIM118
