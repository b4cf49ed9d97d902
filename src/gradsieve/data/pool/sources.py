"""The sources of a pool as a stream of chunks of rows that are not parsed yet.

In: a path, a hub name or rows in memory. Out: chunks, each the bytes of JSON of up to CHUNK_ROWS
rows, which are small to send to another process; and a key that changes if the rows do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from gradsieve.data.formats import BadRow, Supervise
from gradsieve.data.readers import JSON_LINES, json_lines, place_of, refuse_empty, rows_of
from gradsieve.data.values import json_row
from gradsieve.io import fingerprint

CHUNK_ROWS = 2000
"""Rows of a chunk: about 0.5 s of work, which is what a kill costs each worker."""

CHUNK_BYTES = 4 << 20
"""Bytes of a chunk's rows, so that long rows don't add up (tokenizing takes about 100 times as much
memory); a longer row is a chunk of its own."""


@dataclass(frozen=True)
class SourceSpec:
    """Where a source of the pool is.

    Attributes:
        name: The examples' `source`; part of file names.
        path: A file, a folder or a hub name as `readers.read_source` takes it; or rows in memory,
            which are read twice (an iterator is made a list).
        split: Of a saved data set with splits, or of one on the hub.
        revision: Of a data set on the hub.
        supervise: What is supervised of prompt/completion rows.
    """

    name: str
    path: str | Iterable[Any]
    split: str = "train"
    revision: str | None = None
    supervise: Supervise = "completion"

    def __post_init__(self) -> None:
        if isinstance(self.path, Iterator):
            object.__setattr__(self, "path", list(self.path))

    @property
    def json_lines(self) -> Path | None:
        """The file, if it has one JSON object a line."""
        file = Path(self.path) if isinstance(self.path, str) else None
        is_such = file and file.is_file() and file.name.lower().endswith(JSON_LINES)
        return file if is_such else None

    def where(self, line: int) -> str:
        """A row's place, for messages: file and line, or file and number of the row."""
        if self.json_lines:
            return f"{self.json_lines}:{line}"
        is_local = isinstance(self.path, str) and Path(self.path).exists()
        place = str(Path(str(self.path))) if is_local else place_of(self.name, self.path)
        return f"{place} row {line}"


class RawRow(NamedTuple):
    """A row that is not parsed yet.

    Attributes:
        line: Its line in a file of JSON lines, else its number; from 1.
        text: JSON; or why there is none.
        left_out: Columns that JSON can't hold, each with what it holds.
    """

    line: int
    text: bytes | BadRow
    left_out: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class RawChunk:
    """Some rows of one source, in the order they came in.

    Attributes:
        source: Its name.
        rows: At most CHUNK_ROWS; of CHUNK_BYTES, unless it is one row.
        is_users_json: Whether the JSON is the user's, so that its mistakes are the user's too.
        supervise: As the source's.
    """

    source: str
    rows: tuple[RawRow, ...]
    is_users_json: bool
    supervise: Supervise


def raw_chunks(spec: SourceSpec) -> Iterator[RawChunk]:
    """The rows of a source in chunks; where they are cut depends on the rows alone.

    Raises:
        DataError: If the source can't be read.
    """
    rows: list[RawRow] = []
    room = CHUNK_BYTES
    for row in _raw_rows(spec):
        size = 0 if isinstance(row.text, BadRow) else len(row.text)
        if rows and (len(rows) == CHUNK_ROWS or size > room):
            yield _chunk(spec, rows)
            rows, room = [], CHUNK_BYTES
        rows.append(row)
        room -= size
    if rows:
        yield _chunk(spec, rows)


def _chunk(spec: SourceSpec, rows: list[RawRow]) -> RawChunk:
    return RawChunk(spec.name, tuple(rows), spec.json_lines is not None, spec.supervise)


def _raw_rows(spec: SourceSpec) -> Iterator[RawRow]:
    if spec.json_lines:
        refuse_empty(spec.json_lines)
        yield from (RawRow(*numbered) for numbered in json_lines(spec.json_lines))
        return
    path = spec.path
    rows = (
        (row for _, row in rows_of(path, spec.split, spec.revision))
        if isinstance(path, str)
        else iter(path)
    )
    for number, row in enumerate(rows, start=1):
        yield _raw_row(number, row)


def _raw_row(number: int, row: Any) -> RawRow:
    try:
        kept, left_out = json_row(row)
        return RawRow(number, json_text(kept).encode(), left_out)
    except BadRow as error:
        return RawRow(number, error)


def json_text(value: Any) -> str:
    """JSON that UTF-8 can hold."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only an escape can hold it
        return json.dumps(value)
    return text


def source_key(spec: SourceSpec) -> str:
    """Changes if the source would give other rows, or the same ones in another order.

    Of a file or folder, the bytes count, not the path. Anything else is read in full.
    """
    path = Path(spec.path) if isinstance(spec.path, str) else None
    if path and path.is_file():
        return fingerprint(["file", "".join(path.suffixes[-2:]), _digest_of_file(path)])
    if path and path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        names = [(file.relative_to(path).as_posix(), _digest_of_file(file)) for file in files]
        return fingerprint(["folder", spec.split, names])
    digest = xxhash.xxh3_128()
    for row in _raw_rows(spec):
        text = row.text
        digest.update(str(text).encode() if isinstance(text, BadRow) else text)
        digest.update(b"\n")
    return fingerprint(["rows", digest.hexdigest()])


def _digest_of_file(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
