"""Several processes share the feature extraction: each writes its part, the last one finishes."""

import time
from pathlib import Path
from typing import Any

import pytest

import gradsieve
import world
from gradsieve.errors import RunError, StoreError
from gradsieve.gradients.jobs import ShardTask, TargetTask
from gradsieve.pipeline.run import run_share
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages import features


@pytest.fixture(scope="module", params=["store", "exact"])
def recipe(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    inputs = world.make(tmp_path_factory.mktemp("inputs"), rows=80)
    return world.recipe(inputs, features={"mode": request.param})


def share(recipe: Recipe, out: Path, number: int, count: int) -> list[str]:
    listening = world.Listening()
    run_share(recipe, out, (number, count), listening)
    return listening.lines


def test_shares_make_the_bytes_of_one_process(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "ROWS_A_SHARD", (16, 16))
    plain = gradsieve.run(recipe, tmp_path / "plain", last="score")
    out = tmp_path / "shared"
    with pytest.raises(RunError, match="pool is not finished"):
        share(recipe, out, 1, 3)
    gradsieve.run(recipe, out, last="warmup")
    run = RunFolder(out)
    counts = []
    for number in (3, 1, 2):
        assert run.metadata("features") is None
        said = share(recipe, out, number, 3)
        counts.append(len(list(out.glob("02-features/checkpoint-1/*/shard-*"))))
    assert 0 < counts[0] < counts[1] < counts[2]
    assert "features: share 2 of 3 is done, and so are all others" in said
    assert run.metadata("features") is not None
    assert share(recipe, out, 1, 3)[-1] == "features: up to date"
    found = gradsieve.run(recipe, out, last="score")
    theirs = {name: c for name, c in world.results(found).items() if name != ".turn"}
    assert theirs == world.results(plain)


def test_a_share_finds_what_was_made_with_its_settings(recipe: Recipe, tmp_path: Path) -> None:
    gradsieve.run(recipe, tmp_path, last="features")
    settings = recipe.features.model_copy(update={"adam": "official"})
    share(recipe.model_copy(update={"features": settings}), tmp_path, 1, 3)
    said = share(recipe, tmp_path, 1, 3)
    assert "features: these settings' outputs are taken back from the archive" in said
    assert said[-1] == "features: up to date"


def test_a_share_reports_a_warmup_of_other_settings(recipe: Recipe, tmp_path: Path) -> None:
    gradsieve.run(recipe, tmp_path, last="warmup")
    warmup = recipe.warmup.model_copy(update={"seed": 7})
    other = recipe.model_copy(update={"warmup": warmup})
    alone = world.Listening()
    shared = share(other, tmp_path, 1, 2)
    gradsieve.run(other, tmp_path, first="features", last="features", progress=alone)
    for said in (shared, alone.lines):
        assert any("warmup is taken as it is" in line and "seed: 0 -> 7" in line for line in said)
        assert "pool: up to date" in said


def test_the_stage_includes_the_seconds_of_its_shares(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradsieve.run(recipe, tmp_path, last="warmup")
    take, waited = features.take_share, 0.5

    def slow(context: Context) -> None:
        time.sleep(waited)
        take(context)

    monkeypatch.setattr(features, "take_share", slow)
    run, seconds = RunFolder(tmp_path), 0.0
    for _ in range(2):  # all of it, then what was lost
        share(recipe, tmp_path, 1, 2)
        share(recipe, tmp_path, 2, 2)
        assert run.require("features")["seconds"] > seconds + waited
        seconds = run.require("features")["seconds"]
        next(run.stage("features").glob("checkpoint-1/*/shard-*")).unlink()


def test_targets_of_other_settings_are_not_written(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe.features.model_copy(update={"mode": "store"})
    projection = settings.projection.model_copy(update={"seed": 7})
    later = settings.model_copy(update={"projection": projection})
    recipe, other = (recipe.model_copy(update={"features": one}) for one in (settings, later))
    gradsieve.run(recipe, tmp_path, last="warmup")
    take = features.take_share

    def overtaken(context: Context) -> None:
        monkeypatch.setattr(features, "take_share", take)
        work = features._work(context)
        tasks = [task for task in work[0].tasks() if isinstance(task, TargetTask)]
        share(other, tmp_path, 2, 2)
        assert tasks
        with pytest.raises(StoreError, match="made with other settings"):
            list(context.engine.map(work[0].job, tasks))
        assert not any(task.file.exists() for task in tasks)

    monkeypatch.setattr(features, "take_share", overtaken)
    with pytest.raises(StoreError, match="made with other settings"):
        share(recipe, tmp_path, 1, 2)


def test_a_share_creates_no_datastore_where_another_has_archived_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one, which is about to create it with other settings, would be refused."""
    settings = recipe.features.model_copy(update={"mode": "store"})
    recipe = recipe.model_copy(update={"features": settings})
    run = gradsieve.run(recipe, tmp_path, last="warmup")

    def overtaken(context: Context) -> None:
        work = features._work(context)
        tasks = [task for task in work[0].tasks() if isinstance(task, ShardTask)]
        run.archive("features")
        list(context.engine.map(work[0].job, tasks))

    monkeypatch.setattr(features, "take_share", overtaken)
    with pytest.raises(StoreError, match="moved away"):
        share(recipe, tmp_path, 1, 1)
    assert not run.stage("features").joinpath("checkpoint-1").exists()


def test_a_run_refuses_while_shares_work(recipe: Recipe, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with (
        run.locked(shared=True),
        run.locked(shared=True),
        pytest.raises(RunError, match="Another gradsieve process"),
        run.locked(),
    ):
        pass
