"""Wrong models, tokenizers, templates, adapters and checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from wrong import Case, Desk

Spoil = Callable[[Desk], object]

WEIGHTS = "model/model.safetensors"
ADAM = "mine/checkpoint-1/adam.safetensors"
ADAPTER = "mine/checkpoint-1/adapter_config.json"
FULL = "mine/checkpoint-1/config.json"
MODEL_ADAPTER = "model/adapter_config.json"
SMALL = {"vocab_size": 200, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class RunsCode:
    """An object whose pickle calls a function when it is loaded."""

    def __reduce__(self) -> Any:
        return (len, ("this ran",))  # not `print`, which importing Ray replaces


def template(text: str | bytes) -> Spoil:
    def spoil(desk: Desk) -> None:
        desk.write("mine.jinja", text)
        desk.set("model.chat_template", "mine.jinja")

    return spoil


def gone(name: str) -> Spoil:
    return lambda desk: (desk.folder / name).unlink()


def cut(name: str, size: int) -> Spoil:
    return lambda desk: desk.write(name, (desk.folder / name).read_bytes()[:size])


def file(name: str, text: str) -> Spoil:
    return lambda desk: desk.write(name, text)


def key(name: str, value: Any) -> Spoil:
    return lambda desk: desk.set(name, value)


def saved(make: Callable[[], Any]) -> Spoil:
    """Replaces the model but keeps the tokenizer."""

    def spoil(desk: Desk) -> None:
        (desk.folder / WEIGHTS).unlink()
        make().save_pretrained("model")

    return spoil


def pickled(desk: Desk) -> None:
    (desk.folder / WEIGHTS).unlink()
    torch.save({"weight": RunsCode()}, "model/pytorch_model.bin")


def own_code(desk: Desk) -> None:
    desk.edit("model/config.json", model_type="mine", auto_map={"AutoConfig": "code.C"})
    desk.write("model/code.py", "raise SystemExit('this ran')\n")


def more_tokens(desk: Desk) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.add_tokens([f"<{number}>" for number in range(9)])
    tokenizer.save_pretrained("model")


def checkpoints(spoil: Spoil) -> Spoil:
    """Sets a copy of the finished run's warm-up as existing checkpoints, and spoils it."""

    def whole(desk: Desk) -> None:
        shutil.copytree(desk.finished / "run" / "01-warmup", "mine")
        desk.set("warmup.checkpoints", ["mine/checkpoint-1", "mine/checkpoint-2"])
        spoil(desk)

    return whole


def moments(desk: Desk) -> None:
    with safe_open(ADAM, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    first = min(tensors)
    save_file({**tensors, first: tensors[first][:1].clone()}, ADAM, metadata)


def broken_state(desk: Desk) -> None:
    """Trainer's format needs trainer_state.json; ours has the learning rate with the moments."""
    states: dict[str, dict[str, Any]] = {}
    with safe_open(ADAM, "pt") as opened:
        for key in opened.keys():  # noqa: SIM118
            kind, _, name = key.partition("/")
            states.setdefault(name, {"step": 1})[kind] = opened.get_tensor(key)
    Path(ADAM).unlink()
    torch.save({"state": states}, "mine/checkpoint-1/optimizer.pt")
    desk.write("mine/checkpoint-1/trainer_state.json", "{}")


def code_for_moments(desk: Desk) -> None:
    Path(ADAM).unlink()
    torch.save({"state": {0: RunsCode()}}, "mine/checkpoint-1/optimizer.pt")


def student(spoil: Spoil) -> Spoil:
    def whole(desk: Desk) -> None:
        shutil.copytree("model", "student")
        desk.set("train.model", "student")
        spoil(desk)

    return whole


def wider() -> LlamaForCausalLM:
    heads = {"num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, "hidden_size": 48}, **heads))


TEMPLATES = (
    Case(
        "a tokenizer without a template",
        gone("model/chat_template.jinja"),
        ("no chat template", "model.chat_template: tokenizer, model", "tulu"),
    ),
    Case(
        "a template that is not there",
        key("model.chat_template", "no.jinja"),
        ("cannot be read: no such file", "model.chat_template: no.jinja", "tokenizer, tulu, or"),
    ),
    Case(
        "a binary template", template(b"\xff\xfe"), ("cannot be read: 'utf-8' codec", "mine.jinja")
    ),
    Case(
        "a template that would run code",
        template("{{ cycler.__init__.__globals__.os.popen('touch out').read() }}"),
        ("The chat template refuses", "attribute '__init__' of 'type' object is unsafe"),
    ),
    Case("a template that is not Jinja", template("\n{% for %}"), ("not Jinja", "mine.jinja:2")),
    Case(
        "a tokenizer's template that is not Jinja",
        file("model/chat_template.jinja", "{% for %}"),
        ("not Jinja", "the chat template of model:1", "set model.chat_template to tulu"),
    ),
    Case(
        "a template that refuses",
        template("{{ raise_exception('no system turn') }}"),
        (
            "refuses 6 of 6 examples",
            "(mine, letters-0): ['user', 'assistant']: no system turn",
            "Fix the rows",
        ),
    ),
    Case("a template that divides by 0", template("{{ 1 / 0 }}"), ("refuses", "division by zero")),
    Case(
        "a template that calls itself",
        template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
        ("refuses 6 of 6 examples", "recursion"),
    ),
    Case(
        "a template that reaches into Python",
        template("{{ messages.__class__.__mro__ }}"),
        ("refuses 6 of 6 examples", "is unsafe"),
    ),
    Case(
        "a template that drops the answer",
        template("{{ messages[0]['content'] }}"),
        ("does not write an answer as it is", "mine, letters-0", "set model.chat_template"),
    ),
)

MODELS = (
    Case(
        "a model that is no folder, without a network",
        key("model.name", "modle"),
        ("cannot be loaded", "model.name modle", "no such folder here", "Give a folder"),
    ),
    Case(
        "a model's path that is not there",
        key("model.name", "models/mine/modle"),
        ("The model's folder does not exist", "models/mine/modle: no such folder", "Give a folder"),
    ),
    Case("a model that is a file", key("model.name", "one.jsonl"), ("one.jsonl: a file",)),
    Case(
        "an empty folder",
        lambda desk: Path("empty").mkdir() or desk.set("model.name", "empty"),
        ("cannot be loaded", "model.name empty", "causal language model"),
    ),
    Case(
        "a broken config.json", file("model/config.json", "{"), ("not a valid JSON", "config.json")
    ),
    Case(
        "a config.json with a wrong type",
        lambda desk: desk.edit("model/config.json", hidden_size="big"),
        ("cannot be loaded", "'hidden_size'", "expected int, got str"),
    ),
    Case(
        "a model that needs its own code",
        own_code,
        ("cannot be loaded", "custom code", "model.trust_remote_code: true"),
    ),
    Case(
        "an encoder-decoder (T5)",
        saved(
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=200, d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=16)
            )
        ),
        ("model.name model", "causal language model"),
    ),
    Case(
        "an encoder (BERT)",
        saved(lambda: BertModel(BertConfig(**SMALL, intermediate_size=16))),
        ("model.name model", "causal language model"),
    ),
    Case("no weights", gone(WEIGHTS), ("holds no weights", "neither *.safetensors nor *.bin")),
    Case(
        "weights that lack layers",
        lambda desk: desk.edit("model/config.json", num_hidden_layers=5),
        ("missing or of another shape", "36 weights, e.g. model.layers.1", "belong together"),
    ),
    Case(
        "weights of another size",
        lambda desk: desk.edit("model/config.json", intermediate_size=48),
        ("missing or of another shape", "[32, 32] not [32, 48]"),
    ),
    Case("weights cut short", cut(WEIGHTS, 9000), ("damaged", f"{WEIGHTS}: 9000 bytes", "again")),
    Case(
        "weights that git-lfs has not fetched",
        file(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"),
        ("a pointer of git-lfs", WEIGHTS, "git lfs pull"),
    ),
    Case("a pickle that runs code", pickled, ("would run code", "Give the model as safetensors")),
    Case(
        "a broken tokenizer",
        file("model/tokenizer.json", "{"),
        ("The tokenizer cannot be loaded", "model.name model"),
    ),
    Case(
        "a checkpoint of Trainer without a tokenizer",
        gone("model/tokenizer.json"),
        (
            "The tokenizer cannot be loaded",
            "backend tokenizer from one of: (1)",
            "processing_class",
        ),
    ),
    Case(
        "an adapter as the model",
        lambda desk: (desk.folder / "model/config.json").rename(desk.folder / MODEL_ADAPTER),
        ("holds an adapter", "model.name model: adapter_config.json", "merge_and_unload"),
    ),
    Case(
        "an adapter with a name of its own as the model",
        lambda desk: (
            (desk.folder / "model/mine").mkdir()
            or (desk.folder / "model/config.json").rename(
                desk.folder / "model/mine/adapter_config.json"
            )
        ),
        ("holds an adapter", "model.name model: mine/adapter_config.json", "merge_and_unload"),
    ),
    Case(
        "an adapter next to a full model",
        file(MODEL_ADAPTER, "{}"),
        ("holds an adapter", "model.name model: adapter_config.json", "merge_and_unload"),
    ),
    Case(
        "a tokenizer larger than the embedding",
        more_tokens,
        ("more tokens than the model has embeddings", "tokenizer 105, model 96"),
    ),
    Case(
        "target_modules that match nothing",
        key("warmup.lora.target_modules", ["qproj"]),
        ("warmup.lora.target_modules", "qproj"),
    ),
    Case(
        "a model to train that is not there",
        key("train.model", "studnet"),
        ("cannot be loaded", "studnet", "no such folder here"),
    ),
    Case(
        "a model to train without a template",
        student(gone("student/chat_template.jinja")),
        ("no chat template", "student", "tulu"),
    ),
    Case(
        "a model to train whose weights are cut short",
        student(cut("student/model.safetensors", 9000)),
        ("damaged", "student/model.safetensors", "again"),
    ),
    Case(
        "an embedding model that is not there",
        lambda desk: desk.set("score", {"methods": ["embedding"], "embedding": "minilm"}),
        ("The embedding model cannot be loaded", "score.embedding minilm", "Give a folder"),
    ),
)

CHECKPOINTS = (
    Case(
        "a checkpoint that is not there",
        key("warmup.checkpoints", ["mine/checkpoint-1"]),
        ("does not exist", "mine/checkpoint-1", "folders that exist"),
    ),
    Case(
        "a checkpoint without adapter_config.json",
        checkpoints(gone(ADAPTER)),
        ("no adapter here", "mine/checkpoint-1", "adapter_config.json"),
        keeps="in archive",
    ),
    Case(
        "a checkpoint of an adapter with a name of its own",
        checkpoints(
            lambda desk: (
                (desk.folder / "mine/checkpoint-1/own").mkdir()
                or (desk.folder / ADAPTER).rename(
                    desk.folder / "mine/checkpoint-1/own/adapter_config.json"
                )
            )
        ),
        ("no adapter here", "no such file; there is one in own", "copy its files up"),
        keeps="in archive",
    ),
    Case(
        "a checkpoint of all weights",
        checkpoints(lambda desk: (desk.folder / ADAPTER).rename(desk.folder / FULL)),
        ("no adapter here", "It holds a full model", "Use it as model.name"),
        keeps="in archive",
    ),
    Case(
        "a checkpoint without the adapter's weights",
        checkpoints(gone("mine/checkpoint-1/adapter_model.safetensors")),
        ("adapter's weights are missing", "mine/checkpoint-1", "adapter_model.safetensors"),
        keeps="in archive",
    ),
    Case(
        "a checkpoint without optimizer state",
        checkpoints(gone(ADAM)),
        ("no optimizer state", "mine/checkpoint-1", "save_only_model=False"),
        keeps="in archive",
    ),
    Case(
        "moments of another shape",
        checkpoints(moments),
        ("does not fit the adapter", "expected (2, 32), found (1, 32)", "saved with this adapter"),
    ),
    Case(
        "moments cut short",
        checkpoints(cut(ADAM, 100)),
        ("optimizer state cannot be read", ADAM, "Copy the checkpoint again"),
    ),
    Case(
        "moments that would run code",
        checkpoints(code_for_moments),
        ("cannot be read", "optimizer.pt", "would run code", "transformers' Trainer"),
    ),
    Case(
        "a broken trainer_state.json",
        checkpoints(broken_state),
        ("cannot be read", "trainer_state.json", "global_step"),
    ),
    Case(
        "an adapter of another model",
        checkpoints(saved(wider)),
        ("adapter", "mine/checkpoint-1", "the model that the adapter was trained on"),
        keeps="in archive",
    ),
    Case(
        "an adapter that is DoRA",
        checkpoints(lambda desk: desk.edit(ADAPTER, use_dora=True)),
        ("adapter", "mine/checkpoint-1"),
        keeps="in archive",
    ),
    Case(
        "an adapter with modules_to_save",
        checkpoints(lambda desk: desk.edit(ADAPTER, modules_to_save=["lm_head"])),
        ("fully trained modules", "mine/checkpoint-1", "Or merge a trained one"),
        keeps="in archive",
    ),
)
