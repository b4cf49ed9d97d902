"""Per-example gradients equal the loop's, whatever the architecture, padding and batch."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from gradsieve.errors import ModelError
from gradsieve.influence.gradients import lora_layers, per_example, per_example_loop


def relative_error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Largest over weights and examples of |found - wanted| / |wanted|."""
    assert list(found) == list(wanted)
    errors = [
        ((found[name] - wanted[name]).flatten(1).norm(dim=1) / wanted[name].flatten(1).norm(dim=1))
        for name in wanted
    ]
    return float(torch.stack(errors).max())


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_equals_the_loop(name: str) -> None:
    model = tiny.adapted(name)
    batch = tiny.batch()
    assert relative_error(per_example(model, batch), per_example_loop(model, batch)) <= 1e-5


def test_bfloat16_is_as_near_as_the_loop_in_bfloat16() -> None:
    """The model runs in bfloat16; its gradients are as far from float32's as the loop's are."""
    batch = tiny.batch()
    exact = per_example_loop(tiny.adapted(dropout=0.0), batch)
    coarse = tiny.adapted(dropout=0.0).to(torch.bfloat16)
    found, looped = per_example(coarse, batch), per_example_loop(coarse, batch)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    for name in exact:
        wanted = exact[name].flatten(1)
        ours, theirs = ((g[name].flatten(1) - wanted).norm() for g in (found, looped))
        assert float(ours) <= 1.5 * float(theirs), name


def test_activation_checkpointing_gives_the_same() -> None:
    batch = tiny.batch()
    wanted = per_example(tiny.adapted(dropout=0.0), batch)
    model = tiny.adapted(dropout=0.0)
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    assert relative_error(per_example(model, batch), wanted) <= 1e-6


def test_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = tiny.adapted()
    batch = tiny.batch()
    alone = per_example(model, {key: value[1:2, :7] for key, value in batch.items()})
    together = {name: value[1:2] for name, value in per_example(model, batch).items()}
    assert relative_error(together, alone) <= 1e-5


def test_padding_token_does_not_matter() -> None:
    model = tiny.adapted()
    batch = tiny.batch()
    first = per_example(model, batch)
    batch["input_ids"][batch["attention_mask"] == 0] = 42
    assert relative_error(per_example(model, batch), first) <= 1e-6


def test_rank_and_alpha_patterns_and_rslora() -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"q_proj": 2},
        alpha_pattern={"v_proj": 16},
        use_rslora=True,
        init_lora_weights=False,
    )
    model = get_peft_model(tiny.model(), config)
    batch = tiny.batch()
    assert relative_error(per_example(model, batch), per_example_loop(model, batch)) <= 1e-5


def test_leaves_the_model_as_it_was() -> None:
    model = tiny.adapted().train()
    batch = tiny.batch()
    model.eval()
    before = model(**batch).loss
    model.train()
    per_example(model, batch)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    assert torch.equal(model(**batch).loss, before)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "magnitude"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"bias": "all"}, "bias"),
    ],
)
def test_other_trainable_weights_are_refused_by_name(options: dict, named: str) -> None:
    base = tiny.model("gpt-neox")
    config = LoraConfig(r=2, target_modules=["query_key_value"], **options)
    with pytest.raises(ModelError) as caught:
        lora_layers(get_peft_model(base, config))
    assert named in caught.value.where


def test_a_model_without_adapter_is_refused() -> None:
    with pytest.raises(ModelError, match="no trainable LoRA"):
        lora_layers(tiny.model().requires_grad_(False))


def test_an_adapted_head_is_refused() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    model = get_peft_model(tiny.model("qwen3"), config)
    with pytest.raises(ModelError, match="output layer"):
        per_example(model, tiny.batch())
