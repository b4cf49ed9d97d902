"""A saved model's files: reads them with transformers, checks them and fingerprints them.

In: the recipe's `model` section, with a folder or a hub name. Out: a configuration, a tokenizer or
a model, or one error that names the problem. Weights are read with safetensors or weights_only;
code that comes with a model runs only if the recipe has `trust_remote_code: true`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - only to catch it
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging

from gradsieve.errors import ModelError, first_line
from gradsieve.io import file_hash, fingerprint, needed
from gradsieve.models.device import device
from gradsieve.recipe.schema import ModelConfig

LFS = b"version https://git-lfs"
"""The first bytes of a file that git-lfs has not fetched."""

GIVE_A_MODEL = (
    "Give a folder with a causal language model in the hub's layout, its hub name, or a GGUF file; "
    "for a gated one log in with `hf auth login`."
)

GIVE_A_TOKENIZER = (
    "Put the tokenizer that the model was trained with into its folder: "
    "tokenizer.save_pretrained(FOLDER). A Trainer without processing_class saves none."
)

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings"),
)
"""Keys of a configuration whose values, if present, must be above 0."""

MOST_LAYERS = 10_000
"""Limit on the number of layers. Modules are created for each layer before weights are read, so
millions would take hours. The deepest language models have a few hundred."""


def read(kind: Any, model: ModelConfig, noun: str, **options: Any) -> Any:
    """Call `from_pretrained` of a transformers class; raises `ModelError` if that fails.

    `noun` names what is read, in the message; `options` are arguments of `from_pretrained`.
    """
    file = gguf_file(model.name)
    if file is None:
        _refuse_other_folders(model.name)
    else:
        needed("gguf", "gguf")
        options["gguf_file"] = file.name
    try:
        return kind.from_pretrained(
            model.name if file is None else str(file.parent),
            revision=model.revision or "main",
            trust_remote_code=model.trust_remote_code,
            **options,
        )
    except UnpicklingError:
        raise ModelError(
            "The weights are a pickle that would run code; gradsieve reads none.",
            f"model.name {model.name}",
            "Give the model as safetensors.",
        ) from None
    except Exception as error:  # readers raise many types; those in Rust raise plain Exception
        # On a CPU, PyTorch's out-of-memory error has no type of its own.
        is_full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if is_full or "can't allocate memory" in str(error):
            raise no_memory_for(model, error) from error
        todo = GIVE_A_TOKENIZER if noun == "tokenizer" else GIVE_A_MODEL
        if "trust_remote_code" in str(error):
            todo = (
                "Read its code, then set model.trust_remote_code: true to run it; or give another "
                "one."
            )
        where = f"model.name {model.name}: {first_line(error)}"
        # "We couldn't connect" doesn't say that the user may have meant a folder.
        where += ". There is no such folder here." if "couldn't connect" in where else ""
        raise ModelError(f"The {noun} cannot be loaded.", where, todo) from None


def no_memory_for(model: ModelConfig, error: Exception) -> ModelError:
    """The error that a model doesn't fit into memory: a GPU's, or the machine's."""
    todo = "Use a smaller model, model.dtype: bfloat16, or a machine with more memory."
    if isinstance(error, torch.OutOfMemoryError):
        todo = (
            "Stop other programs on the GPU, set model.quantization: 4bit, or distribute the model "
            "over several GPUs (engine.gpus_per_worker: 2)."
        )
    where = f"model.name {model.name}, {model.dtype}"
    return ModelError("There is not enough memory for the model.", where, todo)


def check_sizes(config: Any, name: str) -> None:
    """Refuse a configuration with impossible sizes.

    Raises:
        ModelError: If a size is impossible; the message names it.
    """
    for key in SIZES:
        size = getattr(config, key, None)
        most = MOST_LAYERS if key == "num_hidden_layers" else sys.maxsize
        for one in size if isinstance(size, list) else [size]:  # some models have one per layer
            if one is not None and not (isinstance(one, int) and 1 <= one <= most):
                raise ModelError(
                    "The model's configuration has a size that no model can have.",
                    f"model.name {name}, config.json: {key} {str(one)[:40]}",
                    "Copy or download config.json again.",
                )


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a name refers to: itself, or the only one in a folder without config."""
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ModelError(
            "The model's folder holds several GGUF files.",
            f"model.name {name}: {', '.join(file.name for file in files[:5])}",
            "Name one file as model.name; merge a split one with llama.cpp's llama-gguf-split.",
        )
    return files[0] if files else None


def read_model(model: ModelConfig, gpus: int) -> PreTrainedModel:
    """The model with its weights, quantized if the recipe says so, spread over at most `gpus`."""
    check_weights(model)
    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype)}
    is_gguf = gguf_file(model.name) is not None
    if is_gguf:
        if model.quantization:
            raise ModelError(
                "A GGUF file is dequantized, and cannot be quantized again.",
                f"model.name {model.name}, model.quantization {model.quantization}",
                "Leave model.quantization out, or give the original model.",
            )
        if hasattr(transformers, "GgufConfig"):  # older versions always dequantize
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    elif model.quantization:
        options |= {"quantization_config": _bitsandbytes(model), "device_map": {"": device()}}
    gpus = min(gpus, torch.cuda.device_count())
    if gpus > 1:
        free = {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in range(gpus)}
        options |= {"device_map": "balanced", "max_memory": free}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    loaded: PreTrainedModel
    with quiet_transformers():
        loaded, report = read(AutoModelForCausalLM, model, "model", **options)
    _refuse_random_weights(model, report)
    if is_gguf:  # once dequantized, it is an ordinary model
        loaded.is_quantized, loaded.hf_quantizer = False, None
        loaded.config.__dict__.pop("quantization_config", None)
    return loaded


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' progress bars and its report of missing weights, an error of ours."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _bitsandbytes(model: ModelConfig) -> BitsAndBytesConfig:
    """8 bits as in LLM.int8() (arXiv 2208.07339), or 4 bits as in QLoRA (arXiv 2305.14314)."""
    needed("bitsandbytes", "quantized")
    if model.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, model.dtype),
    )


def check_weights(model: ModelConfig) -> None:
    """Refuse a folder whose weights are missing or damaged; only headers are read."""
    folder, file = Path(model.name), gguf_file(model.name)
    files = [file] if file else sorted(folder.glob("*.safetensors"))
    if folder.is_dir() and not files and not any(folder.glob("*.bin")):
        raise ModelError(
            "The model's folder holds no weights.",
            f"model.name {model.name}: neither *.safetensors nor *.bin",
            "Give a folder that save_pretrained wrote, a hub name, or a GGUF file.",
        )
    index = folder / "model.safetensors.index.json"
    try:
        if not file and index.is_file():
            names = {*json.loads(index.read_bytes())["weight_map"].values()}
            files += sorted(folder / name for name in names - {one.name for one in files})
        damage = next(((one, wrong) for one in files if (wrong := _damage(one))), None)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        damage = index, first_line(error)
    if damage:
        raise ModelError(
            "A weight file is missing or damaged.",
            f"{damage[0]}: {damage[1]}",
            "Copy or download it again; or run `git lfs pull` in the model's folder.",
        )


def _damage(file: Path) -> str | None:
    """Why a weight file can't be read, from its first bytes."""
    if not file.is_file():
        return "no such file"
    with file.open("rb") as opened:
        start = opened.read(len(LFS))
    if start == LFS:
        return "a pointer of git-lfs, not the weights"
    if file.suffix == ".gguf":
        return None if start.startswith(b"GGUF") else "it doesn't start with GGUF"
    try:
        safe_open(file, "pt")
    except SafetensorError as error:
        return f"{file.stat().st_size} bytes: {first_line(error)}"
    return None


def _refuse_random_weights(model: ModelConfig, report: dict[str, Any]) -> None:
    """Refuse missing or misshapen weights, which transformers would initialize randomly."""
    others = sorted(report["mismatched_keys"])
    lacking = sorted(report["missing_keys"])
    lacking += [f"{name}: {list(found)} not {list(wanted)}" for name, found, wanted in others]
    if lacking:
        raise ModelError(
            "The weights are not of this model: some are missing or of another shape.",
            f"model.name {model.name}: {len(lacking)} weights, e.g. {lacking[0]}",
            "Give a causal language model whose config.json and weights belong together.",
        )


def model_fingerprint(name: str) -> str | None:
    """A local model's fingerprint: a hash of every byte that is read; None if it isn't local.

    It covers configurations, weights and code in the folder and its direct subfolders (used by
    sentence-transformers), except for checkpoints that a training left there.
    """
    folder, file = Path(name), gguf_file(name)
    if file is not None:
        return fingerprint([file_hash(file)])
    if not folder.is_dir():
        return None
    kinds = ("*.json", "*.safetensors", "*.bin", "*.model", "*.py")
    files = [file for kind in kinds for below in ("", "*/") for file in folder.glob(below + kind)]
    files = [file for file in files if not file.parent.name.startswith("checkpoint-")]
    return fingerprint(
        [(file.relative_to(folder).as_posix(), file_hash(file)) for file in sorted(files)]
    )


def _refuse_other_folders(name: str) -> None:
    """Refuse an adapter's folder, and a missing folder: a name that can't be a hub name."""
    path = Path(name)
    # An adapter next to a full model is ignored. A named adapter is saved in a subfolder.
    below = [] if (path / "config.json").is_file() else path.glob("*/adapter_config.json")
    adapter = next(
        (file for file in (path / "adapter_config.json", *below) if file.is_file()), None
    )
    if adapter is not None:
        raise ModelError(
            "The model's folder holds an adapter, not a full model.",
            f"model.name {name}: {adapter.relative_to(path)}",
            "Merge it into its model (peft: merge_and_unload, save_pretrained) and give that one's "
            "folder; or use the model without it, and its checkpoints as warmup.checkpoints.",
        )
    is_path = path.is_absolute() or name.startswith(".") or name.count("/") > 1 or path.is_file()
    if is_path and not path.is_dir():
        found = f"model.name {name}: {'a file' if path.is_file() else 'no such folder'}"
        raise ModelError("The model's folder does not exist.", found, GIVE_A_MODEL)
