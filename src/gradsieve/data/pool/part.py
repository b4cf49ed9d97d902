"""One source's part of the pool: a file that grows by a chunk at a time, and how far it is.

In: chunks, in the order of the source's rows. Out: `dataset/NAME.arrow`, an Arrow stream of SCHEMA;
`sources/NAME.skipped.jsonl`, rows that can't be used; and `sources/NAME.json`, which is replaced
after each chunk and says how many bytes of both are sound. What a kill left behind them is cut off.

Rejected: a file for each chunk (thousands of open files for a large pool).
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
from gradsieve.io import link_files, write_json

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

- `id_is_made`: whether the row came without an id.
- `line`: line of a file of JSON lines, else the row's number; from 1.
- `row`, `messages`, `tools`: JSON text, since the rows of one pool have different keys and types,
  which columns of Arrow can't hold.
- `tools`: null if there are none. `supervised`: for each turn, whether it is in the loss; null for
  every assistant turn.
- `label_spans`: start and end of each run of supervised tokens, flat; within them a label is the
  token, elsewhere -100.
- `n_label_tokens`: labels that are predicted (the first position never is).
- `skip_reason`: why the example has no gradient; null if it has one.
- `content_hash`: first 8 bytes of the SHA-256 of `input_ids` and labels, big-endian.
"""

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Ends an Arrow stream (Arrow columnar format, "IPC Streaming Format")."""


class SkippedRow(NamedTuple):
    """A row that can't be used: its line and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a source is.

    Attributes:
        key: What its part depends on.
        rows: Rows that are written, those with a `skip_reason` included.
        skipped: Rows that can't be used.
        place: The source's path if rows were skipped or columns left out: their places name it.
        data_bytes: Sound bytes of the rows' file.
        skipped_bytes: Sound bytes of the skipped rows' file.
        digest: Sum of the SHA-256 of the rows' identities modulo 2^256, in hexadecimal: their order
            doesn't matter.
        done: Whether that is all.
        warnings: What the user should know of how the source was read, a line each.
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
        """Of the rows, whatever their order and the path and format of their file."""
        return sha256(f"{self.rows} {self.digest}".encode()).hexdigest()


class Part:
    """The files of one source."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.data_file = folder / "dataset" / f"{name}.arrow"
        self.skipped_file = folder / "sources" / f"{name}.skipped.jsonl"
        self.progress_file = folder / "sources" / f"{name}.json"

    def read_progress(self) -> Progress | None:
        """How far the part is; None if there is none, or its files are shorter than they were."""
        try:
            progress = TypeAdapter(Progress).validate_json(self.progress_file.read_bytes())
            sizes = self.data_file.stat().st_size, self.skipped_file.stat().st_size
        except (OSError, ValueError):
            return None
        whole = (progress.data_bytes, progress.skipped_bytes)
        sound = sizes == whole if progress.done else all(map(int.__ge__, sizes, whole))
        return progress if sound else None

    def finished(self) -> Progress:
        """What the finished part is.

        Raises:
            DataError: If it is not finished, or its files are not those that were written.
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
        """The rows that can't be used, in order."""
        if self.skipped_file.exists():
            with self.skipped_file.open("rb") as lines:
                yield from (SkippedRow(**json.loads(line)) for line in lines)

    def table(self) -> pa.Table:
        """The rows, memory-mapped."""
        return pa.ipc.open_stream(pa.memory_map(str(self.data_file))).read_all()

    def remove(self) -> None:
        """Delete the part; how far it is, first."""
        for file in (self.progress_file, self.data_file, self.skipped_file):
            file.unlink(missing_ok=True)


class PartWriter:
    """Adds chunks to a part, each of them in full or not at all.

    Args:
        part: Its files.
        progress: How far it is; of what follows nothing is kept.
        place: The source's path.
    """

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
        """Add what became of a chunk.

        Args:
            batch: Its rows; None: all were skipped.
            identities: SHA-256 of each row of the batch.
            skipped: The other rows.
            left_out: `LeftOut.columns` of all rows so far.
        """
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
        """Record how far the part is, once all of that is on disk."""
        changed |= {"data_bytes": _synced(self._data), "skipped_bytes": _synced(self._skipped)}
        self._progress = replace(self._progress, **changed)
        write_json(self._progress_file, asdict(self._progress))


def _opened_at(file: Path, size: int) -> IO[bytes]:
    """A file that ends after its sound bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    opened = file.open("r+b")
    opened.truncate(size)
    opened.seek(size)
    return opened


def _synced(file: IO[bytes]) -> int:
    """Bring a file to disk; its size."""
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def link_parts(old: Path, new: Path) -> None:
    """Give a new pool the finished parts of an old one, as links to their files.

    A part that the new pool's sources have no use for is made again, or removed, by `build_pool`.
    """
    for file in (old / "sources").glob("*.json"):
        part = Part(old, file.stem)
        if (progress := part.read_progress()) and progress.done:
            link_files(old, new, (part.data_file, part.skipped_file, file))


def read_state(folder: Path) -> dict[str, Any] | None:
    """The state that `build.write_state` wrote; None if there is nothing to be read."""
    try:
        state: dict[str, Any] = json.loads((folder / "dataset" / "state.json").read_bytes())
    except (OSError, ValueError):
        return None
    return state
