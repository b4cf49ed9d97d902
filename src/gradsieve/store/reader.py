"""Reading a datastore, shard by shard, in constant memory.

In: a folder. Out: rows, or their cosines with target directions. A datastore that is being written
can be read. While one shard is worked on, the next is read and checked. An open datastore keeps the
shards' headers in memory, nothing of each row; while it is opened, 16 bytes a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradsieve.errors import StoreError
from gradsieve.store import codec
from gradsieve.store.folder import Folder
from gradsieve.store.layout import (
    MANIFEST,
    SET_ASIDE,
    SHARDS,
    read_manifest,
    read_set_aside,
    read_settings,
)
from gradsieve.store.names import RowKey, Tensors, named_twice
from gradsieve.store.products import Cosines
from gradsieve.store.shard import Shard, open_shard

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPENED_AT_ONCE = 16
"""Shards of which a little is read side by side, which matters where each read is a request."""


class Block(NamedTuple):
    """A shard's rows: keys, unit directions [n, d], and lengths after and before projection [n].

    A row of length 0 has no direction: its values are 0, whatever its codes say.
    """

    keys: list[RowKey]
    directions: NDArray[np.float32]
    feature_norms: NDArray[np.float32]
    gradient_norms: NDArray[np.float32]


class Similarities(NamedTuple):
    """A shard's rows, their cosines to directions [n, S], and their lengths [n].

    A row of length 0 has cosines of 0.
    """

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


class _Indexed(NamedTuple):
    """A shard's header, and places of rows that a shard before has already."""

    shard: Shard
    again: list[int]

    def kept(self, values: Sequence[Any]) -> list[Any]:
        """Without the values of those rows."""
        again = set(self.again)
        return [value for place, value in enumerate(values) if place not in again]


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
    def _index(self) -> list[_Indexed]:
        """The shards, as of the first use: the datastore may be growing.

        A row that several shards hold counts in the first, by name. Rows are compared by name only
        where their contents, 8 bytes each, are equal, so that no names need be held in memory.
        """
        with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            shards = list(pool.map(self._open, self.folder.names(SHARDS)))
            contents = list(pool.map(lambda shard: shard.tensor("contents"), shards))
        twice = _twice(contents)
        seen: set[RowKey] = set()
        index = []
        for shard, own in zip(shards, contents, strict=True):
            alike = np.flatnonzero(_among(own, twice)).tolist()
            keys = shard.keys() if alike else []
            index.append(_Indexed(shard, [place for place in alike if keys[place] in seen]))
            seen.update(keys[place] for place in alike)
        return index

    def _open(self, name: str) -> Shard:
        return open_shard(self.folder, name, self.settings)

    @property
    def rows(self) -> tuple[RowKey, ...]:
        """Keys of all rows, in order; those of a large datastore may not fit into memory."""
        return tuple(sorted(key for one in self._index for key in one.kept(one.shard.keys())))

    def __len__(self) -> int:
        return sum(one.shard.rows - len(one.again) for one in self._index)

    def sources(self) -> dict[str, int]:
        """How many rows each source has."""
        counts: Counter[str] = Counter()
        for one in self._index:
            names = one.shard.told["sources"]
            numbers = Counter(one.kept(one.shard.tensor("sources").tolist()))
            counts.update({names[number]: count for number, count in numbers.items()})
        return dict(sorted(counts.items()))

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
            directions[tensors["feature_norms"] == 0] = 0  # 4, 2 and 1 bits have no code for 0
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
            found[tensors["feature_norms"] == 0] = 0
            yield Similarities(keys, found, tensors["feature_norms"])

    def verify(self) -> list[str]:
        """Problems, one line each; none if every file is as it was written."""
        rows: dict[str, int | None] = {}
        problems: list[str] = []
        for name in self.folder.names(SHARDS):
            problems += _told(partial(self._wrong_shard, name, rows))
        problems += _told(partial(self._wrong_set_aside, rows))
        return problems + _told(partial(self._wrong_counts, rows))

    def _wrong_shard(self, name: str, rows: dict[str, int | None]) -> list[str]:
        """What is wrong with a shard; notes its rows, None if it is damaged."""
        rows[name] = None
        shard = self._open(name)
        keys, tensors = shard.load()
        rows[name] = shard.rows
        where = self.folder.where(name)
        wrong = [
            f"{where}: {kind} has {len(values)} rows, {len(keys)} are named"
            for kind, values in tensors.items()
            if len(values) != len(keys)
        ]
        wrong += [f"{where}: {key} is there twice" for key in named_twice(keys)[:1]]
        for kind, values in tensors.items():
            bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
            wrong += [f"{where}: {kind} of {keys[row]} is not finite" for row in bad[:1].tolist()]
        return wrong

    def _wrong_set_aside(self, rows: dict[str, int | None]) -> list[str]:
        """Raises what is wrong with the rows set aside; notes how many each file has."""
        names = self.folder.names(SET_ASIDE)
        rows.update(dict.fromkeys(names))
        rows.update({name: len(read_set_aside(self.folder, name)) for name in names})
        return []

    def _wrong_counts(self, rows: Mapping[str, int | None]) -> list[str]:
        """What the manifest, if there is one, says otherwise; files may have come since."""
        where = self.folder.where(MANIFEST)
        told = read_manifest(self.folder) or {}
        gone = [f"{where}: {name} is not there" for name in told if name not in rows]
        return gone + [
            f"{where}: {name} should have {count} rows, it has {rows[name]}"
            for name, count in told.items()
            if rows.get(name) not in (None, count)
        ]

    def _read(self, wanted: Collection[RowKey] | None) -> Iterator[tuple[list[RowKey], Tensors]]:
        """Keys and tensors of each shard's wanted rows, one shard read ahead."""
        contents = None if wanted is None else _contents(wanted)
        with ThreadPoolExecutor(1) as ahead:
            asked = (
                ahead.submit(_load, one, wanted)
                for one in self._index
                if contents is None or _among(one.shard.tensor("contents"), contents).any()
            )
            nothing: Future[tuple[list[RowKey], Tensors]] = Future()
            for coming, _ in pairwise(chain(asked, [nothing])):  # the next is asked for already
                keys, tensors = coming.result()
                if keys:
                    yield keys, tensors


def _told(check: Callable[[], list[str]]) -> list[str]:
    """What a check finds, or what stops it."""
    try:
        return check()
    except StoreError as error:
        return [f"{error.where}: {error.what}"]


def _load(one: _Indexed, wanted: Collection[RowKey] | None) -> tuple[list[RowKey], Tensors]:
    """Keys and tensors of a shard's wanted rows."""
    keys, tensors = one.shard.load()
    again = set(one.again)
    places = [
        place
        for place, key in enumerate(keys)
        if place not in again and (wanted is None or key in wanted)
    ]
    if len(places) == len(keys):
        return keys, tensors
    kept = {kind: values[places] for kind, values in tensors.items()}
    return [keys[place] for place in places], kept


def _contents(keys: Collection[RowKey]) -> NDArray[np.uint64]:
    """The rows' contents, in order."""
    contents = np.fromiter((int(key.content, 16) for key in keys), np.uint64, len(keys))
    contents.sort()
    return contents


def _twice(contents: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Contents that come more than once."""
    if not contents:
        return np.empty(0, dtype=np.uint64)
    whole = np.concatenate(contents)
    whole.sort()
    return np.unique(whole[1:][whole[1:] == whole[:-1]])


def _among(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which values are in an array in order."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    places = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[places] == values
    return found
