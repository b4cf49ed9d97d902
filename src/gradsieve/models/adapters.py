"""Checks that adapters of existing checkpoints are plain LoRA on the recipe's model.

In: folders that peft saved. Out: one error for each reason why an adapter isn't s B A x on the
recipe's model (another kind of adapter, a LoRA variant, an initialization that changed the base
model's weights and can't be repeated, another model) or why an optimizer state doesn't fit it. Only
configurations, shapes in adapter files and optimizer states are read.

Rejected: a list of peft's LoRA variants, because it goes out of date. Instead the plain settings
are listed here, and any other setting is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig, PeftModel
from safetensors import SafetensorError, safe_open

from gradsieve.errors import GradsieveError, ModelError, raise_all
from gradsieve.models.checkpoints import load_moments, optimizer_file, saved_name
from gradsieve.models.layers import PLAIN_LORA, adapted, layer_problems
from gradsieve.models.load import adapter_config, adapter_file
from gradsieve.models.source import ModelSource

PLAIN = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "init_lora_weights", "ensure_weight_tying"),
    *("auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "peft_version", "runtime_config", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
}
"""Settings of peft's LoraConfig that leave an adapter's output s B A x."""

STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "pissa", "olora")
"""Values of init_lora_weights that don't change the base model's weights, or change them in a way
that peft repeats when it loads the adapter."""

MERGE = (
    "Or merge a trained one (merge_and_unload, save_pretrained) and use the result as model.name, "
    "without warmup.checkpoints."
)

Shapes = Mapping[str, Sequence[int]]
"""Shapes of weights, by the names used in adapter files."""


class Expected(NamedTuple):
    """Shapes an adapter file may hold; `embeddings` are saved if the vocabulary was resized."""

    model: PeftModel
    adapter: Shapes
    embeddings: Shapes


def checkpoint_problems(source: ModelSource, folders: Sequence[Path]) -> Iterator[GradsieveError]:
    """Yield errors for adapters that aren't plain LoRA of this model or lack a fitting state."""
    built: dict[str, Expected | None] = {}
    for folder in folders:
        try:
            text, adapter = _read_adapter_config(folder)
            optimizer_file(folder)
            if text not in built:  # checkpoints of one run have the same configuration
                built[text] = None  # a wrong configuration is reported once
                built[text] = _expected(source, folder, adapter)
            if expected := built[text]:
                _check_shapes(adapter_file(folder), expected)
                load_moments(folder, expected.model)
        except GradsieveError as error:
            yield error


def _read_adapter_config(folder: Path) -> tuple[str, dict[str, Any]]:
    file = adapter_config(folder)
    try:
        text = file.read_text(encoding="utf-8")
        return text, {**json.loads(text)}
    except (ValueError, TypeError):
        todo = "Give a folder that peft has saved."
        raise ModelError("The adapter's configuration is not JSON.", str(file), todo) from None


def _expected(source: ModelSource, folder: Path, adapter: Mapping[str, Any]) -> Expected:
    """Shapes of the adapter's weights on this model; raises all errors at once."""
    file = str(folder / "adapter_config.json")
    raise_all(variant_problems(adapter, file))
    plain = LoraConfig(**{key: adapter[key] for key in _SHAPING & adapter.keys()})
    base = source.meta_model()
    vocabulary = (base.get_input_embeddings(), base.get_output_embeddings())
    embeddings = {
        f"base_model.model.{name}.weight": list(module.weight.shape)
        for name, module in base.named_modules()
        if any(module is layer for layer in vocabulary)
    }
    made = adapted(base, plain, str(folder))
    raise_all(layer_problems(made, str(folder)))
    named = made.named_parameters()
    shapes = {saved_name(name): list(p.shape) for name, p in named if p.requires_grad}
    return Expected(made, shapes, embeddings)


_SHAPING = {
    *("r", "rank_pattern", "target_modules", "exclude_modules", "task_type", "fan_in_fan_out"),
    *("layers_to_transform", "layers_pattern"),
}
"""Settings that determine an adapter's layers and their shapes."""


def variant_problems(adapter: Mapping[str, Any], place: str) -> Iterator[ModelError]:
    """Yield errors for other kinds of adapters, LoRA variants, and initializations that change the
    base model randomly or from data; only the configuration is read.
    """
    plain = {**LoraConfig().to_dict(), "task_type": "CAUSAL_LM"}
    found = [
        f"{key} {json.dumps(adapter[key], default=str)[:80]}"
        for key in sorted(adapter.keys() - PLAIN)
        if adapter[key] and adapter[key] != plain.get(key)
    ]
    start = adapter.get("init_lora_weights", True)
    if found:
        where = f"{place}: {', '.join(found)}"
        yield ModelError("The adapter is not plain LoRA.", where, f"{PLAIN_LORA} {MERGE}")
    elif start not in STARTS:
        yield ModelError(
            "The adapter's initialization changed the base model in a way that can't be repeated.",
            f"{place}: init_lora_weights {start}",
            "Start it with true, gaussian, orthogonal, eva, pissa or olora. For a trained one: "
            "save the base model that the start changed (peft_model.unload().save_pretrained), "
            "use it as model.name, and set init_lora_weights to true in adapter_config.json.",
        )


def _check_shapes(file: Path, expected: Expected) -> None:
    """Refuse weights whose names or shapes don't match the adapter on this model."""
    if file.suffix == ".bin":
        return  # a pickle, which is read only when it is loaded, with weights_only
    try:
        with safe_open(file, "pt") as opened:
            found = {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(
            "The adapter's weights cannot be read.", f"{file}: {error}", "Copy the file again."
        ) from None
    saved = expected.embeddings.keys() & found.keys()
    wanted = {**expected.adapter, **{name: expected.embeddings[name] for name in saved}}
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise ModelError(
                "The adapter is of another model.",
                f"{file}: {name}, in the file {found.get(name, 'missing')}, by the model and "
                f"adapter_config.json {wanted.get(name, 'missing')}",
                "Give the model that the adapter was trained on, as model.name: if tokens were "
                "added, the resized one, saved with its tokenizer.",
            )
