"""Files of models, tokenizers and adapters that are damaged or have impossible contents."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from wrong import Case, Desk
from wrong.models import ADAPTER, WEIGHTS, Spoil, checkpoints, file, student

CONFIG, TOKENIZER = "model/config.json", "model/tokenizer.json"
SETTINGS = "model/tokenizer_config.json"
LORA = "mine/checkpoint-1/adapter_model.safetensors"
NO_CONFIG = ("The configuration cannot be loaded", "model.name model")
NO_TOKENIZER = ("The tokenizer cannot be loaded", "model.name model")
NO_SIZE = ("size that no model can have", "model.name model, config.json")
DAMAGED = ("The adapter's configuration is damaged", ADAPTER)


def halved(name: str) -> Spoil:
    def spoil(desk: Desk) -> None:
        content = (desk.folder / name).read_bytes()
        desk.write(name, content[: len(content) // 2])

    return spoil


def binary(name: str) -> Spoil:
    return lambda desk: desk.write(name, b"\xff\xfe\x00\x01")


def edit(name: str, **changes: Any) -> Spoil:
    return lambda desk: desk.edit(name, **changes)


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(desk: Desk) -> None:
        tree = json.loads((desk.folder / TOKENIZER).read_text(encoding="utf-8"))
        change(tree)
        desk.write(TOKENIZER, json.dumps(tree))

    return spoil


def far_id(tree: dict[str, Any]) -> None:
    vocabulary = tree["model"]["vocab"]
    vocabulary[min(vocabulary)] = 5000


def a_weight(name: str, value: float) -> Spoil:
    def spoil(desk: Desk) -> None:
        weights = load_file(desk.folder / name)
        weights[min(weights)].view(-1)[0] = value
        save_file(weights, desk.folder / name, {"format": "pt"})

    return spoil


def shards(index: str | None = None) -> Spoil:
    """Weights whose second shard is missing; `index` replaces the text of the index."""

    def spoil(desk: Desk) -> None:
        weights = load_file(desk.folder / WEIGHTS)
        first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
        names = sorted(weights)
        save_file({name: weights[name] for name in names[:5]}, desk.folder / "model" / first)
        (desk.folder / WEIGHTS).unlink()
        map_ = {name: first if name in names[:5] else second for name in names}
        text = json.dumps({"metadata": {}, "weight_map": map_}) if index is None else index
        desk.write("model/model.safetensors.index.json", text)

    return spoil


def looped(desk: Desk) -> None:
    (desk.folder / CONFIG).unlink()
    (desk.folder / CONFIG).symlink_to("config.json")


def adapter(**changes: Any) -> Spoil:
    return checkpoints(edit(ADAPTER, **changes))


def _adapter_case(name: str, spoil: Spoil, *says: str) -> Case:
    return Case(name, spoil, says, keeps="in archive")


CONFIGURATIONS = (
    Case("an empty config.json", file(CONFIG, ""), NO_CONFIG),
    Case("a binary config.json", binary(CONFIG), NO_CONFIG),
    Case("a config.json that is an array", file(CONFIG, "[]"), NO_CONFIG),
    Case("a config.json nested 100,000 deep", file(CONFIG, "[" * 100_000), NO_CONFIG),
    Case("a config.json that links to itself", looped, NO_CONFIG),
    Case("no model_type", edit(CONFIG, model_type=None), NO_CONFIG),
    Case("a model_type that is a list", edit(CONFIG, model_type=["llama"]), NO_CONFIG),
    Case("an unknown model_type", edit(CONFIG, model_type="mine"), (*NO_CONFIG, "type `mine`")),
    Case("a negative size", edit(CONFIG, hidden_size=-16), (*NO_SIZE, "hidden_size -16")),
    Case("no layers", edit(CONFIG, num_hidden_layers=0), (*NO_SIZE, "num_hidden_layers 0")),
    Case(
        "ten million layers",
        edit(CONFIG, num_hidden_layers=10**7),
        (*NO_SIZE, "num_hidden_layers 10000000"),
    ),
    Case("no positions", edit(CONFIG, max_position_embeddings=0), (*NO_SIZE, "embeddings 0")),
    Case("no attention heads", edit(CONFIG, num_attention_heads=0), NO_CONFIG),
    Case("10^12 hidden units", edit(CONFIG, hidden_size=10**12), ("not enough memory",)),
    Case("an unknown activation", edit(CONFIG, hidden_act="mine"), ("cannot be built", "mine")),
    Case("an unknown dtype", edit(CONFIG, dtype="float99"), (*NO_CONFIG, "float99")),
    Case("padding outside the vocabulary", edit(CONFIG, pad_token_id=9999),
         ("cannot be built", "Padding_idx")),
    Case("a vocabulary smaller than the tokenizer's", edit(CONFIG, vocab_size=10),
         ("tokenizer 96, model 10",)),
    Case("a generation_config.json that is an array", file("model/generation_config.json", "[]"),
         ("The model cannot be loaded",), late=True),
    Case("a model to train whose config.json is an array",
         student(file("student/config.json", "[]")),
         ("The configuration cannot be loaded", "student")),
)  # fmt: skip

TOKENIZERS = (
    Case("an empty tokenizer.json", file(TOKENIZER, ""), NO_TOKENIZER),
    Case("half a tokenizer.json", halved(TOKENIZER), NO_TOKENIZER),
    Case("a binary tokenizer.json", binary(TOKENIZER), NO_TOKENIZER),
    Case("a tokenizer.json that is an array", file(TOKENIZER, "[]"), NO_TOKENIZER),
    Case("a tokenizer.json without a model", tokenizer(lambda t: t.pop("model")), NO_TOKENIZER),
    Case("an unknown kind of tokenizer", tokenizer(lambda t: t["model"].update(type="Mine")),
         NO_TOKENIZER),
    Case("an unknown pre-tokenizer", tokenizer(lambda t: t.update(pre_tokenizer={"type": "Mine"})),
         NO_TOKENIZER),
    Case("a vocabulary that is a number", tokenizer(lambda t: t["model"].update(vocab=3)),
         NO_TOKENIZER),
    Case("an empty vocabulary", tokenizer(lambda t: t["model"].update(vocab={})),
         ("cannot tokenize a text", "model", "trained with")),
    Case("a token's id beyond the embedding", tokenizer(far_id), ("tokenizer 5001, model 96",)),
    Case("half a tokenizer_config.json", halved(SETTINGS), NO_TOKENIZER),
    Case("a tokenizer_config.json that is an array", file(SETTINGS, "[]"), NO_TOKENIZER),
    Case("a tokenizer class that is a number", edit(SETTINGS, tokenizer_class=7), NO_TOKENIZER),
    Case("an end token that is a number", edit(SETTINGS, eos_token=7), NO_TOKENIZER),
    Case("an end token that the model lacks", edit(SETTINGS, eos_token="<mine>"),
         ("tokenizer 97, model 96",)),
    Case("no end token", edit(SETTINGS, eos_token=None), ("'eos_token' is undefined",)),
    Case("a tokenizer's binary template", binary("model/chat_template.jinja"), NO_TOKENIZER),
    Case("a model to train with half a tokenizer.json", student(halved("student/tokenizer.json")),
         ("The tokenizer cannot be loaded", "student")),
)  # fmt: skip

WEIGHT_FILES = (
    Case("empty weights", file(WEIGHTS, ""), ("damaged", f"{WEIGHTS}: 0 bytes")),
    Case("a missing shard", shards(),
         ("weight file is missing", "model/model-00002-of-00002", "no such file")),
    Case("an index that is an array", shards("[]"), ("missing or damaged", "index.json")),
    Case("a weight that is NaN", a_weight(WEIGHTS, torch.nan),
         ("not finite", "model.name model", "lm_head.weight"), late=True),
    Case("an infinite weight", a_weight(WEIGHTS, torch.inf), ("not finite",), late=True),
)  # fmt: skip

ADAPTERS = (
    _adapter_case("an empty adapter_config.json", checkpoints(file(ADAPTER, "")), "not JSON"),
    _adapter_case("an adapter_config.json that is an array", checkpoints(file(ADAPTER, "[]")),
                  "not JSON", ADAPTER),
    _adapter_case("an adapter of another kind", adapter(peft_type="IA3"), "IA3 adapters"),
    _adapter_case("rank 0", adapter(r=0), *DAMAGED, "r 0"),
    _adapter_case("a rank that is a text", adapter(r="two"), *DAMAGED, 'r "two"'),
    _adapter_case("a rank of 10^12", adapter(r=10**12), "of another model", "1000000000000"),
    _adapter_case("alpha that is NaN", adapter(lora_alpha=float("nan")), *DAMAGED, "NaN"),
    _adapter_case("dropout above 1", adapter(lora_dropout=5), *DAMAGED, "lora_dropout 5"),
    _adapter_case("ranks by layer as a list", adapter(rank_pattern=[1]), *DAMAGED, "[1]"),
    _adapter_case("target_modules that are numbers", adapter(target_modules=[3]),
                  "does not fit the model", "mine/checkpoint-1"),
    _adapter_case("target_modules that are no expression", adapter(target_modules="("),
                  "does not fit the model", "missing )"),
    _adapter_case("an adapter's weights cut short", checkpoints(halved(LORA)),
                  "cannot be read", LORA),
    Case("an adapter with a weight that is NaN", checkpoints(a_weight(LORA, torch.nan)),
         ("not finite", "mine/checkpoint-1"), keeps="in archive", late=True),
)  # fmt: skip
