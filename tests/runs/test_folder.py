"""A run folder shows what is completed, and never a partial file."""

import json
import multiprocessing
from pathlib import Path

import pytest

from gradsieve.errors import RunError
from gradsieve.io import (
    atomic,
    differences,
    fingerprint,
    folder_fingerprint,
    write_json,
)
from gradsieve.runs.folder import RunFolder


def test_meta_means_done(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.metadata("score") is None
    with pytest.raises(RunError, match="score is not finished"):
        run.require("score")
    assert run.begin("score", {"a": 1}) == tmp_path / "03-score"
    assert run.started_with("score") == {"a": 1}
    assert run.metadata("score") is None
    run.finish("score", {"output": "x"})
    assert run.require("score")["output"] == "x"
    run.begin("score", {"a": 2})
    assert run.metadata("score") is None


def test_the_archive_keeps_everything(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for content in "ab":
        folder = run.begin("select", {"a": 1})
        (folder / "file").write_text(content)
        kept = run.archive("select")
        assert kept is not None
        assert (kept / "file").read_text() == content
    assert run.archive("select") is None


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_a_beginning_is_undone(tmp_path: Path, moved: bool, finished: bool) -> None:
    run = RunFolder(tmp_path)
    run.begin("select", {"a": 1})
    run.keep_seconds("select", 2.5)
    if finished:
        run.finish("select", {"output": "x"})
    run.recipe.write_text("a: 1\n")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    notes = run.snapshot("select")
    kept = run.archive("select") if moved else None
    run.begin("select", {"a": 2})
    run.recipe.write_text("a: 2\n")
    run.restore("select", notes, kept)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    assert not (tmp_path / "archive").exists()


def test_a_folder_of_something_else_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(RunError, match="holds something else") as caught:
        RunFolder(tmp_path).claim()
    assert caught.value.where == f"--out {tmp_path}: recipe.yaml"
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]
    RunFolder(tmp_path / "new").claim()
    RunFolder(tmp_path / "new").claim()  # its own marker is accepted


def test_an_unreadable_meta_is_reported(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.begin("select", {})
    (run.stage("select") / "meta.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        run.metadata("select")
    for found in ({"schema": 999}, {}):
        write_json(run.stage("select") / "meta.json", found)
        with pytest.raises(RunError, match="schema 2"):
            run.metadata("select")
    with pytest.raises(RunError, match="schema 2"):
        run.metadata("select")


def _hold(path: str, held: multiprocessing.Event, release: multiprocessing.Event) -> None:
    with RunFolder(path).locked():
        held.set()
        release.wait(10)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    held, release = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(str(tmp_path), held, release))
    other.start()
    assert held.wait(30)
    with pytest.raises(RunError, match="Another gradsieve process"), RunFolder(tmp_path).locked():
        pass
    release.set()
    other.join(10)
    with RunFolder(tmp_path).locked():
        pass


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    folder = tmp_path / "02-features" / "pool"
    folder.mkdir(parents=True)
    (folder / ".shard-1.safetensors.abc.tmp").touch()
    (folder / ".tmpX1y2").touch()  # the naming of Rust's tempfile
    (folder / ".tmpdir").mkdir()
    (folder / "shard-1.safetensors").touch()
    with RunFolder(tmp_path).locked():
        assert [file.name for file in folder.iterdir()] == ["shard-1.safetensors"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"), RunFolder(tmp_path / "file").locked():
        pass


def test_atomic_leaves_the_old_file_if_the_block_fails(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file"
    with atomic(file) as temporary:
        temporary.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(file) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ZeroDivisionError
    assert file.read_text() == "old"
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_fingerprints() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_folder_fingerprint_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = folder_fingerprint(tmp_path, ("*",))
    (tmp_path / "b").write_text("2")
    second = folder_fingerprint(tmp_path, ("*",))
    (tmp_path / "b").write_text("3")
    assert len({first, second, folder_fingerprint(tmp_path, ("*",))}) == 3
    assert folder_fingerprint(tmp_path, ("a",)) == first


def test_differences_name_both_values() -> None:
    old = {"warmup": {"epochs": 4, "lora": {"r": 8}}, "pool": {"x": "0" * 64}}
    new = json.loads(json.dumps(old))
    assert differences(old, new) == []
    new["warmup"]["epochs"] = 2
    new["pool"] = {"x": "1" * 64, "y": "z"}
    assert differences(old, new) == [
        "warmup.epochs: 4 -> 2",
        "source `x` has changed",
        'pool.y: null -> "z"',
    ]


def test_reasons_read_as_sentences() -> None:
    one, two = "0" * 64, "1" * 64
    assert differences({"scores": one, "model": one}, {"scores": two, "model": two}) == [
        "the scores have changed",
        "model has changed",
    ]
    made = {"stores.pool": one, "targets.t": one}
    changed = ["the features that are read have changed"]
    assert differences({"features": None}, {"features": made}) == changed
    assert differences({"features": {}}, {"features": {**made, "learning_rates": [1]}}) == changed
    bits = [{"features": {"bits": bits}} for bits in (8, 4)]
    assert differences(*bits) == ["features.bits: 8 -> 4"]
    text = ["model.max_length, the chat template or the tokenizer has changed"]
    assert differences({"model": {"template": one}}, {"model": {"template": two}}) == text
    assert differences({"template": one}, {"template": two}) == text
    assert differences({"base": {"template": one}}, {"base": {"template": two}}) == text
    after = ["the model after the warm-up has changed"]
    assert differences({"warmed_up": one}, {"warmed_up": two}) == after
    assert differences({"warmed_up": one}, {"warmed_up": None}) == after
    sources = [[{"name": "a"}, {"name": name}] for name in ("b", "c")]
    assert differences({"pool": sources[0]}, {"pool": sources[1]}) == ['pool.1.name: "b" -> "c"']
    stages = {"stages": {"pool": {"a.b": one, "c": one}, "score": one}}
    assert differences(stages, {"stages": {"pool": {"a.b": two, "c": two}, "score": two}}) == [
        "the outputs of earlier stages have changed"
    ]
    own = {"own": {"M": [f"Longest:{one}"], "fusion": ["less", "bm25"]}}
    assert differences(own, {"own": {"M": [f"Longest:{two}"], "fusion": ["less"]}}) == [
        "method `M` has changed",
        'own.fusion: ["less", "bm25"] -> ["less"]',
    ]
    reason = ["the order of the targets or of their examples has changed"]
    assert (
        differences({}, {"order": {"t": one}}) == differences({}, {"order": ["b", "a"]}) == reason
    )
    turns = {"turns": {"t": ["b", "a"]}}
    reason = ["the order of the target examples has changed"]
    assert differences({}, turns) == differences(turns, {"turns": {"t": ["a", "b"]}}) == reason
    assert "target examples" in differences({}, {"examples": True})[0]
    assert differences({"own": {"M": [one]}}, {}) == ["method `M` was removed"]
