"""Keys are read back unchanged, whatever they contain, and matching tells them apart."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsieve.errors import StoreError
from gradsieve.store import RowKey, key_table
from gradsieve.store.format import KEYS, Folder, key_hashes

KEY = st.builds(
    RowKey,
    st.text(max_size=5),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.integers(0, 2**64 - 1).map(lambda number: f"{number:016x}"),
)
SETTINGS = {"bits": 1}


def back(keys: list[RowKey], place: str = "memory://names") -> list[RowKey]:
    folder = Folder(place)
    name = KEYS.replace("*", folder.write_table(KEYS, key_table(keys), SETTINGS))
    return [RowKey(**row) for row in folder.read_table(name, SETTINGS).to_pylist()]


@settings(deadline=None)  # the first call is slow on a busy machine
@given(st.lists(KEY, min_size=1, max_size=20))
def test_round_trip(keys: list[RowKey]) -> None:
    assert back(keys) == keys


@pytest.mark.parametrize(
    "ids",
    [
        [""],
        ["7"],
        ["7", "77", ""],
        ["a\x00", "\x00", "a"],
        ["x" * 300, "y" * 70_000],
        [chr(number) for number in range(0x4E00, 0x4E00 + 300)],
    ],
)
def test_odd_ids(ids: list[str]) -> None:
    keys = [RowKey("s", id, "0" * 16) for id in ids]
    assert back(keys) == keys


def test_many_sources() -> None:
    keys = [RowKey(f"source {n}", "1", f"{n:016x}") for n in range(300)]
    assert back(keys) == keys


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(StoreError, match="not text"):
        key_table([RowKey("s", "\ud83d", "0" * 16)])
    with pytest.raises(StoreError, match="not text"):
        key_table(pa.table({"source": ["s"], "id": [None], "content": ["0"]}))


def test_keys_take_few_bytes(tmp_path: Path) -> None:
    """8.2 of the bytes are for the content hash: 64 random bits as hexadecimal digits."""
    rng = np.random.default_rng(0)
    keys = [RowKey("cot", f"cot_{n}", rng.bytes(8).hex()) for n in rng.permutation(10**6)[:4096]]
    Folder(tmp_path).write_table(KEYS, key_table(keys), SETTINGS)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 12.5 * 4096


@settings(deadline=None)
@given(st.lists(KEY, min_size=2, max_size=20, unique=True))
def test_different_keys_have_different_hashes(keys: list[RowKey]) -> None:
    assert len(set(key_hashes(key_table(keys)).tolist())) == len(keys)


def test_hashes_tell_where_a_part_ends() -> None:
    keys = [
        RowKey("a", "b", "c"),
        RowKey("a b", "", "c"),
        RowKey("", "a b", "c"),
        RowKey("a", "b c", ""),
        RowKey("a", "", "b c"),
        RowKey("ab", "", "c"),
        RowKey("1", "1 a", "b"),
        RowKey("1 1", "a", "b"),
    ]
    hashes = key_hashes(key_table(keys))
    assert len(set(hashes.tolist())) == len(keys)
    several = pa.concat_tables([key_table([key]) for key in keys])
    assert key_hashes(several).tolist() == hashes.tolist()
    assert all(one != other for one, other in pairwise(hashes.tolist()))
