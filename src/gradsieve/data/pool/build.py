"""Builds the pool: sources are read once, in a stream, and written to disk chunk by chunk.

In: sources and a chat template. Out, in a folder:
    dataset/            loadable by `datasets.load_from_disk`: one file per source, state.json,
                        dataset_info.json
    sources/            the progress of each source, and its unusable rows (part.py)
    skipped.jsonl       the unusable rows of all sources: source, where, reason
    order.npy           row numbers sorted by (source, id)

A killed build resumes with the next chunk and ends with the same bytes, for any number of
processes. If a source changed, only its own part is built again.

Rejected: `Dataset.map` (a killed pass starts again, and the result of a row can't depend on earlier
rows, as ids do).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa

from gradsieve.data.formats import BadRow
from gradsieve.data.ids import IdIndex
from gradsieve.data.pool.chunks import CHUNK_BYTES, CHUNK_ROWS, Chunk, raw_chunks
from gradsieve.data.pool.mapped import ORDER, SKIPPED, Pool, order_of
from gradsieve.data.pool.part import SCHEMA, Part, PartWriter, Progress, SkippedRow, read_state
from gradsieve.data.pool.workers import Workers
from gradsieve.data.sources import (
    LISTED_AT_ONCE,
    Rejected,
    SourceKey,
    SourceSpec,
    bad_rows_error,
    changed_error,
    json_text,
    no_row_error,
    source_key,
    state_of,
)
from gradsieve.data.template import ChatTemplate
from gradsieve.data.values import LeftOut
from gradsieve.errors import DataError, raise_all
from gradsieve.io import atomic, fingerprint, write_json

VERSION = 1
"""The version of the pool's files; a pool of another version is built again."""

MOST_SOURCES = 1000
"""Maximum number of sources that the rows of one file may name. Each is a line of the report, card
and `plan`; the largest mixtures have about a hundred, but a field of ids or texts one per row."""


def build_pool(
    folder: Path,
    sources: Sequence[SourceSpec],
    template: ChatTemplate,
    *,
    on_bad_row: Literal["fail", "skip"] = "fail",
    workers: int | None = None,
    report: Callable[[int], object] = lambda rows: None,
    key_of: Callable[[SourceSpec], SourceKey] = source_key,
) -> Pool:
    """Build the parts of the pool that are missing or out of date.

    Args:
        folder: The pool's folder.
        sources: The sources, with unique names.
        template: Renders and tokenizes the conversations.
        on_bad_row: Whether unusable rows raise an error, once those of all sources are found, or
            are left out.
        workers: Number of processes; None means one per core. The files don't depend on it.
        report: Called with the number of rows that are finished, including skipped ones.
        key_of: Returns a source's key, which may be cached: computing it reads the full source.

    Raises:
        DataError: If a source can't be read, changes meanwhile, has bad rows and `on_bad_row` is
            "fail", or has no usable row; or if no row of the pool has label tokens.
        ErrorGroup: If several sources have such an error.
    """
    problems: list[DataError] = []
    counts: list[_Rows] = []
    with Workers(template, workers) as pool:
        for spec in sources:
            counts.append(_Rows(spec, on_bad_row == "skip"))
            try:
                build = _SourceBuild(folder, counts[-1], key_of(spec), template)
                build.run(pool, lambda: report(sum(rows.seen for rows in counts)))
            except DataError as error:
                problems.append(error)
    raise_all(problems)
    _finish(folder, {spec.name: spec for spec in sources})
    found = Pool(folder)
    if not len(found.usable):
        raise DataError(
            "No row of the pool has label tokens.",
            f"{len(found)} rows, the first: {found.skip_reasons[int(found.order[0])]}",
            "Raise model.max_length, or check model.chat_template.",
        )
    return found


def check_rows(sources: Sequence[SourceSpec], *, skips: bool) -> Iterator[DataError]:
    """Errors in the sources' rows that can be found without a chat template; writes nothing."""
    with Workers(None) as workers:
        for spec in sources:
            try:
                rows = _Rows(spec, skips)
                with closing(IdIndex(spec.where)) as ids:
                    for chunk in workers.make(raw_chunks(spec), lambda: True):
                        rows.take(chunk, ids)
                rows.raise_if_any_is_bad()
            except DataError as error:
                yield error


@dataclass
class _Rows:
    """Counts of a source's good and bad rows so far, and the first bad ones."""

    spec: SourceSpec
    skips: bool
    good: int = 0
    bad: int = 0
    first_bad: list[SkippedRow] = field(default_factory=list)

    @property
    def seen(self) -> int:
        return self.good + self.bad

    @property
    def fail(self) -> bool:
        """Whether the bad rows stop the run."""
        return self.bad > 0 and not self.skips

    def add(self, good: int, bad: int, skipped: Iterable[SkippedRow]) -> None:
        """Count rows, and keep the first bad ones, which a message lists."""
        self.good, self.bad = self.good + good, self.bad + bad
        self.first_bad += islice(skipped, LISTED_AT_ONCE - len(self.first_bad))

    def take(self, chunk: Chunk, ids: IdIndex) -> tuple[list[str | None], list[SkippedRow]]:
        """Add a chunk; returns its rows' ids (None if another row has the id) and all bad rows."""
        names: list[str | None] = []
        skipped = list(chunk.skipped)
        for row in chunk.rows:
            try:
                names.append(ids.take(row.id, row.is_made, row.line))
            except BadRow as error:
                names.append(None)
                skipped.append(SkippedRow(row.line, str(error)))
        skipped.sort()
        self.add(len(names) - names.count(None), len(skipped), skipped)
        return names, skipped

    def raise_if_any_is_bad(self) -> None:
        """Raise an error for bad rows, or if there are no good ones."""
        if self.fail:
            first = [Rejected(self.spec.where(line), reason) for line, reason in self.first_bad]
            raise bad_rows_error(self.spec.place, first, self.bad, self.seen)
        if not self.good:
            raise no_row_error(self.spec.place, self.bad)


class _SourceBuild:
    """Builds one source's part of the pool, or completes it."""

    def __init__(self, folder: Path, rows: _Rows, key: SourceKey, template: ChatTemplate) -> None:
        self._rows, self._spec, self._state = rows, rows.spec, key.state
        self._part = Part(folder, self._spec.name)
        cut = [CHUNK_ROWS, CHUNK_BYTES]
        made_of = fingerprint([VERSION, cut, key.digest, *self._spec.reading, template.fingerprint])
        found = self._part.read_progress()
        if found is None or found.key != made_of or found.place not in ("", self._spec.place):
            self._part.remove()
            found = Progress(made_of)
        self._progress = found
        rows.add(found.rows, found.skipped, self._part.skipped())

    def run(self, workers: Workers, report: Callable[[], object]) -> None:
        """Add the missing chunks."""
        report()
        if not self._progress.done:
            with (
                closing(PartWriter(self._part, self._progress, self._spec.place)) as writer,
                closing(IdIndex(self._spec.where)) as ids,
            ):
                self._add_chunks(writer, ids, workers, report)
        self._rows.raise_if_any_is_bad()

    def _add_chunks(
        self, writer: PartWriter, ids: IdIndex, workers: Workers, report: Callable[[], object]
    ) -> None:
        left_out = LeftOut(self._progress.left_out)
        if self._progress.rows:
            _restore_ids(ids, self._part.table())
        chunks = islice(raw_chunks(self._spec), self._progress.chunks, None)
        for chunk in workers.make(chunks, lambda: self._rows.fail):
            names, skipped = self._rows.take(chunk, ids)
            if not self._rows.fail:  # otherwise nothing more is tokenized or written
                kept = [row.identity for row, name in zip(chunk.rows, names, strict=True) if name]
                for row in chunk.rows:
                    left_out.add(row.left_out, self._spec.where(row.line))
                writer.add(_named(chunk, names), kept, skipped, left_out.columns)
            report()
        if state_of(self._spec) != self._state:
            raise changed_error(self._spec.place)
        if not self._rows.fail:
            writer.finish(left_out.warnings())


def _named(chunk: Chunk, names: Sequence[str | None]) -> pa.RecordBatch | None:
    """A chunk's rows with their ids, without the rows that got none; None if no rows are left."""
    if not any(names):
        return None
    batch = pa.ipc.read_record_batch(pa.py_buffer(chunk.batch), SCHEMA)
    batch = batch.set_column(SCHEMA.get_field_index("id"), "id", pa.array(names, pa.string()))
    return batch if all(names) else batch.filter(batch["id"].is_valid())


def _restore_ids(ids: IdIndex, table: pa.Table) -> None:
    """Take the ids of the rows that are already on disk."""
    for batch in table.select(["id", "line", "id_is_made"]).to_batches():
        for id, line, is_made in zip(*(column.to_pylist() for column in batch), strict=True):
            ids.take(id.partition("-")[0] if is_made else id, is_made, line)


def _finish(folder: Path, specs: Mapping[str, SourceSpec]) -> None:
    """Write the files for all sources together, and remove parts of sources no longer listed."""
    for file in (folder / "sources").glob("*.json"):
        if file.stem not in specs:
            Part(folder, file.stem).remove()
    parts = [Part(folder, name) for name in sorted(specs)]
    for part in parts:
        if specs[part.name].source_field:
            _refuse_many_sources(part, specs[part.name])
    identity = fingerprint([(part.name, asdict(part.finished())) for part in parts])
    for leftover in folder.glob("*/.*.tmp"):  # left by a killed run
        leftover.unlink()
    state = read_state(folder)
    if state and state["_fingerprint"] == identity:
        return
    with atomic(folder / SKIPPED) as skipped, skipped.open("wb") as lines:
        for part in parts:
            lines.writelines(_skipped_lines(part, specs[part.name]))
    with atomic(folder / ORDER) as order, order.open("wb") as opened:
        np.save(opened, order_of(pa.concat_tables(part.table() for part in parts)))
    write_state(folder, [part.data_file.name for part in parts], identity)


def _refuse_many_sources(part: Part, spec: SourceSpec) -> None:
    found = len(part.table()["source"].unique())
    if found > MOST_SOURCES:
        raise DataError(
            f"The field {spec.source_field} names {found} sources; at most {MOST_SOURCES} can be "
            "shown.",
            f"{spec.place}, source_field: {spec.source_field}",
            "Set source_field to the field that names the data set of a row.",
        )


def _skipped_lines(part: Part, spec: SourceSpec) -> Iterator[bytes]:
    for line, reason in part.skipped():
        record = {"source": part.name, "where": spec.where(line), "reason": reason}
        yield json_text(record).encode() + b"\n"


def write_state(folder: Path, files: Sequence[str], identity: str) -> None:
    """Write the list of a pool's data files, in order, as the last step of a build.

    `identity` changes with the rows. `datasets.load_from_disk` needs the two files written here;
    `datasets` itself writes them only with a copy of the rows (`Dataset.save_to_disk`).
    """
    features = datasets.Features.from_arrow_schema(SCHEMA).to_dict()
    write_json(folder / "dataset" / "dataset_info.json", {"features": features})
    state: dict[str, Any] = {
        "_data_files": [{"filename": file} for file in files],
        "_fingerprint": identity,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "dataset" / "state.json", state)
