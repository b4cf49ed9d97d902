"""One chunk of a pool: converts raw rows to an Arrow record batch of tokenized examples.

In: a source, cut into chunks of rows as JSON bytes. Out: the record batch, the data from which rows
get their ids, and the unusable rows. A chunk depends only on its rows and the chat template, so
chunks can be made in any number of processes; anything that depends on other chunks (whether an id
is taken) is left to build.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from gradsieve.data.examples import TokenizedExample
from gradsieve.data.formats import BadRow
from gradsieve.data.pool.part import SCHEMA, SkippedRow
from gradsieve.data.readers import IN_MEMORY
from gradsieve.data.sources import ParsedRow, RawRow, RowId, SourceSpec, json_text, parse, raw_rows
from gradsieve.data.template import ChatTemplate, Refusal

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
        batch: Rows of SCHEMA, without ids: other rows may have taken them.
        rows: The ids of the batch's rows, in order.
        skipped: The rows that are not in the batch.
    """

    batch: pa.RecordBatch | None
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

    Without a template rows are only parsed. If `only_check`, the batch stays empty.
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
    batch = None
    if kept and not only_check:
        batch = pa.RecordBatch.from_pylist([_columns(*one) for one in kept], SCHEMA)
    return Chunk(batch, [row.key for row, _ in kept], skipped)


def _columns(row: ParsedRow, tokens: TokenizedExample) -> dict[str, Any]:
    """A row of SCHEMA, without the id."""
    ids, labels = (np.asarray(values) for values in (tokens.input_ids, tokens.labels))
    # A run of label tokens starts and ends where the mask changes.
    edges = np.flatnonzero(np.diff(labels != -100, prepend=False, append=False))
    digest = hashlib.sha256(ids.tobytes() + labels.tobytes()).digest()
    example = row.example
    return {
        "source": example.source,
        "id_is_made": row.key.is_made,
        "line": row.key.line,
        "row": row.text,
        "messages": json_text(example.messages),
        "tools": json_text(example.tools) if example.tools else None,
        "supervised": example.supervised,
        "input_ids": ids,
        "label_spans": edges.astype(np.int32),
        "length": len(ids),
        "n_label_tokens": tokens.n_labels,
        "truncated": tokens.truncated,
        "skip_reason": tokens.skip_reason,
        "content_hash": int.from_bytes(digest[:8], "big"),
    }
