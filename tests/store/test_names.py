"""Names come back as they were, whatever is in them, and take few bytes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsieve.store import RowKey
from gradsieve.store.names import pack, unpack

KEYS = st.builds(
    RowKey,
    st.text(max_size=5),
    st.text(st.characters(), max_size=12),
    st.integers(0, 2**64 - 1).map(lambda number: f"{number:016x}"),
)


def back(keys: list[RowKey]) -> list[RowKey]:
    tensors, told = pack(keys)
    return unpack(tensors, json.loads(json.dumps(told)))


@given(st.lists(KEYS, min_size=1, max_size=20))
def test_round_trip(keys: list[RowKey]) -> None:
    assert back(keys) == keys


@pytest.mark.parametrize(
    "ids",
    [
        [""],
        ["7"],
        ["7", "77", ""],
        ["\ud83d", "\ude00"],  # halves of a pair, which JSON joins when they meet
        ["a\x00", "\x00", "a"],
        ["x" * 300, "y" * 70_000],
        [chr(number) for number in range(0x4E00, 0x4E00 + 300)],
    ],
)
def test_odd_ids(ids: list[str]) -> None:
    keys = [RowKey("s", id, "0" * 16) for id in ids]
    assert back(keys) == keys


def test_more_sources_than_a_byte_tells() -> None:
    keys = [RowKey(f"source {n}", "1", f"{n:016x}") for n in range(300)]
    assert back(keys) == keys


def test_names_take_few_bytes() -> None:
    keys = [RowKey("cot", f"cot_{n}", f"{n:016x}") for n in range(10_000, 11_000)]
    tensors, _ = pack(keys)
    # 8 for the content, 1 for the source, 1 for the length, 9 characters of 4 bits each.
    assert sum(values.nbytes for values in tensors.values()) == 1000 * 10 + 4500


def test_tensors_that_do_not_fit_together_are_refused() -> None:
    tensors, told = pack([RowKey("s", f"{n}", f"{n:016x}") for n in range(20)])
    for changes in (
        {"ids": tensors["ids"][:-3]},
        {"contents": tensors["contents"][:-1]},
        {"sources": np.full_like(tensors["sources"], 9)},
    ):
        with pytest.raises((ValueError, IndexError)):
            unpack({**tensors, **changes}, told)
