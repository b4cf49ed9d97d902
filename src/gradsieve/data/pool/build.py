"""Writing the pool: sources are read once, in a stream, and put on disk chunk by chunk.

In: sources and a chat template. Out, in a folder:
    dataset/            what `datasets.load_from_disk` loads: a file for each source, state.json,
                        dataset_info.json
    sources/            how far each source is, and its rows that can't be used (part.py)
    skipped.jsonl       the latter of all sources: source, where, reason
    order.npy           numbers of the rows by (source, id)

A killed build resumes with the next chunk and ends with the same bytes, whatever the number of
processes. A source that changed redoes its own part only.

Rejected: `Dataset.map` (a killed pass starts again, and what a row gives can't depend on the rows
before it, as ids do).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from gradsieve.data.formats import BadRow
from gradsieve.data.ids import made_id
from gradsieve.data.pool.chunks import SCHEMA, Chunk, SkippedRow
from gradsieve.data.pool.ids import IdIndex
from gradsieve.data.pool.mapped import ORDER, SKIPPED, Pool, open_pool, order_of
from gradsieve.data.pool.part import Part, PartWriter, Progress
from gradsieve.data.pool.sources import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    RawChunk,
    SourceSpec,
    json_text,
    raw_chunks,
    source_key,
)
from gradsieve.data.pool.state import read_state, write_state
from gradsieve.data.pool.workers import Workers
from gradsieve.data.readers import (
    LISTED_AT_ONCE,
    Rejected,
    bad_rows_error,
    no_row_error,
    place_of,
)
from gradsieve.data.template import ChatTemplate
from gradsieve.data.values import LeftOut
from gradsieve.errors import DataError
from gradsieve.io import atomic, fingerprint

VERSION = 1
"""Of what is written; a pool of another version is made again."""


def build_pool(
    folder: Path,
    sources: Sequence[SourceSpec],
    template: ChatTemplate,
    *,
    on_bad_row: Literal["fail", "skip"] = "fail",
    workers: int | None = None,
    report: Callable[[int], object] = lambda rows: None,
) -> Pool:
    """Write the pool, as far as it is not there yet.

    Args:
        folder: Of the pool.
        sources: Their names are unique.
        template: Writes and tokenizes the conversations.
        on_bad_row: Stop at rows that can't be used once all of a source are found, or leave them
            out.
        workers: Processes; None: a core each. What is written doesn't depend on it.
        report: Called with the number of rows that are finished, skipped ones included.

    Raises:
        DataError: If a source can't be read, has bad rows and `on_bad_row` is "fail", or has no
            row that can be used; or if no row of the pool has label tokens.
    """
    names = [spec.name for spec in sources]
    if len(set(names)) < len(names):
        raise ValueError(f"sources share a name: {names}")
    rows = 0
    with Workers(template, workers) as pool:
        for spec in sources:
            build = _SourceBuild(folder, spec, template, skips=on_bad_row == "skip")
            build.run(pool, partial(_report_more, report, rows))
            rows += build.progress.rows + build.progress.skipped
    _finish(folder, {spec.name: spec for spec in sources})
    found = open_pool(folder)
    if not len(found.usable):
        first = found.take(found.order[:1], ["skip_reason"])["skip_reason"].to_pylist()[0]
        raise DataError(
            "No row of the pool has label tokens.",
            f"{len(found)} rows, the first: {first}",
            "Raise model.max_length, or check model.chat_template.",
        )
    return found


def _report_more(report: Callable[[int], object], before: int, rows: int) -> None:
    report(before + rows)


class _SourceBuild:
    """Completes one source's part of the pool.

    Attributes:
        progress: How far it is on disk.
    """

    def __init__(
        self, folder: Path, spec: SourceSpec, template: ChatTemplate, *, skips: bool
    ) -> None:
        self._spec, self._skips = spec, skips
        self._part = Part(folder, spec.name)
        self._place = place_of(spec.name, spec.path)
        self.progress = self._restored(template)
        self._skipped = list(islice(self._part.skipped(), LISTED_AT_ONCE))
        self._unwritten_rows = self._unwritten_skipped = 0

    def run(self, workers: Workers, report: Callable[[int], object]) -> None:
        """Add the chunks that are missing.

        Raises:
            DataError: As `build_pool`.
        """
        report(self._rows_seen)
        if not self.progress.done:
            writer = PartWriter(self._part, self.progress, self._place)
            try:
                self._add_chunks(writer, workers, report)
            finally:
                writer.close()
        bad = self.progress.skipped + self._unwritten_skipped
        if bad and not self._skips:
            first = [Rejected(self._spec.where(line), reason) for line, reason in self._skipped]
            raise bad_rows_error(self._place, first[:LISTED_AT_ONCE], bad, self._rows_seen)
        if not self.progress.rows:
            raise no_row_error(self._place, bad)

    def _restored(self, template: ChatTemplate) -> Progress:
        cut = [CHUNK_ROWS, CHUNK_BYTES]
        depends_on = [source_key(self._spec), self._spec.supervise, template.fingerprint]
        key = fingerprint([VERSION, cut, *depends_on])
        found = self._part.read_progress()
        if found and found.key == key and found.place in ("", self._place):
            return found
        self._part.remove()
        return Progress(key)

    @property
    def _rows_seen(self) -> int:
        unwritten = self._unwritten_rows + self._unwritten_skipped
        return self.progress.rows + self.progress.skipped + unwritten

    @property
    def _only_checks(self) -> bool:
        """Whether the build will fail, so that nothing more is tokenized or written."""
        return not self._skips and bool(self._skipped)

    def _add_chunks(
        self, writer: PartWriter, workers: Workers, report: Callable[[int], object]
    ) -> None:
        ids = IdIndex(self._spec.where)
        before, left_out = source_state(self._spec), LeftOut()
        try:
            if self.progress.rows:
                _restore_ids(ids, self._part.table())
            every = _noting(raw_chunks(self._spec), left_out, self._spec.where)
            chunks = islice(every, self.progress.chunks, None)
            for chunk in workers.make(chunks, lambda: self._only_checks):
                self._add(writer, ids, chunk)
                report(self._rows_seen)
        finally:
            ids.close()
        if source_state(self._spec) != before:
            raise changed_error(self._place)
        if not self._only_checks:
            writer.finish(left_out.warnings())
            self.progress = writer.progress

    def _add(self, writer: PartWriter, ids: IdIndex, chunk: Chunk) -> None:
        names, skipped = _names(ids, chunk)
        if len(self._skipped) < LISTED_AT_ONCE:
            self._skipped += skipped
        if self._only_checks:
            self._unwritten_skipped += len(skipped)
            self._unwritten_rows += len(names) - names.count(None)
            return
        kept = [whole for whole, name in zip(chunk.identities, names, strict=True) if name]
        writer.add(_named(chunk, names), kept, skipped)
        self.progress = writer.progress


def _noting(
    chunks: Iterable[RawChunk], left_out: LeftOut, where: Callable[[int], str]
) -> Iterator[RawChunk]:
    """The same chunks; columns that JSON can't hold are noted."""
    for chunk in chunks:
        for row in chunk.rows:
            if row.left_out:
                left_out.add(row.left_out, where(row.line))
        yield chunk


def _names(ids: IdIndex, chunk: Chunk) -> tuple[list[str | None], list[SkippedRow]]:
    """The ids of a chunk's rows, None where another row has it; and all rows to skip."""
    names: list[str | None] = []
    skipped = list(chunk.skipped)
    for line, given, digest in zip(chunk.lines, chunk.given_ids, chunk.digests, strict=True):
        try:
            made = made_id(digest)
            names.append(ids.make(made, line) if given is None else ids.keep(given, line))
        except BadRow as error:
            names.append(None)
            skipped.append(SkippedRow(line, str(error)))
    return names, sorted(skipped)


def _named(chunk: Chunk, names: Sequence[str | None]) -> pa.RecordBatch | None:
    """A chunk's rows with their ids, without those that have none."""
    if not any(names):
        return None
    batch = pa.ipc.read_record_batch(pa.py_buffer(chunk.batch), SCHEMA)
    batch = batch.set_column(SCHEMA.get_field_index("id"), "id", pa.array(names, pa.string()))
    return batch if all(names) else batch.filter(batch["id"].is_valid())


def _restore_ids(ids: IdIndex, table: pa.Table) -> None:
    """Hand out again the ids that are on disk."""
    for batch in table.select(["id", "line", "id_is_made"]).to_batches():
        for id, line, is_made in zip(*(column.to_pylist() for column in batch), strict=True):
            ids.make(id.partition("-")[0], line) if is_made else ids.keep(id, line)


def changed_error(place: str) -> DataError:
    """A source was written to while a run was reading it."""
    todo = "Run again when nothing writes to it."
    return DataError("The file was changed while it was read.", place, todo)


def source_state(spec: SourceSpec) -> list[tuple[str, int, int]]:
    """Sizes and times of a source's files, which change if they are written to."""
    path = Path(spec.path) if isinstance(spec.path, str) else None
    if path is None or not path.exists():
        return []
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    states = [(file, file.stat()) for file in files]
    return [(str(file), state.st_size, state.st_mtime_ns) for file, state in states]


def _finish(folder: Path, specs: Mapping[str, SourceSpec]) -> None:
    """Write what is of all sources, and remove the parts of sources that are no longer named."""
    for file in (folder / "sources").glob("*.json"):
        if file.stem not in specs:
            Part(folder, file.stem).remove()
    parts = [Part(folder, name) for name in sorted(specs)]
    identity = fingerprint([(part.name, asdict(part.finished())) for part in parts])
    for leftover in folder.glob("*/.*.tmp"):  # of a kill
        leftover.unlink()
    state = read_state(folder)
    if state and state["_fingerprint"] == identity:
        return
    with atomic(folder / SKIPPED) as skipped, skipped.open("wb") as lines:
        for part in parts:
            where = specs[part.name].where
            lines.writelines(_skipped_line(part.name, where, row) for row in part.skipped())
    with atomic(folder / ORDER) as order, order.open("wb") as opened:
        np.save(opened, order_of(pa.concat_tables(part.table() for part in parts)))
    write_state(folder, [part.data_file.name for part in parts], identity)


def _skipped_line(source: str, where: Callable[[int], str], row: SkippedRow) -> bytes:
    record = {"source": source, "where": where(row.line), "reason": row.reason}
    return json_text(record).encode() + b"\n"
