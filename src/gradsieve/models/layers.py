"""Which layers an adapter targets, and whether the per-example pass can follow them.

In: a model without weights (`ModelSource.meta_model`) and the adapter's configuration. Out: one
error for each kind of layer that is not linear, that sees only part of the tokens, or that text
inputs don't use (image or audio towers), and for each name that the model doesn't have.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gradsieve.errors import ModelError, did_you_mean, first_few, first_line

PLAIN_LORA = "Use plain LoRA on linear layers: peft.LoraConfig with r, lora_alpha, target_modules."

TOWER = "layers for images or sound, which text does not run"


def adapted(base: PreTrainedModel, config: LoraConfig, where: str) -> PeftModel:
    """A model without weights, with the adapter's layers."""
    config.init_lora_weights = False  # some initializations read weights, which don't exist here
    config.inference_mode = False
    config.lora_dropout = 0.0  # fused experts refuse it, with a message that names no layer
    try:
        # Problems that peft warns of are raised as errors by `unmatched` and `layer_problems`.
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            return get_peft_model(base, config)
    except Exception as error:  # peft accepts settings of any type, and fails where it uses them
        raise misfit(where, error) from None


def put_forward(undo: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Replace a module's forward until `undo` closes.

    The previous one is restored: accelerate sets its own forward in models on several devices.
    """
    before = module.__dict__.get("forward")
    module.forward = forward
    if before is None:
        undo.callback(module.__dict__.pop, "forward")
    else:
        undo.callback(setattr, module, "forward", before)


def misfit(where: str, error: Exception) -> ModelError:
    """The error for an adapter that peft can't attach."""
    todo = "Name linear layers of this model, or write all-linear and exclude_modules."
    return ModelError("The adapter does not fit the model.", f"{where}: {first_line(error)}", todo)


def unmatched(base: nn.Module, targets: list[str] | str, where: str) -> Iterator[ModelError]:
    """Yield errors for suffixes of layer names, or a regular expression for the full name, that
    match no layer; peft ignores these.
    """
    if targets == "all-linear":
        return
    modules = dict(base.named_modules())
    head = base.get_output_embeddings()  # type: ignore[operator]
    linear = [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    there = list(dict.fromkeys(last for last in map(_last, linear) if not last.isdigit()))
    if isinstance(targets, str):
        if not any(re.fullmatch(targets, name) for name in modules):
            yield ModelError(
                "The model has no layer whose full name matches the regular expression.",
                f"{where}: {targets}",
                f"Its linear layers are {', '.join(there)}; their full names look like "
                f"{', '.join(linear[:1])}. Names alone are written as a list: "
                f"[{', '.join(there[:1])}].",
            )
        return
    ends = {".".join(name.split(".")[at:]) for name in modules for at in range(name.count(".") + 1)}
    for target in (target for target in targets if target not in ends):
        what, todo = "The model has no layer of this name.", did_you_mean(target, there)
        yield ModelError(what, f"{where}: {target}", todo)


def layer_problems(model: PeftModel, where: str) -> Iterator[ModelError]:
    """Yield errors for adapted layers that aren't linear, see part of the tokens or are shared."""
    head = model.get_output_embeddings()
    decoder = _decoder(model)
    places: dict[int, list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, LoraLayer):
            continue
        short = name.removeprefix("base_model.model.")
        places.setdefault(id(layer), []).append(short)
        reason = _unfollowed(short, layer, head) if f"{short}.".startswith(decoder) else TOWER
        if reason:
            reasons.setdefault(reason, []).append(short)
    for shared in places.values():
        if len(shared) > 1:
            reasons.setdefault("one layer shared by several places", []).extend(shared)
    refused = {_last(name) for layers in reasons.values() for name in layers}
    names = (_last(name) for shared in places.values() for name in shared)
    followed = [name for name in dict.fromkeys(names) if name not in refused]
    leave = f" with target_modules: [{', '.join(followed)}]." if followed else f". {PLAIN_LORA}"
    others = f"(?!{re.escape(decoder)}).*"
    for reason, layers in reasons.items():
        yield ModelError(
            f"The adapter has layers that cannot be followed: {reason}.",
            f"{where}: {first_few(layers)}",
            f"Exclude them, in warmup.lora or LoraConfig: exclude_modules: '{others}'"
            if reason == TOWER
            else f"Leave them out{leave}",
        )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _decoder(model: PeftModel) -> str:
    """The prefix of the language model's layer names, if the model has several parts; else ''."""
    base = model.get_base_model()
    if base.config.get_text_config() is base.config:
        return ""
    part = base.get_decoder()
    name = next((name for name, module in base.named_modules() if module is part), "")
    return f"{name}." if name else ""


def _unfollowed(name: str, layer: LoraLayer, head: nn.Module | None) -> str | None:
    base = layer.get_base_layer()
    if isinstance(layer, ParamWrapper) or ".experts." in f".{name}.":
        return "experts of a mixture, which see part of the tokens"
    if isinstance(base, nn.Embedding):
        return "embeddings"
    if layer is head or base is head:
        return "the output layer"
    if not isinstance(base, nn.Linear | Conv1D) or not _maps_rows(base):
        return f"layers of type {type(base).__name__}"
    return None


def _maps_rows(layer: nn.Linear | Conv1D) -> bool:
    """Whether a layer maps each row to one row; some routers and grouped layers subclass Linear.

    Layers with real weights are assumed to: `check_pass` tests them on a few tokens.
    """
    if isinstance(layer, Conv1D) or not layer.weight.is_meta:
        return True
    rows = torch.empty(1, 2, layer.in_features, dtype=layer.weight.dtype, device="meta")
    try:
        made = layer(rows)
    except RuntimeError:  # shapes don't match
        return False
    return isinstance(made, torch.Tensor) and made.shape == (1, 2, layer.out_features)
