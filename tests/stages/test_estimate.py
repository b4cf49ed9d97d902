"""The stages' estimates, compared with the measurements of a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradsieve
import world
from gradsieve.recipe.schema import Budget
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages import all_stages
from gradsieve.stages.estimate import (
    FEW_STEPS,
    Estimate,
    by_length,
    evaluation_bytes,
    few_steps,
    lengths,
    padded_tokens,
    questions,
    selected,
    selecting_shape,
    spread,
    student_shape,
    target_rows,
    trainings,
)

METHODS = ["less", "random", "random-1", "full"]
SETTINGS = {
    "score": {"methods": METHODS},
    "select": {"count": 6},
    "train": {"seeds": [0, 1], "epochs": 1},
    "evaluate": {},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = world.make(tmp_path_factory.mktemp("inputs"), rows=60)
    made["targets"][0]["test"] = made["targets"][0]["path"]
    return made


@pytest.fixture(scope="module")
def run(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("run")
    return gradsieve.run(world.recipe(inputs, **SETTINGS), out)


def context_of(inputs: dict[str, Any], run: RunFolder, **changes: Any) -> Context:
    return Context(world.recipe(inputs, **{**SETTINGS, **changes}), run, world.Listening())


def estimates(context: Context) -> dict[str, Estimate]:
    return {name: stage.estimate(context) for name, stage in all_stages().items()}


def test_counts_are_the_runs(inputs: dict[str, Any], run: RunFolder) -> None:
    context = context_of(inputs, run)
    found = estimates(context)
    trained = -(-run.require("warmup")["rows"] // 4)
    assert found["warmup"].steps == 2 * trained
    assert found["features"].loads == len(context.artifacts.warmup.checkpoints)
    models = run.require("train")["models"]
    weights = student_shape(context).trained_weight_bytes
    assert found["train"].disk_bytes == len(models) * weights == 16 * weights
    assert len(list(trainings(context))) == 10  # `random` and `full` serve both targets
    rows = run.require("select")["targets"]["mine"]
    names = context.recipe.selections_for("mine")
    assert [selected(context, name.budget) for name in names] == [
        rows[name.short]["rows"] for name in names
    ]
    results = list(run.stage("evaluate").rglob("seed-*.json"))
    assert found["evaluate"].loads == len(results)


def test_features_count_the_rows_on_which_eps_is_measured(
    inputs: dict[str, Any], run: RunFolder
) -> None:
    """A small sample consists of them, so without them `plan` expected twice the time."""
    passes = {}
    for method in ("less", "sgd"):
        context = context_of(inputs, run, score={"methods": [method]})
        passes[method] = all_stages()["features"].estimate(context).flops
    shape, pool = selecting_shape(context), context.pool
    rows = by_length(context)[:8]
    lengths, labels = pool.lengths[rows], pool.n_label_tokens[rows]
    eps = 2 * shape.forward_and_backward(1, lengths.astype(float), labels).sum()  # 2 checkpoints
    assert passes["less"] - passes["sgd"] == pytest.approx(eps)


def test_bytes_are_the_runs(inputs: dict[str, Any], run: RunFolder) -> None:
    patterns = {
        "warmup": ["*.safetensors"],
        "features": ["shard-*", "targets/*"],
        "score": ["*.parquet"],
        "select": ["selected.jsonl", "messages.jsonl", "prompt_completion.jsonl"],
        "train": ["*.safetensors"],
        "evaluate": ["seed-*.json", "seed-*.samples.jsonl"],
    }
    found = estimates(context_of(inputs, run))
    for stage, names in patterns.items():
        files = [file for name in names for file in run.stage(stage).rglob(name)]
        size = sum(file.stat().st_size for file in files)
        assert size / 3 < found[stage].disk_bytes < 3 * size, stage
        if stage == "features":  # the largest outputs are predicted closely
            assert found[stage].disk_bytes == pytest.approx(size, rel=0.1)
        if stage == "select":
            assert found[stage].disk_bytes == pytest.approx(size, rel=0.2)
        if stage == "evaluate":  # including prompts, which are most of it
            assert found[stage].disk_bytes > 0.7 * size


def test_a_loss_of_held_out_answers_reads_them(inputs: dict[str, Any], run: RunFolder) -> None:
    """If nothing is generated, an evaluation consists of these losses only."""
    metrics = [["target_loss"], ["target_loss", "held_out_loss"], None]
    contexts = [context_of(inputs, run, evaluate={"metrics": names}) for names in metrics]
    target, both, all_metrics = (all_stages()["evaluate"].estimate(one) for one in contexts)
    held_out = questions(contexts[1])["mine"]
    more = target.loads / 2 * held_out.number * held_out.prompt  # one of two targets has a test
    assert questions(contexts[0]) == {}
    assert both.units == pytest.approx(target.units + more)
    assert both.units < all_metrics.units
    assert both.disk_bytes < all_metrics.disk_bytes


def held(context: Context, batch_size: int) -> int:
    encoded = [row.encoded for row in target_rows(context)]
    asked = questions(context).values()
    return evaluation_bytes(student_shape(context), encoded, asked, batch_size)


def test_memory_of_an_evaluation(inputs: dict[str, Any], run: RunFolder) -> None:
    """Logits for losses; for choices, logits for every prompt token, twice; keys and values."""
    settings = {"metrics": ["target_loss"]}, {"batch_size": 2}
    losses, answers = (context_of(inputs, run, evaluate=one) for one in settings)
    shape, rows = student_shape(losses), [row.encoded for row in target_rows(losses)]
    assert shape.kept == 2 * 32  # a key and a value for two heads of 16
    read, labels = sum(len(row.input_ids) for row in rows), sum(row.n_labels for row in rows)
    assert read < 4096
    assert held(losses, 8) == 4 * labels * shape.vocabulary
    asked = questions(answers)["mine"]
    test = answers.test_sets["mine"]
    choices = tuple(replace(one, choices=("a", "b", one.answers[0])) for one in test.questions)
    answers.test_sets["mine"] = replace(test, questions=choices)
    chosen = questions(answers)["mine"]
    assert (asked.choices, chosen.choices, chosen.longest) == (False, True, asked.longest)
    at_twice = 2 * 2 * (asked.longest + 1) * shape.vocabulary
    assert held(answers, 2) == 4 * max(at_twice, labels * shape.vocabulary)
    assert held(answers, 64) == 4 * at_twice // 2 * asked.number
    estimate = all_stages()["evaluate"].estimate(answers)
    assert estimate.memory_bytes == shape.weight_bytes + held(answers, 2)


def test_selected_by_share_and_by_tokens(inputs: dict[str, Any], run: RunFolder) -> None:
    context = context_of(inputs, run)
    assert selected(context, Budget(fraction=0.2)) == 12
    mean = context.pool.lengths.sum() / 60
    assert selected(context, Budget(tokens=200)) == round(200 / mean)
    assert selected(context, Budget(count=70)) == 60


def test_existing_checkpoints(inputs: dict[str, Any], run: RunFolder) -> None:
    folders = [str(run.stage("warmup") / f"checkpoint-{number}") for number in (1, 2)]
    context = context_of(inputs, run, warmup={"checkpoints": folders, "batch_size": 4})
    found = estimates(context)
    assert found["warmup"] == Estimate()
    assert found["features"].loads == 2
    assert found["train"].like == "train"  # no warm-up was timed
    assert selecting_shape(context).adapter == 2 * 2 * 4 * (16 + 16)  # layers, r, modules, in, out


def test_epochs_multiply_and_a_larger_pool_costs_more(
    inputs: dict[str, Any], run: RunFolder
) -> None:
    one, four = (estimates(context_of(inputs, run, warmup__epochs=n)) for n in (1, 4))
    for stage in ("warmup", "features"):
        assert four[stage].units == pytest.approx(4 * one[stage].units)
        assert four[stage].disk_bytes == 4 * one[stage].disk_bytes


def test_max_steps_give_all_trainings_the_same_budget(
    inputs: dict[str, Any], run: RunFolder
) -> None:
    few, many = (
        estimates(context_of(inputs, run, train__max_steps=steps))["train"] for steps in (10, 30)
    )
    assert few.steps == 10 * few.loads
    assert many.units == pytest.approx(3 * few.units)


def test_passes_of_a_method_are_by_example(inputs: dict[str, Any], run: RunFolder) -> None:
    """Attention grows with the square of an example's length, not of the pool's size."""
    context = context_of(inputs, run, score__methods=["perplexity_top"])
    of_targets = [len(row.encoded.input_ids) for row in target_rows(context)]
    forward, tokens = selecting_shape(context).forward, [*lengths(context), *of_targets]
    wanted = sum(forward(1, count, count) for count in tokens)
    assert estimates(context)["score"].flops == pytest.approx(wanted)


def test_padded_tokens_of_random_batches() -> None:
    assert padded_tokens(np.full(50, 7.0), 10, 4, 2) == 70
    both = padded_tokens(np.tile([1.0, 9.0], 500), 1000, 2, 2)
    assert both == pytest.approx(1000 * (9 * 3 + 1) / 4, rel=0.15)
    # Of 100 sorted rows, about half are in passes that contain only short rows.
    cut = padded_tokens(np.tile([1.0, 9.0], 500), 1000, 100, 2)
    assert cut == pytest.approx(1000 * (9 + 1) / 2, rel=0.05)


def test_spread_keeps_the_distribution() -> None:
    assert spread(range(10), 5) == [1, 3, 5, 7, 9]
    assert spread(range(3), 5) == [0, 1, 2]


def test_a_warm_up_of_few_steps_is_reported(inputs: dict[str, Any], tmp_path: Path) -> None:
    assert few_steps(FEW_STEPS) is None
    progress = world.Listening()
    gradsieve.run(world.recipe(inputs), tmp_path, last="warmup", progress=progress)
    told = [line for line in progress.lines if "optimizer steps" in line]
    assert told == [f"warning: {few_steps(10)}"]
