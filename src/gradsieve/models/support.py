"""What gradsieve can follow, told from configurations alone, before anything is spent.

In: the recipe's `model` and `warmup`. Out: one error for each thing that the per-example pass
(influence/gradients.py) could not follow, by name: a model that is not causal, an adapter that is
not plain LoRA, a layer that is not linear. No weight is read: the model is built on PyTorch's
`meta` device, which takes a second for 7 billion parameters, and of a checkpoint only its
configuration and the shapes in its adapter file are looked at.

Whether each layer runs once a pass, and whether attention is causal in fact, only a run of the
model can tell: `gradients.per_example.check_pass` does that once it is loaded.

Rejected: a list of the model families that work (it ages), and a list of peft's variants of LoRA
that don't: it ages too, so here what is plain is listed, and any other setting is refused.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from gradsieve.errors import ModelError
from gradsieve.models.checkpoints import optimizer_file, saved_name
from gradsieve.models.load import first_line, load_config, lora_config
from gradsieve.models.meta_model import load_skeleton
from gradsieve.recipe import schema as recipe

PLAIN = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "init_lora_weights", "ensure_weight_tying"),
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "peft_version", "runtime_config", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
}
"""Settings of peft's LoraConfig with which an adapter's output stays s B A x."""

CALLED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "modules_to_save": "modules trained as a whole",
    "bias": "trained biases",
    "lora_bias": "biases of LoRA matrices",
    "target_parameters": "adapted parameters, such as fused MoE experts",
    "trainable_token_indices": "trained embeddings of tokens",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "arrow_config": "Arrow",
    "velora_config": "VeLoRA",
}
"""What the other settings of LoraConfig are called; the rest goes by its key."""

PLAIN_LORA = "Use plain LoRA on linear layers: peft.LoraConfig with r, lora_alpha, target_modules."

Shapes = Mapping[str, Sequence[int]]
"""Shapes of an adapter's weights by their names in adapter files."""


def check_support(model: recipe.ModelConfig, warmup: recipe.WarmupConfig) -> list[ModelError]:
    """Everything in a recipe's model and adapter that features can't be taken of.

    Args:
        model: The recipe's `model`.
        warmup: Its `lora` is looked at, or its existing `checkpoints`.

    Returns:
        One error for each problem; empty if the warm-up can start.
    """
    where = "warmup.lora.target_modules"
    try:
        config = load_config(model)
        problems = [*_kind_problems(config, model), *_quantization_problems(config, model)]
        if problems:
            return problems
        if warmup.checkpoints is not None:
            return list(_checkpoint_problems(model, [Path(path) for path in warmup.checkpoints]))
        base = load_skeleton(model)
        unmatched = _unmatched(base, warmup.lora.target_modules)
        adapter = lora_config(base, warmup.lora)
        return unmatched or list(_layer_problems(_adapted(base, adapter, where), where))
    except ModelError as error:
        return [error]


def _kind_problems(config: Any, model: recipe.ModelConfig) -> Iterator[ModelError]:
    """Models that don't predict each token from those before it alone."""
    text = config.get_text_config()
    reason = None
    if config.is_encoder_decoder:
        reason = "an encoder-decoder"
    elif not _has_causal_class(config, model):
        reason = "no causal language model in transformers"
    elif getattr(text, "use_bidirectional_attention", None) not in (None, False, "vision"):
        reason = "its attention is bidirectional (use_bidirectional_attention)"
    elif getattr(text, "is_causal", True) is False:
        reason = "its attention is bidirectional (is_causal: false)"
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        reason = "its attention is bidirectional (is_decoder: false)"
    if reason:
        yield ModelError(
            "The model is not a causal language model.",
            f"model.name {model.name}, type {config.model_type}: {reason}",
            "Use a decoder that predicts each token from those before it.",
        )


def _has_causal_class(config: Any, model: recipe.ModelConfig) -> bool:
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = type(config) in AutoModelForCausalLM._model_mapping
    return known or (own_code and model.trust_remote_code)


def _quantization_problems(config: Any, model: recipe.ModelConfig) -> Iterator[ModelError]:
    saved = getattr(config, "quantization_config", None)
    saved = saved if isinstance(saved, dict) or saved is None else saved.to_dict()
    if saved and saved.get("quant_method") != "bitsandbytes":
        yield ModelError(
            f"A base quantized by {saved.get('quant_method')} is not covered.",
            f"model.name {model.name}",
            "Give the unquantized model; model.quantization quantizes it with bitsandbytes.",
        )
    elif (saved or model.quantization) and not importlib.util.find_spec("bitsandbytes"):
        yield ModelError(
            "The library bitsandbytes is not installed.",
            f"model.quantization {model.quantization or 'in the model itself'}",
            "pip install 'gradsieve[quantized]'",
        )


def _adapted(base: PreTrainedModel, config: LoraConfig, where: str) -> PeftModel:
    """The adapter's layers on a model without weights.

    Raises:
        ModelError: If peft can't adapt what is named.
    """
    config.init_lora_weights = False  # some ways to start look at weights, which are not there
    config.inference_mode = False
    config.lora_dropout = 0.0  # fused experts refuse it, with a message that names no layer
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is told as an error, below
            return get_peft_model(base, config)
    except ValueError as error:
        raise ModelError(
            "The adapter does not fit the model.",
            f"{where}: {first_line(error)}",
            "Name linear layers of this model, or write all-linear.",
        ) from None


def _unmatched(base: nn.Module, targets: list[str] | str) -> list[ModelError]:
    """Names of target_modules that no layer has: peft passes over them silently."""
    names = [name for name, _ in base.named_modules()]
    there = _linear_names(base)
    problems = []
    for target in targets if isinstance(targets, list) else []:
        if any(name == target or name.endswith(f".{target}") for name in names):
            continue
        near = difflib.get_close_matches(target, there, n=3, cutoff=0.5) or there
        problems.append(
            ModelError(
                "The model has no layer of this name.",
                f"warmup.lora.target_modules: {target}",
                f"Its linear layers are {', '.join(there)}"
                + (f"; did you mean {near[0]}?" if near != there else "."),
            )
        )
    return problems


def _linear_names(base: nn.Module) -> list[str]:
    """Last parts of the names of layers that LoRA can adapt, in the model's order."""
    head = base.get_output_embeddings()  # type: ignore[operator]
    linear = [
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    return list(dict.fromkeys(name for name in linear if not name.isdigit()))


def _layer_problems(model: PeftModel, where: str) -> Iterator[ModelError]:
    """Adapted layers that are not linear, run for part of the tokens, or stand twice."""
    head = model.get_output_embeddings()
    places: dict[int, list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, LoraLayer):
            continue
        short = name.removeprefix("base_model.model.")
        places.setdefault(id(layer), []).append(short)
        reason = _unfollowed(short, layer, head)
        if reason:
            reasons.setdefault(reason, []).append(short)
    for shared in places.values():
        if len(shared) > 1:
            reasons.setdefault("one layer shared by several places", []).extend(shared)
    for reason, layers in reasons.items():
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        yield ModelError(
            f"The adapter has layers that cannot be followed: {reason}.",
            f"{where}: {', '.join(layers[:3])}{more}",
            f"Leave them out. {PLAIN_LORA}",
        )


def _unfollowed(name: str, layer: LoraLayer, head: nn.Module | None) -> str | None:
    base = layer.get_base_layer()
    if isinstance(layer, ParamWrapper) or ".experts." in f".{name}.":
        return "experts of a mixture, which see part of the tokens"
    if isinstance(base, nn.Embedding):
        return "embeddings"
    if layer is head or base is head:
        return "the output layer"
    if not isinstance(base, nn.Linear | Conv1D):
        return f"layers of type {type(base).__name__}"
    return None


# --- existing checkpoints -----------------------------------------------------------------------


def _checkpoint_problems(
    model: recipe.ModelConfig, folders: Sequence[Path]
) -> Iterator[ModelError]:
    """Adapters that are not plain LoRA of this model, or have no optimizer state."""
    built: dict[str, Shapes | list[ModelError]] = {}
    for folder in folders:
        try:
            text, adapter = _read_adapter_config(folder)
            optimizer_file(folder)
        except ModelError as error:
            yield error
            continue
        if text not in built:  # checkpoints of one run have the same configuration
            built[text] = _expected_shapes(model, folder, adapter)
        expected = built[text]
        if isinstance(expected, list):
            yield from expected
            built[text] = {}
        elif expected:
            yield from _shape_problems(folder, expected)


def _read_adapter_config(folder: Path) -> tuple[str, dict[str, Any]]:
    file = folder / "adapter_config.json"
    try:
        text = file.read_text(encoding="utf-8")
        adapter = json.loads(text)
    except OSError as error:
        raise ModelError(
            "There is no adapter here.",
            f"{file}: {error.strerror}",
            "Give folders with adapter_config.json and adapter_model.safetensors.",
        ) from None
    except ValueError:
        adapter = None
    if not isinstance(adapter, dict):
        raise ModelError(
            "The adapter's configuration is not JSON.",
            str(file),
            "Give a folder that peft has saved.",
        )
    return text, adapter


def _expected_shapes(
    model: recipe.ModelConfig, folder: Path, adapter: Mapping[str, Any]
) -> Shapes | list[ModelError]:
    """Shapes of the adapter's weights on this model; or what is wrong with it."""
    problems = list(_variant_problems(folder, adapter))
    if problems:
        return problems
    try:
        plain = LoraConfig(**{key: adapter[key] for key in _SHAPING & adapter.keys()})
        adapted = _adapted(load_skeleton(model), plain, str(folder))
    except ModelError as error:
        return [error]
    problems = list(_layer_problems(adapted, str(folder)))
    if problems:
        return problems
    named = adapted.named_parameters()
    return {saved_name(name): list(p.shape) for name, p in named if p.requires_grad}


_SHAPING = {
    *("r", "rank_pattern", "target_modules", "exclude_modules", "task_type", "fan_in_fan_out"),
    *("layers_to_transform", "layers_pattern"),
}
"""Settings that decide which layers an adapter has, and their shapes."""


def _variant_problems(folder: Path, adapter: Mapping[str, Any]) -> Iterator[ModelError]:
    """Adapters of other kinds, and variants of LoRA."""
    kind, task = adapter.get("peft_type"), adapter.get("task_type")
    if kind != PeftType.LORA.value:
        found = [(f"peft_type {kind}", f"{kind} adapters")]
    elif task not in (None, "CAUSAL_LM"):
        found = [(f"task_type {task}", f"adapters for {task}")]
    else:
        usual = LoraConfig().to_dict()
        others = {key: adapter[key] for key in sorted(adapter.keys() - PLAIN)}
        found = [
            (f"{key} {json.dumps(value)[:80]}", CALLED.get(key, key))
            for key, value in others.items()
            if value and value != usual.get(key)
        ]
    for where, name in found:
        yield ModelError(
            f"The adapter cannot be followed: {name}.",
            f"{folder / 'adapter_config.json'}: {where}",
            PLAIN_LORA,
        )


def _shape_problems(folder: Path, expected: Shapes) -> Iterator[ModelError]:
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        if not (folder / "adapter_model.bin").is_file():
            yield ModelError(
                "The adapter's weights are not there.",
                str(file),
                "Give folders with adapter_config.json and adapter_model.safetensors.",
            )
        return
    try:
        with safe_open(file, "pt") as opened:
            found = {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        yield ModelError(
            "The adapter's weights cannot be read.", f"{file}: {error}", "Copy the file anew."
        )
        return
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            yield ModelError(
                "The adapter is of another model.",
                f"{file}: {name}, in the file {found.get(name, 'missing')}, by the model and "
                f"adapter_config.json {expected.get(name, 'missing')}",
                "Give the model that the adapter was trained on, as model.name.",
            )
            return
