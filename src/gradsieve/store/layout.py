"""Names and small files of a datastore, shared by its writer and its reader (docs/format.md)."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from gradsieve.errors import StoreError
from gradsieve.rundir import fingerprint
from gradsieve.store.folder import Folder
from gradsieve.store.names import RowKey

FORMAT = "gradsieve-datastore/2"
SETTINGS, MANIFEST, SET_ASIDE = "settings.json", "manifest.json", "set-aside.json"
SHARDS = "shard-*.safetensors"
METADATA = "gradsieve"
"""The one key of a shard's metadata: safetensors writes several in an order that changes."""

UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    struct.error,
    MemoryError,
    OverflowError,
)
"""What reading damaged JSON, or a damaged header, may raise."""


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
            "Delete its folder and run `gradsieve features` to make it again, or use the version "
            "of gradsieve that wrote it.",
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
    except UNREADABLE:
        todo = "Delete that file and run `gradsieve features` again."
        what = "The list of rows set aside is damaged."
        raise StoreError(what, folder.where(SET_ASIDE), todo) from None
