"""Rows whose stored updates point the same way: the best is kept."""

from pathlib import Path

import numpy as np
import pytest

from gradsieve.selection import duplicates
from gradsieve.selection.duplicates import NearDuplicates
from gradsieve.store import RowKey, create_store, open_store

DIM = 256


def test_the_best_of_a_group_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(40, DIM))
    group = rng.integers(0, 40, 300)
    # Within a group cosines are about 0.99, between groups about 0.
    rows = (centers[group] + 0.1 * rng.normal(size=(300, DIM))) * rng.uniform(0.1, 9, (300, 1))
    names = [RowKey("s", f"{n:03}", "c" * 16) for n in range(300)]
    store = create_store(tmp_path, {"bits": 8})
    store.write_shard(names, rows.astype(np.float32), np.ones(300))
    keys = [(name.source, name.id) for name in names]
    reader = open_store(tmp_path)
    by_key = dict(zip(keys, reader.find(names).tolist(), strict=True))
    order = [keys[index] for index in rng.permutation(300)]
    monkeypatch.setattr(duplicates, "AHEAD", 37)
    check = NearDuplicates(reader, by_key, order, 0.95)
    kept, seen = [], set()
    for key in order:
        reason = check(key)
        of = int(group[int(key[1])])
        assert (reason is None) == (of not in seen), key
        if reason is None:
            kept.append(key)
            seen.add(of)
        else:
            first = next(other for other in kept if group[int(other[1])] == of)
            assert reason.endswith(f"with {first[0]} {first[1]}")
    assert len(kept) == len(set(group.tolist()))


def test_a_row_without_a_gradient_is_kept(tmp_path: Path) -> None:
    store = create_store(tmp_path, {"bits": 8})
    store.write_shard([RowKey("s", "0", "c" * 16)], np.ones((1, DIM)), np.ones(1))
    order = [("s", "0"), ("s", "bare")]
    check = NearDuplicates(open_store(tmp_path), {("s", "0"): 0}, order, 0.5)
    assert [check(key) for key in order] == [None, None]
