"""Operations on existing datastores: inspect one, convert it to fewer bits, merge several.

In: paths or URLs that fsspec knows; what is read is never changed. Out: a summary, or a new
datastore. An interrupted command resumes: rows that already exist are not written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradsieve.console import Report
from gradsieve.errors import StoreError
from gradsieve.io import differences
from gradsieve.store.format import KEYS, SETTINGS, SHARDS, Folder, key_at, key_table, keys_of
from gradsieve.store.reader import Store, open_store
from gradsieve.store.writer import StoreWriter, create_store


def inspect(path: str | Path) -> dict[str, Any]:
    """A summary of a datastore, made without reading its features.

    Returns:
        JSON data: `rows`, `sources` (rows per source), `shards`, `bytes`, `bits`, `finished`
        (whether all requested rows exist), `skipped`, and `settings`.

    Raises:
        StoreError: If there is no datastore, or a file of keys or the manifest is damaged.
    """
    store = open_store(path)
    shards, keys = store.folder.sizes(SHARDS), store.folder.sizes(KEYS)
    sources = pc.value_counts(store.keys()["source"]).to_pylist()
    return {
        "rows": len(store),
        "sources": dict(sorted((one["values"], one["counts"]) for one in sources)),
        "shards": len(shards),
        "bytes": sum(shards.values()) + sum(keys.values()),
        "bits": store.bits,
        "finished": store.is_finished(),
        "skipped": len(store.skipped()),
        "settings": store.settings,
    }


def convert(
    source: str | Path, target: str | Path, bits: int, report: Report = lambda _: None
) -> None:
    """Write a datastore's rows with fewer bits.

    Raises:
        StoreError: If the source doesn't have more bits than requested, is damaged or lacks files,
            or if the target has other settings or its folder holds something else.
    """
    store = _open_complete(source)
    if bits not in (1, 2, 4, 8, 16) or bits >= store.bits:
        raise StoreError(
            "A datastore can only be converted to fewer bits.",
            f"{store.folder}: {store.bits} bits, wanted {bits}",
            "Give one of 16, 8, 4, 2, 1 below what it has.",
        )
    writer = _begin(target, {**store.settings, "bits": bits})
    keys = store.keys()
    left = np.flatnonzero(writer.reader().positions(keys) < 0)
    done = len(keys) - len(left)
    report(done)
    for block in store.shards(left):
        writer.write_shard(keys.take(block.positions), block.rows, block.gradient_norms)
        done += len(block.positions)
        report(done)
    writer.skip(store.skipped())
    if store.is_finished() and len(writer.reader()) == len(keys):  # others may be unfinished
        writer.finish()


def _begin(path: str | Path, settings: dict[str, Any]) -> StoreWriter:
    """Open a new or unfinished datastore; refuses other files and a place inside a datastore."""
    folder = Folder(path)
    above = Folder(str(folder).rpartition("/")[0])
    if above.exists(SETTINGS):
        raise StoreError(
            "The folder for the datastore is in another datastore.", str(folder), "Give a new one."
        )
    there = list(folder.sizes("*"))
    if there and SETTINGS not in there:
        raise StoreError(
            "The folder for the datastore holds something else.",
            f"{folder}: {', '.join(there[:3])}",
            "Give a new folder.",
        )
    return create_store(path, settings)


def merge(
    sources: Sequence[str | Path], target: str | Path, report: Report = lambda _: None
) -> None:
    """Merge datastores that have equal settings and no rows in common.

    Raises:
        StoreError: If there are no sources, if settings differ (both values are named), if two
            hold the same row (it is named), if a file is damaged or missing, or if the target's
            folder holds something else.
    """
    if not sources:
        raise StoreError("No datastore to merge.", str(target), "Name at least one.")
    stores = [_open_complete(source) for source in sources]
    for number, store in enumerate(stores):
        if changes := differences(stores[0].settings, store.settings):
            raise StoreError(
                "Only datastores with the same settings can be merged.",
                f"{stores[0].folder}, {store.folder}: {'; '.join(changes)}",
                "Leave one out; if only the bits differ, `gradsieve store convert` the larger "
                "first.",
            )
        for other in stores[:number]:
            _check_overlap(other, store, store.folder.shards())
    writer = _begin(target, stores[0].settings)
    done = 0
    for store in stores:
        names, there = store.folder.shards(), {*writer.folder.shards()}
        new = [name for name in names if name not in there]
        _check_overlap(writer.reader(), store, new)
        done += len(names) - len(new)
        for name in new:
            for file in (keys_of(name), name):  # keys without a shard are ignored
                writer.folder.write(file, store.folder.read_checked(file))
            done += 1
            report(done)
        writer.skip(store.skipped())
    if _is_complete(writer.reader(), stores):
        writer.finish()


def _is_complete(target: Store, merged: Sequence[Store]) -> bool:
    """Whether no row is missing in what was merged, or in what the target held before."""
    known = {*(target.folder.manifest() or ())}.union(*(s.folder.shards() for s in merged))
    return (
        all(store.is_finished() for store in merged)
        and known.issuperset(target.folder.shards())
        and not target.missing_files()
    )


def _open_complete(path: str | Path) -> Store:
    """Open a datastore; refuses one that lacks files of its manifest, if it has a manifest."""
    store = open_store(path)
    if missing := store.missing_files():
        raise StoreError(
            "The datastore lacks files that its manifest lists.",
            f"{len(missing)}, the first: {store.folder.where(missing[0])}",
            "Copy the datastore again, or have `gradsieve run` make what is missing.",
        )
    return store


def _check_overlap(first: Store, other: Store, shards: Sequence[str]) -> None:
    """Refuse shards of the other datastore that have rows in common with the first."""
    keys = pa.concat_tables([key_table([]), *map(other.shard_keys, shards)])
    common = keys.filter(first.positions(keys) >= 0)
    if len(common):
        common = common.sort_by([(name, "ascending") for name in common.column_names])
        raise StoreError(
            "Datastores that hold the same row cannot be merged.",
            f"{first.folder}, {other.folder}: {key_at(common, 0)}",
            "Leave one out, or compute the features of each row in one of them only.",
        )
