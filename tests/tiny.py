"""Tiny models for several test folders, built from configurations without a network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    Qwen3Config,
)

VOCABULARY = 97

CONFIGS = {
    "llama-gqa-tied": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    ),
    "gpt-neox": GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "qwen3": Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    ),
}

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS |= {
    "mistral": MistralConfig(**SMALL, sliding_window=8),
    "gemma": GemmaConfig(**SMALL, head_dim=8),
    "gemma2-soft-caps": Gemma2Config(**SMALL, head_dim=8, query_pre_attn_scalar=8),
    "phi": PhiConfig(**SMALL),
    "phi3-fused-qkv": Phi3Config(**SMALL),
    "opt-tokens-in-one-row": OPTConfig(**SMALL, word_embed_proj_dim=32, ffn_dim=48),
}

MODULES = {
    "phi": ["q_proj", "k_proj", "v_proj", "dense", "fc1"],
    "phi3-fused-qkv": ["qkv_proj", "o_proj", "gate_up_proj"],
    "gpt-neox": ["query_key_value", "dense"],
    "gpt2": ["c_attn", "c_proj"],
    "opt-tokens-in-one-row": ["q_proj", "v_proj", "fc1", "fc2"],
}


def model(name: str = "llama-gqa-tied") -> PreTrainedModel:
    """A random model in float32."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32)


def adapted(name: str = "llama-gqa-tied", r: int = 4, dropout: float = 0.1) -> PeftModel:
    """A random model with a LoRA adapter whose matrices are all nonzero."""
    config = LoraConfig(
        r=r,
        lora_alpha=4 * r,
        lora_dropout=dropout,
        target_modules=MODULES.get(name, ["q_proj", "k_proj", "v_proj", "o_proj"]),
        fan_in_fan_out=name == "gpt2",
        task_type="CAUSAL_LM",
    )
    return stirred(get_peft_model(model(name), config))


def stirred(made: PeftModel) -> PeftModel:
    """Make all LoRA matrices nonzero, in place; returns the model."""
    generator = torch.Generator().manual_seed(1)
    for parameter_name, parameter in made.named_parameters():
        if "lora_B" in parameter_name:
            drawn = torch.empty_like(parameter, device="cpu").normal_(0, 0.05, generator=generator)
            parameter.data.copy_(drawn)
    return made


def weights(made: PeftModel) -> dict[str, Tensor]:
    """Trainable parameters, by name."""
    return {name: p for name, p in made.named_parameters() if p.requires_grad}


def stepped(made: PeftModel, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    """Train for some steps."""
    for seed in range(steps):
        optimizer.zero_grad()
        made(**batch(seed=seed)).loss.backward()
        optimizer.step()


def batch(lengths: tuple[int, ...] = (20, 7, 13, 20), seed: int = 0) -> dict[str, Tensor]:
    """Right-padded rows of mixed lengths; two labeled spans, as for two assistant turns."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(1, VOCABULARY, (len(lengths), longest), generator=generator)
    labels, mask = ids.clone(), torch.ones_like(ids)
    for row, length in enumerate(lengths):
        labels[row, : length // 4] = -100
        labels[row, length // 2 : length // 2 + 2] = -100
        labels[row, length:] = -100
        ids[row, length:] = 0
        mask[row, length:] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    """Everything in a tokenizer that a call or a library may change."""
    public = {name: value for name, value in vars(tokenizer).items() if name != "_tokenizer"}
    return {**copy.deepcopy(public), "backend": tokenizer.backend_tokenizer.to_str()}
