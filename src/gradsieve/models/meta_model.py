"""A model without its weights: shapes alone, on torch's meta device.

In: a model's configuration, and the recipe's adapter or a saved one. Out: a module whose tensors
hold nothing, in a second and without memory, which tells what a pass would cost. Only
configurations are read.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from gradsieve.errors import ModelError
from gradsieve.models.load import add_adapter, first_line, load_config
from gradsieve.recipe import schema as recipe


def load_skeleton(model: recipe.ModelConfig) -> PreTrainedModel:
    """The model's modules, on the meta device.

    Raises:
        ModelError: If it is no causal language model that transformers knows.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = AutoModelForCausalLM.from_config(
                load_config(model),
                dtype=getattr(torch, model.dtype),
                trust_remote_code=model.trust_remote_code,
            )
    except (ValueError, ImportError, OSError) as error:
        raise ModelError(
            "The model cannot be built.",
            f"model.name {model.name}: {first_line(error)}",
            "Give a causal language model that this version of transformers knows.",
        ) from None
    return made.requires_grad_(False)


def adapted_skeleton(model: recipe.ModelConfig, lora: recipe.LoraConfig) -> PeftModel:
    """The model's modules with the recipe's adapter."""
    return add_adapter(load_skeleton(model), lora, 0)


def saved_skeleton(model: recipe.ModelConfig, folder: Path) -> PeftModel:
    """The model's modules with a saved adapter's layers, whose weights are not read."""
    config: Any = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = False
    config.init_lora_weights = False  # PiSSA and OLoRA start from weights, which are not there
    config.base_model_name_or_path = None  # where it was trained; peft would warn of a move
    return get_peft_model(load_skeleton(model), config)
