"""The files of a datastore (docs/format.md), in a local folder or on any fsspec file system.

In: a path, or a URL such as `s3://bucket/store` (whose fsspec library must be installed). Out:
checked content, or a StoreError that names the file. A file appears completely or not at all:
locally through a temporary name, fsync and rename; elsewhere as one object, which object stores
publish atomically. A large file's name has a hash of its bytes, a small file has a fingerprint of
its content, so every flipped bit is found.

Keys of rows are Parquet tables. Rejected: hashes instead of ids (a datastore could not list its
rows), and keys inside the shard (safetensors has no strings).
"""

from __future__ import annotations

import fnmatch
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from gradsieve.errors import StoreError
from gradsieve.io import atomic, fingerprint

FORMAT = "gradsieve-datastore/3"
SETTINGS, MANIFEST = "settings.json", "manifest.json"
SHARDS, KEYS, SKIPPED = "shard-*.safetensors", "keys-*.parquet", "skipped-*.parquet"
"""Patterns of files; each file has hashes of bytes in place of the star."""

METADATA = b"gradsieve"
"""The key of a Parquet file's metadata that holds the fingerprint of the datastore's settings."""

RUN_AGAIN = "Delete that file and run `gradsieve features` again: only its rows are computed again."


class RowKey(NamedTuple):
    """The identity of a row: its source, its id, and a hash of its tokens and labels."""

    source: str
    id: str
    content: str

    def __str__(self) -> str:
        return f"{self.source} {self.id}"


Keys: TypeAlias = "pa.Table | Sequence[RowKey]"
"""A table with the columns `source`, `id` and `content`; for a few rows, a sequence is enough."""

_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in RowKey._fields])


def key_table(keys: Keys) -> pa.Table:
    """Convert keys to a table of strings.

    Raises:
        StoreError: If a key is not Unicode text.
    """
    try:
        if isinstance(keys, pa.Table):
            return keys.select(RowKey._fields).cast(_SCHEMA)
        columns = [list(column) for column in zip(*keys, strict=True)]
        return pa.table(columns or [[], [], []], schema=_SCHEMA)
    except (ValueError, TypeError) as error:
        todo = "Give each row a source, an id and a content hash of Unicode text."
        raise StoreError("A row's key is not text.", str(error), todo) from None


def key_at(keys: pa.Table, row: int) -> RowKey:
    """The key of one row of a table."""
    return RowKey(**keys.slice(row, 1).select(RowKey._fields).to_pylist()[0])


def key_hashes(keys: pa.Table) -> NDArray[np.uint64]:
    """XXH3 hashes [n] of keys, used to match rows; they cover lengths, so (ab, c) isn't (a, bc)."""
    parts = [np.empty(0, dtype=np.uint64)]
    for batch in keys.to_batches(max_chunksize=1024):
        source, id, content = (batch[name] for name in RowKey._fields)
        lengths = [pc.binary_length(column).cast(pa.string()) for column in (source, id)]
        joined = pc.binary_join_element_wise(*lengths, source, id, content, " ")
        texts = joined.cast(pa.binary()).to_numpy(zero_copy_only=False)
        parts.append(np.fromiter(map(xxhash.xxh3_64_intdigest, texts), np.uint64, len(texts)))
    return np.concatenate(parts)


def repeats(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Indices of values that have occurred before."""
    ordered = np.sort(hashes)
    if (ordered[1:] != ordered[:-1]).all():  # the usual case, in half the memory
        return np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(hashes)), np.unique(hashes, return_index=True)[1])


class Folder:
    """A datastore's folder, given by a local path or a URL.

    Raises:
        StoreError: If the URL's protocol is unknown, its library is not installed, or a file can't
            be read or written, is damaged or has another format.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._files, self.path = url_to_fs(str(path))
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"The datastore's place cannot be reached: {error}.",
                str(path),
                "Give a folder, or a URL whose fsspec library is installed (s3fs, gcsfs, ...).",
            ) from None
        self.local = isinstance(self._files, LocalFileSystem)
        self._shown = self.path if self.local else str(path).rstrip("/")

    def __str__(self) -> str:
        return self._shown

    def where(self, name: str) -> str:
        """A file's path or URL, for messages."""
        return f"{self}/{name}"

    def sizes(self, pattern: str) -> dict[str, int]:
        """Sizes in bytes of the files whose names match, in order of name."""
        try:
            found = self._files.ls(self.path, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        sizes = {file["name"].rstrip("/").rpartition("/")[2]: file["size"] for file in found}
        return {name: sizes[name] for name in sorted(sizes) if fnmatch.fnmatchcase(name, pattern)}

    def exists(self, name: str) -> bool:
        """Whether a file of this name exists."""
        return bool(self._files.isfile(f"{self.path}/{name}"))

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        with self.reporting(name):
            content: bytes = self._files.cat_file(f"{self.path}/{name}")
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file, completely or not at all."""
        with self.reporting(name):
            if self.local:
                with atomic(Path(self.path) / name) as temporary:
                    temporary.write_bytes(content)
            else:
                self._files.makedirs(self.path, exist_ok=True)
                self._files.pipe_file(f"{self.path}/{name}", content)

    def create(self, name: str, content: bytes) -> None:
        """Write a file unless it exists; of two concurrent local writers the first wins."""
        if self.exists(name):
            return
        if not self.local:
            self.write(name, content)
            return
        spare = Path(self.path) / f".{name}.{uuid4().hex}.tmp"
        self.write(spare.name, content)
        with self.reporting(name):
            try:
                os.link(spare, spare.with_name(name))
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                spare.replace(spare.with_name(name))
            spare.unlink(missing_ok=True)

    @contextmanager
    def reporting(self, name: str) -> Iterator[None]:
        """Turn file system errors into a `StoreError` that names the file."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"A file of the datastore cannot be read or written: {error.strerror or error}.",
                self.where(name),
                "Free disk space or give access, then run the same command again: it resumes.",
            ) from error

    def read_checked(self, name: str) -> bytes:
        """Read a file whose name has the hash of its bytes, and check it."""
        content = self.read(name)
        self.check_hash(name, hash_of(content))
        return content

    def check_hash(self, name: str, found: str) -> None:
        """Raise a `StoreError` if a file's name doesn't have the hash of its bytes."""
        if name.rpartition("-")[2].partition(".")[0] != found:
            raise StoreError("A file of the datastore is damaged.", self.where(name), RUN_AGAIN)

    def shards(self) -> list[str]:
        """Names of the shards, in order; shards whose keys are missing don't count."""
        keys = self.sizes(KEYS)
        return [name for name in self.sizes(SHARDS) if keys_of(name) in keys]

    def write_table(self, pattern: str, table: pa.Table, settings: Mapping[str, Any]) -> str:
        """Write keys and any further text columns; returns the hash in the file's name."""
        sink, texts = io.BytesIO(), [name for name in table.column_names if name != "source"]
        with pq.ParquetWriter(
            sink,
            table.schema,
            compression="zstd",
            use_dictionary=["source"],
            # Characters are stored without lengths in between, so hex digits compress to 4 bits.
            column_encoding=dict.fromkeys(texts, "DELTA_LENGTH_BYTE_ARRAY"),
            write_statistics=False,
            store_schema=False,
        ) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({METADATA: fingerprint(settings).encode()})
        content = sink.getvalue()
        own = hash_of(content)
        self.write(pattern.replace("*", own), content)
        return own

    def read_table(self, name: str, settings: Mapping[str, Any]) -> pa.Table:
        """Read what `write_table` wrote; refuses a file of a datastore with other settings."""
        file = pq.ParquetFile(io.BytesIO(self.read_checked(name)))
        own = (file.metadata.metadata or {}).get(METADATA, b"").decode()
        if own != (ours := fingerprint(settings)):
            what = "A shard belongs to a datastore with other settings."
            raise StoreError(what, f"{self.where(name)}: {own[:8]}, here {ours[:8]}", RUN_AGAIN)
        return file.read(use_threads=False)

    def settings(self) -> dict[str, Any]:
        """The settings that all rows share; refuses a folder without a datastore."""
        if not self.exists(SETTINGS):
            todo = "Give the folder of a datastore, e.g. RUN/02-features/checkpoint-1/pool."
            raise StoreError("There is no gradient datastore here.", str(self), todo)
        settings: dict[str, Any] = self._unsealed(SETTINGS)["settings"]
        return settings

    def manifest(self) -> dict[str, int] | None:
        """The number of rows of each file in a finished datastore; None if it isn't finished."""
        if not self.exists(MANIFEST):
            return None
        rows: dict[str, int] = self._unsealed(MANIFEST)["rows"]
        return rows

    def is_damaged(self, name: str) -> bool:
        """Whether a sealed file exists, but differs from what was written."""
        return self.exists(name) and self._sealed(name) is None

    def _unsealed(self, name: str) -> dict[str, Any]:
        """Read a sealed file; refuses another format."""
        content = self._sealed(name)
        if content is None:
            todo = "Run `gradsieve features` again: it rewrites that file and keeps all rows."
            raise StoreError(f"The datastore's {name} is damaged.", self.where(name), todo)
        if content["format"] != FORMAT:
            raise StoreError(
                f"The datastore is of format {content['format']}; this version reads {FORMAT}.",
                self.where(name),
                "Delete its folder and run `gradsieve features` again to rebuild it.",
            )
        return content

    def _sealed(self, name: str) -> dict[str, Any] | None:
        """A sealed file's content (unverified if of another format); None if it is damaged."""
        try:
            content: dict[str, Any] = json.loads(self.read(name))
            written = content.pop("fingerprint")
            sound = content["format"] != FORMAT or written == fingerprint(content)
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
        return content if sound else None


def hash_of(content: bytes) -> str:
    """128-bit XXH3: detects damage, not malice, at memory speed (SHA-256 would halve scoring)."""
    return xxhash.xxh3_128_hexdigest(content)


def keys_of(shard: str) -> str:
    """The name of a shard's file of keys: `shard-K-H.safetensors` has `keys-K.parquet`."""
    return KEYS.replace("*", shard.split("-")[1])


def seal(value: Mapping[str, Any]) -> bytes:
    """A sealed file's bytes: JSON with the format and a fingerprint of all other fields."""
    content = {"format": FORMAT, **value}
    sealed = {"fingerprint": fingerprint(content), **content}
    return (json.dumps(sealed, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
