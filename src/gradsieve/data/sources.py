"""A source of examples: where its rows are, how they become examples, and how to treat bad ones.

In: a path, a hub name or rows in memory. Out: a stream of its rows as unparsed JSON; each row as an
example, with the original row (as JSON values, see `values`); a key that changes if the rows do;
and for small sources (targets), all examples at once. All bad rows are found before any is
reported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from gradsieve.data.examples import Example
from gradsieve.data.formats import (
    KNOWN,
    BadRow,
    Supervise,
    conversation_of,
    is_unicode,
    kind_of,
    parse_json,
    renamed,
)
from gradsieve.data.ids import IdIndex, content_digest, given_id
from gradsieve.data.readers import (
    IN_MEMORY,
    JSON_LINES,
    LIMITS,
    row_bytes_error,
    rows_of,
)
from gradsieve.data.values import LeftOut, json_row
from gradsieve.errors import DataError
from gradsieve.io import file_hash, fingerprint
from gradsieve.recipe.schema import LimitsConfig, OnBadRow

LISTED_AT_ONCE = 10
"""Number of bad rows that a message lists; the others are counted."""


@dataclass(frozen=True)
class SourceSpec:
    """Where a source is and how its rows are read.

    Attributes:
        name: The examples' `source`; part of file names.
        path: A .jsonl (.gz, .zst), .json or .parquet file, a folder written by
            `Dataset.save_to_disk`, or a data set that `datasets.load_dataset` knows; or rows in
            memory, which are read twice.
        split: Split of a saved data set with splits, or of one on the hub.
        revision: Revision of a data set on the hub.
        supervise: The supervised part of prompt/completion rows.
        columns: The row's key for each field of a format whose name differs.
        source_field: The row's key whose text is added to `name`, for a file with many sources.
        limits: Limits beyond which rows and files are rejected.
    """

    name: str
    path: str | Iterable[Any]
    split: str = "train"
    revision: str | None = None
    supervise: Supervise = "completion"
    columns: Mapping[Any, str] = field(default_factory=dict)
    source_field: str | None = None
    limits: LimitsConfig = LIMITS

    @property
    def place(self) -> str:
        """The location of the rows, for messages."""
        return self.path if isinstance(self.path, str) else f"{self.name} {IN_MEMORY}"

    @property
    def reading(self) -> list[Any]:
        """The settings that, together with the rows, determine the examples."""
        named = [dict(sorted(self.columns.items())), self.source_field]
        return [self.supervise, *(named if any(named) else [])]

    def where(self, line: int) -> str:
        """A row's location, for messages: file and line, or file and row number."""
        return f"{self._line_start}{line}"

    @cached_property
    def _line_start(self) -> str:
        file = Path(self.path) if isinstance(self.path, str) else None
        if file and file.is_file() and file.name.lower().endswith(JSON_LINES):
            return f"{file}:"
        return f"{file if file and file.exists() else self.place} row "


class RawRow(NamedTuple):
    """A row that is not parsed yet.

    Attributes:
        line: The line number in a file of JSON lines, otherwise the row number; from 1.
        text: The row as JSON, or the reason why it can't be read.
        left_out: Columns that JSON can't hold, each with the type of its value.
    """

    line: int
    text: bytes | BadRow
    left_out: Mapping[str, str] = {}


class RowId(NamedTuple):
    """The id of a row, before it is checked against the ids of other rows.

    Attributes:
        id: The row's own id, or one made from its content; other rows may have the same.
        identity: SHA-256 of everything that determines the row's tokens and labels.
    """

    line: int
    id: str
    is_made: bool
    identity: bytes
    left_out: Mapping[str, str]


class ParsedRow(NamedTuple):
    """A row as an example, with its original text."""

    key: RowId
    text: str
    example: Example


def raw_rows(spec: SourceSpec) -> Iterator[RawRow]:
    """A stream of the rows of a source."""
    for line, row in rows_of(spec.path, spec.split, spec.revision, spec.limits):
        if isinstance(row, bytes):
            yield RawRow(line, row)
            continue
        try:
            kept, left_out = json_row(row)
        except BadRow as error:
            yield RawRow(line, error)
            continue
        text = json_text(kept).encode()
        if len(text) > spec.limits.row_bytes:
            raise row_bytes_error(spec.where(line), spec.limits)
        yield RawRow(line, text, left_out)


def parse(spec: SourceSpec, raw: RawRow) -> ParsedRow:
    """Parse a row to an example; raises `BadRow` if it has no usable conversation."""
    if isinstance(raw.text, BadRow):
        raise raw.text
    row, left_out = json_row(parse_json(raw.text))
    fields = renamed(row, spec.columns) if spec.columns else row
    messages, tools, supervised = conversation_of(fields, spec.supervise)
    given, identity = given_id(fields), content_digest(row)
    source = spec.name if spec.source_field is None else _source_of(row, spec)
    id = identity.hex()[:16] if given is None else given
    example = Example(source, id, messages, row, tools=tools, supervised=supervised)
    if supervised is not None:
        identity = hashlib.sha256(identity + bytes(supervised)).digest()
    if spec.columns or spec.source_field:
        named = json.dumps([source, id, messages, tools])
        identity = hashlib.sha256(identity + named.encode()).digest()
    text = json_text(row) if left_out else raw.text.strip().decode()
    key = RowId(raw.line, id, given is None, identity, {**raw.left_out, **left_out})
    return ParsedRow(key, text, example)


def _source_of(row: Mapping[str, Any], spec: SourceSpec) -> str:
    """The source of a row in a file with many sources: the file's name and the row's value."""
    value = row.get(str(spec.source_field))
    if not isinstance(value, str) or not value.isprintable() or not is_unicode(value) or not value:
        found = repr(value) if isinstance(value, str) else kind_of(value)
        raise BadRow(f"expected text in {spec.source_field} (source_field), found {found}")
    return f"{spec.name}/{value}"


_WRITTEN = json.JSONEncoder(ensure_ascii=False)


def json_text(value: Any) -> str:
    """JSON text that can be encoded as UTF-8."""
    text = _WRITTEN.encode(value)
    # Half of a surrogate pair can only be written as an escape.
    return text if text.isascii() or is_unicode(text) else json.dumps(value)


class SourceKey(NamedTuple):
    """Identifies the rows of a source: `digest` changes with the rows or their order.

    `state` is the state of the files (`state_of`) before they were read.
    """

    digest: str
    state: object


def source_key(spec: SourceSpec) -> SourceKey:
    """The key of a source. For a file or folder it depends on the bytes, not on the path."""
    state, files, path = state_of(spec), _files_of(spec), Path(str(spec.path))
    if files == [path]:  # the suffix determines how it is read
        contents = ["file", "".join(path.suffixes[-2:]), file_hash(path)]
        return SourceKey(fingerprint(contents), state)
    if files is not None:
        names = [(file.relative_to(path).as_posix(), file_hash(file)) for file in files]
        return SourceKey(fingerprint(["folder", spec.split, names]), state)
    digest = xxhash.xxh3_128()
    for row in raw_rows(spec):
        text = row.text
        digest.update(str(text).encode() if isinstance(text, BadRow) else text)
        digest.update(b"\n")
    return SourceKey(fingerprint(["rows", digest.hexdigest()]), state)


def state_of(spec: SourceSpec) -> object:
    """Sizes and modification times of a source's files, which change if they are written to."""
    stats = [(file, file.stat()) for file in _files_of(spec) or ()]
    return [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def _files_of(spec: SourceSpec) -> list[Path] | None:
    """The files of a source that is a file or folder; None if it is neither."""
    path = Path(spec.path) if isinstance(spec.path, str) else None
    if path is None or not path.exists():
        return None
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


# --- small sources at once -----------------------------------------------------------------------


class Rejected(NamedTuple):
    """A row that could not be read: file and line (or row), and the reason."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """The result of reading a source; `warnings` are one line each, for the user."""

    examples: tuple[Example, ...]
    bad_rows: tuple[Rejected, ...]
    warnings: tuple[str, ...] = ()


def read_source(
    name: str,
    path: str | Iterable[Any],
    *,
    on_bad_row: OnBadRow = "fail",
    **settings: Any,
) -> Source:
    """Read a source of examples; `settings` are the other attributes of `SourceSpec`.

    Raises:
        DataError: If the file can't be read, or has bad rows and `on_bad_row` is "fail".
    """
    spec = SourceSpec(name, path, **settings)
    left_out = LeftOut()
    rows = list(examples_of(spec, left_out))
    examples = [row for row in rows if isinstance(row, Example)]
    bad = [row for row in rows if isinstance(row, Rejected)]
    refuse_bad_rows(spec.place, bad, len(bad), len(examples), skips=on_bad_row == "skip")
    return Source(tuple(examples), tuple(bad), left_out.warnings())


def examples_of(spec: SourceSpec, left_out: LeftOut) -> Iterator[Example | Rejected]:
    """A stream of a source's rows as examples; columns left out are added to `left_out`."""
    with closing(IdIndex(spec.where)) as ids:
        for raw in raw_rows(spec):
            where = spec.where(raw.line)
            try:
                key, _, example = parse(spec, raw)
                id = ids.take(key.id, key.is_made, raw.line)
                left_out.add(key.left_out, where)
                yield replace(example, id=id, where=where)
            except BadRow as error:
                yield Rejected(where, str(error))


def refuse_bad_rows(
    place: str, first: Sequence[Rejected], bad: int, good: int, *, skips: bool
) -> None:
    """Check the numbers of a source's bad and good rows; `first` are the first bad ones.

    Raises:
        DataError: If there are bad rows that are not skipped, or no good row.
    """
    if bad and not skips:
        listed = [f"{row.where}: {row.reason}" for row in first[:LISTED_AT_ONCE]]
        todo = "Fix the rows, or set on_bad_row: skip to leave them out."
        if any(KNOWN in row.reason for row in first):
            columns = "columns: {prompt: question, completion: answer}"
            todo += f" If their keys have other names, set these in the source, e.g. {columns}."
        what = f"{bad} of {bad + good} rows of {place} cannot be read."
        raise DataError(what, list_first(listed, bad), todo)
    if not good:
        found = f"all of its {bad} rows are bad" if bad else "it has no rows"
        todo = "Give at least one good row."
        raise DataError("There is no usable row.", f"{place}: {found}", todo)


def list_first(listed: Sequence[str], count: int) -> str:
    """The lines of a message's second part, with the number of lines not listed."""
    more = [f"and {count - len(listed)} more"] if count > len(listed) else []
    return "\n              ".join([*listed, *more])
