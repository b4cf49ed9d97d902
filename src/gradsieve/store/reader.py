"""Reading a datastore, shard by shard, in constant memory.

In: a folder. Out: rows, or their cosines with target directions. Reading one shard needs no other
file but settings.json; a datastore that is being written can be read. While one shard is worked
on, the next is read and checked.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradsieve.errors import StoreError
from gradsieve.store import codec
from gradsieve.store.folder import Folder
from gradsieve.store.layout import (
    MANIFEST,
    SHARDS,
    UNREADABLE,
    RowKey,
    damaged,
    read_set_aside,
    read_settings,
    shard_name,
    shard_rows,
)
from gradsieve.store.products import Cosines

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tensors = Mapping[str, "NDArray[Any]"]


class Block(NamedTuple):
    """A shard's rows: keys, unit directions [n, d], and lengths after and before projection [n]."""

    keys: list[RowKey]
    directions: NDArray[np.float32]
    feature_norms: NDArray[np.float32]
    gradient_norms: NDArray[np.float32]


class Similarities(NamedTuple):
    """A shard's rows, their cosines to directions [n, S], and their lengths [n]."""

    keys: list[RowKey]
    cosines: NDArray[np.float32]
    feature_norms: NDArray[np.float32]


def open_store(path: str | Path) -> Store:
    """Open a datastore for reading.

    Args:
        path: A folder, or a URL that fsspec knows.

    Raises:
        StoreError: If there is none, or its settings are damaged.
    """
    folder = Folder(path)
    return Store(folder, read_settings(folder))


class Store:
    """A datastore that is open for reading; see `open_store`.

    Attributes:
        folder: Where it is.
        settings: What all rows share.
    """

    def __init__(self, folder: Folder, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    @property
    def bits(self) -> int:
        """Bits a value."""
        return int(self.settings["bits"])

    @cached_property
    def _shards(self) -> dict[str, _Rows]:
        """Shards in order of their names; a row that several hold counts in the first."""
        seen: set[RowKey] = set()
        shards = {}
        for name in self.folder.names(SHARDS):
            shards[name] = _Rows(shard_rows(self.folder, name, self.settings))
            if not seen.isdisjoint(shards[name].keys):
                shards[name] = shards[name].only(lambda key: key not in seen)
            seen.update(shards[name].keys)
        return shards

    @property
    def rows(self) -> tuple[RowKey, ...]:
        """Rows that are stored, in order of their keys."""
        return tuple(sorted(key for rows in self._shards.values() for key in rows.keys))

    def __len__(self) -> int:
        return sum(len(rows.keys) for rows in self._shards.values())

    def shards(self, wanted: Collection[RowKey] | None = None) -> Iterator[Block]:
        """Blocks of rows, each row once.

        Args:
            wanted: Only these rows; others may be of a pool that has changed since.

        Raises:
            StoreError: If a shard is damaged.
        """
        for keys, tensors in self._read(wanted):
            lengths: NDArray[np.float32] = np.maximum(tensors["code_norms"], codec.TINY)
            directions = codec.decode(tensors["features"], self.bits) / lengths[:, None]
            yield Block(keys, directions, tensors["feature_norms"], tensors["gradient_norms"])

    def read(self, keys: Sequence[RowKey]) -> NDArray[np.float32]:
        """Rows [n, d] as they were projected, up to what their bits have lost.

        Raises:
            StoreError: If a row isn't there.
        """
        found: dict[RowKey, NDArray[np.float32]] = {}
        for block in self.shards(set(keys)):
            rows = block.directions * block.feature_norms[:, None]
            found.update(zip(block.keys, rows, strict=True))
        missing = [key for key in keys if key not in found]
        if missing:
            todo = "Run `gradsieve features` to add it."
            raise StoreError("The datastore lacks a row.", f"{self.folder}: {missing[0]}", todo)
        return np.stack([found[key] for key in keys])

    def similarities(
        self, directions: NDArray[np.float32], wanted: Collection[RowKey] | None = None
    ) -> Iterator[Similarities]:
        """Inner products of each UNIT row with each direction, straight from the codes.

        Args:
            directions: [S, d] float32.
            wanted: Only these rows.

        Raises:
            StoreError: If a shard is damaged.
        """
        cosines = Cosines(directions, self.bits)
        for keys, tensors in self._read(wanted):
            found = cosines(tensors["features"], tensors["code_norms"])
            yield Similarities(keys, found, tensors["feature_norms"])

    def verify(self) -> list[str]:
        """Problems, one line each; none if every file is as it was written."""
        problems = []
        for name in self.folder.names(SHARDS):
            try:
                rows = _Rows(shard_rows(self.folder, name, self.settings))
                keys, tensors = self._load(name, rows)
                problems += self._wrong_values(name, keys, tensors)
            except StoreError as error:
                problems.append(f"{error.where}: {error.what}")
        try:
            self._check_manifest(problems)
            read_set_aside(self.folder)
        except StoreError as error:
            problems.append(f"{error.where}: {error.what}")
        return problems

    def _wrong_values(self, name: str, keys: list[RowKey], tensors: Tensors) -> list[str]:
        where = self.folder.where(name)
        wrong = [
            f"{where}: {kind} has {len(values)} rows, {len(keys)} are named"
            for kind, values in tensors.items()
            if len(values) != len(keys)
        ]
        for kind, values in tensors.items():
            bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
            wrong += [f"{where}: {kind} of {keys[row]} is not finite" for row in bad[:1].tolist()]
        return wrong

    def _check_manifest(self, problems: list[str]) -> None:
        """Add what the manifest, if there is one, says otherwise than the shards."""
        if not self.folder.exists(MANIFEST):
            return
        where = self.folder.where(MANIFEST)
        try:
            told: dict[str, int] = dict(json.loads(self.folder.read(MANIFEST))["shards"])
        except UNREADABLE:
            problems.append(f"{where}: The manifest is damaged.")
            return
        there = {**dict.fromkeys(told), **self._counts()}
        for name, count in told.items():
            if there[name] is None:
                problems.append(f"{where}: {name} is not there")
            elif there[name] not in (count, -1):
                problems.append(f"{where}: {name} should have {count} rows, it has {there[name]}")

    def _counts(self) -> dict[str, int]:
        """Rows of each shard; -1 where the header is damaged."""
        counts = {}
        for name in self.folder.names(SHARDS):
            try:
                counts[name] = len(shard_rows(self.folder, name, self.settings))
            except StoreError:
                counts[name] = -1
        return counts

    def _read(self, wanted: Collection[RowKey] | None) -> Iterator[tuple[list[RowKey], Tensors]]:
        """Keys and tensors of each shard's wanted rows, one shard read ahead."""
        asked = []
        for name, own in self._shards.items():
            rows = own if wanted is None else own.only(wanted.__contains__)
            if rows.keys:
                asked.append((name, rows))
        with ThreadPoolExecutor(1) as ahead:
            coming = deque(ahead.submit(self._load, *one) for one in asked[:1])
            for following in asked[1:]:
                ready = coming.popleft().result()
                coming.append(ahead.submit(self._load, *following))
                yield ready
            while coming:
                yield coming.popleft().result()

    def _load(self, name: str, rows: _Rows) -> tuple[list[RowKey], Tensors]:
        """A shard's tensors, of these rows alone.

        Raises:
            StoreError: If its bytes are not what was written.
        """
        content = self.folder.read(name)
        if shard_name(content) != name:
            raise damaged(self.folder, name)
        tensors = _tensors(content)
        if rows.places is None:
            return rows.keys, tensors
        return rows.keys, {kind: values[rows.places] for kind, values in tensors.items()}


def _tensors(content: bytes) -> Tensors:
    """The tensors of a safetensors file, as views of its bytes; its own loader copies them."""
    (length,) = struct.unpack("<Q", content[:8])
    tensors = {}
    for name, told in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in told["data_offsets"])
            flat = np.frombuffer(memoryview(content)[start:end], _DTYPES[told["dtype"]])
            tensors[name] = flat.reshape(told["shape"])
    return tensors


_DTYPES = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8}


class _Rows(NamedTuple):
    """Some rows of a shard, and their places in it; None: they are all."""

    keys: list[RowKey]
    places: list[int] | None = None

    def only(self, wanted: Callable[[RowKey], bool]) -> _Rows:
        """Those that are wanted."""
        kept = [index for index, key in enumerate(self.keys) if wanted(key)]
        if len(kept) == len(self.keys):
            return self
        places = kept if self.places is None else [self.places[index] for index in kept]
        return _Rows([self.keys[index] for index in kept], places)
