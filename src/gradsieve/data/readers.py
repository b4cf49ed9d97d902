"""Reads the rows of a file, folder or hub data set: JSONL, JSON, Parquet, saved `datasets` folders.

In: a path or name. Out: a stream of numbered rows: the bytes of a line of JSON, or a Python value,
or a `BadRow` if the value can't be read.

Rejected: `datasets`' own JSON reader (it gives every row the same columns, so the original rows are
lost, and it doesn't name the line of a bad row).
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets.features.features import _visit
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from gradsieve.data.formats import BYTE_ORDER_MARK, BadRow, file_json, kind_of
from gradsieve.errors import DataError, first_few, first_line
from gradsieve.recipe.schema import LimitsConfig

IN_MEMORY = "(in memory)"
"""Used in a recipe in place of a path, for rows passed in memory (`gradsieve.select`)."""

ROWS_AT_ONCE = 1000
"""Rows of a data set that are converted to Python objects at a time."""

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson")
"""Suffixes of files with one JSON object per line."""

UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(OverflowError, pa.ArrowException, datasets.exceptions.DatasetsError, yaml.YAMLError),
)
"""Exceptions that `datasets` and pyarrow raise for damaged files and files of other formats."""


LIMITS = LimitsConfig()
"""The defaults. The longest rows in use, books, have a few MB; JSON compresses 3 to 50 times."""

ARRAY_BYTES = 2 << 30
"""Maximum size of a .json file; its values take about ten times as much memory."""

UNPACKED_BYTES = 1 << 30
"""Unpacked size that is always allowed, since reading it takes only seconds."""

LOOKED_AT = 64 << 20
"""Unpacked bytes that are read first to check a file's compression ratio."""

BATCH_BYTES = 256 << 20
"""Maximum bytes of Parquet rows unpacked at a time, if each were as large as its row group."""

Rows = Iterator[tuple[int, Any]]
"""(line number, bytes) for JSON lines, otherwise (row number, value); numbers start at 1."""


def rows_of(
    path: str | Iterable[Any], split: str, revision: str | None, limits: LimitsConfig
) -> Rows:
    """A stream of all rows of a file, folder or hub data set, or of rows in memory."""
    if not isinstance(path, str):
        rows = _dataset_rows(path, IN_MEMORY) if isinstance(path, datasets.Dataset) else path
        return enumerate(rows, start=1)
    if path == IN_MEMORY:
        todo = "Call gradsieve.select again with the same `out`, or give a file."
        raise DataError("These rows were given in memory, and are not kept.", IN_MEMORY, todo)
    file = Path(path)
    if file.is_dir():
        for inside in file.rglob("*"):
            _refuse_special(inside)
        return enumerate(_folder_rows(file, split), start=1)
    _refuse_special(file)
    if not file.is_file():
        return enumerate(_hub_rows(path, split, revision), start=1)
    if file.stat().st_size == 0:
        raise DataError("The file is empty.", str(file), "Give a file with rows.")
    name = file.name.lower()
    if name.endswith(JSON_LINES):
        return _json_lines(file, limits)
    if name.endswith(".json"):
        return enumerate(_json_rows(file), start=1)
    if name.endswith(".parquet"):
        return enumerate(_parquet_rows(file, limits), start=1)
    todo = "Give a .jsonl, .jsonl.gz, .jsonl.zst, .json or .parquet file."
    raise DataError("The kind of file is not known by its name.", path, todo)


def _refuse_special(file: Path) -> None:
    """Reject a pipe or device, which would be read forever."""
    if file.exists() and not (file.is_file() or file.is_dir()):
        todo = "Write the rows to a file: they are read more than once."
        raise DataError("This is a pipe, a socket or a device, not a file.", str(file), todo)


def _json_lines(file: Path, limits: LimitsConfig) -> Rows:
    """The nonempty lines; only a line feed ends a line (U+2028 is text)."""
    for number, line in enumerate(_lines(file, limits), start=1):
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
            _refuse_spread_json(line, f"{file}:1")
        if line.strip():
            yield number, line


def _lines(file: Path, limits: LimitsConfig) -> Iterator[bytes]:
    packed = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix.lower())
    if packed is None:
        with file.open("rb") as lines:
            yield from _limited(lines, file, limits)
        return
    most = max(UNPACKED_BYTES, limits.unpacked_times * file.stat().st_size)
    try:
        with file.open("rb") as raw, _unpacked(raw, packed) as lines:
            size = 0  # checked before a row is read: a decompression bomb would take hours
            while block := lines.read(1 << 20):
                size += len(block)
                if size > most:
                    _refuse_unpacked(file, limits)
                if size >= LOOKED_AT and size < limits.unpacked_times * raw.tell():
                    break
        with file.open("rb") as raw, _unpacked(raw, packed) as lines:
            yield from _limited(lines, file, limits, most)
    except OSError as error:
        raise DataError(
            f"The file cannot be unpacked: {str(error).rstrip('.')}.",
            str(file),
            f"Give a whole {packed} file, or take {file.suffix} off its name if it is not packed.",
        ) from None


def _unpacked(raw: IO[bytes], packed: str) -> IO[bytes]:
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), packed))


def _limited(
    lines: Any, file: Path, limits: LimitsConfig, most: float = float("inf")
) -> Iterator[bytes]:
    """The lines of a file; an error if one line or the full file is too long."""
    number = size = 0
    while line := lines.readline(limits.row_bytes + 1):
        number, size = number + 1, size + len(line)
        if len(line) > limits.row_bytes:
            raise row_bytes_error(f"{file}:{number}", limits)
        if size > most:
            _refuse_unpacked(file, limits)
        yield line


def row_bytes_error(where: str, limits: LimitsConfig) -> DataError:
    """The error for a row that is too long."""
    todo = "Split or remove it, or raise limits.row_bytes."
    return DataError(f"A row has more than {limits.row_bytes} bytes.", where, todo)


def _refuse_unpacked(file: Path, limits: LimitsConfig) -> None:
    raise DataError(
        f"The file unpacks to more than {limits.unpacked_times} times its size.",
        f"{file}, {file.stat().st_size} bytes",
        "Check what is in it, or raise limits.unpacked_times.",
    )


def _refuse_spread_json(first_line: bytes, where: str) -> None:
    start = first_line.strip()
    if start in (b"[", b"[]") or start.startswith(b"[{"):
        found, todo = "a JSON array", "Rename the file to .json, or write one row a line."
    elif start == b"{":
        found, todo = "one over several lines", "Write each row on a line (jq -c . does)."
    else:
        return
    raise DataError(f"Expected one JSON object a line, found {found}.", where, todo)


def _json_rows(file: Path) -> Iterator[Any]:
    if file.stat().st_size > ARRAY_BYTES:
        todo = "Write it as .jsonl, one row a line, which is read in a stream (jq -c '.[]')."
        raise DataError("The JSON array is too large to be read at once.", str(file), todo)
    try:
        rows = file_json(file)
    except BadRow as error:
        todo = "Fix it, or rename it to .jsonl if it has one row a line."
        raise DataError(f"The file cannot be read: {error}.", str(file), todo) from None
    if not isinstance(rows, list):
        todo = "Write the rows as a JSON array, or one a line in a .jsonl file."
        raise DataError(f"Expected an array of rows, found {kind_of(rows)}.", str(file), todo)
    yield from rows


def _parquet_rows(file: Path, limits: LimitsConfig) -> Iterator[Any]:
    try:
        with pq.ParquetFile(file) as table:
            features = None
            with suppress(ValueError, TypeError, KeyError):  # types that `datasets` doesn't know
                features = _undecoded(datasets.Features.from_arrow_schema(table.schema_arrow))
            at_once, most = _rows_at_once(table), limits.unpacked_times * file.stat().st_size
            size = 0
            for batch in table.iter_batches(at_once):
                size += batch.nbytes
                if size > max(UNPACKED_BYTES, most):
                    _refuse_unpacked(file, limits)
                yield from _table_rows(pa.Table.from_batches([batch]), features)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"The file is not Parquet: {first_line(error)}.",
            str(file),
            "Give a whole Parquet file, or rename it to what it is.",
        ) from None


def _rows_at_once(file: pq.ParquetFile) -> int:
    """Number of rows that always fit in BATCH_BYTES: one large value may be repeated in all."""
    groups = range(file.metadata.num_row_groups)
    largest = max((file.metadata.row_group(group).total_byte_size for group in groups), default=1)
    return max(1, min(ROWS_AT_ONCE, BATCH_BYTES // max(1, largest)))


def _undecoded(features: datasets.Features) -> datasets.Features:
    """The features, decoding only JSON stored as text, not images or audio.

    Decoding images or audio needs Pillow and similar libraries, and gives no JSON values.
    """

    def undecoded(feature: Any) -> Any:
        decodes = getattr(feature, "decode", False) and not isinstance(feature, datasets.Json)
        return replace(feature, decode=False) if decodes else feature

    return datasets.Features({name: _visit(one, undecoded) for name, one in features.items()})


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


def _folder_rows(folder: Path, split: str) -> Iterator[Any]:
    """Rows of a folder written by `Dataset.save_to_disk`, or of data files as on the hub."""
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    if not saved:
        rows = _hub_rows(str(folder), split, None)
        _refuse_unread_files(folder)
        return rows
    try:
        loaded = datasets.load_from_disk(str(folder))
    except UNREADABLE as error:
        raise _unreadable(error, str(folder)) from None
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            todo = f"Set its split to one of {', '.join(loaded)}."
            raise DataError(f"The data set has no split {split}.", str(folder), todo)
        loaded = loaded[split]
    return _dataset_rows(loaded, str(folder))


def _refuse_unread_files(folder: Path) -> None:
    """Reject a folder of which `datasets` would ignore files.

    It reads files of one type only, and only split files if a name contains `train` or `test`.
    """
    card = folder / "README.md"
    if card.is_file() and "configs:" in card.read_text(encoding="utf-8", errors="replace"):
        return  # the card names the files
    splits = datasets.load_dataset_builder(str(folder)).config.data_files.values()
    read = {Path(file).resolve() for files in splits for file in files}
    inside = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    unread = sorted(
        str(file)
        for file in inside
        if file.name.lower().endswith((*JSON_LINES, ".parquet"))
        and not any(part.startswith((".", "__")) for part in file.parts)
        and (folder / file).resolve() not in read
    )
    if unread:
        raise DataError(
            "Only some files of the folder would be read, because of their names.",
            f"{folder}: not {first_few(unread)}",
            "Make a source of each file, or of a folder with files of one kind, all of them or "
            "none named after a split (train, test, ...).",
        )


def _hub_rows(name: str, split: str, revision: str | None) -> Iterator[Any]:
    """Rows of anything that `datasets.load_dataset` loads; it runs no code shipped with data."""
    _refuse_missing_file(name)
    if name in _PACKAGED_DATASETS_MODULES:  # `datasets` would read the current directory
        todo = "Give a file, a folder, or a name on the hub such as org/name."
        raise DataError(f"{name} is a kind of file, not a data set.", f"path: {name}", todo)
    try:
        loaded = datasets.load_dataset(name, split=split, revision=revision)
    except UNREADABLE as error:
        # The cause of "An error occurred" has the message of the file's reader.
        cause = error.__cause__ or error
        if isinstance(cause, datasets.table.CastError):
            columns = [sorted(cause.requested_column_names), sorted(cause.table_column_names)]
            where = f"{name}, split {split}: {' and '.join(map(', '.join, columns))}"
            what = "The files of the data set don't have the same columns and types."
            raise DataError(what, where, "Make a source of each file.") from None
        raise DataError(
            f"The data set cannot be loaded: {first_line(cause)}.",
            f"{name}, split {split}",
            "Give a file that exists, a folder with data files, or a name on the hub.",
        ) from None
    return _dataset_rows(loaded, name)


def _refuse_missing_file(name: str) -> None:
    """Reject a name that looks like a missing file: it is a mistake, not a hub data set."""
    path = Path(name)
    looks_like_a_file = path.suffix in (".jsonl", ".json", ".parquet", ".gz", ".zst", ".ndjson")
    if path.exists() or not (looks_like_a_file or path.is_absolute() or name.startswith(".")):
        return
    if path.is_symlink():
        todo = "Correct the link, or give the file's path."
        raise DataError("The link leads to no file.", f"{path} -> {path.readlink()}", todo)
    todo = "Check the path; relative paths start where gradsieve is started."
    if not path.parent.is_dir():
        raise DataError("The folder does not exist.", str(path.parent), todo)
    there = [item.name for item in path.parent.iterdir()]
    for near in difflib.get_close_matches(path.name, there, n=1):
        todo = f"Did you mean {path.parent / near}?"
    raise DataError("The file does not exist.", str(path), todo)


def _dataset_rows(loaded: datasets.Dataset, place: str) -> Iterator[Any]:
    """Rows from the Arrow table itself, so that the data set's format changes no value."""
    features = _undecoded(loaded.features)
    try:
        for table in loaded.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
            yield from _table_rows(table, features)
    except UNREADABLE as error:
        raise _unreadable(error, place) from None


def _unreadable(error: BaseException, place: str) -> DataError:
    todo = "Give a folder that Dataset.save_to_disk wrote, with all of its files."
    return DataError(f"The data set cannot be read: {first_line(error)}.", place, todo)
