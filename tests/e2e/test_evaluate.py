"""From selections to the table: training, evaluation and comparison, and extending them."""

import json
import math
import os
import shutil
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import gradsieve
import world
from gradsieve.analysis.results import compare
from gradsieve.cli import app
from gradsieve.demo.skills import make_examples, make_questions
from gradsieve.errors import DataError, RunError, UsageError
from gradsieve.evaluation.metrics import final_answer, judge
from gradsieve.models.load import load_trained
from gradsieve.models.source import ModelSource
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages.evaluate import EvaluationTask, _summary, evaluation_job
from gradsieve.stages.jobs import read_messages

ADAPTER = "adapter_model.safetensors"
TRAIN = {"seeds": [0, 1], "epochs": 1}


def settings(inputs: dict[str, Any], **changes: Any) -> Any:
    """No gradients: random and bm25, trained and evaluated."""
    given = {
        "score__methods": ["random", "random-1", "bm25"],
        "select": {"count": 12},
        "train": TRAIN,
        "evaluate": {"batch_size": 16},
    }
    return world.recipe(inputs, **{**given, **changes})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    made = world.make(folder, rows=60)
    test = [world.record(row) for row in make_questions("reverse", 4, 1)]
    world.write(folder / "test.jsonl", test)
    made["targets"][0]["test"] = str(folder / "test.jsonl")
    return made


@pytest.fixture(scope="module")
def run(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run; tests must not change it."""
    out = tmp_path_factory.mktemp("run")
    return gradsieve.run(settings(inputs), out)


def results(run: RunFolder) -> list[dict[str, Any]]:
    return json.loads((run.stage("evaluate") / "results.json").read_text())["rows"]


def test_methods_without_gradients_need_no_warm_up(run: RunFolder) -> None:
    assert not run.stage("warmup").exists()
    assert not run.stage("features").exists()
    assert {row["method"] for row in results(run)} == {"base", "random", "random-1", "bm25"}


def test_every_stage_tells_its_seconds(run: RunFolder) -> None:
    for name in ("score", "select", "train", "evaluate"):
        assert isinstance(run.require(name)["seconds"], float), name


def test_a_model_for_each_target_method_and_seed(run: RunFolder) -> None:
    names = set(run.require("train")["models"])
    methods = ("random", "random-1", "bm25")
    assert names == {
        f"{t}/{m}/seed-{s}" for t in ("mine", "plain") for m in methods for s in (0, 1)
    }
    for name in names:
        folder = run.stage("train") / name
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {
            file.name for file in folder.iterdir()
        }
    prints = run.require("train")["models"]
    assert prints["mine/random/seed-0"] == prints["plain/random/seed-0"]  # the same rows
    assert len({prints[f"mine/random/seed-{seed}"] for seed in (0, 1)}) == 2


def test_held_out_loss_is_the_models_own(inputs: dict[str, Any], run: RunFolder) -> None:
    recipe = settings(inputs)
    context = Context(recipe, run, world.Listening())
    rows = context.encode([question.example for question in context.test_sets["mine"].questions])
    folder = run.stage("train") / "mine" / "bm25" / "seed-1"
    losses = []
    model = load_trained(ModelSource(recipe.model), folder)
    for row in rows:
        ids = torch.tensor([list(row.encoded.input_ids)])
        labels = torch.tensor([list(row.encoded.labels)])
        with torch.no_grad():
            losses.append(float(model(ids, labels=labels).loss))
    (found,) = (
        r
        for r in results(run)
        if (r["target"], r["method"], r["seed"], r["metric"])
        == ("mine", "bm25", 1, "held_out_loss")
    )
    assert found["value"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    mean = sum(losses) / len(losses)
    variance = sum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1)
    assert found["standard_error"] == pytest.approx(math.sqrt(variance / len(losses)), rel=1e-4)
    assert found["count"] == len(losses) == 8
    assert set(found["by_subtask"]) == {"letters", "numbers"}


def test_the_adapter_as_peft_loads_it_is_the_model_that_was_evaluated(
    inputs: dict[str, Any], run: RunFolder
) -> None:
    from peft import PeftModel

    folder = run.stage("train") / "mine" / "bm25" / "seed-0"
    ids = torch.tensor([[2, 7, 9, 11]])
    plain = PeftModel.from_pretrained(
        ModelSource(settings(inputs).model).load(), str(folder)
    ).eval()
    merged = load_trained(ModelSource(settings(inputs).model), folder)
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, merged(ids).logits, atol=1e-5)


def test_more_seeds_and_methods_keep_what_is_there(
    inputs: dict[str, Any], run: RunFolder, tmp_path: Path
) -> None:
    few = settings(inputs, score__methods=["random"], train={"seeds": [0], "epochs": 1})
    grown = gradsieve.run(few, tmp_path)
    weights = grown.stage("train") / "mine/random/seed-0/adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    said = world.Listening()
    gradsieve.run(settings(inputs), tmp_path, progress=said)
    assert weights.stat().st_mtime_ns == before
    assert not [*tmp_path.glob("archive/05*"), *tmp_path.glob("archive/06*")]
    assert any("train: updating (" in line for line in said.lines)
    assert results(grown) == results(run)
    for stage in ("train", "evaluate"):
        found, wanted = (world.results(RunFolder(one.stage(stage))) for one in (grown, run))
        assert found == wanted


@pytest.mark.parametrize("whole", [False, True])
def test_a_model_that_is_lost_is_trained_again(
    inputs: dict[str, Any], tmp_path: Path, whole: bool
) -> None:
    recipe = settings(inputs, score__methods=["random"], train={"epochs": 1})
    run = gradsieve.run(recipe, tmp_path, last="train")
    before = world.results(run)
    for out in (run.stage("train") / target / "random" / "seed-0" for target in ("mine", "plain")):
        (shutil.rmtree if whole else os.remove)(out if whole else out / ADAPTER)
    gradsieve.run(recipe, tmp_path, last="train")
    now = world.results(run)  # the remains of the models are in archive/
    assert {name: what for name, what in now.items() if not name.startswith("archive/")} == before


@pytest.mark.parametrize(
    "lost",
    [
        "04-select/mine/bm25/selected.jsonl",
        "04-select/plain/random-1/messages.jsonl",
        "06-evaluate/mine/base/seed-0.json",
        "06-evaluate/mine/bm25/seed-1.samples.jsonl",
        "06-evaluate/results.json",
    ],
)
def test_what_is_lost_of_a_finished_run_is_made_again(
    inputs: dict[str, Any], run: RunFolder, tmp_path: Path, lost: str
) -> None:
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    before = world.results(copy)
    (copy.path / lost).unlink()
    gradsieve.run(settings(inputs), copy.path)
    assert world.results(copy) == before


def test_methods_and_targets_may_go_and_come_back(
    inputs: dict[str, Any], run: RunFolder, tmp_path: Path
) -> None:
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    before = world.results(copy)
    made = [*copy.stage("train").rglob(ADAPTER), *copy.stage("evaluate").rglob("seed-*.json")]
    times = {file: file.stat().st_mtime_ns for file in made}
    fewer = {**inputs, "targets": inputs["targets"][:1]}
    gradsieve.run(
        settings(fewer, score__methods=["random", "bm25"], train={"seeds": [1], "epochs": 1}),
        copy.path,
    )
    assert {row["method"] for row in results(copy)} == {"base", "random", "bm25"}
    assert {row["target"] for row in results(copy)} == {"mine"}
    gradsieve.run(settings(inputs), copy.path)
    now = world.results(copy)  # replaced scores are in archive/
    assert {name: what for name, what in now.items() if not name.startswith("archive/")} == before
    assert {file: file.stat().st_mtime_ns for file in made} == times


def test_what_comes_back_changed_is_made_again(inputs: dict[str, Any], tmp_path: Path) -> None:
    """The target's examples and questions have changed since it was left out."""
    few = {"score__methods": ["bm25"], "train": {"epochs": 1}, "select": {"count": 3}}
    changed = {"name": "plain", "path": str(tmp_path / "other.jsonl")}
    world.write(tmp_path / "other.jsonl", [world.record(r) for r in make_examples("copy", 3, 5)])
    with_other = {**inputs, "targets": [inputs["targets"][0], changed]}
    one = {**inputs, "targets": inputs["targets"][:1]}
    for given in (inputs, one, with_other):
        run = gradsieve.run(settings(given, **few), tmp_path / "run")
    whole = settings(with_other, **few)
    fresh = gradsieve.run(whole, tmp_path / "fresh")
    assert results(run) == results(fresh)


def test_only_targets_that_something_is_asked_of_are_evaluated(
    inputs: dict[str, Any], run: RunFolder, tmp_path: Path
) -> None:
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    gradsieve.run(settings(inputs, evaluate={"tasks": ["mine"]}), copy.path)
    assert {row["target"] for row in results(copy)} == {"mine"}
    assert not (copy.stage("evaluate") / "plain").exists()


def test_another_batch_size_keeps_the_results(inputs: dict[str, Any], tmp_path: Path) -> None:
    """Like after running out of memory: the stage was started, and one result exists."""
    few = {"score__methods": ["random"], "train": {"epochs": 1}}
    run = gradsieve.run(settings(inputs, **few), tmp_path)
    (run.stage("evaluate") / "meta.json").unlink()
    file = run.stage("evaluate") / "mine/random/seed-0.json"
    before = file.stat().st_mtime_ns
    fewer = settings(inputs, **few, evaluate={"batch_size": 2})
    gradsieve.run(fewer, tmp_path)
    assert file.stat().st_mtime_ns == before


def test_another_learning_rate_trains_again_and_keeps_the_old(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    one = {"score__methods": ["random"]}
    gradsieve.run(settings(inputs, **one), tmp_path)
    other = settings(inputs, **one, train={**TRAIN, "learning_rate": 1e-2})
    run = gradsieve.run(other, tmp_path)
    assert (tmp_path / "archive").is_dir()
    assert run.require("evaluate")


def test_all_weights_of_another_model(inputs: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from gradsieve.demo.model import make_tokenizer

    torch.manual_seed(5)
    config = AutoModelForCausalLM.from_pretrained(inputs["model"]["name"]).config
    config.num_hidden_layers = 3
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "student")
    make_tokenizer().save_pretrained(tmp_path / "student")
    recipe = settings(
        inputs,
        score__methods=["random"],
        train={"seeds": [0], "model": str(tmp_path / "student"), "full_parameters": True},
    )
    run = gradsieve.run(recipe, tmp_path / "run")
    trained = AutoModelForCausalLM.from_pretrained(
        run.stage("train") / "mine" / "random" / "seed-0"
    )
    assert trained.config.num_hidden_layers == 3
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "student").state_dict()
    assert any(not torch.equal(start[name], value) for name, value in trained.state_dict().items())
    assert {row["method"] for row in results(run)} == {"base", "random"}


def test_a_metric_that_no_task_has_is_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    for metric, todo in (
        ("held_out_loss", "Add target_loss to evaluate.tasks"),
        ("accuracy", "Use one"),
    ):
        asked = settings(inputs, evaluate={"tasks": ["mine"], "metrics": [metric]})
        with pytest.raises(DataError, match=todo):
            gradsieve.run(asked, tmp_path / "run")


def student(inputs: dict[str, Any], folder: Path, *, positions: int = 64, refuses: str = "") -> str:
    """A different model to train: with fewer positions, or a template that refuses a word."""
    shutil.copytree(inputs["model"]["name"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "max_position_embeddings": positions})
    )
    template = folder / "chat_template.jinja"
    refused = (
        "{% if '" + refuses + "' in messages[0].content %}{{ raise_exception('no') }}{% endif %}"
    )
    template.write_text((refused if refuses else "") + template.read_text())
    return str(folder)


def test_rows_that_another_model_cuts_are_left_out_with_a_warning(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    model = student(inputs, tmp_path / "student", positions=17)
    recipe = settings(inputs, score__methods=["random"], evaluate=None, train={"model": model})
    listening = world.Listening()
    run = gradsieve.run(recipe, tmp_path / "run", progress=listening)
    tokenizer = Context(recipe, run, listening).student.template
    fits = [tokenizer.encode(row).n_labels > 0 for row in read_messages(selection(run))]
    assert 0 < sum(fits) < 12
    facts = json.loads((run.stage("train") / "mine/random/seed-0/training.json").read_text())
    assert facts["rows"] == sum(fits)
    assert (
        f"warning: training mine, random, seed 0: {12 - sum(fits)} of 12 rows are left out, the "
        "first: no label token within the first 17 tokens"
    ) in listening.lines


def test_another_model_reads_rows_by_its_own_template(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    model = student(inputs, tmp_path / "student", positions=64)
    own = tmp_path / "own.jinja"
    turn = "{{ message.content }} {{ eos_token }}"
    own.write_text("{% for message in messages %}" + turn + "{% endfor %}")
    given = {"score__methods": ["random"], "evaluate": None}
    read = {}
    for template in (None, str(own)):
        train = {"model": model, "chat_template": template}
        recipe = settings(inputs, **given, train=train)
        run = gradsieve.run(recipe, tmp_path / "run")
        rows = read_messages(selection(run))
        context = Context(recipe, run, world.Listening())
        tokenizer = context.student.template.tokenizer
        found = [tokenizer.decode(row.encoded.input_ids) for row in context.student.encode(rows)]
        read[template] = ["<|user|>" in text for text in found]
    assert (all(read[None]), any(read[str(own)])) == (True, False)
    assert list((tmp_path / "run" / "archive").glob("05-train*"))


def test_another_model_that_can_read_no_row_is_refused(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    model = student(inputs, tmp_path / "student", positions=4)
    recipe = settings(inputs, score__methods=["random"], evaluate=None, train={"model": model})
    with pytest.raises(DataError, match="no row to train on") as caught:
        gradsieve.run(recipe, tmp_path / "run")
    assert "training mine, random, seed 0: 12 of 12 rows are left out" in caught.value.where


def test_rows_that_another_models_template_refuses(inputs: dict[str, Any], tmp_path: Path) -> None:
    """They are reported, or skipped with `on_bad_row: skip`."""
    model = student(inputs, tmp_path / "student", refuses="first")
    given = {"score__methods": ["random"], "evaluate": None, "train": {"model": model}}
    with pytest.raises(DataError, match="refuses") as caught:
        gradsieve.run(settings(inputs, **given), tmp_path / "run")
    refused = [
        row
        for row in read_messages(selection(RunFolder(tmp_path / "run")))
        if "first" in row.messages[0]["content"]
    ]
    assert f"{refused[0].source}, {refused[0].id}: " in caught.value.where
    listening = world.Listening()
    gradsieve.run(
        settings(inputs, on_bad_row="skip", **given), tmp_path / "run", progress=listening
    )
    assert (
        f"warning: training mine, random, seed 0: {len(refused)} of 12 rows are left out, the "
        "first: the chat template refuses it: no"
    ) in listening.lines


def selection(run: RunFolder) -> Path:
    return run.stage("select") / "mine" / "random" / "messages.jsonl"


def test_a_task_without_questions_is_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    recipe = settings(inputs, evaluate={"tasks": ["plain"]})
    with pytest.raises(DataError) as caught:
        gradsieve.run(recipe, tmp_path)
    assert "plain" in caught.value.where


def test_the_table(run: RunFolder) -> None:
    found = compare([run.path])
    cell = found.cells["mine"]["held_out_loss"]["random"]
    assert len(cell.values) == 4  # two selection seeds times two training seeds
    assert cell.deviation is not None
    assert cell.over_random is None
    bm25 = found.cells["mine"]["held_out_loss"]["bm25"]
    assert bm25.over_random is not None
    mean, low, high = bm25.over_random
    assert mean == pytest.approx(bm25.mean - cell.mean, abs=1e-6)
    assert low <= mean <= high
    assert found.overlap["mine"]["random"].keys() == {"bm25"}
    assert "| bm25 | 12 |" in found.markdown()
    assert found.cells["plain"].keys() == {"target_loss"}  # it has no held-out questions


def test_a_notebook_shows_stages_selections_and_results(run: RunFolder) -> None:
    made = run._repr_html_()
    assert f"<td>train</td><td>{run.require('train')['seconds']}</td>" in made
    assert "<td>mine</td><td>bm25</td><td>12</td>" in made
    found = compare([run.path])
    assert "<caption>mine</caption>" in found._repr_html_()
    assert f"<p>Verdict: {escape(found.verdicts['mine'].text)}</p>" in found._repr_html_()
    found.notes.append("a run is left out")
    assert "<p>a run is left out</p>" in found._repr_html_()
    assert str(found) == f"note: a run is left out\n\n{found.markdown()}"


def test_questions_without_a_loss_are_counted(inputs: dict[str, Any], tmp_path: Path) -> None:
    lines = Path(inputs["targets"][0]["test"]).read_text(encoding="utf-8").split("\n")[:-1]
    long = json.loads(lines[0])
    long["id"], long["messages"][0]["content"] = "long", "a " * 100
    test = tmp_path / "test.jsonl"
    test.write_text("\n".join([*lines, json.dumps(long)]) + "\n", encoding="utf-8")
    targets = [{**inputs["targets"][0], "test": str(test)}]
    recipe = settings({**inputs, "targets": targets}, evaluate={"metrics": ["held_out_loss"]})
    listening = world.Listening()
    context = Context(recipe, RunFolder(tmp_path / "run"), listening)
    evaluation_job(context, [EvaluationTask("mine/base/seed-0", None, "")])
    assert (
        f"warning: target mine: held_out_loss is of {len(lines)} of {len(lines) + 1} answers; the "
        "first of the others: no label token within the first 64 tokens"
    ) in listening.lines


def test_subtasks_whose_questions_have_no_loss_count_as_much() -> None:
    """The mean over subtasks of the questions of each that have a loss."""
    asked = {"subtasks": [*"aaab"], "weights": [1 / 6, 1 / 6, 1 / 6, 1 / 2]}
    losses = {"held_out_loss": [1.0, None, None, 3.0], "f1": [1.0, 0.5, 0.0, 0.0]}
    found = {"metrics": losses, **asked, "loss_weights": [0.5, 0.0, 0.0, 0.5]}
    assert [row["value"] for row in _summary("t/less/seed-0", found)] == [2.0, 0.25]


def test_two_runs_are_more_values_but_for_the_models_they_share(
    inputs: dict[str, Any], run: RunFolder, tmp_path: Path
) -> None:
    other = shutil.copytree(run.path, tmp_path / "other")

    def values(*runs: Path) -> list[float]:
        return compare(runs).cells["mine"]["held_out_loss"]["bm25"].values

    assert values(run.path, other) == values(run.path)
    gradsieve.run(settings(inputs, train__seeds=[0, 5]), other)
    first, second, third = values(run.path, other)
    assert values(run.path) == [first, second]
    assert values(other) == [first, third]
    mean = compare([run.path, other]).cells["mine"]["held_out_loss"]["bm25"].mean
    assert mean == pytest.approx((first + second + third) / 3)


def test_an_unfinished_run_and_another_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is nothing to compare"):
        compare([])
    with pytest.raises(RunError, match="This is not a run folder"):
        compare([tmp_path])
    (tmp_path / "05-train").mkdir()
    with pytest.raises(RunError, match="The stage evaluate is not finished"):
        compare([tmp_path])


def test_compare_on_the_command_line(run: RunFolder) -> None:
    shell = CliRunner()
    told = shell.invoke(app, ["compare", str(run.path)])
    assert told.exit_code == 0
    assert told.output.startswith("### mine\n\n| method | rows |")
    assert json.loads(shell.invoke(app, ["compare", str(run.path), "--json"]).output)["cells"]
    latex = shell.invoke(app, ["compare", str(run.path), "--format", "latex"]).output
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
    assert r"held\_out\_loss $\downarrow$" in latex
    wrong = shell.invoke(app, ["compare", str(run.path), "--format", "html"])
    assert wrong.exit_code != 0


def test_every_answer_is_kept(inputs: dict[str, Any], run: RunFolder) -> None:
    folder = run.stage("evaluate") / "mine" / "bm25"
    numbers = json.loads((folder / "seed-1.json").read_text(encoding="utf-8"))
    file = folder / "seed-1.samples.jsonl"
    samples = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    lines = Path(inputs["targets"][0]["test"]).read_bytes().split(b"\n")[:-1]
    for sample, line in zip(samples, lines, strict=True):
        asked, answer = json.loads(line)["messages"]
        assert asked["content"] in sample["prompt"]
        assert sample["references"] == [answer["content"]]
        assert sample["exact_match"] == float(sample["final"] == answer["content"])
        assert sample["final"] == sample["answer"].strip()
    for metric in ("exact_match", "f1"):
        assert [sample[metric] for sample in samples] == numbers["metrics"][metric]
    assert [sample["id"] for sample in samples] == numbers["ids"]


def test_losses_alone_generate_nothing(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsieve.stages.evaluate.model_answers", None)  # fails if called
    monkeypatch.setattr("gradsieve.stages.evaluate.write_prompts", None)
    few = {"score__methods": ["random"], "train": {"epochs": 1}}
    recipe = settings(inputs, **few, evaluate={"metrics": ["held_out_loss"]})
    run = gradsieve.run(recipe, tmp_path)
    assert {(row["target"], row["metric"]) for row in results(run)} == {("mine", "held_out_loss")}
    assert not list(tmp_path.rglob("*.samples.jsonl"))
    wrong = settings(inputs, **few, evaluate={"metrics": ["f1", "accuracy"]})
    with pytest.raises(DataError, match="accuracy; the targets have exact_match, f1"):
        gradsieve.run(wrong, tmp_path)


def test_the_final_answer_is_found_by_the_targets_pattern(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"{a} + {b}", "completion": f"{a} + {b} = {a + b}\n#### {a + b}"}
        for a, b in ((1, 2), (3, 4))
    ]
    world.write(tmp_path / "test.jsonl", rows)
    target = {**inputs["targets"][1], "test": str(tmp_path / "test.jsonl"), "answer": r"#### (\d+)"}
    test = Context(world.recipe({**inputs, "targets": [target]}), RunFolder(tmp_path)).test_sets[
        "plain"
    ]
    assert [question.answers for question in test.questions] == [("3",), ("7",)]
    for text, score in (("so it is\n#### 3", 1.0), ("3", 1.0), ("3\n#### 4", 0.0)):
        assert judge(test, final_answer(test, text), ("3",))["exact_match"] == score
    world.write(tmp_path / "test.jsonl", [*rows, {"prompt": "5 + 6", "completion": "it is 11"}])
    with pytest.raises(DataError, match="1 of 3 reference answers") as caught:
        _ = Context(world.recipe({**inputs, "targets": [target]}), RunFolder(tmp_path)).test_sets
    assert "test.jsonl:3" in caught.value.where
