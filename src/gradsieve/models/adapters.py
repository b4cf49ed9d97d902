"""Checks that adapters of existing checkpoints are plain LoRA on the recipe's model.

In: folders that peft saved. Out: one error for each reason why an adapter isn't s B A x on the
recipe's model (another kind of adapter, a LoRA variant, an initialization that changed the base
model's weights and can't be repeated, another model, a resized vocabulary) or why an optimizer
state doesn't fit it. Only configurations, shapes in adapter files and optimizer states are read.

Rejected: a list of peft's LoRA variants, because it goes out of date. Instead the plain settings
are listed here, and any other setting is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig, PeftModel, PeftType
from safetensors import SafetensorError, safe_open

from gradsieve.errors import ErrorGroup, GradsieveError, ModelError, raise_all
from gradsieve.models.checkpoints import load_moments, optimizer_file, saved_name
from gradsieve.models.layers import PLAIN_LORA, adapted, layer_problems
from gradsieve.models.load import adapter_config, adapter_file
from gradsieve.models.source import ModelSource

PLAIN = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "init_lora_weights", "ensure_weight_tying"),
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "peft_version", "runtime_config", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
}
"""Settings of peft's LoraConfig that leave an adapter's output s B A x."""

CALLED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "modules_to_save": "fully trained modules",
    "bias": "trained biases",
    "lora_bias": "biases of LoRA matrices",
    "target_parameters": "adapted parameters, such as fused MoE experts",
    "trainable_token_indices": "trained embeddings of tokens",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "arrow_config": "Arrow",
    "velora_config": "VeLoRA",
}
"""Names of other settings of LoraConfig, for messages; those not listed are named by their key."""

STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "pissa", "olora")
"""Values of init_lora_weights that don't change the base model's weights, or change them in a way
that peft repeats when it loads the adapter."""

MERGE = (
    "Or merge a trained one (merge_and_unload, save_pretrained) and use the result as model.name, "
    "without warmup.checkpoints."
)

STARTED_BY = {"corda": "CorDA", "lora_ga": "LoRA-GA", "loftq": "LoftQ", "mica": "MiCA"}

Shapes = Mapping[str, Sequence[int]]
"""Shapes of weights, by the names used in adapter files."""


class Expected(NamedTuple):
    """Shapes an adapter file may hold; `embeddings` are saved if the vocabulary was resized."""

    model: PeftModel
    adapter: Shapes
    embeddings: Shapes


def start_problem(start: Any, where: str) -> ModelError | None:
    """The error for a LoRA initialization that changes the base model randomly or from data."""
    if start in STARTS:
        return None
    name = STARTED_BY.get(str(start), str(start))
    if str(start).startswith("pissa_niter"):
        name = f"PiSSA with a random SVD ({start})"
    return ModelError(
        f"The adapter cannot be followed: it was started by {name}.",
        f"{where}: init_lora_weights {start}",
        "Start it with true, gaussian, orthogonal, eva, pissa or olora. For a trained one: save "
        "the base model that the start changed (peft_model.unload().save_pretrained), use it as "
        "model.name, and set init_lora_weights to true in adapter_config.json.",
    )


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
        except ErrorGroup as group:
            yield from group.errors
        except ModelError as error:
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
    raise_all([*variant_problems(adapter, file), *_type_problems(folder, adapter)])
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
    """Yield errors for other kinds of adapters and LoRA variants, from the configuration."""
    kind, task = adapter.get("peft_type"), adapter.get("task_type")
    if kind != PeftType.LORA.value:
        found = [(f"peft_type {kind}", f"{kind} adapters")]
    elif task not in (None, "CAUSAL_LM"):
        found = [(f"task_type {task}", f"adapters for {task}")]
    else:
        usual = LoraConfig().to_dict()
        found = [
            (f"{key} {json.dumps(adapter[key], default=str)[:80]}", CALLED.get(key, key))
            for key in sorted(adapter.keys() - PLAIN)
            if adapter[key] and adapter[key] != usual.get(key)
        ]
    start = start_problem(adapter.get("init_lora_weights", True), place)
    if start and not found:
        yield start
    for where, name in found:
        what = f"The adapter cannot be followed: {name}."
        yield ModelError(what, f"{place}: {where}", f"{PLAIN_LORA} {MERGE}")


SETTINGS: dict[str, tuple[tuple[type, ...], tuple[float, float] | None]] = {
    "r": ((int,), (1, math.inf)),
    "lora_alpha": ((int, float), (0, math.inf)),
    "lora_dropout": ((int, float), (0, 1)),
    "use_rslora": ((bool,), None),
    "fan_in_fan_out": ((bool,), None),
    "rank_pattern": ((dict,), None),
    "alpha_pattern": ((dict,), None),
}
"""Allowed types of settings; for numbers also the minimum and the exclusive maximum."""


def _type_problems(folder: Path, adapter: Mapping[str, Any]) -> Iterator[ModelError]:
    """Yield errors for invalid values: peft accepts any, then fails later or computes nonsense."""
    for key, (kinds, limits) in SETTINGS.items():
        value = adapter.get(key)
        if value is None:
            continue
        if type(value) in kinds and (limits is None or limits[0] <= value < limits[1]):
            continue  # not with isinstance, which counts True as an int
        yield ModelError(
            "The adapter's configuration is damaged.",
            f"{folder / 'adapter_config.json'}: {key} {json.dumps(value)[:80]}",
            "Copy the file again.",
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
    for name in sorted(expected.embeddings.keys() & found.keys()):
        rows, wanted = found.pop(name), expected.embeddings[name]
        if rows != wanted:
            raise ModelError(
                "The adapter was trained with a resized vocabulary.",
                f"{file}: {name}, in the file {rows}, in the model {wanted}",
                f"Save the model with that vocabulary and use it as model.name: "
                f"model.resize_token_embeddings({rows[0]}), model.save_pretrained(FOLDER), and "
                "tokenizer.save_pretrained(FOLDER) of the training.",
            )
    for name in sorted(expected.adapter.keys() | found.keys()):
        if found.get(name) != expected.adapter.get(name):
            raise ModelError(
                "The adapter is of another model.",
                f"{file}: {name}, in the file {found.get(name, 'missing')}, by the model and "
                f"adapter_config.json {expected.adapter.get(name, 'missing')}",
                "Give the model that the adapter was trained on, as model.name.",
            )
