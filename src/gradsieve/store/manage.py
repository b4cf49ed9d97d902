"""Whole datastores: what one holds, one with fewer bits, several made one.

Each takes paths or URLs that fsspec knows, and leaves what it reads as it was. What was stopped
goes on: rows that are there already are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from gradsieve.console.count import Report
from gradsieve.errors import StoreError
from gradsieve.io import differences
from gradsieve.store.folder import Folder
from gradsieve.store.layout import MANIFEST, SHARDS, hashed_name, read_set_aside
from gradsieve.store.names import RowKey
from gradsieve.store.reader import Store, open_store
from gradsieve.store.shard import damaged, open_shard
from gradsieve.store.writer import StoreWriter, create_store


def inspect(path: str | Path) -> dict[str, Any]:
    """What a datastore holds, from its headers alone.

    Returns:
        JSON data: `rows`, `sources` (rows of each), `shards`, `bytes`, `bits`, `finished` (whether
        all rows that were wanted are there), `set_aside`, and `settings`.

    Raises:
        StoreError: If there is none, or a header is damaged.
    """
    store = open_store(path)
    names = store.folder.names(SHARDS)
    return {
        "rows": len(store),
        "sources": store.sources(),
        "shards": len(names),
        "bytes": sum(store.folder.size(name) for name in names),
        "bits": store.bits,
        "finished": store.folder.exists(MANIFEST),
        "set_aside": len(read_set_aside(store.folder)),
        "settings": store.settings,
    }


def convert(
    source: str | Path, target: str | Path, bits: int, report: Report = lambda _: None
) -> StoreWriter:
    """Write a datastore's rows again with fewer bits.

    Raises:
        StoreError: If the source has no more bits than are wanted or is damaged, or the target has
            other settings.
    """
    store = open_store(source)
    if bits not in (1, 2, 4, 8, 16) or bits >= store.bits:
        raise StoreError(
            "A datastore can only be converted to fewer bits.",
            f"{store.folder}: {store.bits} bits, wanted {bits}",
            "Give one of 16, 8, 4, 2, 1 below what it has.",
        )
    writer = create_store(target, {**store.settings, "bits": bits})
    there = {_fingerprint(keys) for keys in writer.shards()}
    done = 0
    for block in store.shards():
        if _fingerprint(block.keys) not in there:
            rows = block.directions * block.feature_norms[:, None]
            writer.write_shard(block.keys, rows, block.gradient_norms)
        done += len(block.keys)
        report(done)
    writer.put_aside(read_set_aside(store.folder))
    if store.folder.exists(MANIFEST):
        writer.finish()
    return writer


def merge(
    sources: Sequence[str | Path], target: str | Path, report: Report = lambda _: None
) -> StoreWriter:
    """Make one datastore of several with equal settings; a row that two hold counts once.

    Raises:
        StoreError: If settings differ (it names both values), or a shard is damaged.
    """
    stores = [open_store(source) for source in sources]
    for store in stores[1:]:
        _check_equal(stores[0], store)
    writer = create_store(target, stores[0].settings)
    done = 0
    for store in stores:
        for name in store.folder.names(SHARDS):
            open_shard(store.folder, name, store.settings)
            _copy(store.folder, writer.folder, name)
            done += 1
            report(done)
        writer.put_aside(read_set_aside(store.folder))
    if all(store.folder.exists(MANIFEST) for store in stores):
        writer.finish()
    return writer


def _check_equal(first: Store, other: Store) -> None:
    changes = differences(first.settings, other.settings)
    if changes:
        raise StoreError(
            "Only datastores with the same settings can become one.",
            f"{first.folder}, {other.folder}: {'; '.join(changes)}",
            "Leave one out; if only the bits differ, `gradsieve store convert` the larger first.",
        )


def _fingerprint(keys: Sequence[RowKey]) -> str:
    """Tells shards apart by the rows they hold, in 16 bytes a shard."""
    return xxhash.xxh3_128_hexdigest(json.dumps(keys).encode())


def _copy(source: Folder, target: Folder, name: str) -> None:
    if target.exists(name):
        return
    content = source.read(name)
    if hashed_name(SHARDS, content) != name:
        raise damaged(source, name)
    target.write(name, content)
