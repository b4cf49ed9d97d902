"""Checks from configurations alone that a model and adapter are supported, before any computation.

In: the recipe's `model` and `warmup`. Out: one error for each thing that the per-example pass
(gradients/per_example.py) can't follow, by name: a model that is not causal, an adapter that is not
plain LoRA (adapters.py), a layer that is not linear (layers.py). No model weight is read: the model
is built on PyTorch's `meta` device, which takes a second for 7 billion parameters; of a checkpoint,
the configuration, the shapes in its adapter file and its optimizer state are read.

Only running the model can show whether each layer runs once per pass and whether attention is
actually causal: `gradients.per_example.check_pass` tests that after the model is loaded.

Rejected: a list of model families that work, because it goes out of date.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from gradsieve.errors import GradsieveError, ModelError
from gradsieve.io import installed
from gradsieve.models.adapters import checkpoint_problems
from gradsieve.models.layers import adapted, layer_problems, unmatched
from gradsieve.models.load import lora_config
from gradsieve.models.source import ModelSource
from gradsieve.recipe.schema import ModelConfig, WarmupConfig


def check_support(source: ModelSource, warmup: WarmupConfig) -> Sequence[GradsieveError]:
    """An error for each thing in a recipe's model and adapter (`warmup.checkpoints`, or `lora` if
    there are none) that makes features impossible to compute.
    """
    try:
        config, model = source.config(), source.settings
        problems = [*_kind_problems(config, model), *_quantization_problems(config, model)]
        if problems:
            return problems
        if warmup.checkpoints is not None:
            return list(checkpoint_problems(source, [Path(path) for path in warmup.checkpoints]))
        base, lora, where = source.meta_model(), warmup.lora, "warmup.lora.target_modules"
        wrong_names = [
            *unmatched(base, lora.target_modules, where),
            *unmatched(base, lora.exclude_modules or [], "warmup.lora.exclude_modules"),
        ]
        if wrong_names:
            return wrong_names
        return list(layer_problems(adapted(base, lora_config(base, lora), where), where))
    except GradsieveError as error:
        return [error]


def _kind_problems(config: Any, model: ModelConfig) -> Iterator[ModelError]:
    """Yield an error for a model that doesn't predict each token only from those before it."""
    text = config.get_text_config()
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = type(config) in AutoModelForCausalLM._model_mapping
    bidirectional = (
        getattr(text, "use_bidirectional_attention", None) not in (None, False, "vision")
        or getattr(text, "is_causal", True) is False
        or (type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", 0))
    )
    reason = None
    if config.is_encoder_decoder:
        reason = "an encoder-decoder"
    elif not known and not (own_code and model.trust_remote_code):
        reason = "no causal language model in transformers"
    elif bidirectional:
        reason = "its attention is bidirectional"
    if reason:
        yield ModelError(
            "The model is not a causal language model.",
            f"model.name {model.name}, type {config.model_type}: {reason}",
            "Use a decoder that predicts each token from those before it.",
        )


def _quantization_problems(config: Any, model: ModelConfig) -> Iterator[ModelError]:
    saved = getattr(config, "quantization_config", None)
    saved = saved if isinstance(saved, dict) or saved is None else saved.to_dict()
    if saved and saved.get("quant_method") != "bitsandbytes":
        yield ModelError(
            f"A base quantized by {saved.get('quant_method')} is not covered.",
            f"model.name {model.name}",
            "Give the unquantized model; model.quantization quantizes it with bitsandbytes.",
        )
    elif saved or model.quantization:
        installed("bitsandbytes", "quantized")
