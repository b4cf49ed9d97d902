"""One chunk of a pool: from rows as they came in to an Arrow record batch of tokenized examples.

In: a chunk of rows as bytes of JSON. Out: the record batch as bytes of Arrow's IPC format, what is
needed to give the rows ids, and the rows that can't be used. A chunk depends on nothing but its
rows and the chat template, so that chunks are made in any number of processes; what depends on
other chunks (an id that is taken) is left to build.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradsieve.data.examples import Example
from gradsieve.data.formats import BadRow, conversation_of
from gradsieve.data.ids import content_digest, given_id, made_id
from gradsieve.data.pool.sources import RawChunk, RawRow, json_text
from gradsieve.data.readers import parsed
from gradsieve.data.template import ChatTemplate, Refusal, TokenizedExample
from gradsieve.data.values import json_row

Flags = NDArray[np.bool_]
Positions = NDArray[np.int64]

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


class SkippedRow(NamedTuple):
    """A row that can't be used: its line and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """What became of a chunk; the lists are aligned with the rows of the batch.

    Attributes:
        batch: A record batch of SCHEMA, serialized; its ids are missing.
        lines: As the column.
        given_ids: Ids that rows came with; None: to be made of the row's content.
        digests: SHA-256 of each row's content.
        identities: SHA-256 of all that a row's tokens depend on.
        skipped: Rows that are not in the batch.
    """

    batch: bytes
    lines: list[int]
    given_ids: list[str | int | None]
    digests: list[bytes]
    identities: list[bytes]
    skipped: list[SkippedRow]


def make_chunk(raw: RawChunk, template: ChatTemplate, only_check: bool = False) -> Chunk:
    """Parse, tokenize and lay out the rows of a chunk.

    Args:
        raw: The rows.
        template: Writes and tokenizes the conversations.
        only_check: Find the rows that can't be used; the batch stays empty.
    """
    read = [_read(raw, row) for row in raw.rows]
    skipped = [row for row in read if isinstance(row, SkippedRow)]
    rows = [row for row in read if isinstance(row, _Row)]
    encoded = _encode(template, rows, only_check)
    skipped += [row for row in encoded if isinstance(row, SkippedRow)]
    kept = [
        (row, tokens)
        for row, tokens in zip(rows, encoded, strict=True)
        if not isinstance(tokens, SkippedRow)
    ]
    batch = b"" if only_check or not kept else _batch(kept).serialize().to_pybytes()
    return Chunk(
        batch,
        [row.line for row, _ in kept],
        [row.given_id for row, _ in kept],
        [row.digest for row, _ in kept],
        [row.identity for row, _ in kept],
        sorted(skipped),
    )


class _Row(NamedTuple):
    """A row that was parsed."""

    line: int
    text: str
    given_id: str | int | None
    digest: bytes
    example: Example

    @property
    def identity(self) -> bytes:
        if self.example.supervised is None:
            return self.digest
        return hashlib.sha256(self.digest + bytes(self.example.supervised)).digest()


def _read(raw: RawChunk, row: RawRow) -> _Row | SkippedRow:
    try:
        if isinstance(row.text, BadRow):
            raise row.text
        found = parsed(row.text) if raw.is_users_json else json.loads(row.text)
        kept, _ = json_row(found)
        return _row(raw, row.line, row.text.strip().decode(), kept)
    except BadRow as error:
        return SkippedRow(row.line, str(error))


def _row(raw: RawChunk, line: int, text: str, row: Any) -> _Row:
    conversation = conversation_of(row, raw.supervise)
    given, digest = given_id(row), content_digest(row)
    id = made_id(digest) if given is None else str(given)
    example = Example(
        raw.source,
        id,
        conversation.messages,
        row,
        tools=conversation.tools,
        supervised=conversation.supervised,
    )
    return _Row(line, text, given, digest, example)


def _encode(
    template: ChatTemplate, rows: Sequence[_Row], only_check: bool
) -> list[TokenizedExample | SkippedRow]:
    """The tokens of each row, or why the template refuses it."""
    examples = [row.example for row in rows]
    results: Sequence[Any]
    if only_check:
        results = [template.try_render(example) for example in examples]
    else:
        results = template.try_encode_all(examples)
    return [
        SkippedRow(row.line, result.skip_reason) if isinstance(result, Refusal) else result
        for row, result in zip(rows, results, strict=True)
    ]


def _batch(kept: Sequence[tuple[_Row, TokenizedExample]]) -> pa.RecordBatch:
    rows, encoded = zip(*kept, strict=True)
    lengths = np.array([len(tokens.input_ids) for tokens in encoded], dtype=np.int32)
    ends = np.cumsum(lengths, dtype=np.int64)
    ids = np.concatenate([np.asarray(tokens.input_ids, dtype=np.int32) for tokens in encoded])
    labels = np.concatenate([np.asarray(tokens.labels, dtype=np.int32) for tokens in encoded])
    supervised = labels != -100
    n_labels = _predicted_labels(supervised, ends - lengths, ends)
    columns: dict[str, Any] = {
        "source": [row.example.source for row in rows],
        "id": pa.nulls(len(rows), pa.string()),
        "id_is_made": [row.given_id is None for row in rows],
        "line": [row.line for row in rows],
        "row": [row.text for row in rows],
        "messages": [json_text(row.example.messages) for row in rows],
        "tools": [json_text(row.example.tools) if row.example.tools else None for row in rows],
        "supervised": [row.example.supervised for row in rows],
        "input_ids": pa.ListArray.from_arrays(_offsets(ends), pa.array(ids)),
        "label_spans": _spans(supervised, ends - lengths, ends),
        "length": lengths,
        "n_label_tokens": n_labels,
        "truncated": [tokens.truncated for tokens in encoded],
        "skip_reason": [
            None if n_label else tokens.skip_reason
            for n_label, tokens in zip(n_labels, encoded, strict=True)
        ],
        "content_hash": pa.array(
            [
                _content_hash(ids[end - length : end], labels[end - length : end])
                for length, end in zip(lengths, ends, strict=True)
            ],
            pa.uint64(),
        ),
    }
    return pa.record_batch(
        [pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA
    )


def _content_hash(ids: NDArray[np.int32], labels: NDArray[np.int32]) -> int:
    digest = hashlib.sha256(ids.tobytes())
    digest.update(labels.tobytes())
    return int.from_bytes(digest.digest()[:8], "big")


def _predicted_labels(supervised: Flags, starts: Positions, ends: Positions) -> NDArray[np.int32]:
    """Supervised tokens of each example after its first token."""
    before = np.concatenate([[0], np.cumsum(supervised)])
    first = np.minimum(starts + 1, ends)
    counts: NDArray[np.int32] = (before[ends] - before[first]).astype(np.int32)
    return counts


def _spans(supervised: Flags, starts: Positions, ends: Positions) -> pa.ListArray:
    """Start and end of each run of supervised tokens, counted from their example's first."""
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
