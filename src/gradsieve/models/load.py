"""A causal language model and its tokenizer, from a folder or the hub, with LoRA on top.

In: the recipe's `model` and `warmup.lora` sections. Out: a transformers model on the machine's
device, and a peft model. Weights are read with safetensors or weights_only; code that comes with a
model runs only if the recipe says `trust_remote_code: true`. A model that the caller has lent
(`lent.py`) stands for the files of its name.
"""

from __future__ import annotations

import copy
import hashlib
import os
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - only to catch it
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from gradsieve.errors import ModelError
from gradsieve.io import file_fingerprint, fingerprint, needed
from gradsieve.models import distributed
from gradsieve.models.adapter_weights import adapter_file, check_finite, own_weights
from gradsieve.models.source import lent_as
from gradsieve.recipe import schema as recipe

LFS = b"version https://git-lfs"
"""How a file starts that git-lfs has not fetched."""

SAMPLES, SAMPLE_BYTES = 256, 1 << 16
"""Of a file with more bytes only the size and samples spread over all of it are fingerprinted: a
training moves nearly every weight of what it trains, and a layer is larger than their distance."""


def device() -> torch.device:
    """The CUDA device that is this process's, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", distributed.local_rank())


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


def forget_memory_used() -> None:
    """Give memory that is not in use back to a GPU, and count `memory_used` from now on."""
    if device().type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def load_tokenizer(model: recipe.ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, as it is: nothing is added to it.

    Raises:
        ModelError: If there is none.
    """
    lent = lent_as(model.name)
    if lent is not None and lent.tokenizer is not None:
        return lent.tokenizer
    return _load(AutoTokenizer, model, "tokenizer")


def load_config(model: recipe.ModelConfig) -> Any:
    """The model's configuration.

    Raises:
        ModelError: If there is none.
    """
    lent = lent_as(model.name)
    if lent is not None and lent.model is not None:
        return copy.deepcopy(lent.model.config)  # building a model from it sets attributes
    return _load(AutoConfig, model, "configuration")


def load_model(model: recipe.ModelConfig, *, will_change: bool = False) -> PreTrainedModel:
    """The model with frozen weights, on the machine's device.

    Args:
        model: The recipe's section.
        will_change: Whether its weights will be changed: then those of a lent model are copied.

    Raises:
        ModelError: If it can't be loaded as a causal language model, or lacks weights.
    """
    lent = lent_as(model.name)
    if lent is not None and lent.model is not None:
        loaded = lent.view(shared=not will_change)
    else:
        loaded = _read_model(model)
    loaded.requires_grad_(False)
    if model.gradient_checkpointing:
        _checkpoint_activations(loaded)
    return loaded if getattr(loaded, "is_quantized", False) else loaded.to(device())


def _read_model(model: recipe.ModelConfig) -> PreTrainedModel:
    check_weights(model)
    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype)}
    if model.quantization:
        options |= {"quantization_config": _bitsandbytes(model), "device_map": {"": device()}}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of missing weights is a table; ours is an error
    try:
        loaded: PreTrainedModel
        loaded, found = _load(
            AutoModelForCausalLM,
            model,
            "model",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    finally:
        logging.set_verbosity(verbosity)
    _refuse_random_weights(model, found)
    return loaded


def _bitsandbytes(model: recipe.ModelConfig) -> BitsAndBytesConfig:
    """8 bits as in LLM.int8 (arXiv 2208.07339), 4 as in QLoRA (arXiv 2305.14314)."""
    needed("bitsandbytes", "quantized")
    if model.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, model.dtype),
    )


def _checkpoint_activations(model: PreTrainedModel) -> None:
    # transformers 5.0 calls it by the old name, which later versions warn of.
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    try:
        getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(
            "The model cannot make its activations anew.",
            f"model.gradient_checkpointing: {first_line(error)}",
            "Leave model.gradient_checkpointing out.",
        ) from None


def check_weights(model: recipe.ModelConfig) -> None:
    """Refuse a folder whose weights are not there, or not whole; headers alone are read.

    Raises:
        ModelError: Naming the file.
    """
    folder, lent = Path(model.name), lent_as(model.name)
    if not folder.is_dir() or (lent is not None and lent.model is not None):
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("*.bin")):
        raise ModelError(
            "The model's folder holds no weights.",
            f"model.name {model.name}: neither *.safetensors nor *.bin",
            "Give a folder that save_pretrained wrote, or a hub name.",
        )
    for file in files:
        _check_header(file)


def _check_header(file: Path) -> None:
    with file.open("rb") as opened:
        is_pointer = opened.read(len(LFS)) == LFS
    if is_pointer:
        raise ModelError(
            "A weight file is a pointer of git-lfs, not the weights.",
            str(file),
            "Run `git lfs pull` in the model's folder.",
        )
    try:
        with safe_open(file, "pt"):
            pass
    except SafetensorError as error:
        raise ModelError(
            "A weight file is damaged.",
            f"{file}, {file.stat().st_size} bytes: {first_line(error)}",
            "Copy or download it again.",
        ) from None


def _refuse_random_weights(model: recipe.ModelConfig, found: dict[str, Any]) -> None:
    """Transformers fills weights that a file lacks, or has in another shape, at random."""
    others = sorted(found["mismatched_keys"])
    lacking = sorted(found["missing_keys"])
    lacking += [f"{name}: {list(given)} not {list(wanted)}" for name, given, wanted in others]
    if lacking:
        raise ModelError(
            "The weights are not of this model: some are missing or of another shape.",
            f"model.name {model.name}: {len(lacking)} weights, e.g. {lacking[0]}",
            "Give a causal language model whose config.json and weights belong together.",
        )


def add_adapter(model: PreTrainedModel, lora: recipe.LoraConfig, seed: int) -> PeftModel:
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


def lora_config(model: PreTrainedModel, lora: recipe.LoraConfig) -> LoraConfig:
    """The recipe's adapter in peft's words."""
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
    """A saved adapter on a model, its LoRA weights trainable.

    Args:
        model: The model it was trained on.
        folder: With adapter_config.json and adapter_model.safetensors.
        like_base: The adapter runs in the model's dtype, as when the paper takes gradients; else in
            float32, as when it is trained (peft's default).

    Raises:
        ModelError: If the folder holds no adapter, one of another model, or weights that are not
            finite.
    """
    adapter_file(folder)
    try:
        own_weights(model, folder)
        loaded = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except SafetensorError as error:
        raise ModelError(
            "The adapter's weights are damaged.",
            f"{folder}: {first_line(error)}",
            "Copy adapter_model.safetensors again.",
        ) from None
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(
            "The adapter does not fit the model.",
            f"{folder}: {first_line(error)}",
            "Give the model that the adapter was trained on, as model.name.",
        ) from None
    check_finite(loaded, folder)
    for parameter in loaded.parameters() if like_base else ():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(model.dtype)
    return loaded


def load_trained(model: recipe.ModelConfig, folder: Path) -> PreTrainedModel:
    """A trained model in eval mode: a folder's adapter merged into the model, or a whole model.

    Into a quantized model nothing is merged, since that would round it: it keeps its LoRA layers.

    Raises:
        ModelError: As `load_adapter` and `load_model`.
    """
    if not (folder / "adapter_config.json").is_file():
        return load_model(model.model_copy(update={"name": str(folder), "revision": None})).eval()
    # Nothing is merged into a quantized model, whose weights then stay as they are.
    adapted = load_adapter(load_model(model, will_change=not model.quantization), folder)
    merged: PreTrainedModel = (
        adapted.get_base_model() if model.quantization else adapted.merge_and_unload()
    )
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


def model_fingerprint(model: recipe.ModelConfig) -> str:
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
    if size <= SAMPLES * SAMPLE_BYTES:
        return [size, file_fingerprint(file)]
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for number in range(SAMPLES):
            opened.seek(number * (size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(opened.read(SAMPLE_BYTES))
    return [size, digest.hexdigest()]


def _load(kind: Any, model: recipe.ModelConfig, noun: str, **options: Any) -> Any:
    _refuse_missing_folder(model.name)
    try:
        return kind.from_pretrained(
            model.name,
            revision=model.revision or "main",
            trust_remote_code=model.trust_remote_code,
            **options,
        )
    except UnpicklingError:
        raise ModelError(
            "The weights are a pickle that would run code; nothing here does that.",
            f"model.name {model.name}",
            "Give the model as safetensors.",
        ) from None
    except _UNLOADABLE as error:
        raise ModelError(
            f"The {noun} cannot be loaded.",
            f"model.name {model.name}: {first_line(error)}",
            "Read its code, then set model.trust_remote_code: true to run it; or give another one."
            if "trust_remote_code" in str(error)
            else GIVE_A_MODEL,
        ) from None


_UNLOADABLE = (
    *(OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError),
    *(SafetensorError, StrictDataclassError),
)
"""What transformers raises for folders that are no model: each file has a reader of its own."""

GIVE_A_MODEL = (
    "Give a folder with a causal language model in the hub's layout, or its hub name; for a gated "
    "one log in with `hf auth login`."
)


def _refuse_missing_folder(name: str) -> None:
    """A name that can't be one of the hub is a folder that isn't there."""
    path = Path(name)
    is_path = path.is_absolute() or name.startswith(".") or name.count("/") > 1 or path.is_file()
    if path.is_dir() or not is_path:
        return
    raise ModelError(
        "The model's folder is not there.",
        f"model.name {name}: {'a file' if path.is_file() else 'no such folder'}",
        GIVE_A_MODEL,
    )


def first_line(error: Exception) -> str:
    """What a library's error says first, with the line below it where that is but a heading."""
    first, *others = str(error).strip().split("\n")
    said = f"{first} {others[0].strip()}" if first.endswith(":") and others else first
    # "We couldn't connect" hides that the name may be meant as a folder.
    hint = " There is no such folder here." if "couldn't connect" in said else ""
    return (said or type(error).__name__)[:300] + hint
