"""Per-example gradients equal the loop's, whatever the architecture, padding and batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertLMHeadModel, LlamaForCausalLM

import tiny
from gradsieve.errors import ModelError
from gradsieve.gradients.per_example import check_pass, lora_layers, per_example, per_example_loop
from gradsieve.models.load import add_adapter, load_adapter
from gradsieve.models.source import ModelSource
from gradsieve.recipe import schema as recipe


def relative_error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest |found - wanted| / |wanted| over weights and examples."""
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
    check_pass(model)
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


def test_activation_checkpointing_gives_the_same_in_less_memory() -> None:
    """Dropout stays off, although blocks recompute activations only in training mode by default."""

    def measured(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], int]:
        sizes = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return per_example(model, tiny.batch((60,) * 8)), sum(sizes.values())

    wanted, without = measured(tiny.adapted(dropout=0.2))
    model = tiny.adapted(dropout=0.2)
    model.get_base_model().activation_checkpointing_enable()
    found, saved = measured(model)
    assert relative_error(found, wanted) <= 1e-6
    assert saved < without / 4
    assert not any("forward" in module.__dict__ for module in model.modules())


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


ADAPTERS = {
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 16}},
    "all-linear": {"target_modules": "all-linear"},
    "some layers": {"layers_to_transform": [1]},
    "all at once": {"use_rslora": True, "rank_pattern": {"q_proj": 7}, "lora_dropout": 0.3},
}


@pytest.mark.parametrize("keys", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("saved", [False, True])
def test_any_plain_lora(keys: dict[str, Any], saved: bool, tmp_path: Path) -> None:
    """LoRA created here, or loaded from a user's checkpoint."""
    modules = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, **modules, **keys})
    model = tiny.stirred(get_peft_model(tiny.model(), config))
    batch = tiny.batch()
    wanted = per_example_loop(model, batch)
    if saved:
        model.save_pretrained(str(tmp_path))
        model = load_adapter(tiny.model(), tmp_path)
    assert relative_error(per_example(model, batch), wanted) <= 1e-5


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantized_base(quantization: str, tmp_path: Path) -> None:
    """On the CPU too: the gradients equal the loop's, and differ from the unquantized base's."""
    pytest.importorskip("bitsandbytes")
    wide = tiny.LlamaConfig(**{**tiny.SMALL, "hidden_size": 64, "intermediate_size": 128})
    torch.manual_seed(0)
    LlamaForCausalLM(wide).save_pretrained(tmp_path)
    settings = recipe.ModelConfig(name=str(tmp_path), dtype="float32", quantization=quantization)
    lora = recipe.LoraConfig(r=4, alpha=8, target_modules="all-linear")
    model = tiny.stirred(add_adapter(ModelSource(settings).load(), lora, seed=0))
    check_pass(model)
    batch = tiny.batch()
    found = per_example(model, batch)
    with torch.no_grad():
        model.eval()(**batch)  # bitsandbytes may change its weight layout in a forward pass
    assert relative_error(found, per_example_loop(model, batch)) <= 1e-2
    assert relative_error(per_example(model, batch), found) <= 1e-6
    plain = settings.model_copy(update={"quantization": None})
    exact = tiny.stirred(add_adapter(ModelSource(plain).load(), lora, seed=0))
    gap = relative_error(found, per_example(exact, batch))
    assert gap > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_that_accelerate_has_put_on_devices(checkpointing: bool, tmp_path: Path) -> None:
    """Its modules have forward methods from accelerate, which are preserved."""
    tiny.adapted(dropout=0.0).save_pretrained(tmp_path)
    base = LlamaForCausalLM(tiny.CONFIGS["llama-gqa-tied"]).requires_grad_(False)
    parts = ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")
    places = dict.fromkeys([*(f"model.{part}" for part in parts), "lm_head"], "cpu")
    spread = dispatch_model(base, places, force_hooks=True)
    if checkpointing:
        spread.activation_checkpointing_enable()
    model = tiny.stirred(load_adapter(spread, tmp_path))

    def forwards() -> dict[str, Any]:
        modules = model.named_modules()
        return {
            name: vars(module)["forward"] for name, module in modules if "forward" in vars(module)
        }

    before = forwards()
    assert len(before) >= len(places)
    check_pass(model)
    found, wanted = per_example(model, tiny.batch()), per_example_loop(model, tiny.batch())
    assert relative_error(found, wanted) <= 1e-5
    assert forwards() == before


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


def test_a_model_that_sees_what_comes_after_is_refused() -> None:
    config = BertConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    for decoder in (True, False):
        config.is_decoder = decoder
        bert = BertLMHeadModel(config)
        model = get_peft_model(bert, LoraConfig(r=2, target_modules=["query"]))
        if decoder:
            check_pass(model)
            continue
        with pytest.raises(ModelError, match="not causal"):
            check_pass(model)


def test_a_layer_that_runs_twice_is_refused() -> None:
    base = tiny.model()
    base.model.layers[1] = base.model.layers[0]
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="more than once"):
        check_pass(model)


def test_a_layer_that_never_runs_is_refused() -> None:
    base = tiny.model()
    base.model.vision = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(32, 32)})
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="does not contribute") as caught:
        check_pass(model)
    assert "vision.q_proj.lora_" in caught.value.where


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_layer_that_sees_some_tokens_is_refused(tokens: int) -> None:
    """Even if their number is a multiple of the examples: all tokens may belong to one example."""
    base = tiny.model()
    attention = base.model.layers[0].self_attn
    attention.gate = torch.nn.Linear(32, 16)
    attention.register_forward_hook(
        lambda layer, given, made: (made[0] + layer.gate(made[0][0, :tokens]).sum(), *made[1:])
    )
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["gate"]))
    with pytest.raises(ModelError, match=rf"runs on \[{tokens}, 32\]"):
        check_pass(model)


def test_a_model_that_fails_is_named() -> None:
    model = tiny.adapted()
    model.get_base_model().model.norm.forward = lambda hidden: hidden.lost
    with pytest.raises(ModelError, match="does not run with this adapter") as caught:
        check_pass(model)
    assert "LlamaForCausalLM: 'Tensor' object has no attribute 'lost'" in caught.value.where


def test_an_adapted_head_is_refused() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    model = get_peft_model(tiny.model("qwen3"), config)
    with pytest.raises(ModelError, match="not on each token") as caught:
        per_example(model, tiny.batch())
    assert "lm_head" in caught.value.where


def test_memory_that_runs_out_in_the_check_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.adapted()

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model.get_base_model().model.norm, "forward", full)
    with pytest.raises(ModelError, match="Memory runs out"):
        check_pass(model)
