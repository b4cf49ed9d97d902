"""The memory-mapped pool: columns without a copy, and rows by number.

In: a folder that `build_pool` wrote. Out: arrays and columns of all rows, and the examples, tokens
or texts of some rows. A row's number is its position: sources are sorted by name, the rows of a
source keep their order. `order` (numbers sorted by source and id) doesn't depend on that order.

Rejected: `pyarrow`'s own `take` on a pool's text columns (it copies the full column first).
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradsieve.data.content import text_of
from gradsieve.data.examples import Example, Message, TokenizedExample
from gradsieve.data.pool.part import Part, read_state
from gradsieve.errors import DataError
from gradsieve.io import read_lines

ORDER = "order.npy"
SKIPPED = "skipped.jsonl"

Numbers = Sequence[int] | NDArray[np.int64]


class ExampleKey(NamedTuple):
    """Identifies an example in the pool; examples with equal scores are sorted by it."""

    source: str
    id: str


class Pool:
    """A pool on disk. Rows are addressed by number, from 0.

    Args:
        folder: A folder that `build_pool` wrote.

    Attributes:
        table: All rows, memory-mapped; part.SCHEMA describes the columns.
        sources: The progress of each source's part, by the source's name in the recipe.

    Raises:
        DataError: If the pool is missing, unfinished or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        state = read_state(folder)
        if state is None:
            raise DataError(
                "There is no finished pool.", str(folder), "Run the stage pool: gradsieve pool."
            )
        parts = [Part(folder, Path(file["filename"]).stem) for file in state["_data_files"]]
        self.sources = {part.name: part.finished() for part in parts}
        self.table: pa.Table = pa.concat_tables(part.table() for part in parts)
        self._batch_ends = np.cumsum([len(batch) for batch in self.table["id"].chunks])

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each source."""
        return {name: source.fingerprint for name, source in self.sources.items()}

    @cached_property
    def first_skipped(self) -> dict[str, tuple[str, str]]:
        """By source, the location of its first unusable row, and the reason."""
        first: dict[str, tuple[str, str]] = {}
        for row in read_lines(self.folder / SKIPPED):
            first.setdefault(row["source"], (row["where"], row["reason"]))
        return first

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """All row numbers sorted by (source, id), which makes results independent of row order."""
        return np.asarray(np.load(self.folder / ORDER, mmap_mode="r"))

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """The number of tokens of each row."""
        return self.column("length")

    @cached_property
    def n_label_tokens(self) -> NDArray[np.int32]:
        """The number of labels of each row that are predicted."""
        return self.column("n_label_tokens")

    @cached_property
    def _coded_sources(self) -> pa.DictionaryArray:
        return self.table["source"].dictionary_encode().combine_chunks()

    @property
    def source_names(self) -> list[str]:
        """The examples' sources; a part whose rows name their own source has several."""
        return list(self._coded_sources.dictionary.to_pylist())

    @property
    def source_codes(self) -> NDArray[np.int32]:
        """Each row's source, an index into `source_names`."""
        return np.asarray(self._coded_sources.indices)

    @property
    def skip_reasons(self) -> pa.ChunkedArray:
        """Why each row has no gradient; null if it has one."""
        return self.table["skip_reason"]

    @cached_property
    def usable(self) -> NDArray[np.int64]:
        """Numbers of the rows that have a gradient, sorted by (source, id)."""
        has_gradient = pc.is_null(self.skip_reasons).to_numpy()
        return np.asarray(self.order[has_gradient[self.order]])

    def column(self, name: str) -> NDArray[Any]:
        """A column of numbers or flags as an array."""
        return np.asarray(self.table[name].to_numpy())

    def take(self, numbers: Numbers, columns: Sequence[str]) -> pa.Table:
        """The given columns of the given rows, in the given order; only these rows are copied.

        A column can't hold more than 2 GB of text: take fewer rows at a time.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"row numbers from {numbers.min()} to {numbers.max()} of {len(self)}")
        order = np.argsort(numbers, kind="stable")
        batches = np.searchsorted(self._batch_ends, numbers[order], side="right")
        starts = np.flatnonzero(np.diff(batches, prepend=-1))
        pieces = [
            self._take_from(int(batches[start]), numbers[rows], columns)
            for start, rows in zip(starts, np.split(order, starts[1:]), strict=False)
        ]
        taken = pa.concat_tables([self.table.select(columns).slice(0, 0), *pieces])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return taken.combine_chunks().take(pa.array(back))

    def _take_from(
        self, batch: int, numbers: NDArray[np.int64], columns: Sequence[str]
    ) -> pa.Table:
        first = self._batch_ends[batch] - len(self.table["id"].chunk(batch))
        places = pa.array(numbers - first)
        return pa.table({name: self.table[name].chunk(batch).take(places) for name in columns})

    def keys(self, numbers: Numbers) -> list[ExampleKey]:
        """The source and id of each row."""
        taken = self.take(numbers, ["source", "id"])
        pairs = zip(taken["source"].to_pylist(), taken["id"].to_pylist(), strict=True)
        return [ExampleKey(*pair) for pair in pairs]

    def store_keys(self, numbers: Numbers) -> pa.Table:
        """Keys of rows in a datastore: source, id, and the content hash in hexadecimal."""
        taken = self.take(numbers, ["source", "id", "content_hash"])
        digits = taken["content_hash"].to_numpy().astype(">u8").tobytes().hex()
        ends = np.arange(len(taken) + 1, dtype=np.int32) * 16
        content = pa.StringArray.from_buffers(
            len(taken), pa.py_buffer(ends), pa.py_buffer(digits.encode())
        )
        return taken.select(["source", "id"]).append_column("content", content)

    def find(self, id: str) -> dict[str, int]:
        """The row number of the example with this id in each source that has one."""
        ids = self.table["id"].cast(pa.binary())  # `id` may be no Unicode
        numbers = np.flatnonzero(pc.equal(ids, id.encode(errors="surrogatepass")).to_numpy())
        return {key.source: int(n) for key, n in zip(self.keys(numbers), numbers, strict=True)}

    def locate(self, keys: pa.Table) -> NDArray[np.int64]:
        """The row number of each example [n], by columns `source` and `id`; -1 if not found."""
        if not len(keys):
            return np.empty(0, dtype=np.int64)
        columns = list(ExampleKey._fields)
        known = self.table.select(columns).append_column("number", pa.array(np.arange(len(self))))
        lines = keys.select(columns).append_column("line", pa.array(np.arange(len(keys))))
        found = lines.join(known, columns, join_type="left outer").sort_by("line")
        return np.asarray(pc.fill_null(found["number"], -1).to_numpy())

    def tokenized(self, numbers: Numbers) -> list[TokenizedExample]:
        """The tokens and labels of rows."""
        ids, spans, truncated = self.take(numbers, ["input_ids", "label_spans", "truncated"])
        parts = zip(_slices(ids), _slices(spans), truncated.to_pylist(), strict=True)
        return [_encoded(*part) for part in parts]

    def rows(self, numbers: Numbers) -> list[dict[str, Any]]:
        """The original rows."""
        return [json.loads(text) for text in self.take(numbers, ["row"])["row"].to_pylist()]

    def messages(self, numbers: Numbers) -> list[tuple[Message, ...]]:
        """The turns of each conversation."""
        texts = self.take(numbers, ["messages"])["messages"].to_pylist()
        return [tuple(json.loads(text)) for text in texts]

    def texts(self, numbers: Numbers) -> list[str]:
        """The text of each conversation, one turn per line."""
        return [
            "\n".join(text_of(turn["content"]) for turn in messages)
            for messages in self.messages(numbers)
        ]

    def examples(self, numbers: Numbers) -> list[Example]:
        """The examples of rows, each with the original row."""
        taken = self.take(numbers, ["source", "id", "messages", "row", "tools", "supervised"])
        return [_example(row) for row in taken.to_pylist()]


def _example(row: dict[str, Any]) -> Example:
    """An example, from the columns of its row."""
    return Example(
        row["source"],
        row["id"],
        tuple(json.loads(row["messages"])),
        json.loads(row["row"]),
        tools=tuple(json.loads(row["tools"] or "[]")),
        supervised=None if row["supervised"] is None else tuple(row["supervised"]),
    )


def _slices(column: pa.ChunkedArray) -> list[NDArray[np.int32]]:
    """The values of each list in a column of lists."""
    lists = column.combine_chunks()
    values, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(offsets)]


def _encoded(ids: NDArray[np.int32], spans: NDArray[np.int32], truncated: bool) -> TokenizedExample:
    labels = np.full_like(ids, -100)
    for start, end in spans.reshape(-1, 2):
        labels[start:end] = ids[start:end]
    return TokenizedExample(array("i", ids.tobytes()), array("i", labels.tobytes()), truncated)
