"""Names and small files of a datastore, shared by its writer and its reader (docs/format.md)."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import xxhash

from gradsieve.errors import StoreError
from gradsieve.rundir import fingerprint
from gradsieve.store.folder import Folder

FORMAT = "gradsieve-datastore/1"
SETTINGS, MANIFEST, SET_ASIDE = "settings.json", "manifest.json", "set-aside.json"
SHARDS = "shard-*.safetensors"
METADATA = "gradsieve"
"""The one key of a shard's metadata: safetensors writes several in an order that changes."""

UNREADABLE = (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError, OverflowError)
"""What reading damaged JSON, or a damaged header, may raise."""


class RowKey(NamedTuple):
    """Which row a feature is of: its source, its id, and a hash of its tokens and labels."""

    source: str
    id: str
    content: str


def shard_name(content: bytes) -> str:
    """The name of a shard with these bytes: their XXH3 of 128 bits.

    Not a hash against malice but against damage, at memory speed; SHA-256 would halve the rate at
    which a store is scored.
    """
    return f"shard-{xxhash.xxh3_128_hexdigest(content)}.safetensors"


def read_settings(folder: Folder) -> dict[str, Any]:
    """The settings that a datastore was made with.

    Raises:
        StoreError: If there is no datastore, or one of another format.
    """
    if not folder.exists(SETTINGS):
        todo = "Give the folder of a datastore, e.g. RUN/02-features/checkpoint-1/pool."
        raise StoreError("There is no gradient datastore here.", str(folder), todo)
    try:
        told = json.loads(folder.read(SETTINGS))
        settings: dict[str, Any] = told["settings"]
        intact = told["fingerprint"] == fingerprint([told["format"], settings])
    except UNREADABLE:
        intact = False
    if not intact:
        todo = "Delete the datastore and make it again."
        raise StoreError("The datastore's settings are damaged.", folder.where(SETTINGS), todo)
    if told["format"] != FORMAT:
        raise StoreError(
            f"The datastore is of format {told['format']}; this version reads {FORMAT}.",
            folder.where(SETTINGS),
            "Use the version of gradsieve that wrote it, or make it again.",
        )
    return settings


def settings_file(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What settings.json holds."""
    whole = fingerprint([FORMAT, settings])
    return {"format": FORMAT, "fingerprint": whole, "settings": dict(settings)}


def write_json(folder: Folder, name: str, value: Any) -> None:
    """Write a small file."""
    folder.write(name, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def read_set_aside(folder: Folder) -> dict[RowKey, str]:
    """Rows that are not finite, with the reason.

    Raises:
        StoreError: If the file is damaged.
    """
    if not folder.exists(SET_ASIDE):
        return {}
    try:
        records = json.loads(folder.read(SET_ASIDE))
        return {RowKey(*record[:3]): str(record[3]) for record in records}
    except (*UNREADABLE, IndexError):
        todo = "Delete that file and run `gradsieve features` again."
        what = "The list of rows set aside is damaged."
        raise StoreError(what, folder.where(SET_ASIDE), todo) from None


def shard_rows(folder: Folder, name: str, settings: Mapping[str, Any]) -> list[RowKey]:
    """The rows of a shard, from its header alone.

    Raises:
        StoreError: If the header is damaged, or of a datastore with other settings.
    """
    try:
        (length,) = struct.unpack("<Q", folder.read(name, 0, 8))
        size = folder.size(name)
        header = json.loads(folder.read(name, 8, min(8 + length, size)))
        told = json.loads(header["__metadata__"][METADATA])
        ends = [value["data_offsets"][1] for key, value in header.items() if key[0] != "_"]
        whole = size == 8 + length + max(ends)
        rows = list(map(RowKey._make, told["rows"]))
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
    return rows


def damaged(folder: Folder, name: str) -> StoreError:
    """The error for a shard whose bytes are not what was written."""
    return StoreError(
        "A shard of the datastore is damaged.",
        folder.where(name),
        "Delete that file and run `gradsieve features` again: only its rows are made again.",
    )
