"""gradsieve.select makes the command line's selection from in-memory objects."""

import contextlib
import copy
import gc
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import gradsieve
import tiny
import world
from gradsieve.errors import DataError, ModelError, RecipeError, RunError, UsageError
from gradsieve.models.ambient import torch_defaults
from gradsieve.recipe.load import load_recipe
from gradsieve.runs.folder import RunFolder

ROWS = 60


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world.make(tmp_path_factory.mktemp("inputs"), rows=ROWS)


@pytest.fixture(scope="module")
def run(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The command line's run."""
    out = tmp_path_factory.mktemp("run")
    return gradsieve.run(world.recipe(inputs), out)


@pytest.fixture(scope="module")
def tokenizer(inputs: dict[str, Any]) -> Any:
    return AutoTokenizer.from_pretrained(inputs["model"]["name"])


def loaded(inputs: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(inputs["model"]["name"], dtype=dtype)


def rows(inputs: dict[str, Any], name: str) -> list[dict[str, Any]]:
    file = Path(inputs["model"]["name"]).parent / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def pool(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        "one": datasets.Dataset.from_list(rows(inputs, "one")),
        "two": rows(inputs, "two"),
    }


def select(inputs: dict[str, Any], model: Any, tokenizer: Any, **given: Any) -> gradsieve.Selection:
    targets = {"mine": {"path": rows(inputs, "target"), "subtask": "kind"}}
    settings = {
        "pool": pool(inputs),
        "targets": targets,
        "max_length": 64,
        "progress": world.Listening(),
        "warmup": inputs["warmup"],
        "features": inputs["features"],
        "score": {"across_subtasks": "max"},  # as in world.recipe
    }
    return gradsieve.select(model, tokenizer, **{**settings, **given})


@pytest.fixture(scope="module")
def chosen(inputs: dict[str, Any], tokenizer: Any) -> Any:
    """`select` with a model that is loaded for each call."""
    return lambda **given: select(inputs, loaded(inputs), tokenizer, **given)


@pytest.fixture(scope="module")
def found(chosen: Any) -> gradsieve.Selection:
    return chosen()


def test_the_selection_is_the_command_lines(found: gradsieve.Selection, run: RunFolder) -> None:
    theirs = run.stage("select") / "mine" / "less"
    for name in ("selected.jsonl", "messages.jsonl", "dropped.jsonl"):
        assert (found.folder / name).read_bytes() == (theirs / name).read_bytes()
    table = run.stage("score") / "mine" / "less.parquet"
    mine = found.run.stage("score") / "mine" / "less.parquet"
    assert mine.read_bytes() == table.read_bytes()


def test_the_result_holds_what_a_notebook_wants(found: gradsieve.Selection) -> None:
    assert len(found) == len(found.selected) == len(found.messages) == 3
    assert "rows=3" in repr(found)
    assert "3 rows for" in found._repr_html_()
    assert found._repr_html_().count("<tr>") == 4
    assert found.selected["rank"] == [1, 2, 3]
    assert found.selected[0]["note"] == "\u2028 é"
    assert found.messages[0]["messages"] == found.selected[0]["messages"]
    assert list(found.scores.columns) == ["source", "id", "score", "subtask", "letters", "numbers"]
    assert len(found.scores) == ROWS
    assert found.scores["score"].is_monotonic_decreasing
    assert found.scores["id"][:3].tolist() == found.selected["id"]
    told = found.explain(found.scores["id"][0])
    assert told.selected == 1
    assert told.positive[0].text.startswith("user: write it from right to left")
    assert told.neighbors[0].text is not None
    assert told.notes == []


def test_the_model_is_left_as_it_was(inputs: dict[str, Any], tokenizer: Any) -> None:
    model = loaded(inputs).train()
    model.model.embed_tokens.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = [p.requires_grad for p in model.parameters()]
    modules = [type(module) for module in model.modules()]
    template, size = tokenizer.chat_template, len(tokenizer)
    found = select(
        inputs,
        model,
        tokenizer,
        score={"methods": ["less", "rds", "perplexity_top"]},
        train={"full_parameters": True, "epochs": 2},
        evaluate={"tasks": ["target_loss"]},
    )
    trained = found.run.stage("train") / "mine" / "less" / "seed-0" / "model.safetensors"
    assert not same_weights(trained, before)  # training used another copy
    assert [type(module) for module in model.modules()] == modules
    assert [p.requires_grad for p in model.parameters()] == grads
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (tokenizer.chat_template, len(tokenizer)) == (template, size)


def same_weights(file: Path, weights: dict[str, torch.Tensor]) -> bool:
    with safe_open(file, "pt") as opened:
        return all(torch.equal(opened.get_tensor(n), weights[n]) for n in opened.keys())  # noqa: SIM118


def test_the_tokenizer_is_left_as_it_was(
    inputs: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    """lm-eval pads, and calls change its truncation; the run still recognizes the tokenizer."""
    model, own = loaded(inputs), copy.deepcopy(tokenizer)
    own.pad_token = None
    own.padding_side = "right"
    own("a b c", truncation=True, max_length=2)  # the backend keeps this for the next call
    before = tiny.tokenizer_state(own)
    config, generation = model.config.to_dict(), model.generation_config.to_dict()
    target = {"path": rows(inputs, "target"), "test": rows(inputs, "target")[:2]}
    rest = {
        "targets": {"mine": target},
        "score": {"methods": ["random"]},
        "train": {"epochs": 1},
        "evaluate": {},
    }
    given = copy.deepcopy((target, rest))
    select(inputs, model, own, out=tmp_path, **rest)
    assert tiny.tokenizer_state(own) == before
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (config, generation)
    assert (target, rest) == given
    made = finished(tmp_path)
    select(inputs, model, own, out=tmp_path, **rest)
    assert made == finished(tmp_path)


def finished(out: Path) -> dict[str, int]:
    """The time at which each stage with results finished."""
    files = [file for file in out.glob("0*/meta.json") if "report" not in file.parent.name]
    assert len(files) >= 4
    return {str(file): file.stat().st_mtime_ns for file in files}


def test_adapters_are_evaluated_without_a_trace(inputs: dict[str, Any], tokenizer: Any) -> None:
    """Evaluation merges the adapter, which would change shared weights."""
    model = loaded(inputs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = select(
        inputs,
        model,
        tokenizer,
        train={"epochs": 1},
        evaluate={"tasks": ["target_loss"]},
    )
    assert found.run.require("evaluate")["results"] == 3  # base, warmed up, less
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_base_model_is_not_on_disk(found: gradsieve.Selection) -> None:
    held = set()
    for file in found.run.path.rglob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            held |= set(opened.keys())
    assert held
    assert not [name for name in held if "embed_tokens" in name or "lm_head" in name]
    assert not list(found.run.path.rglob("*.bin")) + list(found.run.path.rglob("*.pt"))


def test_a_temporary_folder_goes_with_the_result(chosen: Any) -> None:
    found = chosen(score={"methods": ["random"]})
    folder, other = found.run.path, found.of(method="random")
    del found
    gc.collect()
    assert folder.is_dir()
    del other
    gc.collect()
    assert not folder.exists()


def test_a_folder_is_kept_and_gone_on_with(
    chosen: Any, inputs: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    chosen(out=tmp_path)
    told = world.Listening()
    again = chosen(out=tmp_path, select={"count": 5}, progress=told)
    kept = ("pool", "warmup", "features", "score")
    assert told.lines[:4] == [f"{name}: up to date" for name in kept]
    assert len(again) == 5
    model = loaded(inputs)
    model.lm_head.weight.data[0] += 1
    told = world.Listening()
    select(inputs, model, tokenizer, out=tmp_path, progress=told)
    assert "warmup: running again (model.weights has changed)" in told.lines[1]


def test_every_form_of_pool_and_targets(
    chosen: Any, inputs: dict[str, Any], tmp_path: Path
) -> None:
    one, target = rows(inputs, "one"), rows(inputs, "target")
    file = tmp_path / "one.jsonl"
    world.write(file, one)
    datasets.Dataset.from_list(one).save_to_disk(tmp_path / "saved")
    lines = []
    for given in (
        one,
        tuple(one),
        datasets.Dataset.from_list(one),
        datasets.Dataset.from_list(one).with_format("numpy"),
        datasets.Dataset.from_list(one).to_iterable_dataset(),
        torch.utils.data.Subset(one, range(len(one))),  # `__getitem__` without `__iter__`
        {"pool": one},
        {"pool": {"path": one}},
        {"path": one},
        file,
        str(tmp_path / "saved"),
    ):
        found = chosen(pool=given, targets=target, score={"method": "bm25"})
        assert found.target == "target"
        lines.append((found.folder / "selected.jsonl").read_bytes())
    assert set(lines) == {lines[0]}


def test_a_section_may_name_itself(chosen: Any, inputs: dict[str, Any]) -> None:
    found = chosen(
        pool={"path": rows(inputs, "one"), "name": "dolly"},
        targets={"a": {"path": rows(inputs, "target"), "name": "legal"}},
        score={"method": "bm25"},
    )
    assert found.target == "legal"
    assert set(found.selected["source"]) == {"dolly"}


def test_several_targets_methods_and_held_out_rows(chosen: Any, inputs: dict[str, Any]) -> None:
    target = rows(inputs, "target")
    found = chosen(
        targets={"a": {"path": target[:3], "test": target[3:]}, "b": target},
        score={"methods": ["bm25", "random"]},
        train={"epochs": 1},
        evaluate={"tasks": ["target_loss"]},
    )
    assert (found.target, found.method) == ("a", "bm25")
    other = found.of("b", "random")
    assert (other.target, other.method) == ("b", "random")
    assert other.run.path == found.run.path
    table = gradsieve.compare([found.run.path]).markdown()
    assert "| bm25 |" in table
    assert gradsieve.compare(found.run).markdown() == table
    assert str(gradsieve.compare(str(found.run.path))) == table
    results = json.loads((found.run.stage("evaluate") / "results.json").read_text())["rows"]
    assert {row["count"] for row in results if row["metric"] == "held_out_loss"} == {3}
    with pytest.raises(UsageError, match="no such selection") as caught:
        found.of("c")
    assert "a bm25, a random, b bm25, b random" in caught.value.todo


def test_one_selection_for_all_targets(chosen: Any, inputs: dict[str, Any]) -> None:
    target = rows(inputs, "target")
    found = chosen(
        targets={"a": target[:3], "b": target[3:]},
        score={"method": "random"},
        select={"together": True, "count": 4},
    )
    assert found.target == "together"
    assert len(found.selected) == 4
    with pytest.raises(UsageError, match="no scores of its own"):
        found.scores  # noqa: B018
    first = found.selected[0]
    assert found.explain(first["id"], target="b").selected == 1
    with pytest.raises(UsageError, match="several targets"):
        found.explain(first["id"])


def test_a_model_by_name_and_a_whole_section(
    inputs: dict[str, Any], tokenizer: Any, found: gradsieve.Selection
) -> None:
    section = {"name": inputs["model"]["name"], "dtype": "float32"}
    for model, tokens in ((section, None), (section, tokenizer)):
        other = select(inputs, model, tokens)
        assert other.selected["id"] == found.selected["id"]
    assert load_recipe(other.run.path / "recipe.yaml").model.dtype == "float32"
    by_name = select(inputs, inputs["model"]["name"], None, score={"method": "random"})
    assert load_recipe(by_name.run.path / "recipe.yaml").model.dtype == "bfloat16"


def test_another_dtype_is_worked_in(inputs: dict[str, Any], tokenizer: Any) -> None:
    found = select(inputs, loaded(inputs, torch.bfloat16), tokenizer)
    assert load_recipe(found.run.path / "recipe.yaml").model.dtype == "bfloat16"
    assert np.isfinite(found.scores["score"]).all()


@contextlib.contextmanager
def torch_settings(kind: str) -> Iterator[None]:
    """Settings that a notebook may have made before the call."""
    if kind == "default dtype":
        torch.set_default_dtype(torch.bfloat16)
    try:
        with {
            "no_grad": torch.no_grad,
            "inference_mode": torch.inference_mode,
            "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
            "default device": lambda: torch.device("meta"),
            "default dtype": contextlib.nullcontext,
        }[kind]():
            yield
            assert torch.is_grad_enabled() == (kind not in ("no_grad", "inference_mode"))
            assert torch.is_autocast_enabled("cpu") == (kind == "autocast")
            assert torch.get_default_device().type == (
                "meta" if kind == "default device" else "cpu"
            )
            assert torch.get_default_dtype() == (
                torch.bfloat16 if kind == "default dtype" else torch.float32
            )
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "kind", ["no_grad", "inference_mode", "autocast", "default dtype", "default device"]
)
def test_torch_settings_of_the_caller_change_nothing(
    inputs: dict[str, Any], tokenizer: Any, found: gradsieve.Selection, kind: str
) -> None:
    model = loaded(inputs)
    with torch_settings(kind):
        other = select(inputs, model, tokenizer)
        assert other.explain(other.scores["id"][0]).selected == 1
    table = Path("03-score") / "mine" / "less.parquet"
    assert (other.run.path / table).read_bytes() == (found.run.path / table).read_bytes()


def test_calls_in_several_threads_take_turns() -> None:
    """Torch has one random state: concurrent calls gave different adapters and different rows."""
    entered = threading.Event()

    def call() -> None:
        with torch_defaults():
            entered.set()

    other = threading.Thread(target=call)
    with torch_defaults(), torch_defaults():  # a nested call doesn't wait for the outer one
        other.start()
        assert not entered.wait(0.2)
    other.join()
    assert entered.is_set()


def test_the_result_is_found_from_another_directory(
    chosen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = chosen(out="run", score={"method": "random"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert found.run.path == tmp_path / "run"
    assert len(found.selected) == len(found)


def test_a_selection_that_was_replaced_is_not_another(chosen: Any, tmp_path: Path) -> None:
    """Two calls with one folder: the first result does not silently become the second's."""
    first = chosen(out=tmp_path, score={"methods": ["random", "bm25"]}, select={"count": 3})
    kept, read = first.of(method="bm25"), first.of(method="bm25")
    assert len(read.selected) == 3
    second = chosen(out=tmp_path, score={"methods": ["random", "bm25"]}, select={"count": 5})
    assert (len(second), len(second.of(method="bm25"))) == (5, 5)
    assert len(read.selected) == 3  # read before the second call
    for stale in (first, kept):
        for what in (len, lambda one: one.selected, lambda one: one.messages,
                     lambda one: one.scores, lambda one: one.explain("00000")):  # fmt: skip
            with pytest.raises(RunError, match="another selection"):
                what(stale)
    again = chosen(out=tmp_path, score={"methods": ["random", "bm25"]}, select={"count": 3})
    assert (len(again), len(first), len(kept.selected)) == (3, 3, 3)


def test_run_and_plan_take_plain_data(
    inputs: dict[str, Any], run: RunFolder, tmp_path: Path
) -> None:
    score = {"methods": ["random"]}
    files = [{**source, "path": Path(source["path"])} for source in inputs["pool"]]
    data = {**inputs, "pool": files, "score": score}
    made = gradsieve.run(data, tmp_path / "run", last="select", progress=world.Listening())
    assert repr(made) == f"RunFolder('{tmp_path / 'run'}')"
    assert load_recipe(made.path / "recipe.yaml") == world.check_recipe(data)
    assert gradsieve.plan(data, calibrate=False, progress=world.Listening()).sources[0].rows == 30
    for call, said in (
        (lambda: gradsieve.run(data, made.path, last="scores"), "no stage scores"),
        (lambda: gradsieve.run(data, made.path, first="scores"), "no stage scores"),
        (lambda: gradsieve.run(data, made.path, progress=True), "not a gradsieve.Progress"),
        (lambda: gradsieve.plan(data, progress=print), "not a gradsieve.Progress"),
        (lambda: gradsieve.run({**data, "scoring": {}}, made.path), "did you mean `score`"),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert said in str(caught.value)


def test_an_id_that_is_a_number_is_explained(chosen: Any, inputs: dict[str, Any]) -> None:
    numbered = [{**row, "id": number} for number, row in enumerate(rows(inputs, "one"))]
    found = chosen(pool=numbered, score={"method": "random"})
    best = found.selected[0]["id"]
    assert isinstance(best, int)
    assert found.explain(best).selected == 1
    assert gradsieve.explain(found.run.path, "mine", id=np.int64(best)).selected == 1
    with pytest.raises(UsageError, match="no row with the id"):
        found.explain(0.5)


def test_a_model_that_was_never_saved(inputs: dict[str, Any], tokenizer: Any) -> None:
    """It has no name: its class stands for it, and the card names no base model."""
    model = type(loaded(inputs))(loaded(inputs).config)
    model.config.name_or_path = model.name_or_path = ""
    found = select(inputs, model, tokenizer)
    card = (found.folder / "README.md").read_text(encoding="utf-8")
    assert "`LlamaForCausalLM` by `less`" in card
    assert "base_model" not in card


def test_a_run_made_in_memory_is_explained_from_its_folder(chosen: Any, tmp_path: Path) -> None:
    found = chosen(out=tmp_path)
    told = gradsieve.explain(tmp_path, id=found.scores["id"][0])
    assert told.selected == 1
    turns = found.messages[0]["messages"]
    assert [turn["content"] for turn in told.messages] == [turn["content"] for turn in turns]
    assert told.positive[0].text is None
    assert "given in memory, and are not kept" in told.notes[0]


TOOLS_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_tools_that_the_best_row_has_not(chosen: Any, tmp_path: Path) -> None:
    """`Dataset.from_list` would use only the columns of the first row."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "007"}}}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    pool = [{"id": "1", "prompt": "a b", "completion": "b a"},
            {"id": "2", "messages": turns, "tools": tools}]  # fmt: skip
    (tmp_path / "t.jinja").write_text(TOOLS_TEMPLATE)
    template = str(tmp_path / "t.jinja")
    found = chosen(pool=pool, chat_template=template, score={"method": "full"})
    assert found.messages["id"] == ["1", "2"]
    assert found.messages["tools"] == [None, tools]
    assert found.messages[1]["messages"][1]["tool_calls"] == [call]
    assert "2 rows for" in found._repr_html_()
    path = str(found.folder)
    loaded = datasets.load_dataset(path, "messages", split="train", cache_dir=str(tmp_path / "c"))
    assert loaded.to_list() == found.messages.to_list()


def test_the_card_counts_what_was_used(chosen: Any) -> None:
    """It excludes target examples without label tokens and rows without a score."""
    long = {"prompt": "a " * 80, "completion": "b"}
    short = [{"prompt": "a b", "completion": "b"}, {"prompt": "c d", "completion": "d"}]
    found = chosen(targets={"t": [long, *short]}, pool=[long, *short], score={"method": "full"})
    card = (found.folder / "README.md").read_text(encoding="utf-8")
    assert "2 of 2 scored rows" in card
    assert "| pool | (in memory) | 2 | 100.0% | 2 | 100.0% |" in card
    assert "| t | custom | (in memory) | 2 | 1 |" in card


def test_text_that_no_dataset_can_hold(chosen: Any) -> None:
    odd = [{"id": "odd", "prompt": "inward : 1 2", "completion": "2 1", "note": "a\ud800 é"}]
    found = chosen(pool=odd, score={"method": "full"})
    assert found.selected["note"] == ["a? é"]
    assert json.loads(found.explain("odd").json())["id"] == "odd"


MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"pool": datasets.DatasetDict({"train": datasets.Dataset.from_list([{"a": 1}])})},
     DataError, "several splits"),
    ({"pool": pd.DataFrame({"prompt": ["a"], "completion": ["b"]})}, DataError, "by columns"),
    ({"pool": pa.table({"prompt": ["a"], "completion": ["b"]})}, DataError, "to_pylist"),
    ({"pool": {"x": 3}}, DataError, "holds no rows"),
    ({"pool": {"x": {"rows": []}}}, DataError, "holds no rows"),
    ({"pool": []}, DataError, "no usable row"),
    ({"pool": ["text"]}, DataError, "texts, not rows"),
    ({"pool": {"prompt": "a", "completion": "b", "id": "1"}}, DataError, "one row, not rows"),
    ({"pool": {"id": [1, 2], "prompt": ["a", "b"], "completion": ["c", "d"]}},
     DataError, "dict of columns"),
    ({"targets": {"messages": [{"role": "user", "content": "a"},
                               {"role": "assistant", "content": "b"}]}},
     DataError, "one row, not rows"),
    ({"pool": {"messages": [{"prompt": "a"}]}}, DataError, "cannot be read"),
    ({"pool": {"a": [Path("a.jsonl")]}}, DataError, "several by name"),
    ({"pool": [object()]}, DataError, "expected an object"),
    ({"progress": True}, UsageError, "not a gradsieve.Progress"),
    ({"pool": [{"prompt": "a"}]}, DataError, "cannot be read"),
    ({"pool": "none.jsonl"}, DataError, "file does not exist"),
    ({"pool": {"a b": []}}, RecipeError, "pool.0.name"),
    ({"targets": {"t": {"path": [], "task": "mmlu"}}}, DataError, "read from its folder"),
    ({"targets": {"t": {"path": [{"prompt": "a", "completion": "b"}], "subtask": "no"}}},
     DataError, "have no subtask"),
    ({"warmup": {"epoch": 2}}, RecipeError, "did you mean `epochs`"),
    ({"warm_up": {"epochs": 2}}, RecipeError, "did you mean `warmup`"),
    ({"max_length": 3}, RecipeError, "model.max_length"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "kind", "said"), MISTAKES)
def test_mistakes_are_reported(chosen: Any, given: dict[str, Any], kind: type, said: str) -> None:
    with pytest.raises(kind) as caught:
        chosen(**given)
    assert said in str(caught.value)
    assert str(caught.value).count("\n") >= 2


def test_wrong_models_are_reported_before_anything_is_written(
    inputs: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    with torch.inference_mode():
        fixed = type(loaded(inputs))(loaded(inputs).config)
    for model in (tiny.adapted(), torch.nn.Linear(2, 2), loaded(inputs).double(), fixed):
        with pytest.raises(ModelError):
            select(inputs, model, tokenizer, out=tmp_path / "run")
    for wrong in (inputs["model"]["name"], loaded(inputs)):
        with pytest.raises(ModelError, match="not a transformers tokenizer"):
            select(inputs, loaded(inputs), wrong, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_report_is_made(found: gradsieve.Selection) -> None:
    assert found.report().read_bytes().startswith(b"<!doctype html>")
