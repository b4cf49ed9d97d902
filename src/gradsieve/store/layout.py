"""Names and small files of a datastore, shared by its writer and its reader (docs/format.md).

Each holds a fingerprint of what else is in it, so that a flipped bit is found in these too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import xxhash

from gradsieve.errors import StoreError
from gradsieve.io import fingerprint
from gradsieve.store.folder import Folder
from gradsieve.store.names import RowKey

FORMAT = "gradsieve-datastore/2"
SETTINGS, MANIFEST = "settings.json", "manifest.json"
SHARDS, SET_ASIDE = "shard-*.safetensors", "set-aside-*.json"
"""Of these there may be many, each with a hash of its bytes for the star."""

METADATA = "gradsieve"
"""The one key of a shard's metadata: safetensors writes several in an order that changes."""

UNREADABLE = (
    *(ValueError, LookupError, TypeError, AttributeError),
    *(struct.error, MemoryError, OverflowError),
)
"""What reading damaged JSON, or a damaged header, may raise."""


_AGAIN = "Delete that file and run `gradsieve features` again."


def hashed_name(pattern: str, content: bytes | memoryview) -> str:
    """The name of a file with these bytes: their XXH3 of 128 bits for the pattern's star.

    Not a hash against malice but against damage, at memory speed; SHA-256 would halve the rate at
    which a datastore is scored.
    """
    return pattern.replace("*", xxhash.xxh3_128_hexdigest(content))


def sealed(value: Mapping[str, Any]) -> bytes:
    """A small file's bytes: JSON with the format and a fingerprint of it all."""
    whole = {"format": FORMAT, **value}
    told = {"fingerprint": fingerprint(whole), **whole}
    return (json.dumps(told, ensure_ascii=False, indent=1) + "\n").encode("utf-8")


def unsealed(folder: Folder, name: str, what: str, todo: str) -> dict[str, Any]:
    """Read a small file.

    Args:
        folder: The datastore.
        name: Of the file.
        what: What to say if it is damaged.
        todo: And what to do then.

    Raises:
        StoreError: If it is damaged, or of another format.
    """
    try:
        told: dict[str, Any] = json.loads(folder.read(name))
        written = told.pop("fingerprint")
        ours, intact = told["format"] == FORMAT, written == fingerprint(told)
    except UNREADABLE:
        ours, intact = True, False
    if not ours:
        raise StoreError(
            f"The datastore is of format {told['format']}; this version reads {FORMAT}.",
            folder.where(name),
            "Delete its folder and run `gradsieve features` to make it again, or use the version "
            "of gradsieve that wrote it.",
        )
    if not intact:
        raise StoreError(what, folder.where(name), todo)
    return told


def read_settings(folder: Folder) -> dict[str, Any]:
    """The settings that a datastore was made with.

    Raises:
        StoreError: If there is no datastore, or one of another format.
    """
    if not folder.exists(SETTINGS):
        todo = "Give the folder of a datastore, e.g. RUN/02-features/checkpoint-1/pool."
        raise StoreError("There is no gradient datastore here.", str(folder), todo)
    todo = "Delete the datastore's folder and make it again."
    what = "The datastore's settings are damaged."
    settings: dict[str, Any] = unsealed(folder, SETTINGS, what, todo)["settings"]
    return settings


def read_manifest(folder: Folder) -> dict[str, int] | None:
    """Rows of each file that was there when the datastore was finished; None: it is growing.

    Raises:
        StoreError: If the manifest is damaged.
    """
    if not folder.exists(MANIFEST):
        return None
    what = "The datastore's manifest is damaged."
    told = unsealed(folder, MANIFEST, what, _AGAIN)
    return {**told["shards"], **told["set_aside"]}


def read_set_aside(folder: Folder, pattern: str = SET_ASIDE) -> dict[RowKey, str]:
    """Rows that are not finite, with the reason.

    Args:
        folder: The datastore.
        pattern: Names of files; all by default.

    Raises:
        StoreError: If a file is damaged.
    """
    rows: dict[RowKey, str] = {}
    for name in folder.names(pattern):
        content = folder.read(name)
        if hashed_name(SET_ASIDE, content) != name:
            what = "A list of rows set aside is damaged."
            raise StoreError(what, folder.where(name), _AGAIN)
        rows.update((RowKey(*row), reason) for *row, reason in json.loads(content))
    return rows
