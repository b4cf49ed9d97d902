"""Operations on datastores: inspect, convert, merge, verify; locally and through fsspec."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gradsieve.cli import app
from gradsieve.errors import StoreError
from gradsieve.store import RowKey, convert, create_store, inspect, merge, open_store
from gradsieve.store.format import seal

DIM = 256


def keys(start: int, count: int) -> list[RowKey]:
    return [RowKey("ab"[i % 2], f"{i:04d}", f"{i:016x}") for i in range(start, start + count)]


def rows(start: int, count: int) -> np.ndarray:
    return np.random.default_rng(start).normal(size=(count, DIM)).astype(np.float32)


def fill(place: Any, start: int = 0, bits: int = 16, **settings: Any) -> Any:
    store = create_store(place, {"bits": bits, "projection": {"dim": DIM}, **settings})
    for first in (start, start + 10):
        store.write_shard(keys(first, 10), rows(first, 10), np.ones(10))
    store.finish()
    return store


def names_of(store: Any) -> list[RowKey]:
    return [RowKey(**row) for row in store.keys().to_pylist()]


def directions() -> np.ndarray:
    return np.random.default_rng(99).normal(size=(5, DIM)).astype(np.float32)


def cosines(place: Any) -> dict[RowKey, np.ndarray]:
    store = open_store(place)
    names = names_of(store)
    found = {}
    for part in store.similarities(directions()):
        here = [names[position] for position in part.positions]
        found.update(zip(here, part.cosines, strict=True))
    return found


def test_inspect(tmp_path: Path) -> None:
    fill(tmp_path)
    told = inspect(tmp_path)
    assert (told["rows"], told["shards"], told["bits"], told["finished"]) == (20, 2, 16, True)
    assert told["sources"] == {"a": 10, "b": 10}
    files = [*tmp_path.glob("shard-*"), *tmp_path.glob("keys-*")]
    assert len(files) == 4
    assert told["bytes"] == sum(file.stat().st_size for file in files)
    assert told["settings"]["projection"] == {"dim": DIM}


@pytest.mark.parametrize("bits", [16, 8, 4, 2, 1])
def test_converted_is_as_written_with_fewer_bits(tmp_path: Path, bits: int) -> None:
    fill(tmp_path / "whole", bits=32)
    convert(tmp_path / "whole", tmp_path / "small", bits)
    fill(tmp_path / "direct", bits=bits)
    small, direct = cosines(tmp_path / "small"), cosines(tmp_path / "direct")
    assert small.keys() == direct.keys()
    same = [np.abs(small[key] - direct[key]).max() < 1e-5 for key in small]
    assert sum(same) >= 19  # a value on the edge of a step may be rounded the other way
    assert inspect(tmp_path / "small")["finished"]
    assert open_store(tmp_path / "small").verify() == []


def test_convert_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    convert(tmp_path / "whole", tmp_path / "small", 4)
    files = sorted((tmp_path / "small").glob("shard-*"))
    times = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    convert(tmp_path / "whole", tmp_path / "small", 4)
    assert sorted((tmp_path / "small").glob("shard-*")) == files
    assert files[1].stat().st_mtime_ns == times[files[1]]


def test_convert_does_not_finish_what_another_left_unfinished(tmp_path: Path) -> None:
    fill(tmp_path / "one")
    fill(tmp_path / "two", start=20)
    (tmp_path / "one" / "manifest.json").unlink()
    for name in ("one", "two"):
        convert(tmp_path / name, tmp_path / "small", 4)
        assert not inspect(tmp_path / "small")["finished"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    with pytest.raises(StoreError, match="holds something else") as caught:
        convert(tmp_path / "whole", tmp_path, 4)
    assert caught.value.where == f"{tmp_path}: whole"
    with pytest.raises(StoreError, match="holds something else"):
        merge([tmp_path / "whole"], tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["whole"]


def test_a_datastore_within_another_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    with pytest.raises(StoreError, match="is in another datastore"):
        merge([tmp_path / "whole"], tmp_path / "whole" / "sub")
    with pytest.raises(StoreError, match="is in another datastore"):
        convert(tmp_path / "whole", f"{tmp_path}/whole/sub/", 4)
    assert not (tmp_path / "whole" / "sub").exists()


@pytest.mark.parametrize("bits", [16, 32, 3])
def test_more_bits_are_refused(tmp_path: Path, bits: int) -> None:
    fill(tmp_path / "whole", bits=8)
    with pytest.raises(StoreError) as caught:
        convert(tmp_path / "whole", tmp_path / "other", bits)
    assert f"8 bits, wanted {bits}" in caught.value.where
    assert not (tmp_path / "other").exists()


def test_rows_that_do_not_fill_bytes_are_refused(tmp_path: Path) -> None:
    """Exact mode may store such rows: one value for each subtask."""
    store = create_store(tmp_path / "exact", {"bits": 32})
    store.write_shard(keys(0, 4), rows(0, 4)[:, :3], np.ones(4))
    with pytest.raises(StoreError) as caught:
        convert(tmp_path / "exact", tmp_path / "small", 4)
    assert "3 values of 4 bits" in caught.value.where


def test_merge(tmp_path: Path) -> None:
    fill(tmp_path / "one")
    fill(tmp_path / "two", start=20)
    merge([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert sorted(names_of(open_store(tmp_path / "both"))) == sorted(keys(0, 40))
    assert len(list((tmp_path / "both").glob("shard-*"))) == 4
    assert inspect(tmp_path / "both")["finished"]
    assert open_store(tmp_path / "both").verify() == []
    both = cosines(tmp_path / "both")
    for part in ("one", "two"):
        for key, values in cosines(tmp_path / part).items():
            np.testing.assert_array_equal(both[key], values)


@pytest.mark.parametrize("start", [0, 10, 15])
def test_merge_refuses_a_row_that_two_hold(tmp_path: Path, start: int) -> None:
    """This includes shards that are the same file in both."""
    fill(tmp_path / "one")
    fill(tmp_path / "two", start=start)
    with pytest.raises(StoreError, match="the same row cannot be merged") as caught:
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert caught.value.where.endswith(f"two: {min(keys(start, 20 - start))}")
    assert not (tmp_path / "both").exists()


def test_merge_resumes_and_adds_to_what_was_merged_before(tmp_path: Path) -> None:
    for number in range(3):
        fill(tmp_path / str(number), start=20 * number)
    merge([tmp_path / "0"], tmp_path / "all")
    next((tmp_path / "all").glob("shard-*")).unlink()  # as if it had been stopped
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "all")
    merge([tmp_path / "2"], tmp_path / "all")
    assert sorted(names_of(open_store(tmp_path / "all"))) == sorted(keys(0, 60))
    fill(tmp_path / "other", start=55)
    with pytest.raises(StoreError, match="the same row") as caught:
        merge([tmp_path / "other"], tmp_path / "all")
    assert str(min(keys(55, 5))) in caught.value.where
    assert len(open_store(tmp_path / "all")) == 60


def test_merge_finishes_only_what_lacks_nothing(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two", "three")):
        fill(tmp_path / name, start=20 * number)
    (tmp_path / "one" / "manifest.json").unlink()
    merge([tmp_path / "one"], tmp_path / "all")
    merge([tmp_path / "two"], tmp_path / "all")
    assert not inspect(tmp_path / "all")["finished"]  # `one` may lack rows
    fill(tmp_path / "one")
    merge([tmp_path / name for name in ("one", "two")], tmp_path / "all")
    assert inspect(tmp_path / "all")["finished"]
    for lost in ("shard-*", "keys-*"):
        next((tmp_path / "all").glob(lost)).unlink()
        merge([tmp_path / "three"], tmp_path / "all")
        assert not inspect(tmp_path / "all")["finished"]
        assert "is missing" in open_store(tmp_path / "all").verify()[0]
        merge([tmp_path / name for name in ("one", "two", "three")], tmp_path / "all")
        assert inspect(tmp_path / "all")["finished"]
    fill(tmp_path / "four", start=60)
    (tmp_path / "four" / "manifest.json").unlink()
    merge([tmp_path / "four"], tmp_path / "all")  # which has a manifest, of earlier shards
    assert not inspect(tmp_path / "all")["finished"]
    fill(tmp_path / "four", start=60)
    merge([tmp_path / "four"], tmp_path / "all")
    assert inspect(tmp_path / "all")["finished"]


def test_merge_refuses_other_settings_by_both_values(tmp_path: Path) -> None:
    fill(tmp_path / "one", checkpoint="abc")
    fill(tmp_path / "two", checkpoint="xyz")
    with pytest.raises(StoreError) as caught:
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert 'checkpoint: "abc" -> "xyz"' in caught.value.where
    assert not (tmp_path / "both").exists()


def test_merge_wants_something_to_merge(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No datastore"):
        merge([], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_merge_refuses_a_damaged_shard(tmp_path: Path) -> None:
    fill(tmp_path / "one")
    file = next((tmp_path / "one").glob("shard-*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        merge([tmp_path / "one"], tmp_path / "both")


def test_skipped_rows_come_along(tmp_path: Path) -> None:
    store = fill(tmp_path / "one")
    bad = rows(50, 2)
    bad[1] = np.nan
    store.write_shard(keys(50, 2), bad, np.ones(2))
    convert(tmp_path / "one", tmp_path / "small", 8)
    merge([tmp_path / "small"], tmp_path / "merged")
    assert inspect(tmp_path / "merged")["skipped"] == 1
    again = create_store(tmp_path / "merged", store.settings | {"bits": 8})
    assert again.missing(keys(51, 2)).tolist() == [False, True]


def test_a_store_may_be_anywhere_that_fsspec_reaches() -> None:
    place = "memory://bucket/run/pool"
    fill(place)
    assert len(open_store(place)) == 20
    assert open_store(place).verify() == []
    convert(place, "memory://bucket/run/small", 1)
    assert inspect("memory://bucket/run/small")["bits"] == 1
    merge([place], "memory://bucket/merged")
    assert cosines(place).keys() == cosines("memory://bucket/merged").keys()


@pytest.mark.parametrize("place", ["nosuch://bucket/store", "s3://bucket/store"])
def test_a_place_that_cannot_be_reached_is_reported(place: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(place)
    assert caught.value.where == place
    assert "fsspec" in caught.value.todo


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space"):
        store.write_shard(keys(50, 5), rows(50, 5), np.ones(5))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_verify_finds_a_missing_shard_and_wrong_counts(tmp_path: Path) -> None:
    fill(tmp_path)
    manifest = tmp_path / "manifest.json"
    told = json.loads(manifest.read_text())
    name = next(name for name in told["rows"] if name.startswith("shard-"))
    manifest.write_bytes(seal({"rows": {**told["rows"], name: 7}}))
    (problem,) = open_store(tmp_path).verify()
    assert f"{name} should have 7 rows, it has 10" in problem
    for file in (name, f"keys-{name.split('-')[1]}.parquet"):
        (tmp_path / file).unlink()
        assert any(f"{file} is missing" in line for line in open_store(tmp_path).verify())


@pytest.mark.parametrize("kind", ["shard", "keys"])
def test_a_datastore_that_lacks_files_is_neither_finished_nor_copied(
    tmp_path: Path, kind: str
) -> None:
    """A copy would be complete according to its own manifest, with rows missing."""
    fill(tmp_path / "cut")
    fill(tmp_path / "other", 50)
    lost = min((tmp_path / "cut").glob(f"{kind}-*"))
    lost.unlink()
    assert not inspect(tmp_path / "cut")["finished"]
    for copy in (
        lambda: convert(tmp_path / "cut", tmp_path / "new", 8),
        lambda: merge([tmp_path / "other", tmp_path / "cut"], tmp_path / "new"),
    ):
        with pytest.raises(StoreError, match="lacks files") as caught:
            copy()
        assert lost.name in caught.value.where
    assert not (tmp_path / "new").exists()


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["store", *map(str, arguments)])


def test_on_the_command_line(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    told = run("inspect", tmp_path / "whole")
    assert told.exit_code == 0
    assert "20 rows" in told.output
    assert json.loads(run("inspect", tmp_path / "whole", "--json").output)["rows"] == 20
    told = run("convert", tmp_path / "whole", tmp_path / "small", "--bits", 2)
    assert told.stdout.startswith("20 rows (a 10, b 10), 0 skipped; finished\n")
    assert told.stdout.endswith(" 2-bit values\n")
    assert run("verify", tmp_path / "small").exit_code == 0
    with pytest.raises(StoreError, match="made with other settings") as caught:
        convert(tmp_path / "whole", tmp_path / "whole", 2)
    assert "delete" not in caught.value.todo  # it is what was to be converted
    (tmp_path / "whole" / "manifest.json").unlink()
    told = run("merge", tmp_path / "whole", "--into", tmp_path / "merged")
    assert told.stdout.startswith("20 rows (a 10, b 10), 0 skipped; unfinished\n")
    file = next((tmp_path / "small").glob("shard-*"))
    file.write_bytes(file.read_bytes()[:-3])
    told = run("verify", tmp_path / "small")
    assert told.exit_code == 1
    assert file.name in told.output
