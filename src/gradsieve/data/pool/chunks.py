"""One chunk of a pool: converts raw rows to an Arrow record batch of tokenized examples.

In: a source, cut into chunks of rows as JSON bytes. Out: the record batch as bytes in Arrow's IPC
format, the data from which rows get their ids, and the unusable rows. A chunk depends only on its
rows and the chat template, so chunks can be made in any number of processes; anything that depends
on other chunks (whether an id is taken) is left to build.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradsieve.data.examples import TokenizedExample
from gradsieve.data.formats import BadRow
from gradsieve.data.pool.part import SCHEMA, SkippedRow
from gradsieve.data.readers import IN_MEMORY
from gradsieve.data.sources import ParsedRow, RawRow, RowId, SourceSpec, json_text, parse, raw_rows
from gradsieve.data.template import ChatTemplate, Refusal

Positions = NDArray[np.int64]

CHUNK_ROWS = 2000
"""Maximum rows of a chunk: about 0.5 s of work, which each worker loses if the run is killed."""

CHUNK_BYTES = 4 << 20
"""Maximum bytes of a chunk's rows, which limits memory with long rows (tokenizing takes about 100
times as much); a longer row is put in a separate chunk."""


class RawChunk(NamedTuple):
    """Consecutive rows of one source; `spec` doesn't contain the source's rows in memory."""

    spec: SourceSpec
    rows: list[RawRow]


class Chunk(NamedTuple):
    """The result of processing a chunk.

    Attributes:
        batch: A serialized record batch of SCHEMA, without ids: other rows may have taken them.
        rows: The ids of the batch's rows, in order.
        skipped: The rows that are not in the batch.
    """

    batch: bytes
    rows: list[RowId]
    skipped: list[SkippedRow]


def raw_chunks(spec: SourceSpec) -> Iterator[RawChunk]:
    """The rows of a source in chunks, whose boundaries depend only on the rows."""
    sent = spec if isinstance(spec.path, str) else replace(spec, path=IN_MEMORY)
    rows: list[RawRow] = []
    room = CHUNK_BYTES
    for row in raw_rows(spec):
        size = 0 if isinstance(row.text, BadRow) else len(row.text)
        if rows and (len(rows) == CHUNK_ROWS or size > room):
            yield RawChunk(sent, rows)
            rows, room = [], CHUNK_BYTES
        rows.append(row)
        room -= size
    if rows:
        yield RawChunk(sent, rows)


def make_chunk(raw: RawChunk, template: ChatTemplate | None, only_check: bool = False) -> Chunk:
    """Parse and tokenize the rows of a chunk, and put them in a record batch.

    Args:
        raw: The rows.
        template: Renders and tokenizes the conversations; if None, they are only parsed.
        only_check: Only find the unusable rows; the batch stays empty.
    """
    rows: list[ParsedRow] = []
    skipped: list[SkippedRow] = []
    for row in raw.rows:
        try:
            rows.append(parse(raw.spec, row))
        except BadRow as error:
            skipped.append(SkippedRow(row.line, str(error)))
    encoded: list[Any] = [row.example for row in rows]
    if template and only_check:
        encoded = [template.try_render(example) for example in encoded]
    elif template:
        encoded = template.try_encode_all(encoded)
    kept: list[tuple[ParsedRow, Any]] = []
    for parsed, result in zip(rows, encoded, strict=True):
        if isinstance(result, Refusal):
            skipped.append(SkippedRow(parsed.key.line, result.skip_reason))
        else:
            kept.append((parsed, result))
    return Chunk(
        b"" if only_check or not kept else _batch(kept).serialize().to_pybytes(),
        [row.key for row, _ in kept],
        skipped,
    )


def _batch(kept: Sequence[tuple[ParsedRow, TokenizedExample]]) -> pa.RecordBatch:
    rows, encoded = zip(*kept, strict=True)
    lengths = np.array([len(tokens.input_ids) for tokens in encoded], dtype=np.int32)
    ends = np.cumsum(lengths, dtype=np.int64)
    ids = np.concatenate([np.asarray(tokens.input_ids, dtype=np.int32) for tokens in encoded])
    labels = np.concatenate([np.asarray(tokens.labels, dtype=np.int32) for tokens in encoded])
    supervised = labels != -100
    starts = ends - lengths
    before = np.concatenate([[0], np.cumsum(supervised)])
    n_labels = before[ends] - before[np.minimum(starts + 1, ends)]  # the first is never predicted
    columns: dict[str, Any] = {
        "source": [row.example.source for row in rows],
        "id": pa.nulls(len(rows), pa.string()),
        "id_is_made": [row.key.is_made for row in rows],
        "line": [row.key.line for row in rows],
        "row": [row.text for row in rows],
        "messages": [json_text(row.example.messages) for row in rows],
        "tools": [json_text(row.example.tools) if row.example.tools else None for row in rows],
        "supervised": [row.example.supervised for row in rows],
        "input_ids": pa.ListArray.from_arrays(_offsets(ends), pa.array(ids)),
        "label_spans": _spans(supervised, starts, ends),
        "length": lengths,
        "n_label_tokens": n_labels,
        "truncated": [tokens.truncated for tokens in encoded],
        "skip_reason": [
            None if n_label else tokens.skip_reason
            for n_label, tokens in zip(n_labels, encoded, strict=True)
        ],
        "content_hash": [
            _content_hash(ids[start:end], labels[start:end])
            for start, end in zip(starts, ends, strict=True)
        ],
    }
    return pa.record_batch(
        [pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA
    )


def _content_hash(ids: NDArray[np.int32], labels: NDArray[np.int32]) -> int:
    return int.from_bytes(hashlib.sha256(ids.tobytes() + labels.tobytes()).digest()[:8], "big")


def _spans(supervised: NDArray[np.bool_], starts: Positions, ends: Positions) -> pa.ListArray:
    """Start and end of each run of supervised tokens, counted from the example's first token."""
    is_start = np.zeros(len(supervised) + 1, dtype=bool)
    is_start[starts] = True
    follows = np.concatenate([[False], supervised[:-1]]) & ~is_start[:-1]
    goes_on = np.concatenate([supervised[1:], [False]]) & ~is_start[1:]
    begins = np.flatnonzero(supervised & ~follows)
    closes = np.flatnonzero(supervised & ~goes_on) + 1
    example = np.searchsorted(ends, begins, side="right")
    flat = np.stack([begins - starts[example], closes - starts[example]], axis=1)
    counts = 2 * np.bincount(example, minlength=len(ends))
    values = pa.array(flat.ravel().astype(np.int32))
    return pa.ListArray.from_arrays(_offsets(np.cumsum(counts)), values)


def _offsets(ends: Positions) -> pa.Array:
    return pa.array(np.concatenate([[0], ends]).astype(np.int32))
