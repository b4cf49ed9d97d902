"""Reading a source of examples: JSONL, JSON, Parquet, a saved `datasets` folder, or a hub name.

In: a path or name, or rows that are in memory. Out: examples with stable ids, the rows as they came
in (as JSON values, see `values`), and the rows that could not be read, each with its place and
reason. All bad rows are found before the first is reported.

Rejected: `datasets`' own JSON reader (it gives every row the same columns, so rows don't come back
as they came in, and it doesn't name the line of a bad row).
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.features.features import _visit

from gradsieve.data.examples import Example
from gradsieve.data.formats import BadRow, Supervise, conversation_of, kind_of
from gradsieve.data.ids import Ids
from gradsieve.data.values import LeftOut, json_row
from gradsieve.errors import DataError

IN_MEMORY = "(in memory)"
"""Stands in a recipe where a path stands, for rows that the caller gave (`gradsieve.select`)."""

ROWS_AT_ONCE = 1000
"""Of a data set, that are Python objects at a time."""

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson")
"""Ends of the names of files with one JSON object a line."""

LISTED_AT_ONCE = 10
"""Bad rows that a message lists; the others are counted."""


class Rejected(NamedTuple):
    """A row that could not be read.

    Attributes:
        where: File and line, or file and row.
        reason: What is wrong with it.
    """

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """What was read.

    Attributes:
        name: As the recipe has it.
        examples: In the order they came.
        bad_rows: Rows left out (`on_bad_row="skip"`).
        fingerprint: SHA-256 of the rows, whatever their order, path and format.
        warnings: What the user should know of how it was read, a line each.
    """

    name: str
    examples: tuple[Example, ...]
    bad_rows: tuple[Rejected, ...]
    fingerprint: str
    warnings: tuple[str, ...] = ()


def read_source(
    name: str,
    path: str | Iterable[Any],
    *,
    on_bad_row: Literal["fail", "skip"] = "fail",
    split: str = "train",
    revision: str | None = None,
    supervise: Supervise = "completion",
) -> Source:
    """Read a source of examples.

    Args:
        name: Becomes the examples' `source`.
        path: A .jsonl (or .jsonl.gz, .jsonl.zst), .json or .parquet file, a folder written by
            `Dataset.save_to_disk`, or a data set that `datasets.load_dataset` knows; or rows.
        on_bad_row: Stop at rows that can't be read, or leave them out.
        split: Of a saved data set with splits, or of one on the hub.
        revision: Of a data set on the hub.
        supervise: What is supervised of a prompt/completion row.

    Raises:
        DataError: If the file can't be read, or has bad rows and `on_bad_row` is "fail".
    """
    examples: list[Example] = []
    bad: list[Rejected] = []
    ids, left_out = Ids(), LeftOut()
    place = place_of(name, path)
    rows = rows_of(path, split, revision) if isinstance(path, str) else _given_rows(place, path)
    for where, row in rows:
        try:
            examples.append(example_of(name, where, row, ids, left_out, supervise))
        except BadRow as error:
            bad.append(Rejected(where, str(error)))
    if bad and on_bad_row == "fail":
        raise bad_rows_error(place, bad[:LISTED_AT_ONCE], len(bad), len(bad) + len(examples))
    if not examples:
        raise no_row_error(place, len(bad))
    warnings = left_out.warnings()
    return Source(name, tuple(examples), tuple(bad), _fingerprint(examples), warnings)


def example_of(
    source: str, where: str, row: Any, ids: Ids, left_out: LeftOut, supervise: Supervise
) -> Example:
    """The example that a row is.

    Args:
        source: Name of the row's source.
        where: File and line, or file and row.
        row: As a reader gives it.
        ids: Those of the source so far; the row's is added.
        left_out: The source's columns that JSON cannot hold; the row's are added.
        supervise: What is supervised of a prompt/completion row.

    Raises:
        BadRow: If it holds no usable conversation, or its id is taken.
    """
    kept, lost = json_row(row)
    conversation = conversation_of(kept, supervise)
    id = ids.of(kept, where)
    left_out.add(lost, where)
    return Example(
        source,
        id,
        conversation.messages,
        kept,
        tools=conversation.tools,
        supervised=conversation.supervised,
        where=where,
    )


def place_of(name: str, path: str | Iterable[Any]) -> str:
    """Where rows are, for messages."""
    return path if isinstance(path, str) else f"{name} {IN_MEMORY}"


def _fingerprint(examples: list[Example]) -> str:
    rows = sorted(json.dumps(_identity(example), sort_keys=True) for example in examples)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _identity(example: Example) -> list[Any]:
    """What a row's tokens and labels depend on; the usual row's is as short as it was."""
    flags = [] if example.supervised is None else [example.supervised]
    return [example.id, example.row, *flags]


def bad_rows_error(place: str, first: list[Rejected], bad: int, rows: int) -> DataError:
    """What to raise for bad rows: how many there are, and the first of them."""
    listed = [f"{row.where}: {row.reason}" for row in first]
    more = [f"and {bad - len(first)} more"] if bad > len(first) else []
    return DataError(
        f"{bad} of {rows} rows of {place} cannot be read.",
        "\n              ".join(listed + more),
        "Fix the rows, or set on_bad_row: skip to leave them out.",
    )


def no_row_error(place: str, bad: int) -> DataError:
    """What to raise for a source without a single good row."""
    found = f"all of its {bad} rows are bad" if bad else "it has no rows"
    return DataError("There is no usable row.", f"{place}: {found}", "Give at least one good row.")


# --- rows of each kind of file ------------------------------------------------------------------

Rows = Iterator[tuple[str, Any]]
"""(where, row); a row that can't be parsed is a BadRow."""


def _given_rows(place: str, rows: Iterable[Any]) -> Rows:
    if isinstance(rows, datasets.Dataset):
        yield from _dataset_rows(place, rows)
        return
    for number, row in enumerate(rows, start=1):
        yield f"{place} row {number}", row


def refuse_empty(file: Path) -> None:
    """Raise a `DataError` for a file of no bytes."""
    if file.stat().st_size == 0:
        raise DataError("The file is empty.", str(file), "Give a file with rows.")


def rows_of(path: str, split: str = "train", revision: str | None = None) -> Rows:
    """Place and row of all rows of a file, folder or hub data set, in a stream."""
    if path == IN_MEMORY:
        todo = "Call gradsieve.select again with the same `out`, or give a file."
        raise DataError("These rows were given in memory, and are not kept.", IN_MEMORY, todo)
    file = Path(path)
    if file.is_dir():
        return _folder_rows(file, split)
    if not file.is_file():
        return _hub_rows(path, split, revision)
    refuse_empty(file)
    name = file.name.lower()
    if name.endswith(JSON_LINES):
        return _jsonl_rows(file)
    if name.endswith(".json"):
        return _json_rows(file)
    if name.endswith(".parquet"):
        return _parquet_rows(file)
    raise DataError(
        "The kind of file is not known by its name.",
        path,
        "Give a .jsonl, .jsonl.gz, .jsonl.zst, .json or .parquet file.",
    )


def _jsonl_rows(file: Path) -> Rows:
    for number, line in json_lines(file):
        yield f"{file}:{number}", parsed(line)


def json_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers and bytes of the lines with a row; lines end at a line feed alone (U+2028 is text).

    Raises:
        DataError: If the file can't be unpacked, or is JSON over several lines.
    """
    for number, line in enumerate(_lines(file), start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
            _refuse_spread_json(line, f"{file}:1")
        if line.strip():
            yield number, line


def _lines(file: Path) -> Iterator[bytes]:
    packed = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix.lower())
    if packed is None:
        with file.open("rb") as lines:
            yield from lines
        return
    try:
        if packed == "gzip":
            with gzip.open(file) as lines:
                yield from lines
        else:
            with pa.CompressedInputStream(pa.OSFile(str(file)), packed) as stream:
                yield from io.BufferedReader(stream)
    except (gzip.BadGzipFile, EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"The file cannot be unpacked: {str(error).rstrip('.')}.",
            str(file),
            f"Give a whole {packed} file, or take {file.suffix} off its name if it is not packed.",
        ) from None


def _refuse_spread_json(first_line: bytes, where: str) -> None:
    start = first_line.strip()
    array = start in (b"[", b"[]") or start.startswith(b"[{")
    if array or start == b"{":
        raise DataError(
            "Expected one JSON object a line, found a JSON array."
            if array
            else "Expected one JSON object a line, found one over several lines.",
            where,
            "Rename the file to .json, or write one row a line."
            if array
            else "Write each row on a line of its own (jq -c . does), or a JSON array as .json.",
        )


def parsed(line: bytes) -> Any:
    """The row of a line; a BadRow if it is not JSON."""
    try:
        return json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except BadRow as error:
        return error
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 at byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return BadRow(f"not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return BadRow("not JSON that can be read: nested too deeply")
    except ValueError:
        return BadRow("not JSON that can be read: a number of thousands of digits")


def _refuse_constant(name: str) -> Any:
    raise _bad_constant(name)


def _bad_constant(name: str) -> BadRow:
    return BadRow(f"not JSON: {name} is no value of JSON; write null where there is none")


def _json_rows(file: Path) -> Rows:
    try:
        # A bad constant stands in its row until the row's values are checked.
        text = file.read_bytes().decode("utf-8-sig")
        rows = json.loads(text, parse_constant=_bad_constant)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        said = "nested too deeply" if isinstance(error, RecursionError) else error
        todo = "Fix it, or rename it to .jsonl if it has one row a line."
        raise DataError(f"The file is not JSON: {said}.", f"{file}{line}", todo) from None
    if not isinstance(rows, list):
        raise DataError(
            f"Expected an array of rows, found {kind_of(rows)}.",
            str(file),
            "Write the rows as a JSON array, or one a line in a .jsonl file.",
        )
    yield from _given_rows(str(file), rows)


def _parquet_rows(file: Path) -> Rows:
    try:
        with pq.ParquetFile(file) as table:
            features = _undecoded(_features_of(table.schema_arrow))
            batches = map(
                pa.Table.from_batches, ([batch] for batch in table.iter_batches(ROWS_AT_ONCE))
            )
            rows = (row for batch in batches for row in _table_rows(batch, features))
            yield from _given_rows(str(file), rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"The file is not Parquet: {str(error).splitlines()[0].rstrip('.')}.",
            str(file),
            "Give a whole Parquet file, or rename it to what it is.",
        ) from None


def _features_of(schema: pa.Schema) -> datasets.Features | None:
    try:
        return datasets.Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError):  # types that `datasets` doesn't know
        return None


def _undecoded(features: datasets.Features | None) -> datasets.Features | None:
    """The features whose values are to be decoded: JSON kept as text, not images or sound.

    Decoding those needs Pillow and the like, and what comes out is no value of JSON.
    """
    if features is None:
        return None
    still = {name: _visit(feature, _without_decoding) for name, feature in features.items()}
    return datasets.Features(still)


def _without_decoding(feature: Any) -> Any:
    if getattr(feature, "decode", False) and not isinstance(feature, datasets.Json):
        return replace(feature, decode=False)
    return feature


def _table_rows(table: pa.Table, features: datasets.Features | None) -> Iterator[Any]:
    try:
        rows: list[Any] = table.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError, pa.ArrowException) as error:
        if len(table) == 1:
            yield BadRow(f"a value cannot be read: {error}")
            return
        for number in range(len(table)):
            yield from _table_rows(table.slice(number, 1), features)
        return
    for row in rows:
        yield row if features is None else features.decode_example(row)


def _folder_rows(folder: Path, split: str) -> Rows:
    """A folder of `Dataset.save_to_disk`, or one of data files as on the hub."""
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    if not saved:
        return _hub_rows(str(folder), split, None)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        todo = "Give a folder that Dataset.save_to_disk wrote."
        raise DataError(f"The data set cannot be read: {error}.", str(folder), todo) from None
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            todo = f"Set its split to one of {', '.join(loaded)}."
            raise DataError(f"The data set has no split {split}.", str(folder), todo)
        loaded = loaded[split]
    return _dataset_rows(str(folder), loaded)


def _hub_rows(name: str, split: str, revision: str | None) -> Rows:
    """Anything that `datasets.load_dataset` knows; it runs no code that comes with data."""
    _refuse_missing_file(name)
    try:
        loaded = datasets.load_dataset(name, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # What a file's reader says is the cause of "An error occurred".
        said = str(error.__cause__ or error).strip() or type(error).__name__
        raise DataError(
            f"The data set cannot be loaded: {said.splitlines()[0].rstrip('.')}.",
            f"{name}, split {split}",
            "Give a file that exists, a folder with data files, or a name on the hub.",
        ) from None
    return _dataset_rows(name, loaded)


def _refuse_missing_file(name: str) -> None:
    """A name that looks like a file which isn't there is a mistake, not a hub data set."""
    path = Path(name)
    looks_like_a_file = path.suffix in (".jsonl", ".json", ".parquet", ".gz", ".zst", ".ndjson")
    if path.exists() or not (looks_like_a_file or path.is_absolute() or name.startswith(".")):
        return
    there = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1)
    missing = path.parent if not path.parent.is_dir() else path
    raise DataError(
        "The file is not there." if path.parent.is_dir() else "The folder is not there.",
        str(missing),
        f"Did you mean {path.parent / near[0]}?"
        if near
        else "Check the path; relative paths start where gradsieve is started.",
    )


def _dataset_rows(name: str, loaded: datasets.Dataset) -> Rows:
    """Rows from the Arrow table itself: whatever the data set's format is, no value changes."""
    features = _undecoded(loaded.features)
    tables = loaded.with_format("arrow").iter(batch_size=ROWS_AT_ONCE)
    return _given_rows(name, (row for table in tables for row in _table_rows(table, features)))
