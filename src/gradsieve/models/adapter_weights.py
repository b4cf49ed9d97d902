"""The files of a saved adapter, and what loading its weights must not do.

In: a folder that peft saved. Out: the file with the weights, and checks around `load.load_adapter`:
weights that are not finite are refused by name, and a model in memory keeps its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from gradsieve.errors import ModelError

BOTH_FILES = "Name folders with adapter_config.json and adapter_model.safetensors."


def adapter_config(folder: Path) -> Path:
    """The file with an adapter's configuration.

    Raises:
        ModelError: If it is missing.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ModelError("There is no adapter here.", f"{file}: no such file", BOTH_FILES)
    return file


def adapter_file(folder: Path) -> Path:
    """The file with an adapter's weights.

    Raises:
        ModelError: If it or the configuration is missing.
    """
    adapter_config(folder)
    files = [folder / f"adapter_model.{kind}" for kind in ("safetensors", "bin")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise ModelError("The adapter's weights are not there.", str(files[0]), BOTH_FILES)
    return file


def own_weights(model: PreTrainedModel, folder: Path) -> None:
    """Copy the weights that loading the adapter changes in place: a caller's model may share them.

    OLoRA subtracts its start from the base's weights; an adapter of a resized vocabulary brings its
    embeddings along.
    """
    config = json.loads(adapter_config(folder).read_text(encoding="utf-8"))
    changed: list[nn.Parameter] = []
    if config.get("init_lora_weights") == "olora":
        changed += model.parameters()
    if _has_embeddings(adapter_file(folder)):
        changed += model.get_input_embeddings().parameters()
        changed += model.get_output_embeddings().parameters()
    for parameter in {id(p): p for p in changed if p.is_floating_point()}.values():
        parameter.data = parameter.data.clone()


def _has_embeddings(file: Path) -> bool:
    if file.suffix == ".bin":
        return True  # a pickle, whose names only loading it shows
    with safe_open(file, "pt") as opened:
        return any("lora_" not in name for name in opened.keys())  # noqa: SIM118


def check_finite(model: nn.Module, folder: Path) -> None:
    """Refuse LoRA weights that are not finite: no example would have a gradient.

    Raises:
        ModelError: Naming the weight.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                "The adapter has weights that are not finite.",
                f"{folder}: {name}",
                "Use a checkpoint from before the training diverged, or copy it again.",
            )
