"""In-memory models: what is loaded shares their weights, and nothing done to it affects them."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

import tiny
from gradsieve.engine.worker import failure_of
from gradsieve.errors import ModelError
from gradsieve.models.load import add_adapter
from gradsieve.models.saved import read
from gradsieve.models.source import model_source, section_of
from gradsieve.recipe import schema as recipe

SECTION = recipe.ModelConfig(name="here", dtype="float32")


@pytest.mark.parametrize("name", list(tiny.CONFIGS))
def test_what_is_loaded_gives_the_same_logits_from_the_same_memory(name: str) -> None:
    model = tiny.model(name).eval()
    view = model_source(SECTION, model).load()
    ids = tiny.batch()["input_ids"]
    assert torch.equal(view(ids).logits, model(ids).logits)
    theirs = dict(view.named_parameters())
    for at, parameter in model.named_parameters():
        assert theirs[at] is not parameter
        assert theirs[at].data_ptr() == parameter.data_ptr()
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (view.get_input_embeddings().weight is view.get_output_embeddings().weight) == tied


def test_what_is_done_to_a_view_does_not_show() -> None:
    model = tiny.model().train()
    model.model.layers[0].requires_grad_(False)
    modules = [type(module) for module in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    loaded = model_source(SECTION, model).load()
    adapted = add_adapter(loaded, recipe.LoraConfig(r=2), seed=0)
    adapted(**tiny.batch()).loss.backward()
    adapted.register_forward_hook(lambda *_: None)
    adapted.base_model.model.config.pad_token_id = 5
    assert [type(module) for module in model.modules()] == modules
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert model.config.pad_token_id != 5
    assert not model._forward_hooks


def test_a_patched_forward_is_left_out() -> None:
    """SFTTrainer leaves one behind: a closure over the forward method of the caller's model."""
    model = tiny.model().eval()
    ids = tiny.batch()["input_ids"]
    wanted = model(ids).logits
    original = model.forward
    model.forward = lambda *given, **named: original(*given, **named)
    view = model_source(SECTION, model).load()
    assert "forward" not in vars(view)
    assert torch.equal(view(ids).logits, wanted)
    assert "forward" in vars(model)


def test_hooks_are_left_out() -> None:
    """The caller's hooks run only in the caller's passes; they and what they hold aren't copied."""
    model, seen = tiny.model().eval(), []
    layer = model.model.layers[0]
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_forward_pre_hook(lambda *_, **__: seen.append("before"), with_kwargs=True)
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer.register_full_backward_pre_hook(lambda *_: seen.append("before backward"))
    next(layer.parameters()).register_hook(lambda _: seen.append("gradient"))
    for shared in (True, False):
        view = model_source(SECTION, model).load(will_change=not shared)
        view.requires_grad_(True)(**tiny.batch()).loss.backward()
    assert seen == []
    model(**tiny.batch()).loss.backward()
    assert {*seen} == {"forward", "before", "backward", "before backward", "gradient"}


def test_weights_that_will_change_are_copied() -> None:
    model = tiny.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copied = model_source(SECTION, model).load(will_change=True)
    for parameter in copied.parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_tokenizer_and_configuration_are_the_users() -> None:
    model, tokenizer = tiny.model(), object()
    source = model_source(SECTION, model, tokenizer)  # type: ignore[arg-type]
    assert source.tokenizer() is tokenizer
    assert source.config().to_dict() == model.config.to_dict()
    assert source.config() is not model.config  # building a model from a config modifies it
    source.check_weights()
    assert next(source.meta_model().parameters()).is_meta
    only_tokenizer = model_source(
        SECTION.model_copy(update={"name": "./here"}),
        None,
        tokenizer,  # type: ignore[arg-type]
    )
    assert only_tokenizer.tokenizer() is tokenizer
    with pytest.raises(ModelError, match="does not exist"):
        only_tokenizer.load()


def test_the_fingerprint_is_of_every_weight() -> None:
    def fingerprint(model: Any) -> str:
        return model_source(SECTION, model).fingerprint

    model = tiny.model()
    first = fingerprint(model)
    assert fingerprint(tiny.model()) == first
    assert fingerprint(tiny.model().bfloat16()) != first
    model.model.norm.weight.data[-1] += 1e-6
    assert fingerprint(model) != first


def with_adapter_inside() -> nn.Module:
    """The adapter was added by `model.add_adapter`."""
    return inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), tiny.model())


def spread() -> nn.Module:
    model = tiny.model()
    model.lm_head = nn.Linear(32, tiny.VOCABULARY, bias=False, device="meta")
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (tiny.adapted, "has an adapter already"),
        (with_adapter_inside, "has an adapter already"),
        (lambda: nn.DataParallel(tiny.model()), "not a transformers causal language model"),
        (lambda: tiny.model().model, "not a transformers causal language model"),
        (lambda: nn.Linear(2, 2), "not a transformers causal language model"),
        (lambda: 3, "not a transformers causal language model"),
        (spread, "not on one device"),
    ],
)
def test_what_is_no_bare_model_on_one_device_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        section_of(make())


def test_unloading_an_adapter_as_the_message_says_helps() -> None:
    section_of(get_peft_model(tiny.model(), LoraConfig(target_modules=["q_proj"])).unload())


def test_names_and_dtypes() -> None:
    model = tiny.model()
    assert section_of(model.bfloat16()) == {"name": "LlamaForCausalLM", "dtype": "bfloat16"}
    with pytest.raises(ModelError, match="float64"):
        section_of(model.double())


@pytest.mark.parametrize(
    ("asked", "there", "wanted"),
    [(1, 4, None), (2, 4, {0: 10, 1: 11}), (4, 2, {0: 10, 1: 11}), (2, 1, None)],
)
def test_a_model_goes_over_as_many_gpus_as_are_asked_for(
    asked: int, there: int, wanted: dict[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}

    def read(*_: Any, **options: Any) -> None:
        found.update(options)
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (10 + gpu, 99))
    monkeypatch.setattr("gradsieve.models.saved.read", read)
    settings = recipe.ModelConfig.model_validate({"name": "hub/model"})
    with pytest.raises(InterruptedError):
        model_source(settings, gpus=asked).load()
    assert found.get("max_memory") == wanted
    assert found.get("device_map") == (wanted and "balanced")


def test_a_model_that_does_not_fit_into_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    source = model_source(SECTION, tiny.model())
    monkeypatch.setattr(nn.Module, "to", full)
    for load in (
        source.load,
        partial(read, SimpleNamespace(from_pretrained=full), SECTION, "model"),
    ):
        with pytest.raises(ModelError, match="not enough memory for the model") as caught:
            load()
        assert "4bit" in caught.value.todo
        assert failure_of(caught.value).again  # a worker on a GPU that others use too


def test_a_model_that_does_not_fit_into_the_machine_is_reported() -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2")

    with pytest.raises(ModelError, match="not enough memory for the model") as caught:
        read(SimpleNamespace(from_pretrained=full), SECTION, "model")
    assert "a machine with more memory" in caught.value.todo
    assert "GPU" not in caught.value.todo
