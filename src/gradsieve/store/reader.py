"""Reading a datastore, shard by shard, in constant memory.

In: a folder. Out: rows, or their inner products with target directions. Reading one shard needs no
other file but settings.json; a datastore that is being written can be read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from gradsieve.errors import StoreError
from gradsieve.store import codec
from gradsieve.store.layout import RowKey, damaged, read_settings, shard_name, shard_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray


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

    Raises:
        StoreError: If there is none, or its settings are damaged.
    """
    return Store(Path(path), read_settings(Path(path)))


class Store:
    """A datastore that is open for reading; see `open_store`."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    @cached_property
    def _files(self) -> dict[Path, list[RowKey]]:
        """Shards in order of their names; a row that several hold counts in the first."""
        seen: set[RowKey] = set()
        files = {}
        for file in sorted(self.folder.glob("shard-*.safetensors")):
            files[file] = [key for key in shard_rows(file, self.settings) if key not in seen]
            seen.update(files[file])
        return files

    @property
    def rows(self) -> tuple[RowKey, ...]:
        """Rows that are stored, in order of their keys."""
        return tuple(sorted(key for keys in self._files.values() for key in keys))

    def __len__(self) -> int:
        return sum(map(len, self._files.values()))

    def shards(self, wanted: Collection[RowKey] | None = None) -> Iterator[Block]:
        """Blocks of rows, each row once.

        Args:
            wanted: Only these rows; others may be of a pool that has changed since.

        Raises:
            StoreError: If a shard is damaged.
        """
        for file, own in self._files.items():
            keys = own if wanted is None else [key for key in own if key in wanted]
            if keys:
                yield self._block(file, keys)

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
        """Inner products of each UNIT row with each direction, shard by shard.

        Args:
            directions: [S, d] float32.
            wanted: Only these rows.
        """
        for block in self.shards(wanted):
            found = block.directions @ directions.T
            yield Similarities(block.keys, found, block.feature_norms)

    def verify(self) -> list[str]:
        """Problems, one line each; none if every shard is as it was written."""
        problems = []
        for file in sorted(self.folder.glob("shard-*.safetensors")):
            try:
                shard_rows(file, self.settings)
                self._block(file, shard_rows(file, self.settings))
            except StoreError as error:
                problems.append(f"{error.where}: {error.what}")
        return problems

    def _block(self, file: Path, keys: list[RowKey]) -> Block:
        content = file.read_bytes()
        if shard_name(content) != file.name:
            raise damaged(file)
        try:
            tensors = load(content)
        except SafetensorError:
            raise damaged(file) from None
        place = {key: index for index, key in enumerate(shard_rows(file, self.settings))}
        chosen = [place[key] for key in keys]
        rows = codec.integers(tensors["features"][chosen], self.settings["bits"])
        lengths = np.maximum(np.linalg.norm(rows, axis=1), np.finfo(np.float32).tiny)
        rows /= lengths[:, None]
        return Block(
            keys, rows, tensors["feature_norms"][chosen], tensors["gradient_norms"][chosen]
        )
