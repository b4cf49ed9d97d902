"""Reads a datastore shard by shard, in constant memory.

In: a folder. Out: rows, or their cosines with target directions. A row's position is its index when
shards are ordered by name; callers map their keys to positions once and then work on arrays. A
datastore can be read while it is being written. While one shard is processed, the next is read and
checked. An open datastore keeps 8 bytes per row, a hash of its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import safe_open

from gradsieve.errors import StoreError
from gradsieve.io import file_hash
from gradsieve.store import quantize
from gradsieve.store.format import (
    MANIFEST,
    SKIPPED,
    Folder,
    Keys,
    key_at,
    key_hashes,
    key_table,
    keys_of,
    repeats,
)
from gradsieve.store.scoring import Cosines

Tensors = Mapping[str, NDArray[Any]]

OPENED_AT_ONCE = 16
"""Files of keys read concurrently if the datastore is remote, where each read is a request."""


class Block(NamedTuple):
    """Some of a shard's rows: positions [n], unit directions [n, d], and norms after and before
    projection [n].

    A row of norm 0 has no direction: its values are 0, whatever its codes are.
    """

    positions: NDArray[np.int64]
    directions: NDArray[np.float32]
    feature_norms: NDArray[np.float32]
    gradient_norms: NDArray[np.float32]

    @property
    def rows(self) -> NDArray[np.float32]:
        """The projected rows [n, d], up to quantization."""
        return self.directions * self.feature_norms[:, None]


class Similarities(NamedTuple):
    """Some of a shard's rows: positions [n], cosines with directions [n, S], the norms [n] that
    turn cosines into inner products by multiplication, and norms after projection [n].

    A row of norm 0 has cosines of 0.
    """

    positions: NDArray[np.int64]
    cosines: NDArray[np.float32]
    norms: NDArray[np.float32]
    feature_norms: NDArray[np.float32]


def open_store(path: str | Path) -> Store:
    """Open a datastore for reading.

    Raises:
        StoreError: If there is none, it has another format, or its settings are damaged.
    """
    folder = Folder(path)
    return Store(folder, folder.settings())


class Shard(NamedTuple):
    """A shard: its file, its first row's position, its row count, and its repeated rows."""

    name: str
    first: int
    rows: int
    repeats: NDArray[np.int64]

    def places(self) -> NDArray[np.int64]:
        """Indices within the file of the rows that aren't repeats, in order of position."""
        return np.delete(np.arange(self.rows), self.repeats)


Wanted = Sequence[tuple[Shard, NDArray[np.int64]]]
"""Shards, each with the positions of the requested rows; see `Store.wanted`."""


class Store:
    """A datastore that is open for reading; see `open_store`.

    Raises:
        StoreError: If a file that is read is damaged; it is named.
    """

    def __init__(self, folder: Folder, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    @property
    def bits(self) -> int:
        """Bits per value."""
        return int(self.settings["bits"])

    @property
    def balanced(self) -> bool:
        """Whether rows were scaled before projection, and targets by the inverse scales."""
        return bool(self.settings.get("projection", {}).get("balanced", False))

    def __len__(self) -> int:
        return len(self._index[1])

    @cached_property
    def _index(self) -> tuple[list[Shard], NDArray[np.uint64]]:
        """The shards as of the first use, and the hash of each row's key by position.

        If several shards hold the same row, since two writers wrote it, the first one counts.
        """
        names = self.folder.shards()
        # For local files, more threads only make Arrow use more memory.
        with ThreadPoolExecutor(1 if self.folder.local else OPENED_AT_ONCE) as pool:
            parts = list(pool.map(lambda name: key_hashes(self.shard_keys(name)), names))
        lengths = [len(part) for part in parts]
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *parts])
        del parts
        again = repeats(hashes)
        shards, start, position = [], 0, 0
        for name, rows in zip(names, lengths, strict=True):
            own = again[(again >= start) & (again < start + rows)] - start
            shards.append(Shard(name, position, rows, own))
            start, position = start + rows, position + rows - len(own)
        return shards, np.delete(hashes, again)

    def shard_keys(self, shard: str) -> pa.Table:
        """All keys of a shard, including repeated ones."""
        return self.folder.read_table(keys_of(shard), self.settings)

    def keys(self) -> pa.Table:
        """Source, id and content hash of each row, in order of position."""
        tables = [self.shard_keys(shard.name).take(shard.places()) for shard in self._index[0]]
        return pa.concat_tables([key_table([]), *tables])

    def skipped(self) -> pa.Table:
        """Keys of rows that have no feature, with their `skip_reason`."""
        names = self.folder.sizes(SKIPPED)
        tables = [self.folder.read_table(name, self.settings) for name in names]
        none = key_table([]).append_column("skip_reason", pa.array([], pa.string()))
        return pa.concat_tables(tables or [none])

    def positions(self, keys: Keys) -> NDArray[np.int64]:
        """Positions [n] of rows; -1 for rows that the datastore lacks.

        Args:
            keys: A table with the columns `source`, `id` and `content`, or a few `RowKey`.
        """
        hashes, wanted = self._index[1], key_hashes(key_table(keys))
        if not len(hashes):
            return np.full(len(wanted), -1)
        order = np.argsort(hashes)
        found = order[np.searchsorted(hashes[order], wanted).clip(max=len(hashes) - 1)]
        return np.where(hashes[found] == wanted, found, -1)

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Positions [n] of rows, all of which must exist.

        Raises:
            StoreError: If the datastore lacks a row; the first one is named.
        """
        keys = key_table(keys)
        positions = self.positions(keys)
        missing = np.flatnonzero(positions < 0)
        if len(missing):
            where = f"{self.folder}: {key_at(keys, missing[0])}"
            todo = "Run `gradsieve features` to add it."
            raise StoreError("The datastore lacks a row.", where, todo)
        return positions

    def shards(self, positions: NDArray[np.int64] | Wanted | None = None) -> Iterator[Block]:
        """Yield blocks of rows in order of position; only shards with requested rows are read."""
        for found, tensors in self._read(positions):
            norms: NDArray[np.float32] = np.maximum(tensors["code_norms"], quantize.TINY)
            directions = quantize.decode(tensors["codes"], self.bits) / norms[:, None]
            directions[tensors["feature_norms"] == 0] = 0  # 4, 2 and 1 bits have no code for 0
            yield Block(found, directions, tensors["feature_norms"], tensors["gradient_norms"])

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Projected rows [n, d], up to quantization, in the order of `positions`."""
        ordered, places = np.unique(positions, return_inverse=True)
        return np.concatenate([block.rows for block in self.shards(ordered)])[places]

    def similarities(
        self,
        directions: NDArray[np.float32],
        positions: NDArray[np.int64] | Wanted | None = None,
        balanced: bool = False,
    ) -> Iterator[Similarities]:
        """Inner products of each UNIT row with each direction [S, d], computed from the codes.

        With `balanced`, rows are divided by their `gradient_norms` instead of `feature_norms`: for
        directions of targets whose scales are the inverse of the rows'.
        """
        cosines = Cosines(directions, self.bits)
        for found, tensors in self._read(positions):
            values = cosines(tensors["codes"], tensors["code_norms"])
            own = norms = tensors["feature_norms"]
            values[own == 0] = 0
            if balanced:
                norms = tensors["gradient_norms"]
                values *= (own / np.maximum(norms, quantize.TINY))[:, None]
            yield Similarities(found, values, norms, own)

    def wanted(self, positions: NDArray[np.int64] | None) -> Wanted:
        """Requested rows by shard, in order of position; None means all rows.

        Raises:
            StoreError: If a position doesn't exist.
        """
        wanted = np.arange(len(self)) if positions is None else np.unique(positions)
        whole = wanted.dtype.kind in "iu"  # a mask of rows has no positions
        if len(wanted) and not (whole and 0 <= wanted[0] <= wanted[-1] < len(self)):
            where = f"{self.folder}: {wanted[0]} to {wanted[-1]}, of {len(self)} rows"
            raise StoreError("No row has such a position.", where, "Use `find` to name the row.")
        shards = self._index[0]
        parts = np.split(wanted, np.searchsorted(wanted, [shard.first for shard in shards[1:]]))
        # If there are no shards, there is one empty part.
        return [one for one in zip(shards, parts, strict=False) if len(one[1])]

    def _read(self, positions: NDArray[np.int64] | Wanted | None) -> Iterator[tuple[Any, Tensors]]:
        """Yield positions and tensors of each shard's requested rows, reading one shard ahead."""
        wanted = positions if isinstance(positions, Sequence) else self.wanted(positions)
        with ThreadPoolExecutor(1) as ahead:
            loading = (ahead.submit(self._load, shard, part) for shard, part in wanted)
            nothing: Future[tuple[Any, Tensors]] = Future()
            for coming, _ in pairwise(chain(loading, [nothing])):  # pairwise submits the next one
                yield coming.result()

    def _load(self, shard: Shard, positions: NDArray[np.int64]) -> tuple[Any, Tensors]:
        tensors = self._tensors(shard.name)
        if len(positions) < shard.rows:
            places = shard.places()[positions - shard.first]
            return positions, {kind: values[places] for kind, values in tensors.items()}
        # Copy the tensors that callers keep, so that these don't keep the file mapped.
        return positions, {
            kind: values if kind == "codes" else values.copy() for kind, values in tensors.items()
        }

    def _tensors(self, name: str) -> Tensors:
        """A shard's tensors, checked against the hash in its name; memory-mapped if it is local."""
        if not self.folder.local:
            tensors: Tensors = safetensors.numpy.load(self.folder.read_checked(name))
            return tensors
        path = Path(self.folder.path) / name
        with self.folder.reporting(name):
            self.folder.check_hash(name, file_hash(path))
        with safe_open(path, "pt") as opened:
            return {kind: opened.get_tensor(kind).numpy() for kind in opened.keys()}  # noqa: SIM118

    def missing_files(self) -> list[str]:
        """Files that the manifest lists but that don't exist."""
        there = self.folder.sizes("*")
        return [name for name in self.folder.manifest() or {} if name not in there]

    def is_finished(self) -> bool:
        """Whether all requested rows exist: the manifest lists every shard, and none is missing."""
        listed = self.folder.manifest()
        every = listed is not None and listed.keys() >= {*self.folder.shards()}
        return every and not self.missing_files()

    def verify(self) -> list[str]:
        """Problems, one line each; empty if every file is as it was written."""
        rows: dict[str, int] = {}
        skipped, problems = self.folder.sizes(SKIPPED), []
        for name in (*self.folder.shards(), *skipped, MANIFEST):
            try:
                if name == MANIFEST:
                    problems += self._manifest_problems(rows)
                elif name in skipped:
                    rows[name] = len(self.folder.read_table(name, self.settings))
                else:
                    problems += self._shard_problems(name, rows)
            except StoreError as error:
                problems.append(f"{error.where}: {error.what}")
        return problems

    def _shard_problems(self, name: str, rows: dict[str, int]) -> list[str]:
        """Problems of a shard; also adds its row count to `rows`, unless it is damaged."""
        keys, tensors = self.shard_keys(name), self._tensors(name)
        rows[name] = rows[keys_of(name)] = len(keys)
        problems = [f"{key_at(keys, row)} is there twice" for row in repeats(key_hashes(keys))[:1]]
        for kind, values in tensors.items():
            if len(values) != len(keys):
                problems.append(f"{kind} has {len(values)} rows, {len(keys)} are named")
            bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
            problems += [f"{kind} of {key_at(keys, row)} is not finite" for row in bad[:1]]
        return [f"{self.folder.where(name)}: {problem}" for problem in problems]

    def _manifest_problems(self, rows: Mapping[str, int]) -> list[str]:
        """Differences between the files and the manifest, if any; newer files may be unlisted."""
        where = self.folder.where(MANIFEST)
        lost = [f"{where}: {name} is missing" for name in self.missing_files()]
        return lost + [
            f"{where}: {name} should have {count} rows, it has {rows[name]}"
            for name, count in (self.folder.manifest() or {}).items()
            if rows.get(name, count) != count
        ]
