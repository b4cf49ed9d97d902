"""A model's cost, computed from its shapes alone: floating-point operations (FLOPs) and memory.

In: a model without weights. Out: its cost as a function of tokens. A forward pass takes 2 FLOPs per
weight and token, and 4 T^2 per unit of attention width; the backward pass takes as many again for
activations, and none for frozen weights (Kaplan et al., 2020, arXiv 2001.08361, plus LoRA's share).

Letters: T tokens of an example, P parameters of the adapter, h hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradsieve.recipe.schema import ModelConfig

Count = float | NDArray[Any]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model with its adapter.

    Attributes:
        parameters: Number of weights, without the adapter's.
        matmul: Number of weights that each token is multiplied by, without the head's.
        head: Number of weights of the output layer, which has `vocabulary` rows.
        hidden: Width of the residual stream.
        inner: Width of the feed-forward layer.
        kept: Values that generation caches per token and layer (key and value).
        adapter: P; with `full` (a fully trained model), the number of all weights.
        bytes_a_value: Bytes per activation, and per weight that isn't quantized.
        bytes_a_weight: Bytes per frozen weight.
    """

    parameters: int
    matmul: int
    head: int
    vocabulary: int
    layers: int
    hidden: int
    inner: int
    kept: int
    adapter: int
    bytes_a_value: int
    bytes_a_weight: float
    full: bool = False

    def forward(self, examples: Count, longest: Count, logits: Count) -> Any:
        """FLOPs of a forward pass with logits at `logits` positions; works with arrays too."""
        tokens = examples * longest
        attention = 4 * self.layers * self.hidden * tokens * longest
        lora = 0 if self.full else 2 * self.adapter * tokens
        return 2 * self.matmul * tokens + 2 * self.head * logits + attention + lora

    def forward_and_backward(self, examples: Count, longest: Count, logits: Count) -> Any:
        """FLOPs of a training pass or feature pass."""
        trained = 2 * self.adapter * examples * longest
        return 2 * self.forward(examples, longest, logits) + trained

    @property
    def weight_bytes(self) -> int:
        """Memory of the frozen weights, in bytes."""
        return round(self.parameters * self.bytes_a_weight)

    @property
    def trained_bytes(self) -> int:
        """Memory of the trained weights, their gradients and two moments, in bytes."""
        return self.trained_weight_bytes * (3 if self.full else 4)

    @property
    def trained_weight_bytes(self) -> int:
        """Size of a saved trained model, in bytes: its adapter in float32, or all its weights."""
        return self.adapter * (self.bytes_a_value if self.full else 4)

    def activation_bytes(self, tokens: int, logits: int) -> int:
        """Memory kept for the backward pass: an estimate for blocks with a gated feed-forward layer
        and attention without a T x T matrix (with 2 bytes: about 34 h, as Korthikanti et al., 2022,
        arXiv 2205.05198, count for GPT blocks), plus the logits and their gradient.
        """  # fmt: skip
        kept = self.bytes_a_value * (10 * self.hidden + 4 * self.inner) + 8 * self.hidden
        return self.layers * tokens * kept + logits * self.vocabulary * 2 * self.bytes_a_value


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per value, by the allowed settings of the recipe's `model.dtype`."""
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5}


def shape_of(model: nn.Module, settings: ModelConfig, full: bool = False) -> Shape:
    """Sizes of a (peft) model without weights, in the recipe's precision."""
    config: Any = model.config.get_text_config()  # type: ignore[operator,union-attr]
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    heads = getattr(config, "num_attention_heads", None) or 1  # state space models have none
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    sizes = {"lora": 0, "base": 0}
    for name, weight in model.named_parameters():  # tied weights once
        sizes["lora" if "lora_" in name else "base"] += weight.numel()
    dense = (
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and "lora_" not in name
    )
    return Shape(
        parameters=sizes["base"],
        matmul=sum(weight.numel() for weight in dense if weight is not head),
        adapter=sizes["base" if full else "lora"],
        head=head.numel(),
        vocabulary=head.shape[0],
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        kept=2 * head_width * (getattr(config, "num_key_value_heads", None) or heads),
        bytes_a_value=BYTES[settings.dtype],
        bytes_a_weight=QUANTIZED_BYTES.get(settings.quantization or "", BYTES[settings.dtype]),
        full=full,
    )
