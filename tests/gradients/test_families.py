"""Model families: per-example gradients equal the loop's, and the loss equals the model's own.

The tolerance is 1e-5, with LoRA on every layer; some of the models scale or cap logits.

Models are tiny and random, made from transformers' own configurations.
"""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from gradsieve.gradients.objectives import SFT
from gradsieve.gradients.per_example import check_pass, per_example, per_example_loop

SMALL_AS_THEY_ARE = (
    *("apertus", "arcee", "bitnet", "cohere", "cohere2", "diffllama", "ernie4_5", "exaone4"),
    *("gemma", "glm", "glm4", "gpt_neox", "granite", "helium", "hunyuan_v1_dense", "lfm2"),
    *("llama", "ministral", "mistral", "nemotron", "olmo", "olmo2", "olmo3", "persimmon", "phi"),
    *("phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2"),
)
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": {**GPT2, "rotary_dim": 8},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gptj": {**GPT2, "rotary_dim": 8},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "minicpm3": {  # latent attention has its own ranks and head dimensions
        **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16},
        **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    },
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
}


FAMILIES |= {family: {} for family in SMALL_AS_THEY_ARE}


def adapted(family: str) -> torch.nn.Module:
    given = {**tiny.SMALL, **FAMILIES[family]}
    if hasattr(AutoConfig.for_model(family), "head_dim"):
        given["head_dim"] = 8
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **given)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return tiny.stirred(get_peft_model(model, lora))


@pytest.mark.filterwarnings("ignore")  # about configurations that are smaller than the defaults
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_equals_the_loop(family: str) -> None:
    model, batch = adapted(family), tiny.batch()
    check_pass(model)
    found, wanted = per_example(model, batch), per_example_loop(model, batch)
    assert list(found) == list(wanted)
    for name, gradient in wanted.items():
        error = (found[name] - gradient).flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)
        assert float(error.max()) <= 1e-5, name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_training_loss_is_the_models_own(family: str) -> None:
    model, batch = adapted(family).eval(), tiny.batch()
    assert SFT.fits(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for count in (None, torch.tensor(150)):
        own = model(**batch).loss
        if count is not None:
            own = own * (batch["labels"][:, 1:] != -100).sum() / count
        found = SFT.batch_loss(model, batch, count)
        assert float(found) == pytest.approx(float(own), rel=1e-5)
        both = (torch.autograd.grad(loss, weights) for loss in (found, own))
        for mine, theirs in zip(*both, strict=True):
            assert float((mine - theirs).norm()) <= 1e-5 * float(theirs.norm())


def test_a_loss_of_a_router_is_left_to_the_model() -> None:
    config = AutoConfig.for_model("mixtral", **tiny.SMALL, num_local_experts=2)
    model = AutoModelForCausalLM.from_config(config)
    assert SFT.fits(model)
    config.output_router_logits = True
    assert not SFT.fits(model)


def test_a_model_without_attention_needs_no_cache_for_its_loss() -> None:
    """The model's code fails with a cache."""
    states = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
    kinds = {"layer_types": ["linear_attention"] * 2, "shared_intermediate_size": 48}
    config = AutoConfig.for_model("granitemoehybrid", **tiny.SMALL, **states, **kinds)
    assert SFT.fits(AutoModelForCausalLM.from_config(config))


def test_there_are_enough_families() -> None:
    assert len(FAMILIES) >= 35
