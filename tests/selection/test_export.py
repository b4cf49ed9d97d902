"""A selection's folder: a data set that loads, with a card that shows no local path."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from huggingface_hub import DatasetCard

import gradsieve
import world
from gradsieve.data.examples import Example
from gradsieve.data.formats import conversation_of
from gradsieve.recipe.load import check_recipe
from gradsieve.recipe.schema import Recipe, SelectionName
from gradsieve.selection.export import Card, Selected, features_of, message_features, shown

MIXED = [
    {"instruction": "falling : b a c", "input": "", "output": "c b a", "id": "m1",
     "when": "2024-01-02"},
    {"prompt": "falling : b d", "completion": "d b", "meta": {"level": 1}},
    {"prompt": [{"role": "user", "content": "inward : a b"}],
     "completion": [{"role": "assistant", "content": "b a"}], "meta": {"level": "two", "x": []}},
    {"conversations": [{"from": "human", "value": "rising : b a"}, {"from": "gpt", "value": "a b"}],
     "rank": "mine", "source": "elsewhere"},
    {"id": None, "prompt": "rising : d a", "completion": "a d", "gradsieve_source": "own"},
    {"prompt": "rising : e a", "completion": "a e", "rank": 1, "gradsieve_rank": "own"},
]  # fmt: skip

CALLS = [{"type": "function", "function": {"name": "turn", "arguments": {"by": 1, "at": None}}}]
TOOLS = [{"type": "function", "function": {"name": "turn", "parameters": {"type": "object"}}}]
SPECIAL = [
    {"messages": [{"role": "user", "content": "rising : b a"},
                  {"role": "assistant", "content": None, "tool_calls": CALLS},
                  {"role": "tool", "content": "a b", "name": "turn"},
                  {"role": "assistant", "content": "a b"}], "tools": json.dumps(TOOLS), "id": "t"},
    {"conversations": [{"from": "human", "value": "falling : a b"},
                       {"from": "gpt", "value": "a b", "weight": 0},
                       {"from": "human", "value": "falling : a b"},
                       {"from": "gpt", "value": "b a", "weight": 1}], "id": "w"},
    {"prompt": [{"role": "user", "content": "inward : a b"},
                {"role": "assistant", "content": "a b"},
                {"role": "user", "content": "inward : a b"}],
     "completion": [{"role": "assistant", "content": "b a"}], "id": "p"},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a selection of all rows, from a pool with every format."""
    inputs = tmp_path_factory.mktemp("inputs")
    made = world.make(inputs, rows=20)
    world.write(inputs / "mixed.jsonl", MIXED)
    made["pool"].append({"name": "mixed", "path": str(inputs / "mixed.jsonl")})
    out = tmp_path_factory.mktemp("run")
    recipe = world.recipe(made, score={"method": "random"}, select={"fraction": 1.0})
    run = gradsieve.run(recipe, out)
    return run.stage("select") / "mine" / "random"


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def test_the_folder_loads_as_it_is(folder: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    written = lines(folder / "selected.jsonl")
    # `datasets` reads numbers with ten decimals if a file has columns of mixed types.
    for row, wanted in zip(loaded, written, strict=True):
        assert row.pop("score") == pytest.approx(wanted["score"])
        assert {
            **{k: v for k, v in row.items() if v is not None},
            "score": wanted["score"],
        } == wanted


def test_a_rows_own_keys_are_never_overwritten(folder: Path) -> None:
    written, messages = (lines(folder / f"{name}.jsonl") for name in ("selected", "messages"))
    by_text = {record["messages"][0]["content"]: (row, record)
               for row, record in zip(written, messages, strict=True)}  # fmt: skip
    row, record = by_text["rising : b a"]
    assert (row["rank"], row["source"]) == ("mine", "elsewhere")
    assert (row["gradsieve_rank"], row["gradsieve_source"]) == (record["rank"], "mixed")
    row, record = by_text["rising : d a"]
    assert (row["id"], row["source"]) == (record["id"], "mixed")
    assert row["gradsieve_source"] == "own"
    row, record = by_text["rising : e a"]
    assert (row["rank"], row["gradsieve_rank"]) == (1, "own")
    assert row["gradsieve_gradsieve_rank"] == record["rank"]


def test_messages_are_alike_whatever_the_format_was(folder: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(folder), "messages", split="train", cache_dir=str(tmp_path))
    assert loaded.features == message_features()
    assert loaded["rank"] == list(range(1, 27))
    turns = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in loaded}
    assert turns["falling : b a c"] == "c b a"
    assert turns["falling : b d"] == "d b"
    assert turns["inward : a b"] == "b a"
    assert turns["rising : b a"] == "a b"
    keys = {(row["source"], row["id"]) for row in loaded}
    assert len(keys) == 26
    assert ("mixed", "m1") in keys


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trl_supervises_the_completions_alone(folder: Path, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    rows = datasets.load_dataset(
        str(folder), "prompt_completion", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.features == message_features(columns=("prompt", "completion"))
    model = yaml.safe_load((folder.parents[2] / "recipe.yaml").read_text())["model"]["name"]
    settings = {"max_steps": 1, "report_to": "none", "per_device_train_batch_size": 2}
    arguments = SFTConfig(str(tmp_path / "trl"), use_cpu=True, **settings)
    trainer = SFTTrainer(model, args=arguments, train_dataset=rows)
    trainer.train()
    decode = trainer.processing_class.decode
    for row, made in zip(rows, trainer.train_dataset, strict=True):
        labels = [label for label in made["labels"] if label != -100]
        supervised = decode(labels, skip_special_tokens=True)
        assert supervised.strip() == row["completion"][0]["content"]
        assert row["prompt"][0]["content"] in decode(made["input_ids"])


def test_each_supervised_answer_has_its_prompt(tmp_path: Path) -> None:
    turns = tuple(
        {"role": role, "content": content}
        for role, content in zip(["user", "assistant"] * 2, "abcd", strict=True)
    )
    for supervised, places in ((None, [1, 3]), ((False, False, False, True), [3])):
        example = Example("s", "1", turns, supervised=supervised, tools=({"name": "f"},))
        found = list(Selected(example, 2, 0.5, "x").as_answers())
        assert [row["prompt"] for row in found] == [turns[:place] for place in places]
        assert [row["completion"] for row in found] == [[turns[place]] for place in places]
        assert all(row["tools"] == example.tools and row["rank"] == 2 for row in found)
    assert not list(Selected(Example("s", "1", turns[1:2]), 1, 0.5, "x").as_answers())


def special(tmp_path: Path, supervise: str) -> Path:
    inputs = world.make(tmp_path, rows=10)
    world.write(tmp_path / "special.jsonl", SPECIAL)
    path = str(tmp_path / "special.jsonl")
    inputs["pool"] = [{"name": "special", "path": path, "supervise": supervise}]
    template = tmp_path / "calls.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for call in m.tool_calls or [] %}"
        "{{ call.function.name }}{% endfor %}{{ eos_token }}{% endfor %}"
    )
    recipe = world.recipe(inputs, score={"method": "random"}, select={"fraction": 1.0})
    model = recipe.model.model_copy(update={"chat_template": str(template)})
    recipe = recipe.model_copy(update={"model": model})
    run = gradsieve.run(recipe, tmp_path / "run")
    return run.stage("select") / "mine" / "random"


def test_messages_keep_tools_and_what_is_supervised(tmp_path: Path) -> None:
    folder = special(tmp_path, "completion")
    rows = {row["id"]: row for row in lines(folder / "selected.jsonl")}
    assert [{**row, **rows[row["id"]]} for row in SPECIAL] == [rows[row["id"]] for row in SPECIAL]
    written = {row["id"]: row for row in lines(folder / "messages.jsonl")}
    arguments = {"function": {"name": "turn", "arguments": {"by": 1}}}
    turn = {"role": "assistant", "content": "", "tool_calls": [{**CALLS[0], **arguments}]}
    assert written["t"]["messages"][1] == turn
    assert written["t"]["messages"][2] == SPECIAL[0]["messages"][2]
    assert written["t"]["tools"] == TOOLS
    for name in "wp":
        weights = [turn.get("weight") for turn in written[name]["messages"]]
        assert weights == [None, 0, None, 1]
        # A training on the selection reads the same turns.
        assert conversation_of(written[name]).supervised == (False, False, False, True)
    loaded = datasets.load_dataset(
        str(folder), "messages", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert {row["id"]: row["messages"] for row in loaded} == {
        name: row["messages"] for name, row in written.items()
    }
    assert {row["id"]: row["tools"] for row in loaded} == {"t": TOOLS, "w": None, "p": None}


def test_all_turns_are_supervised_if_the_recipe_says_so(tmp_path: Path) -> None:
    written = {row["id"]: row for row in lines(special(tmp_path, "all") / "messages.jsonl")}
    assert [turn.get("weight") for turn in written["p"]["messages"]] == [None] * 4
    assert [turn.get("weight") for turn in written["w"]["messages"]] == [None, 0, None, 1]


def test_the_metadata_is_what_the_hub_reads(folder: Path) -> None:
    parsed = DatasetCard.load(folder / "README.md")
    block = parsed.data.to_dict()
    assert block["task_categories"] == ["text-generation"]
    assert block["size_categories"] == ["n<1K"]
    assert {config["config_name"] for config in block["configs"]} == {
        "default",
        "messages",
        "prompt_completion",
    }
    assert "gradsieve" in block["tags"]
    assert "license" not in block  # only the user knows it
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n# license: one that")


def test_the_card_shows_how_and_from_what_but_no_path(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "| mixed | mixed.jsonl | 6 | 23.1% | 6 | 23.1% |" in text
    assert "| mine | custom | target.jsonl | 6 | 2 |" in text
    assert "`model` by `random`" in text
    assert "xia2024less" in text
    assert str(folder.parents[3].parent) not in text
    assert "warmup:" not in text  # random needs no warm-up


def recipe(**changes: Any) -> Recipe:
    tree = {
        "model": {"name": "Qwen/Qwen3-0.6B", "chat_template": "/home/me/t.jinja"},
        "pool": [{"name": "a", "path": "/home/me/a.jsonl"}, {"name": "b", "path": "org/data"}],
        "targets": [{"name": "t", "path": "/home/me/t"}, {"name": "u", "path": "u.jsonl"}],
        **changes,
    }
    return check_recipe(tree)


def card(recipe: Recipe, target: str = "t", method: str = "less", **changes: Any) -> str:
    settings = {
        "recipe": recipe,
        "name": SelectionName(target, method, recipe.select.budgets[0]),
        "tokens": 14,
        "selected": {"a": 2},
        "scored": {"a": 4, "b": 1},
        "examples": {"t": (5, 1), "u": (6, 2)},
        "features": {
            "default": features_of([{"a": 1}]),
            "messages": message_features(),
            "prompt_completion": message_features(columns=("prompt", "completion")),
        },
    }
    return Card(**{**settings, **changes}).text()


def test_names_of_the_hub_stay_and_folders_go() -> None:
    text = card(recipe(warmup={"checkpoints": ["/home/me/run/checkpoint-9"]}))
    assert "/home" not in text
    assert DatasetCard(text).data.to_dict()["base_model"] == "Qwen/Qwen3-0.6B"
    assert "| b | org/data | 0 | 0.0% | 1 | 20.0% |" in text
    assert "2 of 5 scored rows (14 tokens)" in text
    assert "- checkpoint-9" in text
    assert "# Selected for t\n" in text
    together = card(recipe(), target="together")
    assert "# Selected for t, u\n" in together
    assert "| u | custom | u.jsonl | 6 | 2 |" in together


def settings_of(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ("less", set()),
        ("embedding", {"embedding"}),
        ("fusion", {"fusion", "embedding"}),
    ],
)
def test_settings_of_other_methods_are_left_out(method: str, shown: set[str]) -> None:
    methods = {"methods": ["less", "embedding", "fusion"], "fusion": ["less", "embedding"]}
    found = settings_of(card(recipe(score=methods), method=method))
    assert found["score"].keys() & {"fusion", "embedding"} == shown


def test_settings_are_those_that_decide() -> None:
    exact = recipe(features={"mode": "exact"})
    settings = settings_of(card(exact))
    assert "projection" not in settings["features"]
    assert settings["score"]["methods"] == ["less"]
    assert list(settings) == ["model", "warmup", "features", "score", "select"]
    assert list(settings_of(card(exact, method="random"))) == ["model", "score", "select"]


@pytest.mark.parametrize("name", ["model", "warmup", "features", "score", "select"])
def test_the_marks_of_the_schema_decide_what_is_shown(name: str) -> None:
    plain = recipe()
    section = getattr(plain, name)
    wanted = {key for key in type(section).model_fields if section.effect(key) != "no"}
    of_others = {"fusion", "embedding"}  # fusion and embedding are methods themselves
    assert set(settings_of(card(plain))[name]) == wanted - of_others


def test_the_date_that_templates_write_is_noted() -> None:
    text = card(recipe(), date="2024-07-26")
    assert (
        "```\n\nThe chat template contains today's date; all rows were scored with the date 2024-07"
        in text
    )
    assert "today's date" not in card(recipe())


@pytest.mark.parametrize(
    ("rows", "size"), [(1, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K")]
)
def test_sizes(rows: int, size: str) -> None:
    text = card(recipe(), selected={"a": rows}, scored={"a": rows})
    assert DatasetCard(text).data.to_dict()["size_categories"] == [size]


def test_a_folder_that_looks_like_a_hub_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown("data/dolly") == "data/dolly"
    (tmp_path / "data" / "dolly").mkdir(parents=True)
    assert shown("data/dolly") == "dolly"


# --- types of columns ---------------------------------------------------------------------------

LONG = "x" * 3000
"""Several thousand of them fill several of the 10 MB blocks that `datasets` reads."""

CASES: dict[str, list[dict[str, Any]]] = {
    "formats": [
        {"messages": [{"role": "user", "content": "a"}], "rank": 1},
        {"prompt": "a", "completion": "b", "rank": 2},
        {"instruction": "x", "input": "", "output": "y", "rank": 3},
        {"conversations": [{"from": "human", "value": "a"}], "rank": 4},
    ],
    "objects with other keys": [
        {"messages": [{"role": "user", "content": "a"}], "meta": {"a": 1}},
        {"messages": [{"role": "user", "content": "a", "weight": 1}], "meta": {"b": [1, 2]}},
    ],
    "ids of two kinds": [{"id": 1, "a": "a"}, {"id": "x", "a": "b"}],
    "text or turns": [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "q"}]}],
    "values of two kinds": [{"meta": {"a": 1}}, {"meta": {"a": "s"}}],
    "empty lists": [{"tags": []}, {"tags": []}, {"tags": None}],
    "a list that fills": [{"tags": []}, {"tags": ["a"]}],
    "numbers": [{"s": 1}, {"s": 1.5}],
    "numbers and truth": [{"s": 1}, {"s": True}],
    "times": [{"s": "2024-01-01T00:00:00", "d": {"e": ["2024-01-01"]}}] * 2,
    "empty objects": [{"m": {}}, {"m": {}}],
    "nothing": [{"m": None, "k": 1}],
    "odd names": [{"m é": "\u2028", "a: b": 1, "null": 2, "-": 3}],
    "a late column": [{"t": LONG, "old": [i]} for i in range(8000)] + [{"new": [{"a": 1}]}],
    "a late kind": [{"t": LONG, "id": i} for i in range(8000)] + [{"id": "x"}],
}


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_rows_load_as_they_were_written(name: str, tmp_path: Path) -> None:
    rows = CASES[name]
    features = features_of(rows)
    block = {
        "configs": [{"config_name": "default", "data_files": "rows.jsonl"}],
        "dataset_info": [{"config_name": "default", "features": features._to_yaml_list()}],
    }
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(block)}---\n", encoding="utf-8")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    loaded = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features == features
    assert [_filled(row) for row in loaded] == [_filled(row) for row in rows]


def _filled(row: dict[str, Any]) -> dict[str, Any]:
    """The row without nulls: a column that a row lacks is null after loading."""
    return {key: value for key, value in row.items() if value is not None}
