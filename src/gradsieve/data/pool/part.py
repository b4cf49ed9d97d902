"""One source's part of the pool: a file that grows chunk by chunk, and its progress.

In: chunks, in the order of the source's rows. Out: `dataset/NAME.arrow`, an Arrow stream of SCHEMA;
`sources/NAME.skipped.jsonl`, the unusable rows; and `sources/NAME.json`, which is replaced after
each chunk and records how many bytes of both are valid. Bytes that a killed run left after them are
cut off.

Rejected: one file per chunk (thousands of open files for a large pool).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
from pydantic import TypeAdapter

from gradsieve.data.values import LeftOutColumn
from gradsieve.errors import DataError
from gradsieve.io import link_files, read_lines, write_json

SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "id": pa.string(),
        "id_is_made": pa.bool_(),
        "line": pa.int32(),
        "row": pa.string(),
        "messages": pa.string(),
        "tools": pa.string(),
        "supervised": pa.list_(pa.bool_()),
        "input_ids": pa.list_(pa.int32()),
        "label_spans": pa.list_(pa.int32()),
        "length": pa.int32(),
        "n_label_tokens": pa.int32(),
        "truncated": pa.bool_(),
        "skip_reason": pa.string(),
        "content_hash": pa.uint64(),
    }
)
"""Columns of the pool on disk.

- `id_is_made`: whether the row has no id of its own.
- `line`: line number in a file of JSON lines, otherwise the row number; from 1.
- `row`, `messages`, `tools`: JSON text, since the rows of one pool have different keys and types,
  which Arrow columns can't represent.
- `tools`: null if there are none. `supervised`: for each turn, whether it is in the loss; null
  means every assistant turn.
- `label_spans`: start and end of each run of supervised tokens, as a flat list; within them a label
  is the token, elsewhere -100.
- `n_label_tokens`: number of labels that are predicted (the first position never is).
- `skip_reason`: why the example has no gradient; null if it has one.
- `content_hash`: first 8 bytes of the SHA-256 of `input_ids` and labels, big-endian.
"""

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Ends an Arrow stream (Arrow columnar format, "IPC Streaming Format")."""


class SkippedRow(NamedTuple):
    """An unusable row: its line and the reason."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of one source.

    Attributes:
        key: Fingerprint of everything that the part depends on.
        rows: Number of rows written, including those with a `skip_reason`.
        skipped: Number of unusable rows.
        place: The source's path if rows were skipped or columns left out, since messages name it.
        data_bytes: Valid bytes of the rows' file.
        skipped_bytes: Valid bytes of the skipped rows' file.
        digest: Sum of the rows' identities (SHA-256) modulo 2^256, in hexadecimal, which doesn't
            depend on their order.
        done: Whether the part is finished.
        warnings: Messages for the user about how the source was read, one line each.
        left_out: `LeftOut.columns` of these rows.
    """

    key: str
    chunks: int = 0
    rows: int = 0
    skipped: int = 0
    place: str = ""
    data_bytes: int = 0
    skipped_bytes: int = 0
    digest: str = "0"
    done: bool = False
    warnings: tuple[str, ...] = ()
    left_out: dict[str, LeftOutColumn] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the rows, independent of their order and their file's path and format."""
        return sha256(f"{self.rows} {self.digest}".encode()).hexdigest()


_PROGRESS = TypeAdapter(Progress)


class Part:
    """The files of one source."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.data_file = folder / "dataset" / f"{name}.arrow"
        self.skipped_file = folder / "sources" / f"{name}.skipped.jsonl"
        self.progress_file = folder / "sources" / f"{name}.json"

    def read_progress(self) -> Progress | None:
        """The part's progress; None if there is none, or its files don't have the recorded size."""
        try:
            progress = _PROGRESS.validate_json(self.progress_file.read_bytes())
            sizes = self.data_file.stat().st_size, self.skipped_file.stat().st_size
        except (OSError, ValueError):
            return None
        whole = (progress.data_bytes, progress.skipped_bytes)
        sound = sizes == whole if progress.done else all(map(int.__ge__, sizes, whole))
        return progress if sound else None

    def finished(self) -> Progress:
        """The progress of a finished part.

        Raises:
            DataError: If it is not finished, or its files don't have the recorded size.
        """
        progress = self.read_progress()
        if progress is None or not progress.done:
            raise DataError(
                "A part of the pool is damaged or not finished.",
                str(self.data_file),
                "Run the stage pool again; it makes again what is missing.",
            )
        return progress

    def skipped(self) -> Iterator[SkippedRow]:
        """The unusable rows, in order."""
        if self.skipped_file.exists():
            yield from (SkippedRow(**row) for row in read_lines(self.skipped_file))

    def table(self) -> pa.Table:
        """The rows, memory-mapped."""
        return pa.ipc.open_stream(pa.memory_map(str(self.data_file))).read_all()

    def remove(self) -> None:
        """Delete the part, beginning with its progress."""
        for file in (self.progress_file, self.data_file, self.skipped_file):
            file.unlink(missing_ok=True)


class PartWriter:
    """Adds chunks to a part, each in full or not at all; bytes after `progress` are removed."""

    def __init__(self, part: Part, progress: Progress, place: str) -> None:
        self._progress_file, self._progress, self._place = part.progress_file, progress, place
        self._data = _opened_at(part.data_file, progress.data_bytes)
        self._skipped = _opened_at(part.skipped_file, progress.skipped_bytes)
        if not progress.data_bytes:
            self._data.write(SCHEMA.serialize())

    def close(self) -> None:
        """Close the files."""
        self._data.close()
        self._skipped.close()

    def add(
        self,
        batch: pa.RecordBatch | None,
        identities: Sequence[bytes],
        skipped: Sequence[SkippedRow],
        left_out: Mapping[str, LeftOutColumn],
    ) -> None:
        """Add a chunk's rows (None if all were skipped); `left_out` is of all rows so far."""
        if batch is not None:
            self._data.write(batch.serialize())
        self._skipped.writelines(
            json.dumps(row._asdict(), ensure_ascii=False).encode(errors="replace") + b"\n"
            for row in skipped
        )
        before = self._progress
        total = int(before.digest, 16) + sum(map(int.from_bytes, identities))
        self._commit(
            chunks=before.chunks + 1,
            rows=before.rows + len(identities),
            skipped=before.skipped + len(skipped),
            place=self._place if skipped or left_out else before.place,
            left_out=dict(left_out),
            digest=f"{total % 2**256:x}",
        )

    def finish(self, warnings: tuple[str, ...]) -> None:
        """Mark the part as done."""
        self._data.write(END_OF_STREAM)
        self._commit(done=True, warnings=warnings)

    def _commit(self, **changed: Any) -> None:
        """Record the progress after all data is on disk."""
        changed |= {"data_bytes": _synced(self._data), "skipped_bytes": _synced(self._skipped)}
        self._progress = replace(self._progress, **changed)
        write_json(self._progress_file, asdict(self._progress))


def _opened_at(file: Path, size: int) -> IO[bytes]:
    """Open a file, truncated to its valid bytes, at its end."""
    file.parent.mkdir(parents=True, exist_ok=True)
    opened = file.open("ab")
    opened.truncate(size)
    opened.seek(size)
    return opened


def _synced(file: IO[bytes]) -> int:
    """Flush a file to disk, and return its size."""
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def link_parts(old: Path, new: Path) -> None:
    """Link the files of an old pool's finished parts into a new pool.

    `build_pool` makes again or removes the parts that don't fit the new pool's sources.
    """
    for file in (old / "sources").glob("*.json"):
        part = Part(old, file.stem)
        if (progress := part.read_progress()) and progress.done:
            link_files(old, new, (part.data_file, part.skipped_file, file))


def read_state(folder: Path) -> dict[str, Any] | None:
    """The contents of `state.json`; None if it is missing or unreadable."""
    try:
        found: dict[str, Any] = json.loads((folder / "dataset" / "state.json").read_bytes())
        return found
    except (OSError, ValueError):
        return None
