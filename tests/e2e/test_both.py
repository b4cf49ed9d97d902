"""`features.mode: both`: exact scores and a datastore for later targets, in one pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import gradsieve
import world
from gradsieve.gradients import jobs
from gradsieve.runs.folder import RunFolder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = world.make(tmp_path_factory.mktemp("inputs"), rows=100)
    data["warmup"]["epochs"] = 1
    return data


def run(data: dict[str, Any], out: Path, mode: str, **changes: Any) -> RunFolder:
    recipe = world.recipe(data, features__mode=mode, **changes)
    return gradsieve.run(recipe, out, last="score")


def with_mode(data: dict[str, Any], mode: str) -> dict[str, Any]:
    """Exact mode refuses keys that it doesn't use."""
    return {**data, "features": {"tokens_per_batch": 256}} if mode == "exact" else data


@pytest.fixture(scope="module")
def runs(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    out = tmp_path_factory.mktemp("runs")
    return {m: run(with_mode(inputs, m), out / m, m) for m in ("store", "exact", "both")}


def shards(run: RunFolder, kind: str) -> dict[str, bytes]:
    folder = run.stage("features") / "checkpoint-1" / kind
    return {
        file.name: file.read_bytes() for file in folder.iterdir() if "manifest" not in file.name
    }


def scores(run: RunFolder, target: str) -> np.ndarray:
    return pq.read_table(run.stage("score") / target / "less.parquet")["score"].to_numpy()


def test_one_pass_gives_the_bytes_of_both_modes(runs: dict[str, RunFolder]) -> None:
    assert shards(runs["both"], "pool") == shards(runs["store"], "pool")
    assert shards(runs["both"], "exact") == shards(runs["exact"], "exact")
    for target in ("mine", "plain"):
        np.testing.assert_array_equal(scores(runs["both"], target), scores(runs["exact"], target))
        assert not np.array_equal(scores(runs["both"], target), scores(runs["store"], target))


def test_a_pass_is_one_forward_and_backward_for_both(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    real = jobs.extract

    def counted(extractor: Any, encoded: Any, *others: Any, **named: Any) -> Any:
        passes.append(len(encoded))
        return real(extractor, encoded, *others, **named)

    monkeypatch.setattr(jobs, "extract", counted)
    run(inputs, tmp_path / "both", "both")
    of_pool = [rows for rows in passes if rows > 8]
    assert sum(of_pool) == 100


def test_a_target_that_is_added_takes_the_datastore(
    inputs: dict[str, Any], runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    one = {**inputs, "targets": inputs["targets"][1:]}
    before = run(one, tmp_path, "both")
    kept = {kind: shards(before, kind) for kind in ("pool", "exact")}
    after = run(inputs, tmp_path, "both")
    assert {kind: shards(after, kind) for kind in ("pool", "exact")} == kept
    np.testing.assert_allclose(scores(after, "plain"), scores(runs["exact"], "plain"), atol=1e-6)
    np.testing.assert_array_equal(scores(after, "mine"), scores(runs["store"], "mine"))
    assert after.require("features")["exact_targets"] == ["plain"]


def test_a_run_that_becomes_exact_is_scored_again(
    inputs: dict[str, Any], runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    """The datastore has the same bytes as before, but the scores no longer come from it."""
    run({**inputs, "score": {"methods": ["less", "bm25"]}}, tmp_path, "store")
    after = run({**inputs, "score": {"methods": ["less", "bm25"]}}, tmp_path, "both")
    for target in ("mine", "plain"):
        np.testing.assert_array_equal(scores(after, target), scores(runs["both"], target))


def test_rows_that_come_after_a_target_has_gone(inputs: dict[str, Any], tmp_path: Path) -> None:
    """They lack cosines to the removed target: exact cosines to the others are computed again."""
    world.write(tmp_path / "new.jsonl", [{"id": "n", "prompt": "inward : 1 2", "completion": "2"}])
    more = [*inputs["pool"], {"name": "zoo", "path": str(tmp_path / "new.jsonl")}]
    out, left = tmp_path / "run", {**inputs, "targets": inputs["targets"][1:]}
    checkpoints = [str(run(inputs, out, "both").stage("warmup") / "checkpoint-1")]
    left["warmup"] = {"checkpoints": checkpoints}
    first = run({**inputs, "warmup": left["warmup"]}, tmp_path / "other", "both")
    pool = shards(first, "pool")
    grown = run({**left, "pool": more}, tmp_path / "other", "both")
    assert pool.items() <= shards(grown, "pool").items()
    assert grown.require("features")["exact_targets"] == ["plain"]
    assert len(scores(grown, "plain")) == 101


@pytest.mark.parametrize("written", [0, 1, 2])
def test_killed_and_resumed_gives_the_same_bytes(
    inputs: dict[str, Any],
    runs: dict[str, RunFolder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: int,
) -> None:
    real, left = jobs.open_writer, [written]

    def stopping(*given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(jobs, "open_writer", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path, "both")
    monkeypatch.undo()
    resumed = run(inputs, tmp_path, "both")
    for kind in ("pool", "exact"):
        assert shards(resumed, kind) == shards(runs["both"], kind)
    np.testing.assert_array_equal(scores(resumed, "mine"), scores(runs["both"], "mine"))
