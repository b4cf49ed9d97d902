"""Names and small files of a datastore, shared by its writer and its reader (docs/format.md)."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gradsieve.errors import StoreError
from gradsieve.rundir import fingerprint

FORMAT = "gradsieve-datastore/1"
SETTINGS, MANIFEST, SET_ASIDE = "settings.json", "manifest.json", "set-aside.json"
METADATA = "gradsieve"
"""The one key of a shard's metadata: safetensors writes several in an order that changes."""

SHARD = re.compile(r"shard-([0-9a-f]{32})\.safetensors")
"""A shard's name holds the first half of the SHA-256 of its bytes."""


class RowKey(NamedTuple):
    """Which row a feature is of: its source, its id, and a hash of its tokens and labels."""

    source: str
    id: str
    content: str


def shard_name(content: bytes) -> str:
    """The name of a shard with these bytes."""
    return f"shard-{hashlib.sha256(content).hexdigest()[:32]}.safetensors"


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that a datastore was made with.

    Raises:
        StoreError: If there is no datastore, or one of another format.
    """
    file = folder / SETTINGS
    if not file.is_file():
        todo = "Give the folder of a datastore, e.g. RUN/02-features/checkpoint-1/pool."
        raise StoreError("There is no gradient datastore here.", str(folder), todo)
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        settings: dict[str, Any] = told["settings"]
        intact = told["fingerprint"] == fingerprint([told["format"], settings])
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        todo = "Delete the datastore and make it again."
        raise StoreError("The datastore's settings are damaged.", str(file), todo)
    if told["format"] != FORMAT:
        raise StoreError(
            f"The datastore is of format {told['format']}; this version reads {FORMAT}.",
            str(file),
            "Use the version of gradsieve that wrote it, or make it again.",
        )
    return settings


def settings_file(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What settings.json holds."""
    whole = fingerprint([FORMAT, settings])
    return {"format": FORMAT, "fingerprint": whole, "settings": dict(settings)}


def shard_rows(file: Path, settings: Mapping[str, Any]) -> list[RowKey]:
    """The rows of a shard, from its header alone.

    Raises:
        StoreError: If the header is damaged, or of a datastore with other settings.
    """
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
            told = json.loads(header["__metadata__"][METADATA])
            ends = [value["data_offsets"][1] for key, value in header.items() if key[0] != "_"]
            whole = file.stat().st_size == 8 + length + max(ends)
            rows = [RowKey(*row) for row in told["rows"]]
            own = told["settings"]
    except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError, OverflowError):
        whole = False
    if not whole:
        raise damaged(file)
    if own != fingerprint(settings):
        raise StoreError(
            "A shard is of a datastore with other settings.",
            f"{file}: {own[:8]}, here {fingerprint(settings)[:8]}",
            "Delete that file; its rows are made again.",
        )
    return rows


def damaged(file: Path) -> StoreError:
    """The error for a shard whose bytes are not what was written."""
    return StoreError(
        "A shard of the datastore is damaged.",
        str(file),
        "Delete that file and run `gradsieve features` again: only its rows are made again.",
    )
