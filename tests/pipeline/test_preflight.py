"""Errors are reported before any expensive work, all of them at once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

import gradsieve
import world
from gradsieve.data import sources
from gradsieve.data.pool import workers
from gradsieve.demo.model import make_tokenizer
from gradsieve.demo.skills import make_questions
from gradsieve.errors import DataError, ErrorGroup, GradsieveError, ModelError, RunError, UsageError
from gradsieve.pipeline.plan import plan as make_plan
from gradsieve.runs.folder import RunFolder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    made = world.make(folder, rows=40)
    world.write(
        folder / "test.jsonl", [world.record(row) for row in make_questions("reverse", 2, 1)]
    )
    made["targets"][0]["test"] = str(folder / "test.jsonl")
    return made


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model's weights are loaded."""

    def load(_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("gradsieve.models.source.read_model", load)


def plan(inputs: dict[str, Any], out: Path | None = None, **changes: Any) -> Any:
    return make_plan(world.recipe(inputs, **changes), out, calibrate=False)


def folder_with(model: str, out: Path, **changes: Any) -> str:
    """A copy of a model's folder with some keys of its configuration changed."""
    shutil.copytree(model, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, **changes}))
    return str(out)


@pytest.mark.usefixtures("no_model")
def test_all_problems_are_in_one_list(inputs: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    wrong = world.recipe(
        {**inputs, "pool": [*inputs["pool"], {"name": "a", "path": "none.jsonl"},
                            {"name": "b", "path": str(tmp_path / "empty.jsonl")}]},
        targets=[{"name": "t", "path": "t.jsonl"}, {**inputs["targets"][0], "test": "no.jsonl"}],
        model__name=str(tmp_path / "nowhere"),
        train={"model": "./other"},
        evaluate={},
        score__methods=["less", "rdss"],
    )  # fmt: skip
    (tmp_path / "file").write_text("")
    for attempt in (
        lambda: make_plan(wrong, tmp_path / "file"),
        lambda: gradsieve.run(wrong, tmp_path / "run"),
    ):
        with pytest.raises(ErrorGroup) as caught:
            attempt()
        found = caught.value.errors
        where = "\n".join(problem.where for problem in found)
        for part in (
            "none.jsonl",
            "empty.jsonl",
            "t.jsonl",
            "no.jsonl",
            "nowhere",
            "other",
            "score.methods",
        ):
            assert part in where, where
        assert len(found) in (7, 8)  # `plan` checks the folder too
        told = str(caught.value)
        assert told.count("what to do:") == len(found)
        assert told.startswith(f"{len(found)} problems, and nothing was started:\n1. ")
        assert caught.value.exit_status == 2  # an error in the recipe
    assert not list((tmp_path / "run").glob("0*"))


def wrong_model(inputs: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "m").mkdir()
    return {"model__name": str(tmp_path / "m")}


def no_weights(inputs: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    name = folder_with(inputs["model"]["name"], tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    return {"model__name": name}


def small_vocabulary(inputs: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return {"model__name": folder_with(inputs["model"]["name"], tmp_path / "m", vocab_size=5)}


def not_causal(inputs: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return {"model__name": folder_with(inputs["model"]["name"], tmp_path / "m", model_type="vit")}


def no_template(inputs: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    name = folder_with(inputs["model"]["name"], tmp_path / "m")
    for file in (tmp_path / "m").glob("*.jinja"):
        file.unlink()
    file = tmp_path / "m" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in config.items() if k != "chat_template"}))
    return {"model__name": name}


def long_target(inputs: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    world.write(tmp_path / "t.jsonl", [{"prompt": "a " * 90, "completion": "b"}])
    return {"targets": [{"name": "t", "path": str(tmp_path / "t.jsonl")}]}


def long_pool(inputs: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    world.write(tmp_path / "p.jsonl", [{"prompt": "a " * 90, "completion": "b"}])
    return {"pool": [{"name": "p", "path": str(tmp_path / "p.jsonl")}]}


@pytest.mark.usefixtures("no_model")
def test_a_configuration_is_looked_for_once(
    inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def offline(*_: Any, **__: Any) -> None:
        asked.append(1)
        raise OSError("We couldn't connect")

    monkeypatch.setattr("gradsieve.models.source.AutoConfig.from_pretrained", offline)
    with pytest.raises(ModelError, match="configuration cannot be loaded"):
        plan(inputs, model__name="nobody/nothing")
    assert len(asked) == 1


@pytest.mark.usefixtures("no_model")
def test_a_problem_of_the_trained_model_names_it(inputs: dict[str, Any], tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=len(make_tokenizer()), n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    lora = {"target_modules": ["q_proj"]}
    with pytest.raises(ModelError, match="no layer of this name") as caught:
        plan(inputs, train={"model": str(tmp_path)}, warmup__lora=lora)
    assert caught.value.where == f"train.model {tmp_path}, warmup.lora.target_modules: q_proj"
    assert "all-linear fits both" in caught.value.todo
    with pytest.raises(ModelError, match="folder does not exist") as caught:
        plan(inputs, train={"model": "./none"})
    assert caught.value.where.startswith("train.model ./none")


@pytest.mark.usefixtures("no_model")
def test_the_trained_model_may_have_its_own_template(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    other = no_template(inputs, tmp_path)["model__name"]
    with pytest.raises(ModelError, match="no chat template") as caught:
        plan(inputs, train={"model": other})
    assert f"train.chat_template: tokenizer, {other}" in caught.value.where
    assert "Set train.chat_template to tulu" in caught.value.todo
    plan(inputs, train={"model": other, "chat_template": "tulu"})


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        (wrong_model, ModelError, "configuration cannot be loaded"),
        (no_weights, ModelError, "holds no weights"),
        (small_vocabulary, ModelError, "more tokens than"),
        (not_causal, ModelError, "not a causal language model"),
        (no_template, ModelError, "no chat template"),
        (long_target, DataError, "no example with label tokens"),
        (long_pool, DataError, "No row of the pool"),
        ({"model__chat_template": "none.jinja"}, ModelError, "template cannot be read"),
        ({"warmup__lora": {"target_modules": ["query"]}}, ModelError, "no layer of this name"),
        ({"warmup": {"checkpoints": ["none"]}}, ModelError, "checkpoint of warmup"),
        ({"warmup__report_to": ["wandb"]}, UsageError, "wandb is not installed"),
        ({"score__methods": ["les"]}, UsageError, "no method les"),
        ({"evaluate": {"tasks": ["plain"]}}, DataError, "no held-out questions"),
        ({"evaluate": {"tasks": ["target_loss"], "metrics": ["f1"]}}, DataError,
         "(?s)has this metric.*have held_out_loss"),
        ({"train": {"model": "./none"}}, ModelError, "folder does not exist"),
    ],
)  # fmt: skip
def test_each_problem(
    inputs: dict[str, Any], tmp_path: Path, changes: Any, kind: type[GradsieveError], said: str
) -> None:
    made = changes if isinstance(changes, dict) else changes(inputs, tmp_path)
    with pytest.raises(kind, match=said) as caught:
        plan(inputs, **made)
    assert caught.value.where
    assert caught.value.todo


@pytest.mark.parametrize(
    ("module", "changes"),
    [
        ("bm25s", {"score__methods": ["bm25"]}),
        ("data_selection", {"score__methods": ["dsir"]}),
        ("sentence_transformers", {"score__methods": ["embedding"]}),
        ("lm_eval", {"evaluate": {}}),
    ],
)
def test_a_missing_library_is_reported_before_anything_is_spent(
    inputs: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    changes: dict[str, Any],
) -> None:
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == module else real(name, *a)
    )
    with pytest.raises(UsageError, match=f"{module} is not installed"):
        gradsieve.run(world.recipe(inputs, **changes), tmp_path)
    assert not list(tmp_path.glob("0*"))


def test_a_version_out_of_range(inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    declared = [
        'numpy<1; python_version >= "3"',
        "not-there>=3",
        'packaging<1; extra == "dev"',
        'packaging<1; sys_platform == "none"',
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: declared)
    with pytest.raises(UsageError, match="numpy does not fit") as caught:
        plan(inputs)
    assert "gradsieve needs <1" in caught.value.where


@pytest.mark.usefixtures("no_model")
def test_disk_and_memory(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        plan(inputs, tmp_path / "file" / "run")
    with pytest.raises(RunError, match="holds something else"):
        plan(inputs, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("gradsieve.pipeline.plan.free_memory", lambda: 1000)
        with pytest.raises(ModelError, match="targets' gradients don't fit"):
            plan(inputs, features={"mode": "exact"})
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(RunError, match="does not fit on the disk"):
        plan(inputs, tmp_path / "run")
    monkeypatch.setattr("gradsieve.pipeline.plan._memory_there", lambda _: 1.0)
    with pytest.raises(ErrorGroup, match="2 problems"):
        plan(inputs, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model")
def test_a_plan_tokenizes_each_source_once(
    inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = workers.make_chunk
    monkeypatch.setattr(
        workers, "make_chunk", lambda chunk, *a: made.append(chunk.spec.name) or real(chunk, *a)
    )
    plan(inputs)
    assert made == ["one", "two"]


def test_only_what_the_stages_need(inputs: dict[str, Any], tmp_path: Path) -> None:
    """An error in a later stage doesn't stop an earlier one that was requested alone."""
    recipe = world.recipe(inputs, evaluate={"tasks": ["plain"]}, select={"count": 3})
    with pytest.raises(DataError, match="held-out"):
        gradsieve.run(recipe, tmp_path)
    gradsieve.run(recipe, tmp_path, last="warmup")
    assert RunFolder(tmp_path).require("warmup")


def test_a_plan_reads_each_source_once_to_name_it(
    inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    hashed = sources.file_hash
    monkeypatch.setattr(sources, "file_hash", lambda path: (read.append(path), hashed(path))[1])
    plan(inputs)
    assert sorted(read) == sorted(Path(source["path"]) for source in inputs["pool"])
