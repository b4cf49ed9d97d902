"""A causal language model and its tokenizer, from a folder or the hub, with LoRA on top.

In: the recipe's `model` and `warmup.lora` sections. Out: a transformers model on the machine's
device, and a peft model. Weights are read with safetensors or weights_only; code that comes with a
model runs only if the recipe says `trust_remote_code: true`. A model that the caller has lent
(`lent.py`) stands for the files of its name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from gradsieve import processes, recipe
from gradsieve.errors import ModelError
from gradsieve.model.lent import lent_as
from gradsieve.rundir import file_fingerprint, fingerprint

SAMPLE_BYTES = 1 << 20
"""Of a large weight file only the size and this much at both ends are fingerprinted."""


def device() -> torch.device:
    """The CUDA device that is this process's, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", processes.local_rank())


def free_memory() -> int:
    """Bytes that can still be had on that device."""
    if device().type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_used() -> float:
    """The most memory that this process has held on a GPU, as a share of it; 0 on the CPU."""
    if device().type != "cuda":
        return 0.0
    return torch.cuda.max_memory_reserved() / torch.cuda.mem_get_info()[1]


def load_tokenizer(model: recipe.Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer, as it is: nothing is added to it.

    Raises:
        ModelError: If there is none.
    """
    lent = lent_as(model.name)
    if lent is not None and lent.tokenizer is not None:
        return lent.tokenizer
    return _load(AutoTokenizer, model, "tokenizer")


def load_config(model: recipe.Model) -> Any:
    """The model's configuration.

    Raises:
        ModelError: If there is none.
    """
    lent = lent_as(model.name)
    if lent is not None and lent.model is not None:
        return lent.model.config
    return _load(AutoConfig, model, "configuration")


def load_model(model: recipe.Model, *, will_change: bool = False) -> PreTrainedModel:
    """The model with frozen weights, on the machine's device.

    Args:
        model: The recipe's section.
        will_change: Whether its weights will be changed: then those of a lent model are copied.

    Raises:
        ModelError: If it can't be loaded as a causal language model.
    """
    lent = lent_as(model.name)
    if lent is not None and lent.model is not None:
        return lent.view(shared=not will_change).to(device())
    loaded = _load(AutoModelForCausalLM, model, "model", dtype=getattr(torch, model.dtype))
    loaded.requires_grad_(False)
    return loaded.to(device())


def add_adapter(model: PreTrainedModel, lora: recipe.Lora, seed: int) -> PeftModel:
    """A new LoRA adapter on a model: A random from the seed, B zero (peft's default)."""
    set_seed(seed)
    try:
        return get_peft_model(model, lora_config(model, lora))
    except ValueError as error:
        raise ModelError(
            "The adapter does not fit the model.",
            f"warmup.lora.target_modules {lora.target_modules}: {first_line(error)}",
            "Name layers of this model, or write all-linear.",
        ) from None


def lora_config(model: PreTrainedModel, lora: recipe.Lora) -> LoraConfig:
    """The recipe's adapter in peft's words."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.rslora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        bias="none",
        task_type="CAUSAL_LM",
    )


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """A saved adapter on a model, its LoRA weights trainable.

    Raises:
        ModelError: If the folder holds no adapter, or one of another model.
    """
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(
            "There is no adapter here.",
            str(folder),
            "Give a folder with adapter_config.json and adapter_model.safetensors.",
        )
    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            "The adapter does not fit the model.",
            f"{folder}: {first_line(error)}",
            "Give the model that the adapter was trained on, as model.name.",
        ) from None


def load_trained(model: recipe.Model, folder: Path) -> PreTrainedModel:
    """A trained model in eval mode: a folder's adapter merged into the model, or a whole model.

    Raises:
        ModelError: As `load_adapter` and `load_model`.
    """
    if not (folder / "adapter_config.json").is_file():
        return load_model(model.model_copy(update={"name": str(folder), "revision": None})).eval()
    base = load_model(model, will_change=True)
    merged: PreTrainedModel = load_adapter(base, folder).merge_and_unload()
    return merged.eval()


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings.

    Raises:
        ModelError: Naming both numbers.
    """
    embeddings = model.get_input_embeddings()
    rows = embeddings.weight.shape[0] if isinstance(embeddings, nn.Embedding) else len(tokenizer)
    if len(tokenizer) > rows:
        raise ModelError(
            "The tokenizer has more tokens than the model has embeddings.",
            f"tokenizer {len(tokenizer)}, model {rows}",
            "Give the tokenizer that the model was trained with; gradsieve adds no tokens.",
        )


def model_fingerprint(model: recipe.Model) -> str:
    """What identifies the weights: tensors lent, a folder's files, or the hub's name and commit."""
    lent = lent_as(model.name)
    if lent is not None and lent.model is not None:
        return lent.weights
    folder = Path(model.name)
    if folder.is_dir():
        kinds = ("*.json", "*.safetensors", "*.bin", "*.model")
        files = sorted({file for kind in kinds for file in folder.glob(kind)})
        return fingerprint([(file.name, _quick_fingerprint(file)) for file in files])
    commit = getattr(load_config(model), "_commit_hash", None)
    return fingerprint([model.name, commit or model.revision])


def _quick_fingerprint(file: Path) -> list[Any]:
    size = file.stat().st_size
    if size <= 64 * SAMPLE_BYTES:
        return [size, file_fingerprint(file)]
    with file.open("rb") as opened:
        start = opened.read(SAMPLE_BYTES)
        opened.seek(-SAMPLE_BYTES, 2)
        return [size, fingerprint([start.hex(), opened.read().hex()])]


def _load(kind: Any, model: recipe.Model, noun: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(
            model.name,
            revision=model.revision or "main",
            trust_remote_code=model.trust_remote_code,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"The {noun} cannot be loaded.",
            f"model.name {model.name}: {first_line(error)}",
            "Give a folder with a causal language model in the hub's layout, or its hub name; for "
            "a gated one log in with `hf auth login`.",
        ) from None


def first_line(error: Exception) -> str:
    """What an error of a library says first; the rest is often a module's printout."""
    return str(error).strip().split("\n")[0][:300]
