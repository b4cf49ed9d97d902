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
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradsieve.data.formats import BadRow
from gradsieve.data.ids import IdIndex
from gradsieve.data.pool.chunks import CHUNK_BYTES, CHUNK_ROWS, Chunk, raw_chunks
from gradsieve.data.pool.mapped import ORDER, SKIPPED, Pool
from gradsieve.data.pool.part import SCHEMA, Part, PartWriter, Progress, SkippedRow, read_state
from gradsieve.data.pool.workers import Workers
from gradsieve.data.sources import (
    LISTED_AT_ONCE,
    Rejected,
    SourceKey,
    SourceSpec,
    json_text,
    refuse_bad_rows,
    source_key,
    state_of,
)
from gradsieve.data.template import ChatTemplate
from gradsieve.data.values import LeftOut
from gradsieve.engine.base import Engine
from gradsieve.errors import DataError, raise_all
from gradsieve.io import atomic, fingerprint, write_json
from gradsieve.recipe.schema import OnBadRow

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
    on_bad_row: OnBadRow = "fail",
    report: Callable[[int], object] = lambda rows: None,
    key_of: Callable[[SourceSpec], SourceKey] = source_key,
    engine: Engine | None = None,
) -> Pool:
    """Build the parts of the pool that are missing or out of date.

    Args:
        folder: The pool's folder.
        sources: The sources, with unique names.
        template: Renders and tokenizes the conversations.
        on_bad_row: Whether unusable rows raise an error, once those of all sources are found, or
            are left out.
        report: Called with the number of rows that are finished, including skipped ones.
        key_of: Returns a source's key, which may be cached: computing it reads the full source.
        engine: May have the cores of a cluster, which tokenize if there are more than here.

    Raises:
        DataError: If a source can't be read, changes meanwhile, has bad rows and `on_bad_row` is
            "fail", or has no usable row; or if no row of the pool has label tokens.
        ErrorGroup: If several sources have such an error.
    """
    problems: list[DataError] = []
    counts = [_Rows(spec, on_bad_row == "skip") for spec in sources]

    def report_all() -> None:
        report(sum(rows.good + rows.bad for rows in counts))

    with closing(Workers(template, engine)) as workers:
        for rows in counts:
            part = Part(folder, rows.spec.name)
            try:
                _build_part(part, rows, key_of(rows.spec), template, workers, report_all)
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
    with closing(Workers(None)) as workers:
        for spec in sources:
            try:
                rows = _Rows(spec, skips)
                with closing(IdIndex(spec.where)) as ids:
                    for chunk in workers.make(raw_chunks(spec), lambda: True):
                        rows.take(chunk, ids)
                rows.refuse_bad()
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

    def refuse_bad(self) -> None:
        """Raise an error for bad rows, or if there are no good ones."""
        first = [Rejected(self.spec.where(line), reason) for line, reason in self.first_bad]
        refuse_bad_rows(self.spec.place, first, self.bad, self.good, skips=self.skips)


def _build_part(
    part: Part,
    rows: _Rows,
    key: SourceKey,
    template: ChatTemplate,
    workers: Workers,
    report: Callable[[], object],
) -> None:
    """Build one source's part of the pool, or complete it."""
    spec, cut = rows.spec, [CHUNK_ROWS, CHUNK_BYTES]
    made_of = fingerprint([VERSION, cut, key.digest, *spec.reading, template.fingerprint])
    progress = part.read_progress()
    if progress is None or progress.key != made_of or progress.place not in ("", spec.place):
        part.remove()
        progress = Progress(made_of)
    rows.add(progress.rows, progress.skipped, part.skipped())
    report()
    if not progress.done:
        with (
            closing(PartWriter(part, progress, spec.place)) as writer,
            closing(IdIndex(spec.where)) as ids,
        ):
            if progress.rows:
                _restore_ids(ids, part.table())
            left_out = LeftOut(progress.left_out)
            chunks = islice(raw_chunks(spec), progress.chunks, None)
            for chunk in workers.make(chunks, lambda: rows.fail):
                _add_chunk(writer, chunk, rows, ids, left_out)
                report()
            if state_of(spec) != key.state:
                todo = "Run again when nothing writes to it."
                raise DataError("The file was changed while it was read.", spec.place, todo)
            if not rows.fail:
                writer.finish(left_out.warnings())
    rows.refuse_bad()


def _add_chunk(
    writer: PartWriter, chunk: Chunk, rows: _Rows, ids: IdIndex, left_out: LeftOut
) -> None:
    """Count a chunk's rows, and write them unless bad rows stop the run."""
    names, skipped = rows.take(chunk, ids)
    if rows.fail:  # nothing more is tokenized or written
        return
    kept = [row.identity for row, name in zip(chunk.rows, names, strict=True) if name]
    for row in chunk.rows:
        left_out.add(row.left_out, rows.spec.where(row.line))
    writer.add(_named(chunk, names), kept, skipped, left_out.columns)


def _named(chunk: Chunk, names: Sequence[str | None]) -> pa.RecordBatch | None:
    """A chunk's rows with their ids, without the rows that got none; None if no rows are left."""
    if chunk.batch is None or not any(names):
        return None
    place, ids = SCHEMA.get_field_index("id"), pa.array(names, pa.string())
    batch = chunk.batch.set_column(place, "id", ids)
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
            for line, reason in part.skipped():
                where = specs[part.name].where(line)
                record = {"source": part.name, "where": where, "reason": reason}
                lines.write(json_text(record).encode() + b"\n")
    table = pa.concat_tables(part.table() for part in parts)
    by_key = pc.sort_indices(table, sort_keys=[("source", "ascending"), ("id", "ascending")])
    with atomic(folder / ORDER) as order, order.open("wb") as opened:
        np.save(opened, by_key.to_numpy().astype(np.int64))
    _write_state(folder, [part.data_file.name for part in parts], identity)


def _refuse_many_sources(part: Part, spec: SourceSpec) -> None:
    found = len(part.table()["source"].unique())
    if found > MOST_SOURCES:
        raise DataError(
            f"The field {spec.source_field} names {found} sources; at most {MOST_SOURCES} can be "
            "shown.",
            f"{spec.place}, source_field: {spec.source_field}",
            "Set source_field to the field that names the data set of a row.",
        )


def _write_state(folder: Path, files: Sequence[str], identity: str) -> None:
    """Write the list of a pool's data files, in order, as the last step of a build.

    `datasets.load_from_disk` needs the two files written here; `datasets` itself writes them only
    with a copy of the rows (`Dataset.save_to_disk`).
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
