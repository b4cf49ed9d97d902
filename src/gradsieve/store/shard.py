"""One shard's file: its header, some of its tensors, or all of it checked against its name.

In: a folder and a file's name. Out: keys and tensors. A shard needs no other file but
settings.json. Its header and names can be read without its features, which are nearly all of it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradsieve.errors import StoreError
from gradsieve.io import fingerprint
from gradsieve.store import codec
from gradsieve.store.folder import Folder
from gradsieve.store.layout import METADATA, SHARDS, UNREADABLE, hashed_name
from gradsieve.store.names import NAMES, RowKey, Tensors, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADER = 4096
"""Bytes read at first: they hold the whole header, unless ids have hundreds of symbols."""

_DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "I8": np.int8,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
}


class Place(NamedTuple):
    """Where in the file a tensor is."""

    dtype: Any
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Shard:
    """A shard whose header has been read.

    Attributes:
        folder: Its datastore.
        name: Of its file.
        told: Its metadata.
        places: Of its tensors.
    """

    folder: Folder
    name: str
    told: Mapping[str, Any]
    places: Mapping[str, Place]

    @property
    def rows(self) -> int:
        """How many it has."""
        return self.places["contents"].shape[0]

    def tensor(self, kind: str) -> NDArray[Any]:
        """One tensor, read without the others and unchecked.

        Raises:
            StoreError: If it isn't there.
        """
        try:
            place = self.places[kind]
            return _array(place, self.folder.read(self.name, place.start, place.end))
        except UNREADABLE:
            raise damaged(self.folder, self.name) from None

    def keys(self) -> list[RowKey]:
        """Its rows' keys, read without the rest of the file and unchecked.

        Raises:
            StoreError: If they don't fit together.
        """
        return self._unpacked({kind: self.tensor(kind) for kind in NAMES})

    def load(self) -> tuple[list[RowKey], dict[str, NDArray[Any]]]:
        """Keys and the other tensors, views of the file's bytes, checked.

        Raises:
            StoreError: If its bytes are not what was written.
        """
        content = memoryview(self.folder.read(self.name))
        if hashed_name(SHARDS, content) != self.name:
            raise damaged(self.folder, self.name)
        tensors = {
            kind: _array(place, content[place.start : place.end])
            for kind, place in self.places.items()
        }
        keys = self._unpacked(tensors)
        others = {kind: values for kind, values in tensors.items() if kind not in NAMES}
        if "code_norms" not in others:
            others["code_norms"] = codec.norms_of_signs(others["features"])
        return keys, others

    def _unpacked(self, tensors: Tensors) -> list[RowKey]:
        try:
            return unpack(tensors, self.told)
        except UNREADABLE:
            raise damaged(self.folder, self.name) from None


def open_shard(folder: Folder, name: str, settings: Mapping[str, Any]) -> Shard:
    """Read a shard's header.

    Raises:
        StoreError: If it is damaged, or of a datastore with other settings.
    """
    try:
        head = folder.read(name, 0, HEADER)
        (length,) = struct.unpack("<Q", head[:8])
        size = folder.size(name)
        if 8 + length > len(head):
            head = folder.read(name, 0, min(8 + length, size))
        header = json.loads(head[8 : 8 + length])
        told = json.loads(header.pop("__metadata__")[METADATA])
        shard = Shard(folder, name, told, dict(_places(header, 8 + length)))
        whole = size == max(place.end for place in shard.places.values())
        whole = whole and shard.rows >= 0
        own = told["settings"]
    except UNREADABLE:
        whole = False
    if not whole:
        raise damaged(folder, name)
    if own != fingerprint(settings):
        raise StoreError(
            "A shard is of a datastore with other settings.",
            f"{folder.where(name)}: {own[:8]}, here {fingerprint(settings)[:8]}",
            "Delete that file; its rows are made again.",
        )
    return shard


def _places(header: Mapping[str, Any], begin: int) -> Iterable[tuple[str, Place]]:
    for kind, told in header.items():
        start, end = (begin + offset for offset in told["data_offsets"])
        yield kind, Place(_DTYPES[told["dtype"]], tuple(told["shape"]), start, end)


def _array(place: Place, content: bytes | memoryview) -> NDArray[Any]:
    """A view; the safetensors library's own loader copies."""
    return np.frombuffer(content, place.dtype, prod(place.shape)).reshape(place.shape)


def damaged(folder: Folder, name: str) -> StoreError:
    """The error for a shard whose bytes are not what was written."""
    return StoreError(
        "A shard of the datastore is damaged.",
        folder.where(name),
        "Delete that file and run `gradsieve features` again: only its rows are made again.",
    )
