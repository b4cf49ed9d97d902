"""A full run: its outputs, what it skips, and that the selection depends on the data alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import gradsieve
import world
from gradsieve.console import Progress
from gradsieve.errors import DataError, ModelError, RunError, StoreError, UsageError
from gradsieve.gradients import jobs
from gradsieve.recipe.load import load_recipe
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import RunFolder

MADE = ("pool", "warmup", "features", "score", "select")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world.make(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def told() -> world.Listening:
    """What the finished run has logged."""
    return world.Listening()


@pytest.fixture(scope="module")
def run(
    inputs: dict[str, Any], told: world.Listening, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    """A finished run; tests must not change it."""
    return gradsieve.run(world.recipe(inputs), tmp_path_factory.mktemp("run"), progress=told)


@pytest.fixture
def copied(run: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it, which a test may change."""
    return RunFolder(shutil.copytree(run.path, tmp_path / "copied"))


def scores(run: RunFolder, target: str = "mine") -> dict[tuple[str, str], dict[str, Any]]:
    rows = pq.read_table(run.stage("score") / target / "less.parquet").to_pylist()
    return {(row["source"], row["id"]): row for row in rows}


def selected(run: RunFolder, target: str = "mine") -> list[dict[str, Any]]:
    file = run.stage("select") / target / "less" / "selected.jsonl"
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]


def test_files_are_as_in_the_contract(run: RunFolder) -> None:
    names = {str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file()}
    for name in (
        "recipe.yaml",
        "01-warmup/checkpoint-1/adapter_model.safetensors",
        "01-warmup/checkpoint-2/adapter_config.json",
        "01-warmup/checkpoint-2/adam.safetensors",
        "01-warmup/loss.jsonl",
        "02-features/skipped.parquet",
        "02-features/checkpoint-1/pool/manifest.json",
        "02-features/checkpoint-2/targets/plain.safetensors",
        "03-score/mine/less.parquet",
        "04-select/plain/less/selected.jsonl",
        "04-select/plain/less/messages.jsonl",
        "04-select/plain/less/dropped.jsonl",
        "04-select/plain/less/README.md",
        "08-report/index.html",
        "08-report/meta.json",
    ):
        assert name in names, name
    assert {f"0{i}-{name}/meta.json" for i, name in enumerate(MADE)} <= names
    assert not [name for name in names if name.endswith((".tmp", ".pt", ".pkl", ".bin"))]


def test_scores_are_as_in_the_contract(run: RunFolder) -> None:
    table = pq.read_table(run.stage("score") / "mine" / "less.parquet")
    assert table.column_names == ["source", "id", "score", "subtask", "letters", "numbers"]
    rows = table.to_pylist()
    assert len(rows) == world.ROWS
    assert [(r["source"], r["id"]) for r in rows] == sorted((r["source"], r["id"]) for r in rows)
    for row in rows:
        assert row["score"] == max(row["letters"], row["numbers"])
        assert row[row["subtask"]] == row["score"]
        assert -1 <= row["score"] <= 1


def test_scores_are_the_formulas(run: RunFolder, inputs: dict[str, Any]) -> None:
    """Computed from the datastore's rows and the targets' gradients, written out in numpy."""
    from safetensors.numpy import load_file

    rates = np.array(run.require("warmup")["learning_rates"])
    total: dict[tuple[str, str], float] = {}
    for number, weight in enumerate(rates / rates.sum(), start=1):
        folder = run.stage("features") / f"checkpoint-{number}"
        target = load_file(folder / "targets" / "plain.safetensors")
        mean = target["features"].mean(axis=0) / target["mean_norms"]
        store = gradsieve.open_store(folder / "pool")
        names = store.keys().to_pylist()
        norms = np.concatenate([block.gradient_norms for block in store.shards()])
        rows = store.read(np.arange(len(store)))
        for name, row, norm in zip(names, rows, norms, strict=True):
            cosine = row @ mean / norm
            key = (name["source"], name["id"])
            total[key] = total.get(key, 0.0) + weight * float(cosine)
    for key, row in scores(run, "plain").items():
        assert row["score"] == pytest.approx(total[key], abs=1e-6)


def test_selection_is_the_top_of_the_scores_and_rows_are_as_they_came(
    run: RunFolder, inputs: dict[str, Any]
) -> None:
    came = {}
    for source in inputs["pool"]:
        for line in Path(source["path"]).read_text(encoding="utf-8").split("\n")[:-1]:
            came[json.loads(line)["id"]] = json.loads(line)
    ranked = sorted(scores(run).values(), key=lambda r: (-r["score"], r["source"], r["id"]))
    rows = selected(run)
    assert [row["id"] for row in rows] == [row["id"] for row in ranked[: round(0.05 * 150)]]
    for rank, (row, scored) in enumerate(zip(rows, ranked, strict=False), start=1):
        added = {key: row.pop(key) for key in ("rank", "score", "subtask", "source")}
        assert added == {"rank": rank, **{k: scored[k] for k in ("score", "subtask", "source")}}
        assert row == came[row["id"]]
        assert list(row) == list(came[row["id"]])


def test_meta_tells_what_was_done(run: RunFolder) -> None:
    meta = run.require("features")
    assert meta["schema"] == 2
    assert meta["rows"] == world.ROWS
    assert meta["versions"]["torch"]
    assert meta["seconds"] > 0
    assert 0 <= meta["checkpoints"][0]["share_of_coordinates_below_eps"] <= 1
    assert run.require("warmup")["learning_rates"][1] > 0


def test_a_finished_run_is_skipped(
    inputs: dict[str, Any], told: world.Listening, copied: RunFolder
) -> None:
    counted = 2 * (world.ROWS + 6 + 6)  # for the pool and two targets, at two checkpoints
    wanted = f"  features: {counted}/{counted} examples in "
    assert [line for line in told.lines if line.startswith(wanted)]
    before = world.results(copied)
    told = world.Listening()
    gradsieve.run(world.recipe(inputs), copied.path, progress=told)
    assert told.lines == [f"{n}: up to date" for n in (*MADE, "report")]
    assert world.results(copied) == before

    told = world.Listening()
    gradsieve.run(world.recipe(inputs, select={"count": 3}), copied.path, progress=told)
    assert told.lines[:4] == [f"{n}: up to date" for n in MADE[:4]]
    assert "select.count: null -> 3" in told.lines[4]
    assert len(selected(copied)) == 3
    assert list((copied.path / "archive").glob("04-select-*/mine/less/selected.jsonl"))

    told = world.Listening()
    changed = world.recipe(inputs, select={"count": 3}, warmup__learning_rate=2e-3)
    gradsieve.run(changed, copied.path, progress=told)
    again = [line for line in told.lines if "running again" in line]
    assert [line.split(":")[0] for line in again] == ["warmup", "features", "score", "select"]
    assert "warmup.learning_rate: 0.003 -> 0.002" in again[0]


def test_batch_size_does_not_matter(run: RunFolder, inputs: dict[str, Any], tmp_path: Path) -> None:
    checkpoints = [str(run.stage("warmup") / "checkpoint-2")]
    one = {**inputs, "pool": inputs["pool"][:1], "warmup": {"checkpoints": checkpoints}}
    for bits, most in ((32, 1e-6), (16, 5e-6)):  # rounding to 16 bits enlarges small differences
        runs = [
            gradsieve.run(
                world.recipe(one, features__tokens_per_batch=tokens, features__bits=bits),
                tmp_path / f"{bits}-{tokens}",
                last="select",
            )
            for tokens in (1, 300, "auto")
        ]
        assert_same_scores(runs[0], runs[1], most)
        assert_same_scores(runs[0], runs[2], most)


def test_order_of_the_pool_does_not_matter(
    run: RunFolder, inputs: dict[str, Any], tmp_path: Path
) -> None:
    recipe = world.recipe(world.shuffled(inputs, tmp_path / "pool"))
    other = gradsieve.run(recipe, tmp_path / "run")
    theirs = world.results(other)
    for name, content in world.results(run).items():
        if not name.startswith("00-pool/"):  # the pool keeps the order of the files
            assert theirs[name] == content, name


def assert_same_scores(one: RunFolder, other: RunFolder, most: float = 0.0) -> None:
    for target in ("mine", "plain"):
        first, second = scores(one, target), scores(other, target)
        assert first.keys() == second.keys()
        gap = max(abs(first[key]["score"] - second[key]["score"]) for key in first)
        assert gap <= most
        chosen = [[row["id"] for row in selected(run, target)] for run in (one, other)]
        assert chosen[0] == chosen[1]


def warm(run: RunFolder, folder: Path, without: str = "0[2-9]-*") -> Path:
    """A copy of a run without some stages; by default up to its warm-up."""
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns(without))
    return folder


def test_bits_and_readings_are_options(
    run: RunFolder, inputs: dict[str, Any], tmp_path: Path
) -> None:
    exact = world.recipe(inputs, features__projection={"kind": "none"}, features__bits=32)
    whole = gradsieve.run(exact, warm(run, tmp_path / "whole"), last="score")
    wanted = np.array([row["score"] for row in scores(whole).values()])
    for number, bits in enumerate((32, 8, 1)):
        recipe = world.recipe(inputs, features__bits=bits, features__projection={"dim": 8192})
        other = gradsieve.run(recipe, warm(run, tmp_path / str(number)), last="score")
        found = np.array([row["score"] for row in scores(other).values()])
        assert np.corrcoef(found, wanted)[0, 1] > (0.7 if bits == 1 else 0.97)
    for name, changes in {
        "official": {"features__adam": "official"},
        "drop": {"features__momentum": "drop"},
        "dense": {"features__projection": {"kind": "rademacher", "dim": 512}},
        "mean": {"score__across_subtasks": "mean"},
        "cosines": {"score__target_mean": "mean_of_cosines"},
    }.items():
        without = "0[2-9]-*" if "features" in next(iter(changes)) else "0[3-9]-*"
        out = warm(run, tmp_path / name, without)
        other = gradsieve.run(world.recipe(inputs, **changes), out, last="score")
        found = np.array([row["score"] for row in scores(other).values()])
        assert np.isfinite(found).all()
        assert not np.array_equal(found, wanted)


def test_exact_mode_has_no_projection_error(
    run: RunFolder, inputs: dict[str, Any], tmp_path: Path
) -> None:
    folders = [warm(run, tmp_path / name) for name in ("whole", "exact")]
    unprojected = {"projection": {"kind": "none"}, "bits": 32}
    told = world.Listening()
    for mean in ("cosine_of_mean", "mean_of_cosines"):
        score = {"target_mean": mean}
        whole = world.recipe(inputs, features=unprojected, score=score)
        wanted = gradsieve.run(whole, folders[0], progress=told, last="select")
        recipe = world.recipe(inputs, features={"mode": "exact"}, score=score)
        found = gradsieve.run(recipe, folders[1], progress=told, last="select")
        assert_same_scores(wanted, found, 1e-6)
    assert "  exact mode holds 0.00 GiB of target gradients" in told.lines
    assert not list(found.stage("features").glob("*/pool"))
    assert load_recipe(found.path / "recipe.yaml") == recipe


def test_exact_mode_tells_what_does_not_fit(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsieve.gradients.jobs.free_memory", lambda: 1000)
    with pytest.raises(ModelError, match="fit into memory") as caught:
        gradsieve.run(world.recipe(inputs, features={"mode": "exact"}), tmp_path)
    assert "mode: store" in caught.value.todo


def test_new_rows_add_only_their_own_features(inputs: dict[str, Any], tmp_path: Path) -> None:
    fewer = {**inputs, "pool": inputs["pool"][:1]}
    run = gradsieve.run(world.recipe(fewer), tmp_path)
    store = run.stage("features") / "checkpoint-1" / "pool"
    before = {file.name for file in store.glob("shard-*")}
    told = world.Listening()
    gradsieve.run(world.recipe(inputs), tmp_path, first="features", progress=told)
    assert any("features: updating (source `two` was added)" in line for line in told.lines)
    assert before < {file.name for file in store.glob("shard-*")}
    assert len(scores(run)) == world.ROWS
    gradsieve.run(world.recipe(fewer), tmp_path, first="features", progress=told)
    assert len(scores(run)) == world.ROWS // 2


def test_a_new_target_takes_no_row_again(
    run: RunFolder, inputs: dict[str, Any], tmp_path: Path
) -> None:
    one = {**inputs, "targets": inputs["targets"][:1]}
    grown = gradsieve.run(world.recipe(one), warm(run, tmp_path / "grown"))
    store = grown.stage("features") / "checkpoint-1" / "pool"
    times = {file.name: file.stat().st_mtime_ns for file in store.glob("shard-*")}
    gradsieve.run(world.recipe(inputs), grown.path)
    assert {file.name: file.stat().st_mtime_ns for file in store.glob("shard-*")} == times
    assert len(selected(grown, "plain")) == len(selected(grown, "mine"))


def test_a_damaged_shard_is_named_and_only_its_rows_are_made_again(
    inputs: dict[str, Any], copied: RunFolder
) -> None:
    before = world.results(copied)
    store = copied.stage("features") / "checkpoint-2" / "pool"
    shard = sorted(store.glob("shard-*"))[1]
    others = {file: file.stat().st_mtime_ns for file in store.glob("shard-*") if file != shard}
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 16
    shard.write_bytes(content)
    again = world.recipe(inputs, score__across_subtasks="mean")
    with pytest.raises(StoreError, match="damaged") as caught:
        gradsieve.run(again, copied.path, first="score")
    assert str(shard) == caught.value.where
    told = world.Listening()
    gradsieve.run(world.recipe(inputs), copied.path, progress=told)
    assert any(shard.name in line for line in told.lines)
    assert {file: file.stat().st_mtime_ns for file in others} == others
    after = world.results(copied)
    assert {name: after[name] for name in before} == before


def test_existing_checkpoints_need_no_warmup(
    run: RunFolder, inputs: dict[str, Any], tmp_path: Path
) -> None:
    folders = [str(run.stage("warmup") / f"checkpoint-{i}") for i in (1, 2)]
    other = gradsieve.run(world.recipe(inputs, warmup={"checkpoints": folders}), tmp_path)
    assert not list(other.stage("warmup").glob("checkpoint-*"))
    assert_same_scores(run, other)


def test_rows_without_a_label_are_skipped(inputs: dict[str, Any], tmp_path: Path) -> None:
    long = {"id": "long", "prompt": "a " * 90, "completion": "b"}
    world.write(tmp_path / "long.jsonl", [long])
    pool = [*inputs["pool"], {"name": "long", "path": str(tmp_path / "long.jsonl")}]
    run = gradsieve.run(world.recipe({**inputs, "pool": pool}), tmp_path / "run")
    dropped = (run.stage("select") / "mine" / "less" / "dropped.jsonl").read_text()
    assert json.loads(dropped) == {
        "source": "long",
        "id": "long",
        "reason": "no label token within the first 64 tokens",
    }
    assert ("long", "long") not in scores(run)


def test_rows_whose_gradient_is_not_finite_are_skipped(
    run: RunFolder, inputs: dict[str, Any], tmp_path: Path
) -> None:
    """One row contains a token whose embedding has a square that is not finite."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(inputs["model"]["name"])
    tokenizer = AutoTokenizer.from_pretrained(inputs["model"]["name"])
    model.get_input_embeddings().weight.data[tokenizer.unk_token_id] = 3e38
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    world.write(tmp_path / "odd.jsonl", [{"id": "x", "prompt": "unheard-of", "completion": "a"}])
    changed = {
        **inputs,
        "model": {**inputs["model"], "name": str(tmp_path / "model")},
        "pool": [*inputs["pool"], {"name": "odd", "path": str(tmp_path / "odd.jsonl")}],
        "warmup": {"checkpoints": [str(run.stage("warmup") / "checkpoint-1")]},
    }
    for mode in ("store", "exact"):
        features = {"mode": mode}
        other = gradsieve.run(
            world.recipe({**changed, "features": features}, score__methods=["less", "random"]),
            tmp_path / mode,
        )
        found = scores(other)
        assert ("odd", "x") not in found
        assert len(found) == world.ROWS
        assert all(np.isfinite(row["score"]) for row in found.values())
        dropped = (other.stage("select") / "mine" / "less" / "dropped.jsonl").read_text()
        assert json.loads(dropped)["reason"] == "its gradient is not finite"
        skipped = {"source": "odd", "id": "x", "skip_reason": "its gradient is not finite"}
        artifacts = Artifacts(other)
        assert artifacts.features.skipped().to_pylist() == [skipped]
        assert artifacts.scores.skipped(artifacts.pool.read(), "less").to_pylist() == [skipped]
        # A method without gradients scores it.
        assert not (other.stage("select") / "mine" / "random" / "dropped.jsonl").read_text()


@pytest.mark.parametrize("changes", [{"mode": "exact"}, {"bits": 16}, {"bits": 1}])
def test_a_row_whose_gradient_is_zero_scores_0(
    run: RunFolder,
    inputs: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    real = jobs.extract

    def without_the_long_one(extractor: Any, encoded: Any, *others: Any, **named: Any) -> Any:
        found = real(extractor, encoded, *others, **named)
        for place, tokens in enumerate(encoded):
            if len(tokens.input_ids) > 60:
                found.rows[place] = found.gradient_norms[place] = 0
        return found

    monkeypatch.setattr(jobs, "extract", without_the_long_one)
    world.write(tmp_path / "odd.jsonl", [{"id": "x", "prompt": "a " * 50, "completion": "a " * 9}])
    changed = {
        **inputs,
        "pool": [*inputs["pool"], {"name": "odd", "path": str(tmp_path / "odd.jsonl")}],
        "warmup": {"checkpoints": [str(run.stage("warmup") / "checkpoint-1")]},
        "features": changes,
    }
    out = tmp_path / "run"
    other = gradsieve.run(world.recipe(changed), out, last="score")
    zeros = [key for key, row in scores(other).items() if row["score"] == 0]
    assert zeros == [("odd", "x")]


def test_train_makes_adapters_also_of_another_model(
    inputs: dict[str, Any], copied: RunFolder, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    other = world.make(tmp_path / "other")["model"]["name"]
    recipe = world.recipe(inputs, train={"model": other, "seeds": [0, 1]})
    gradsieve.run(recipe, copied.path)
    for seed in (0, 1):
        folder = copied.stage("train") / "mine" / "less" / f"seed-{seed}"
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(other), folder)
        assert (folder / "loss.jsonl").stat().st_size
    told = world.Listening()
    gradsieve.run(recipe, copied.path, progress=told)
    assert told.lines[-2] == "train: up to date"


def test_where_losses_are_sent_changes_nothing_that_is_done(
    inputs: dict[str, Any], copied: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsieve.stages.checks.check_trackers", lambda _: None)
    told = world.Listening()
    again = world.recipe(inputs, warmup__report_to=["tensorboard"])
    gradsieve.run(again, copied.path, progress=told)
    # The report shows the recipe, so it is written again.
    assert told.lines[:5] == [f"{name}: up to date" for name in MADE]


def test_the_log_tells_command_versions_and_how_it_ended(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    gradsieve.run(world.recipe(inputs), tmp_path, last="warmup", progress=Progress(quiet=True))
    with pytest.raises(DataError):
        gradsieve.run(
            world.recipe(inputs, pool=[{"name": "x", "path": "none.jsonl"}]),
            tmp_path,
            progress=Progress(quiet=True),
        )
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    starts = [line for line in log.splitlines() if " --- " in line]
    assert len(starts) == 2
    assert all("torch 2" in line and "gradsieve 0" in line for line in starts)
    assert "warmup: done in" in log
    assert "stopped: DataError The file does not exist." in log


def test_a_stage_that_has_written_over_a_file_is_not_taken_back(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writes_over(self: Any, context: Any) -> dict[str, Any]:
        (context.run.stage("score") / "seconds.json").write_bytes(b"half of what was wanted")
        raise DataError("A mistake.")

    def scored(*methods: str) -> RunFolder:
        recipe = world.recipe(inputs, score__methods=list(methods))
        return gradsieve.run(recipe, tmp_path, last="score")

    scored("random")
    monkeypatch.setattr("gradsieve.stages.score.Score.run", writes_over)
    with pytest.raises(DataError, match="A mistake"):
        scored("random", "bm25")
    assert RunFolder(tmp_path).metadata("score") is None


def test_stages_that_are_missing_or_out_of_order(inputs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="warmup is not finished"):
        gradsieve.run(world.recipe(inputs), tmp_path, first="features")
    with pytest.raises(UsageError, match="comes after"):
        gradsieve.run(world.recipe(inputs), tmp_path, first="select", last="score")


def test_a_warm_up_of_one_step_is_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    """The only learning rate is 0: scores would be 0 / 0, and the model would be the base model."""
    one = {"warmup__epochs": 1, "warmup__fraction": 0.02}
    with pytest.raises(DataError, match="would change nothing") as caught:
        gradsieve.run(world.recipe(inputs, **one), tmp_path)
    assert "warmup.fraction" in caught.value.todo
    assert not (tmp_path / "01-warmup").exists()
    gradsieve.run(world.recipe(inputs, **one, warmup__warmup_ratio=0), tmp_path, last="score")
    few = world.recipe(inputs, select={"count": 4}, train={"epochs": 1}, score__methods=["random"])
    progress = world.Listening()
    gradsieve.run(few, tmp_path, last="train", progress=progress)
    assert any("seed 0: the only step has a learning rate of 0" in line for line in progress.lines)


def test_wrong_models_and_files_are_reported(inputs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        gradsieve.run(world.recipe(inputs, model__name=str(tmp_path)), tmp_path / "a")
    with pytest.raises(ModelError, match="no layer of this name"):
        gradsieve.run(
            world.recipe(inputs, warmup__lora={"target_modules": ["query"]}), tmp_path / "b"
        )
    with pytest.raises(DataError, match="file does not exist"):
        gradsieve.run(
            world.recipe({**inputs, "pool": [{"name": "x", "path": "none.jsonl"}]}), tmp_path / "c"
        )
    with pytest.raises(ModelError, match="checkpoint of warmup"):
        gradsieve.run(world.recipe(inputs, warmup={"checkpoints": ["none"]}), tmp_path / "d")
