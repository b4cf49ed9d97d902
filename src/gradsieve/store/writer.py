"""Writing a datastore, shard by shard.

In: rows and their keys. Out: files that appear whole or not at all. A shard's name is a hash of its
bytes, so several processes may write into one datastore, a shard written twice is one file, and no
index has to be rewritten: what is there is what `ls` shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save

from gradsieve.errors import StoreError
from gradsieve.io import differences, fingerprint
from gradsieve.store import codec
from gradsieve.store.folder import Folder
from gradsieve.store.layout import (
    MANIFEST,
    METADATA,
    SET_ASIDE,
    SETTINGS,
    SHARDS,
    hashed_name,
    read_set_aside,
    read_settings,
    sealed,
)
from gradsieve.store.names import RowKey, named_twice, pack
from gradsieve.store.shard import open_shard

if TYPE_CHECKING:
    from numpy.typing import NDArray


NOT_FINITE = "its gradient is not finite"


def create_store(path: str | Path, settings: Mapping[str, Any]) -> StoreWriter:
    """Open a datastore for writing; it is made if it isn't there.

    Args:
        path: Its folder, or a URL that fsspec knows.
        settings: JSON data, `bits` among it, that all its rows share.

    Raises:
        StoreError: If there is one with other settings; it names the differing keys and both
            values.
    """
    folder = Folder(path)
    folder.create(SETTINGS, sealed({"settings": settings}))
    there = read_settings(folder)
    changes = differences(there, json.loads(json.dumps(settings)))
    if changes:
        raise StoreError(
            "The datastore was made with other settings.",
            f"{folder}: {'; '.join(changes)}",
            "Give another folder, or delete this one.",
        )
    return StoreWriter(folder, there)


class StoreWriter:
    """A datastore that is open for writing; see `create_store`.

    Attributes:
        folder: Where it is.
        settings: What all rows share.
        set_aside: Rows that are not finite, with the reason.
    """

    def __init__(self, folder: Folder, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.set_aside: dict[RowKey, str] = read_set_aside(folder)
        self._fingerprint = fingerprint(settings)

    def missing(self, keys: Iterable[RowKey]) -> set[RowKey]:
        """Those of some rows that need work: neither stored, nor set aside with a reason.

        Raises:
            StoreError: If a shard's header is damaged.
        """
        left = set(keys) - self.set_aside.keys()
        for stored in self.shards():
            left.difference_update(stored)
        return left

    def shards(self) -> Iterator[list[RowKey]]:
        """Keys of each shard that is there.

        Raises:
            StoreError: If a shard's header is damaged.
        """
        for name in self.folder.names(SHARDS):
            yield open_shard(self.folder, name, self.settings).keys()

    def write_shard(self, keys: Sequence[RowKey], features: Any, gradient_norms: Any) -> str | None:
        """Add rows, all or none; those that are not finite are set aside.

        Args:
            keys: Which rows they are, each once.
            features: [n, d] float32, array or CPU tensor.
            gradient_norms: [n], lengths before projection.

        Returns:
            The shard's name, or None if no row was finite.

        Raises:
            StoreError: If a row is given twice, or it can't be written: the disk is full, say.
        """
        if again := named_twice(keys):
            todo = "Give each row once."
            raise StoreError("A shard cannot hold a row twice.", f"{self.folder}: {again[0]}", todo)
        rows = np.asarray(features, dtype=np.float32)
        norms = np.asarray(gradient_norms, dtype=np.float32)
        # Not a number compares as false; a length that float32 can't hold is as bad as infinity.
        finite = (codec.lengths(rows) <= np.finfo(np.float32).max) & np.isfinite(norms)
        kept = [key for key, good in zip(keys, finite, strict=True) if good]
        name = self._publish(kept, rows[finite], norms[finite]) if kept else None
        # Last, so that after a kill in between the shard is not made of other batches.
        bad = [key for key, good in zip(keys, finite, strict=True) if not good]
        self.put_aside(dict.fromkeys(bad, NOT_FINITE))
        return name

    def put_aside(self, reasons: Mapping[RowKey, str]) -> None:
        """Note rows that will have no feature; in a file of its own, as others may do so too."""
        new = [[*key, why] for key, why in sorted(reasons.items()) if key not in self.set_aside]
        if new:
            self.set_aside.update(reasons)
            content = json.dumps(new, indent=1).encode()
            self.folder.write(hashed_name(SET_ASIDE, content), content)

    def finish(self) -> None:
        """Write the manifest: all rows that were wanted are there."""
        folder = self.folder
        told = {
            "settings": self.settings,
            "shards": {
                name: open_shard(folder, name, self.settings).rows for name in folder.names(SHARDS)
            },
            "set_aside": {
                name: len(read_set_aside(folder, name)) for name in folder.names(SET_ASIDE)
            },
        }
        folder.write(MANIFEST, sealed(told))

    def _publish(
        self, keys: Sequence[RowKey], rows: NDArray[np.float32], norms: NDArray[np.float32]
    ) -> str:
        bits = self.settings["bits"]
        if rows.shape[1] * bits % 8:
            raise StoreError(
                "Rows of this many values don't fill whole bytes.",
                f"{self.folder}: {rows.shape[1]} values of {bits} bits",
                "Use 8 bits or more.",
            )
        codes, code_norms, lengths = codec.encode(rows, bits)
        names, told = pack(keys)
        tensors = {**names, "features": codes, "feature_norms": lengths, "gradient_norms": norms}
        if bits > 1:  # signs all have the same
            tensors["code_norms"] = code_norms
        content = save(tensors, {METADATA: json.dumps({**told, "settings": self._fingerprint})})
        name = hashed_name(SHARDS, content)
        self.folder.write(name, content)
        return name
