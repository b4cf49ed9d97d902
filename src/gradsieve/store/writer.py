"""Writes a datastore, shard by shard.

In: rows and their keys. Out: files that appear completely or not at all, a shard's keys before the
shard. File names contain hashes of their content, so several processes can write to one datastore,
a shard written twice is one file, and there is no index to update: what `ls` shows is what exists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save

from gradsieve.errors import StoreError
from gradsieve.io import differences
from gradsieve.store import quantize
from gradsieve.store.format import (
    FORMAT,
    KEYS,
    MANIFEST,
    SETTINGS,
    SHARDS,
    SKIPPED,
    Folder,
    Keys,
    hash_of,
    key_at,
    key_hashes,
    key_table,
    keys_of,
    repeats,
    seal,
)
from gradsieve.store.reader import Store

NOT_FINITE = "its gradient is not finite"


def create_store(path: str | Path, settings: Mapping[str, Any]) -> StoreWriter:
    """Open a datastore for writing; it is created if it doesn't exist.

    `settings` are JSON data that all rows share, including `bits`.

    Raises:
        StoreError: As in `open_writer`.
    """
    folder = Folder(path)
    # A damaged file is replaced. Rows with other settings are still refused, by their keys' file.
    write = folder.write if folder.is_damaged(SETTINGS) else folder.create
    write(SETTINGS, seal({"settings": settings}))
    return open_writer(path, settings)


def open_writer(path: str | Path, settings: Mapping[str, Any]) -> StoreWriter:
    """Open a datastore for writing that this run, perhaps another process of it, has created.

    Raises:
        StoreError: If it exists with other settings (the message names the differing keys and both
            values) or in another format, or is not there any more.
    """
    folder = Folder(path)
    if not folder.exists(SETTINGS):
        raise StoreError(
            "The datastore was moved away while its rows were computed.",
            str(folder),
            "If another command has started the stage again with other settings, wait for it.",
        )
    existing = folder.settings()
    changes = differences(existing, json.loads(json.dumps(settings)))
    if changes:
        raise StoreError(
            "The datastore was made with other settings.",
            f"{folder.where(SETTINGS)}: {'; '.join(changes)}",
            "Give another folder, or move this one away.",
        )
    return StoreWriter(folder, existing)


def sound_store(path: str | Path) -> StoreWriter | None:
    """Open an existing datastore for writing, with its own settings; None if there is none."""
    folder = Folder(path)
    there = folder.exists(SETTINGS) and not folder.is_damaged(SETTINGS)
    return StoreWriter(folder, folder.settings()) if there else None


def rows_where(which: NDArray[np.bool_], keys: pa.Table, rows: Any, norms: Any) -> Any:
    """Some of a shard's rows [n]; all rows are returned uncopied, which would double the memory."""
    if which.all():
        return keys, rows, norms
    return keys.filter(pa.array(which)), rows[which], norms[which]


class StoreWriter:
    """A datastore that is open for writing; see `create_store`."""

    def __init__(self, folder: Folder, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    def reader(self) -> Store:
        """The datastore as it is now."""
        return Store(self.folder, self.settings)

    def missing(self, keys: Keys) -> NDArray[np.bool_]:
        """Which rows [n] need work: neither stored, nor skipped with a reason."""
        return (self.reader().positions(keys) < 0) & ~self._is_skipped(key_table(keys))

    def write_shard(self, keys: Keys, features: Any, gradient_norms: Any) -> None:
        """Add rows atomically; rows that are not finite are skipped.

        Args:
            keys: The rows' keys, each only once.
            features: [n, d] float32, array or CPU tensor.
            gradient_norms: [n], norms before projection.

        Raises:
            StoreError: If a row is given twice, or if writing fails, e.g. because the disk is full.
        """
        keys = key_table(keys)
        again = repeats(key_hashes(keys))
        if len(again):
            where, todo = f"{self.folder}: {key_at(keys, again[0])}", "Give each row once."
            raise StoreError("A shard cannot hold a row twice.", where, todo)
        rows = np.asarray(features, dtype=np.float32)
        norms = np.asarray(gradient_norms, dtype=np.float32)
        # NaN compares as false; a norm that float32 can't represent counts as infinite.
        finite = (quantize.row_norms(rows) <= np.finfo(np.float32).max) & np.isfinite(norms)
        if finite.any():
            self._publish(*rows_where(finite, keys, rows, norms))
        # Last, so that if the process is killed in between, the shard isn't made of other batches.
        if len(bad := keys.filter(~finite)):
            self.skip(bad.append_column("skip_reason", pa.array([NOT_FINITE] * len(bad))))

    def skip(self, rows: pa.Table) -> None:
        """Record rows that will have no features (keys and `skip_reason`) in a separate file."""
        new = rows.filter(~self._is_skipped(rows))
        if len(new):
            order = [(name, "ascending") for name in new.column_names]
            self.folder.write_table(SKIPPED, new.sort_by(order), self.settings)

    def _is_skipped(self, keys: pa.Table) -> NDArray[np.bool_]:
        return np.isin(key_hashes(keys), key_hashes(self.reader().skipped()))

    def finish(self) -> None:
        """Write the manifest, which means that all requested rows exist."""
        rows = {}
        for name in self.folder.shards():
            keys = keys_of(name)
            rows[name] = rows[keys] = len(self.folder.read_table(keys, self.settings))
        for name in self.folder.sizes(SKIPPED):
            rows[name] = len(self.folder.read_table(name, self.settings))
        self.folder.write(MANIFEST, seal({"rows": rows}))

    def _publish(self, keys: pa.Table, rows: NDArray[np.float32], norms: Any) -> None:
        bits = self.settings["bits"]
        if rows.shape[1] * bits % 8:
            raise StoreError(
                "Rows of this many values don't fill complete bytes.",
                f"{self.folder}: {rows.shape[1]} values of {bits} bits",
                "Use 8 bits or more.",
            )
        encoded = quantize.encode(rows, bits)
        tensors = dict(zip(("codes", "code_norms", "feature_norms"), encoded, strict=True))
        content = save({**tensors, "gradient_norms": norms}, {"format": FORMAT})
        # The shard is written last: keys without a shard are ignored.
        own = self.folder.write_table(KEYS, keys, self.settings)
        self.folder.write(SHARDS.replace("*", f"{own}-{hash_of(content)}"), content)
