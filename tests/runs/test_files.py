"""A finished stage's files are listed with hashes, and no other files are used."""

from pathlib import Path

import pytest

from gradsieve.errors import RunError
from gradsieve.io import file_hash, read_sealed, write_sealed
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.files import faults, hash_once, list_files
from gradsieve.runs.folder import RunFolder
from gradsieve.runs.verify import verify


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished stage with files in two folders."""
    run = RunFolder(tmp_path / "run")
    run.write_recipe("a: 1\n")
    folder = run.begin("select", {"a": 1})
    for name in ("mine/less/selected.jsonl", "mine/less/messages.jsonl", "leaks.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"id": "1"}\n')
    (folder / ".hidden").touch()
    (folder / "mine" / "seed-0.tmp").mkdir()
    (folder / "mine" / "seed-0.tmp" / "half").touch()
    run.finish("select", {"fingerprint": "f", "inputs": {"a": 1}, "selections": {"mine/less": "x"}})
    return run


def test_the_list_has_sizes_and_hashes(run: RunFolder) -> None:
    listed = run.files("select")
    assert listed is not None
    file = run.stage("select") / "leaks.jsonl"
    assert listed["leaks.jsonl"] == [12, file_hash(file)]
    assert set(listed) == {"leaks.jsonl", "mine/less/messages.jsonl", "mine/less/selected.jsonl"}
    assert "files" not in run.require("select")
    assert run.faults("select") == []
    assert verify(run).problems == []
    assert verify(run).text() == "no problems in 1 stages, 3 files, 0.0 MiB"


def test_a_datastores_files_are_listed_by_their_names(tmp_path: Path) -> None:
    name = f"shard-{'a' * 32}-{'b' * 32}.safetensors"
    (tmp_path / name).write_text("not read")
    assert list_files(tmp_path) == {name: [8, "b" * 32]}


def test_damaged_missing_and_foreign_files_are_named(run: RunFolder) -> None:
    folder = run.stage("select")
    (folder / "mine/less/selected.jsonl").write_text('{"id": "2"}\n')
    (folder / "leaks.jsonl").unlink()
    (folder / "mine/less/other.jsonl").touch()
    named = {(str(f.file.relative_to(folder)), f.what) for f in run.faults("select")}
    assert named == {
        ("mine/less/selected.jsonl", "damaged"),
        ("leaks.jsonl", "missing"),
        ("mine/less/other.jsonl", "foreign"),
    }
    found = verify(run)
    assert {problem["problem"] for problem in found.problems} == {"damaged", "missing", "foreign"}
    assert "3 problems in 1 stages" in found.text()
    assert set(found.stages.values()) == {"checked"}
    with pytest.raises(RunError, match="damaged") as caught:
        Artifacts(run).selections.selection("mine", "less")
    assert str(folder / "mine/less/selected.jsonl") in caught.value.where
    assert "`gradsieve run`" in caught.value.todo


def test_a_file_is_read_once(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    file = run.stage("select") / "leaks.jsonl"
    hash_once(file)
    monkeypatch.setattr("gradsieve.runs.files.file_hash", lambda _: pytest.fail("read again"))
    assert run.faults("select") == []
    file.write_text("{}\n")
    with pytest.raises(pytest.fail.Exception):
        hash_once(file)


def test_a_file_is_verified_without_reading_the_list_again(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation may list thousands of results, and `compare` verifies each."""

    class OnlyLookedUp(dict[str, list[int | str]]):
        __iter__ = items = lambda _: pytest.fail("searched")  # type: ignore[assignment]

    file = run.stage("select") / "leaks.jsonl"
    listed = run.files("select")
    assert listed is not None
    monkeypatch.setattr("gradsieve.runs.folder.read_sealed", lambda _: pytest.fail("read again"))
    assert run.faults("select", file) == []
    file.write_text("damaged")
    assert [f.what for f in faults(file.parent, OnlyLookedUp(listed), file)] == ["damaged"]
    monkeypatch.undo()
    run.finish("select", {"inputs": {"a": 1}})
    assert run.faults("select", file) == []  # `meta.json` has changed


def test_every_bit_of_meta_counts(run: RunFolder) -> None:
    file = run.stage("select") / "meta.json"
    content = file.read_bytes()
    for place in range(0, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = run.metadata("select")
        except RunError:
            continue
        assert found is None, (place, content[place : place + 20])


def test_what_records_a_stage_is_repaired(run: RunFolder) -> None:
    folder = run.stage("select")
    (folder / "inputs.json").write_text("{")
    assert run.repair("select") is None
    assert run.started_with("select") == {"a": 1}
    write_sealed(folder / "inputs.json", {"a": 2})  # from an earlier version
    assert [problem["problem"] for problem in verify(run).problems] == ["not of this stage"]
    assert run.repair("select") is None
    assert run.started_with("select") == {"a": 1}
    (folder / "meta.json").write_text("{")
    assert "meta.json is damaged" in str(run.repair("select"))
    assert run.metadata("select") is None
    assert (run.path / "archive/04-select/meta.json").read_text() == "{"
    assert (folder / "leaks.jsonl").is_file()
    (folder / "inputs.json").write_text("{")
    assert "starts again" in str(run.repair("select"))
    assert not folder.exists()
    assert (run.path / "archive/04-select-damaged/leaks.jsonl").is_file()
    for file in ("meta.json", "inputs.json"):  # both files at once
        folder.mkdir(exist_ok=True)
        (folder / file).write_text("{")
    assert "starts again" in str(run.repair("select"))
    assert not folder.exists()


def test_settings_that_are_put_back_find_their_outputs(run: RunFolder) -> None:
    before = (run.stage("select") / "leaks.jsonl").stat().st_ino
    run.archive("select")
    run.begin("select", {"a": 2})
    assert not run.take_back("select", {"a": 3})
    assert run.take_back("select", {"a": 1})
    assert (run.stage("select") / "leaks.jsonl").stat().st_ino == before
    assert run.faults("select") == []
    assert run.take_back("select", {"a": 2})


def test_the_recipe_is_what_was_written(run: RunFolder) -> None:
    assert run.checked_recipe() == run.recipe
    run.recipe.write_text(run.recipe.read_text().replace("a: 1", "a: 2"))
    with pytest.raises(RunError, match="damaged, or was edited"):
        run.checked_recipe()
    assert [problem["stage"] for problem in verify(run).problems] == ["run"]


def test_seconds_are_kept_until_a_stage_is_finished(run: RunFolder) -> None:
    run.finish("select", {"seconds": 2.5})
    assert run.seconds("select") == 2.5
    run.begin("select", {})
    assert run.seconds("select") == 2.5
    run.keep_seconds("select", 1.25)
    assert run.seconds("select") == 1.25
    run.finish("select", {})
    assert not list(run.stage("select").glob(".seconds*"))


def test_a_seal_is_of_the_content(tmp_path: Path) -> None:
    file = tmp_path / "sealed.json"
    assert read_sealed(file) is None
    write_sealed(file, {"a": {10: (1, 2), 9: 0.1}})
    assert read_sealed(file) == {"a": {"10": [1, 2], "9": 0.1}}
    file.write_text(file.read_text().replace("0.1", "0.2"))
    with pytest.raises(ValueError, match="not what was written"):
        read_sealed(file)
