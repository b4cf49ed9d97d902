"""A model without its weights: shapes alone, on torch's meta device.

In: a model's configuration, and the recipe's adapter or a saved one. Out: a module whose tensors
hold nothing, in a second and without memory, which tells what an adapter would adapt and what a
pass would cost. Nothing is read but configurations and the headers of weight files.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from gradsieve import recipe
from gradsieve.errors import ModelError
from gradsieve.model.checkpoints import saved_name
from gradsieve.model.load import add_adapter, load_config

ADAPTER = "adapter_model.safetensors"


def load_skeleton(model: recipe.Model) -> PreTrainedModel:
    """The model's modules, on the meta device.

    Raises:
        ModelError: If there is no configuration, or it is not of a causal language model.
    """
    config = load_config(model)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = AutoModelForCausalLM.from_config(
                config,
                dtype=getattr(torch, model.dtype),
                trust_remote_code=model.trust_remote_code,
            )
    except (ValueError, ImportError) as error:
        raise ModelError(
            "The model is not a causal language model that transformers knows.",
            f"model.name {model.name}: {type(config).__name__}; {str(error).splitlines()[0][:200]}",
            "Give a decoder such as Llama, Qwen, Mistral or GPT.",
        ) from None
    return made.requires_grad_(False)


def adapted_skeleton(model: recipe.Model, lora: recipe.Lora) -> PeftModel:
    """The model's modules with the recipe's adapter.

    Raises:
        ModelError: If the adapter doesn't fit, or as `load_skeleton`.
    """
    return add_adapter(load_skeleton(model), lora, 0)


def saved_skeleton(model: recipe.Model, folder: Path) -> PeftModel:
    """The model's modules with a saved adapter, whose weights are not read.

    Raises:
        ModelError: If the adapter doesn't fit, or as `load_skeleton`.
    """
    from peft import PeftConfig, get_peft_model

    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = False
        config.base_model_name_or_path = None  # where it was trained; peft would warn of a move
        return get_peft_model(load_skeleton(model), config)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ModelError(
            "The adapter does not fit the model.",
            f"{folder}: {str(error).splitlines()[0][:200]}",
            "Give the model that the adapter was trained on, as model.name.",
        ) from None


def check_adapter(model: recipe.Model, folder: Path) -> None:
    """Compare a saved adapter's names and shapes with the model.

    Raises:
        ModelError: Naming the first weight that differs.
    """
    skeleton = saved_skeleton(model, folder)
    file = folder / ADAPTER
    if not file.is_file():
        return  # adapter_model.bin, of old versions of peft: only loading it tells
    wanted = {
        saved_name(name): tuple(parameter.shape)
        for name, parameter in skeleton.named_parameters()
        if parameter.requires_grad
    }
    try:
        with safe_open(file, "pt") as opened:
            found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - safe_open is no mapping
    except SafetensorError as error:
        raise ModelError(
            f"The adapter cannot be read: {error}.", str(file), "Give a whole file."
        ) from None
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ModelError(
                "The adapter does not fit the model.",
                f"{file}: {name}: model {wanted.get(name)}, file {found.get(name)}",
                "Give the model that the adapter was trained on, as model.name.",
            )
