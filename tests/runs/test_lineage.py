"""Which stages belong together, according to the metadata of made-up runs."""

from pathlib import Path
from typing import Any

import pytest

from gradsieve.runs.folder import RunFolder
from gradsieve.runs.lineage import outdated, update, upstream
from gradsieve.runs.verify import verify

STAGES: dict[str, dict[str, Any]] = {
    "pool": {"output": {"one": "p1"}, "inputs": {}},
    "warmup": {"output": "w1", "checkpoints": ["checkpoint-1"], "inputs": {"pool": {"one": "p1"}}},
    "features": {
        "output": {"stores.pool": "f1", "targets.mine": "t1"},
        "inputs": {"pool": {"one": "p1"}, "checkpoints": "w1", "features": {"bits": 16}},
    },
    "score": {
        "output": "s1",
        "inputs": {
            "pool": {"one": "p1"},
            "features": {"stores.pool": "f1", "targets.mine": "t1", "learning_rates": [1.0]},
        },
    },
    "select": {
        "output": "c1",
        "selections": {"mine/less": "m1"},
        "inputs": {"scores": "s1", "pool": {"one": "p1"}, "features": None},
    },
    "train": {
        "output": "a1",
        "models": {"mine/less/seed-0": "a1"},
        "inputs": {"selections": {"mine/less": "m1"}},
    },
    "report": {"output": "r1", "inputs": {"stages": {"score": "s1", "select": "c1"}}},
}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    for name, metadata in STAGES.items():
        run.finish(name, metadata)
    return run


def change(run: RunFolder, name: str, **changes: Any) -> dict[str, str]:
    run.finish(name, {**STAGES[name], **changes})
    return outdated(run)


def test_a_finished_run_is_up_to_date(run: RunFolder) -> None:
    assert outdated(run) == {}
    assert upstream(run, "train") == {"pool", "warmup", "features", "score", "select", "train"}
    assert upstream(run, "warmup") == {"pool", "warmup"}


def test_a_change_outdates_all_that_follows(run: RunFolder) -> None:
    found = change(run, "score", output="s2")
    assert found == {
        "select": "score has changed since",
        "train": "select is out of date",
        "report": "score has changed since",
    }


def test_the_command_that_updates_keeps_the_warm_up(run: RunFolder) -> None:
    found = change(run, "pool", output={"one": "p1", "two": "p2"})
    assert [*found] == ["score", "select", "train", "report"]
    assert update(run, found) == "gradsieve run --from features"  # new rows have none yet
    assert update(run, [*found][1:]) == "gradsieve run --from select"
    run.finish("score", {**STAGES["score"], "inputs": {"pool": {"one": "p1"}}})  # as bm25 does
    assert update(run, outdated(run)) == "gradsieve run --from score"


def test_what_is_added_leaves_the_rest_as_it_was(run: RunFolder) -> None:
    more = {"mine/less": "m1", "mine/random": "m2"}
    assert change(run, "select", selections=more) == {}
    assert (
        change(run, "features", output={**STAGES["features"]["output"], "targets.new": "t"}) == {}
    )
    assert "train" in change(run, "select", selections={"mine/less": "m2"})


@pytest.mark.parametrize("pool", [{"one": "p1", "two": "p2"}, {}])
def test_a_warm_up_and_features_serve_another_pool(run: RunFolder, pool: dict[str, str]) -> None:
    """As with `--from score`, which stops if rows have no features."""
    assert set(change(run, "pool", output=pool)) == {"score", "select", "train", "report"}
    for name in ("score", "select"):
        found = change(run, name, inputs={**STAGES[name]["inputs"], "pool": pool})
    assert found == {}


def test_what_a_stage_has_read_is_not_finished(run: RunFolder) -> None:
    (run.stage("select") / "meta.json").unlink()
    assert outdated(run) == {"train": "select is not finished", "report": "select is not finished"}
    problems = verify(run).problems  # once, although two stages have read it
    assert [one["stage"] for one in problems if one["problem"] == "missing"].count("select") == 1
