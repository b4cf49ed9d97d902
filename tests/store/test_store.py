"""A datastore returns what was written, with any number of bits, and detects damage."""

import json
import multiprocessing
import shutil
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gradsieve.errors import StoreError
from gradsieve.io import fingerprint
from gradsieve.store import (
    RowKey,
    Store,
    StoreWriter,
    create_store,
    key_table,
    open_store,
    quantize,
)
from gradsieve.store.format import Folder

DIM = 512
BITS = (32, 16, 8, 4, 2, 1)
ERROR = {32: 1e-6, 16: 5e-4, 8: 1.2e-2, 4: 0.12, 2: 0.36, 1: 0.61}
"""The largest relative error of a row of normal values. For 4, 2 and 1 bits: Max (1960), the square
roots of 0.01154, 0.1175 and 0.3634, plus a margin."""


def settings(**changes: Any) -> dict[str, Any]:
    return {"bits": 16, "projection": {"dim": DIM, "seed": 0}, "checkpoint": "abc", **changes}


def keys(start: int, count: int) -> list[RowKey]:
    return [RowKey("s", f"{i:04d}", f"{i:016x}") for i in range(start, start + count)]


def names_of(store: Store) -> list[RowKey]:
    return [RowKey(**row) for row in store.keys().to_pylist()]


def rows(count: int = 20, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    lengths = 10.0 ** rng.integers(-12, 12, size=(count, 1))
    return (rng.normal(size=(count, DIM)) * lengths).astype(np.float32)


def filled(folder: Path, bits: int = 16) -> StoreWriter:
    store = create_store(folder, settings(bits=bits))
    features = rows()
    for start in (0, 8, 16):
        part = features[start : start + 8]
        store.write_shard(keys(start, len(part)), part, np.linalg.norm(part, axis=1))
    store.finish()
    return store


@pytest.mark.parametrize("bits", BITS)
def test_round_trip(tmp_path: Path, bits: int) -> None:
    filled(tmp_path, bits)
    store = open_store(tmp_path)
    assert sorted(names_of(store)) == keys(0, 20)
    wanted, found = rows(), store.read(store.find(keys(0, 20)))
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    # `read` restores the rows' original norms: compare directions, as cosines do.
    cosines = (unit * found).sum(1) / np.linalg.norm(found, axis=1)
    assert np.arccos(np.clip(cosines, -1, 1)).max() <= max(1.2 * ERROR[bits], 1e-3)
    np.testing.assert_allclose(
        np.linalg.norm(found, axis=1), np.linalg.norm(wanted, axis=1), rtol=1e-5
    )


@pytest.mark.parametrize("bits", BITS)
def test_codes_have_the_error_of_the_best_quantizer(bits: int) -> None:
    wanted = np.random.default_rng(1).normal(size=(8, 8192)).astype(np.float32)
    codes, code_norms, lengths = quantize.encode(wanted, bits)
    found = quantize.decode(codes, bits) * (lengths / code_norms)[:, None]
    error = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    # Rows keep their norms; the error of Max's shorter vectors is the sine of the same angle.
    assert error.max() <= 2 * np.sin(np.arcsin(ERROR[bits]) / 2)
    assert codes.nbytes * 8 == wanted.size * bits


def test_sizes_follow_the_bits_within_3_per_cent(tmp_path: Path) -> None:
    many = np.random.default_rng(0).normal(size=(512, 8192)).astype(np.float32)
    names = [
        RowKey("flan" if i % 3 else "cot", f"flan_v2_{9876 * i}", f"{i:016x}") for i in range(512)
    ]
    sizes = {}
    for bits in BITS:
        folder = tmp_path / str(bits)
        create_store(folder, settings(bits=bits)).write_shard(names, many, np.ones(512))
        files = [*folder.glob("shard-*"), *folder.glob("keys-*")]
        sizes[bits] = sum(file.stat().st_size for file in files)
    for bits in BITS:
        assert sizes[16] / sizes[bits] == pytest.approx(16 / bits, rel=0.03)


@pytest.mark.parametrize("bits", BITS)
def test_similarities_are_cosines_of_what_is_stored(tmp_path: Path, bits: int) -> None:
    filled(tmp_path, bits)
    store = open_store(tmp_path)
    directions = rows(3, seed=5) / np.float32(1e3)
    found = {}
    for positions, values, *_ in store.similarities(directions):
        found.update(zip(positions.tolist(), values, strict=True))
    stored = store.read(store.find(keys(0, 20))).astype(np.float64)
    wanted = stored @ directions.T / np.linalg.norm(stored, axis=1, keepdims=True)
    got = np.stack([found[position] for position in store.find(keys(0, 20)).tolist()])
    scale = np.linalg.norm(directions, axis=1)
    # Integer products quantize directions in steps of 2^-15 of their largest value.
    np.testing.assert_allclose(got / scale, wanted / scale, atol=1e-5 if bits <= 8 else 1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_of_zeros_is_like_nothing(tmp_path: Path, bits: int) -> None:
    some = rows(3)
    some[1] = 0
    store = create_store(tmp_path, settings(bits=bits))
    store.write_shard(keys(0, 3), some, np.linalg.norm(some, axis=1))
    (found,) = open_store(tmp_path).similarities(rows(2, seed=5))
    assert (found.cosines == 0).all(axis=1).tolist() == [False, True, False]
    (block,) = open_store(tmp_path).shards()
    assert (block.directions == 0).all(axis=1).tolist() == [False, True, False]


def test_a_shard_holds_each_row_once(tmp_path: Path) -> None:
    store, named = create_store(tmp_path, settings()), [*keys(0, 3), *keys(1, 1)]
    with pytest.raises(StoreError, match="cannot hold a row twice") as caught:
        store.write_shard(named, rows(4), np.ones(4))
    assert str(named[1]) in caught.value.where
    assert not list(tmp_path.glob("shard-*"))
    some = rows(4)
    store._publish(key_table(named), some, np.ones(4, dtype=np.float32))  # another writer might
    (shard,) = tmp_path.glob("shard-*")
    assert open_store(tmp_path).verify() == [f"{shard}: {named[1]} is there twice"]


def test_only_wanted_rows_and_each_once(tmp_path: Path) -> None:
    store = filled(tmp_path)
    again = rows()[4:10]  # two shards hold these rows
    store.write_shard(keys(4, 6), again, np.ones(6))
    reader = open_store(tmp_path)
    assert len(reader) == 20
    wanted = reader.find(keys(3, 10))
    blocks = [block for block, *_ in reader.similarities(rows(1), wanted)]
    assert np.concatenate(blocks).tolist() == sorted(wanted.tolist())
    assert sorted(names_of(reader)) == keys(0, 20)
    assert [names_of(reader)[position] for position in wanted] == keys(3, 10)
    found, all_rows = reader.read(wanted), reader.read(reader.find(keys(0, 20)))
    np.testing.assert_array_equal(found, all_rows[3:13])


WHOLE = {
    "bits": 16,
    "projection": {"kind": "sketch", "dim": DIM, "seed": 0, "version": 1},
    "model": {"name": "llama", "template": "0" * 64},
    "checkpoint": "a" * 64,
}


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("bits", 8, "bits: 16 -> 8"),
        ("checkpoint", "b" * 64, "checkpoint has changed"),
        ("projection.kind", "rademacher", 'projection.kind: "sketch" -> "rademacher"'),
        ("projection.seed", 1, "projection.seed: 0 -> 1"),
        ("projection.version", 2, "projection.version: 1 -> 2"),
        ("model.template", "1" * 64, "model.max_length, the chat template or the"),
    ],
)
def test_other_settings_are_refused_by_both_values(
    tmp_path: Path, part: str, value: Any, said: str
) -> None:
    create_store(tmp_path / "one", WHOLE).write_shard(keys(0, 2), rows(2), np.ones(2))
    other = json.loads(json.dumps(WHOLE))
    *above, last = part.split(".")
    (other[above[0]] if above else other)[last] = value
    with pytest.raises(StoreError) as caught:
        create_store(tmp_path / "one", other)
    assert said in caught.value.where
    # A shard that was copied into another datastore is refused too.
    create_store(tmp_path / "two", other)
    for kind in ("shard-*", "keys-*"):
        shutil.copy(next((tmp_path / "one").glob(kind)), tmp_path / "two")
    with pytest.raises(StoreError, match="other settings") as caught:
        len(open_store(tmp_path / "two"))
    assert fingerprint(WHOLE)[:8] in caught.value.where
    assert fingerprint(other)[:8] in caught.value.where


@pytest.mark.parametrize("number", [1, 2])
def test_an_older_format_is_refused_with_what_to_do(tmp_path: Path, number: int) -> None:
    filled(tmp_path)
    file = tmp_path / "settings.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "format": f"gradsieve-datastore/{number}"}))
    for opened in (lambda: open_store(tmp_path), lambda: create_store(tmp_path, settings())):
        with pytest.raises(StoreError, match=f"datastore/{number}; this version reads") as caught:
            opened()
        assert "run `gradsieve features` again to rebuild it" in caught.value.todo


def test_a_store_grows_and_knows_what_it_has(tmp_path: Path) -> None:
    store = create_store(tmp_path, settings())
    store.write_shard(keys(0, 5), rows(5), np.ones(5))
    again = create_store(tmp_path, settings())
    assert again.missing(keys(3, 5)).tolist() == [False, False, True, True, True]
    assert len(open_store(tmp_path)) == 5  # readable before it is finished
    again.write_shard(keys(5, 3), rows(3), np.ones(3))
    again.finish()
    files = [file for pattern in ("shard-*", "keys-*") for file in tmp_path.glob(pattern)]
    listed = json.loads((tmp_path / "manifest.json").read_text())["rows"]
    assert listed.keys() == {file.name for file in files}
    assert sorted(listed.values()) == [3, 3, 5, 5]
    assert len(open_store(tmp_path)) == 8


def test_the_same_rows_make_the_same_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        filled(tmp_path / folder)
    names = [sorted(f.name for f in (tmp_path / folder).iterdir()) for folder in ("a", "b")]
    assert names[0] == names[1]


def test_rows_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    store = create_store(tmp_path, settings())
    bad = rows(5)
    bad[1, 3], bad[2, 0] = np.nan, np.inf
    bad[4] = 3e38  # its norm exceeds the range of float32
    store.write_shard(keys(0, 5), bad, np.ones(5))
    store.write_shard(keys(5, 1), bad[1:2], np.ones(1))  # a shard with no other rows
    assert names_of(open_store(tmp_path)) == [keys(0, 4)[0], keys(0, 4)[3]]
    again = create_store(tmp_path, settings())
    assert np.flatnonzero(again.missing(keys(0, 7))).tolist() == [6]
    skipped = open_store(tmp_path).skipped().to_pydict()
    assert sorted(skipped["id"]) == ["0001", "0002", "0004", "0005"]
    assert set(skipped["skip_reason"]) == {"its gradient is not finite"}
    assert open_store(tmp_path).verify() == []


def small(folder: Path) -> list[Path]:
    """A small datastore with a file of each kind."""
    store = create_store(folder, settings(bits=1))
    bad = rows(3)
    bad[1] = np.nan
    store.write_shard(keys(0, 3), bad, np.ones(3))
    store.finish()
    assert open_store(folder).verify() == []
    return sorted(folder.iterdir())


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_every_damaged_byte_is_found(tmp_path: Path, step: int) -> None:
    files = small(tmp_path)
    assert len(files) == 5
    for file in files:
        content = file.read_bytes()
        for position in range(0, len(content), step):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            file.write_bytes(flipped)
            assert problems(tmp_path), f"{file.name}, byte {position}"
        file.write_bytes(content)
    assert problems(tmp_path) == []


def test_every_torn_file_is_found(tmp_path: Path) -> None:
    for file in small(tmp_path):
        content = file.read_bytes()
        for length in range(0, len(content) - 1, 7):  # one line end more or less loses nothing
            file.write_bytes(content[:length])
            assert problems(tmp_path), f"{file.name}, {length} bytes"
        file.unlink()
        assert problems(tmp_path) or file.name == "manifest.json"
        file.write_bytes(content)


def test_torn_keys_are_reported_by_all_that_read_them(tmp_path: Path) -> None:
    filled(tmp_path)
    file = next(tmp_path.glob("keys-*"))
    file.write_bytes(file.read_bytes()[:100])
    reader, writer = open_store(tmp_path), create_store(tmp_path, settings())
    for read in (lambda: len(reader), lambda: writer.missing(keys(0, 3)), writer.finish):
        with pytest.raises(StoreError, match="damaged") as caught:
            read()
        assert caught.value.where == str(file)


def write_much(folder: Path, first: int) -> None:
    """Write rows first to first + 40, in shards that may or may not match another writer's."""
    store = create_store(folder, settings())
    whole = rows(60)
    whole[[3, 33, 53]] = np.nan
    for start in range(first, first + 40, 4):
        store.write_shard(keys(start, 4), whole[start : start + 4], np.ones(4))
    store.finish()


def test_two_writers_at_once_lose_and_mix_nothing(tmp_path: Path) -> None:
    """Both writers skip rows, and both write half of the rows."""
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_much, args=(tmp_path, first)) for first in (0, 18)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = open_store(tmp_path)
    assert store.verify() == []
    good = [key for place, key in enumerate(keys(0, 58)) if place not in (3, 33, 53)]
    assert sorted(names_of(store)) == good
    assert len(set(store.skipped()["id"].to_pylist())) == 3
    found = store.read(store.find(good))
    wanted = np.delete(rows(60)[:58], [3, 33, 53], axis=0)
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-3 * np.abs(wanted).max())


def test_the_first_of_two_new_settings_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither writer finds a datastore; the second writes its settings after the first."""
    create_store(tmp_path, settings())
    monkeypatch.setattr(Folder, "exists", lambda self, name: False)
    Folder(tmp_path).create("settings.json", b"other")
    monkeypatch.undo()
    assert open_store(tmp_path).settings == settings()
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]


def problems(folder: Path) -> list[str]:
    try:
        return open_store(folder).verify()
    except StoreError as error:
        return [str(error)]


def test_a_damaged_shard_costs_only_its_own_rows(tmp_path: Path) -> None:
    filled(tmp_path)
    file = sorted(tmp_path.glob("shard-*"))[0]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StoreError) as caught:
        list(open_store(tmp_path).shards())
    assert file.name in caught.value.where
    assert "only its rows are computed again" in caught.value.todo
    file.unlink()
    assert create_store(tmp_path, settings()).missing(keys(0, 20)).sum() in (4, 8)


@pytest.mark.parametrize("kind", ["shard-*", "keys-*"])
def test_a_lost_file_costs_only_its_own_rows(tmp_path: Path, kind: str) -> None:
    """The same shard is written again, whichever of its two files is deleted."""
    filled(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    next(tmp_path.glob(kind)).unlink()
    writer = create_store(tmp_path, settings())
    missing = writer.missing(keys(0, 20))
    assert missing.sum() in (4, 8)
    assert len(open_store(tmp_path)) == 20 - missing.sum()
    part = np.flatnonzero(missing)
    features = rows()[part]
    writer.write_shard(keys(part[0], len(part)), features, np.linalg.norm(features, axis=1))
    writer.finish()
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_open_datastore_keeps_8_bytes_of_each_row(tmp_path: Path) -> None:
    """Then a datastore of 10^8 rows can be opened; names alone would take 300 bytes per row."""
    count, each = 40_000, 4000
    store = create_store(tmp_path, settings(bits=1))
    for start in range(0, count, each):
        store.write_shard(keys(start, each), np.ones((each, 8)), np.ones(each))

    def score(store: Store) -> int:
        return sum(len(part.positions) for part in store.similarities(np.ones((1, 8), np.float32)))

    score(open_store(tmp_path))  # this imports torch
    tracemalloc.start()
    reader = open_store(tmp_path)
    assert len(reader) == count
    kept, most = tracemalloc.get_traced_memory()
    assert kept < 10 * count
    assert most < 30 * count
    assert score(reader) == count
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 10 * count


def test_no_store_here(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no gradient datastore"):
        open_store(tmp_path)


def test_a_missing_row_is_named(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path).find(keys(98, 2))
    assert "0098" in caught.value.where
    assert open_store(tmp_path).positions(keys(99, 1)).tolist() == [-1]
    with pytest.raises(StoreError, match="No row has such a position"):
        open_store(tmp_path).read(np.array([3, -1]))
    with pytest.raises(StoreError, match="No row has such a position"):
        open_store(tmp_path).read(np.array([False, True]))  # a boolean mask is refused


def test_sizes_of_1_bit_stay_within_6_per_cent(tmp_path: Path) -> None:
    """This includes UUIDs, whose 16 bytes can't be compressed, in shards of 512 rows."""
    many = np.random.default_rng(0).normal(size=(512, 8192)).astype(np.float32)
    rng = np.random.default_rng(1)
    ids = {
        "uuid": [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(512)],
        "flan": [f"flan_v2_{number}" for number in rng.permutation(1_000_000)[:512]],
    }
    for kind, names in ids.items():
        named = [RowKey("flan_v2", id, rng.bytes(8).hex()) for id in names]
        create_store(tmp_path / kind, settings(bits=1)).write_shard(named, many, np.ones(512))
        files = [*(tmp_path / kind).glob("shard-*"), *(tmp_path / kind).glob("keys-*")]
        assert sum(file.stat().st_size for file in files) <= 1.06 * 512 * 8192 / 8


def test_keys_given_as_a_table_are_those_given_one_by_one(tmp_path: Path) -> None:
    filled(tmp_path)
    named = [*keys(5, 4), *keys(50, 1), *keys(2, 1)]
    columns = zip(*named, strict=True)
    table = pa.table(dict(zip(("content", "id", "source"), [*columns][::-1], strict=True)))
    store = open_store(tmp_path)
    positions = store.positions(table.append_column("tokens", pa.array(range(6))))
    assert positions.tolist() == store.positions(named).tolist()
    assert (positions >= 0).tolist() == [True, True, True, True, False, True]
