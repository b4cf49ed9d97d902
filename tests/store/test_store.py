"""A datastore gives back what was written, in any number of bits, and finds what was damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsieve.errors import StoreError
from gradsieve.store import RowKey, StoreWriter, codec, create_store, open_store

DIM = 512
BITS = (32, 16, 8, 4, 2, 1)
ERROR = {32: 1e-6, 16: 5e-4, 8: 1.2e-2, 4: 0.12, 2: 0.36, 1: 0.61}
"""Most relative error of a row of normal values. For 4, 2 and 1 bits: Max (1960), the square roots
of 0.01154, 0.1175 and 0.3634, and a little."""


def settings(**changes: Any) -> dict[str, Any]:
    return {"bits": 16, "projection": {"dim": DIM, "seed": 0}, "checkpoint": "abc", **changes}


def keys(start: int, count: int) -> list[RowKey]:
    return [RowKey("s", f"{i:04d}", f"{i:016x}") for i in range(start, start + count)]


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
    assert list(store.rows) == keys(0, 20)
    wanted, found = rows(), store.read(keys(0, 20))
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    # `read` gives rows their own length back: compare directions, as cosines do.
    cosines = (unit * found).sum(1) / np.linalg.norm(found, axis=1)
    assert np.arccos(np.clip(cosines, -1, 1)).max() <= max(1.2 * ERROR[bits], 1e-3)
    np.testing.assert_allclose(
        np.linalg.norm(found, axis=1), np.linalg.norm(wanted, axis=1), rtol=1e-5
    )


@pytest.mark.parametrize("bits", BITS)
def test_codes_have_the_error_of_the_best_quantizer(bits: int) -> None:
    wanted = np.random.default_rng(1).normal(size=(8, 8192)).astype(np.float32)
    codes, code_norms, lengths = codec.encode(wanted, bits)
    found = codec.decode(codes, bits) * (lengths / code_norms)[:, None]
    error = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    # Rows keep their length; the error of Max's shorter ones is the sine of the same angle.
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
        file = create_store(folder, settings(bits=bits)).write_shard(names, many, np.ones(512))
        assert file is not None
        sizes[bits] = (folder / file).stat().st_size
    for bits in BITS:
        assert sizes[16] / sizes[bits] == pytest.approx(16 / bits, rel=0.03)


@pytest.mark.parametrize("bits", BITS)
def test_similarities_are_cosines_of_what_is_stored(tmp_path: Path, bits: int) -> None:
    filled(tmp_path, bits)
    store = open_store(tmp_path)
    directions = rows(3, seed=5) / np.float32(1e3)
    found = {}
    for block, values, _ in store.similarities(directions):
        found.update(zip(block, values, strict=True))
    stored = store.read(keys(0, 20)).astype(np.float64)
    wanted = stored @ directions.T / np.linalg.norm(stored, axis=1, keepdims=True)
    got = np.stack([found[key] for key in keys(0, 20)])
    scale = np.linalg.norm(directions, axis=1)
    # Integer products hold directions in steps of 2^-15 of their largest value.
    np.testing.assert_allclose(got / scale, wanted / scale, atol=1e-5 if bits <= 8 else 1e-6)


def test_only_wanted_rows_and_each_once(tmp_path: Path) -> None:
    store = filled(tmp_path)
    again = rows()[4:10]  # two shards hold these rows
    store.write_shard(keys(4, 6), again, np.ones(6))
    reader = open_store(tmp_path)
    assert len(reader) == 20
    wanted = set(keys(3, 10))
    blocks = [block for block, *_ in reader.similarities(rows(1), wanted)]
    assert sorted(key for block in blocks for key in block) == sorted(wanted)


def test_other_settings_are_refused_by_both_values(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(StoreError) as caught:
        create_store(tmp_path, settings(checkpoint="xyz", bits=8))
    assert 'checkpoint: "abc" -> "xyz"' in caught.value.where
    assert "bits: 16 -> 8" in caught.value.where


def test_a_store_grows_and_knows_what_it_has(tmp_path: Path) -> None:
    store = create_store(tmp_path, settings())
    store.write_shard(keys(0, 5), rows(5), np.ones(5))
    again = create_store(tmp_path, settings())
    assert again.missing(keys(3, 5)) == set(keys(5, 3))
    assert len(open_store(tmp_path)) == 5  # readable before it is finished
    again.write_shard(keys(5, 3), rows(3), np.ones(3))
    again.finish()
    assert json.loads((tmp_path / "manifest.json").read_text())["set_aside"] == 0
    assert len(open_store(tmp_path)) == 8


def test_the_same_rows_make_the_same_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        filled(tmp_path / folder)
    names = [sorted(f.name for f in (tmp_path / folder).iterdir()) for folder in ("a", "b")]
    assert names[0] == names[1]


def test_rows_that_are_not_finite_are_set_aside(tmp_path: Path) -> None:
    store = create_store(tmp_path, settings())
    bad = rows(4)
    bad[1, 3], bad[2, 0] = np.nan, np.inf
    store.write_shard(keys(0, 4), bad, np.ones(4))
    assert open_store(tmp_path).rows == (keys(0, 4)[0], keys(0, 4)[3])
    assert create_store(tmp_path, settings()).missing(keys(0, 5)) == {keys(4, 1)[0]}
    told = json.loads((tmp_path / "set-aside.json").read_text())
    assert [record[1] for record in told] == ["0001", "0002"]


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    store = create_store(tmp_path, settings(bits=1))
    store.write_shard(keys(0, 2), rows(2), np.ones(2))
    store.finish()
    assert open_store(tmp_path).verify() == []
    for file in (next(tmp_path.glob("shard-*")), tmp_path / "settings.json"):
        content = file.read_bytes()
        for position in range(len(content)):
            torn = bytearray(content)
            torn[position] ^= 0x41
            file.write_bytes(torn)
            assert problems(tmp_path), f"{file.name}, byte {position}"
        file.write_bytes(content)
    assert problems(tmp_path) == []


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
    assert "only its rows are made again" in caught.value.todo
    file.unlink()
    assert len(create_store(tmp_path, settings()).missing(keys(0, 20))) in (4, 8)


def test_no_store_here(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no gradient datastore"):
        open_store(tmp_path)


def test_a_missing_row_is_named(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path).read(keys(99, 1))
    assert "0099" in caught.value.where
