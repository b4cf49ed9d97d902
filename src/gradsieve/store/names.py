"""The names of a shard's rows as small tensors, without a compressor.

In: keys of rows. Out: tensors of about 12 bytes a row instead of 40 as JSON, which a row of 1 bit
(1 KiB at 8192 dims) would feel. Ids are one string of symbols, each a number in the shard's own
alphabet with as many bits as that takes: 4 for digits, 5 for hexadecimal digits and a hyphen.

Rejected: zlib and its like, since their output changes from version to version and with it the
name of a shard; and hashes instead of ids, since then a datastore couldn't say what it holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tensors = Mapping[str, "NDArray[Any]"]

NAMES = ("contents", "sources", "id_lengths", "ids")
"""The tensors that hold names."""


class RowKey(NamedTuple):
    """Which row a feature is of: its source, its id, and a hash of its tokens and labels.

    Attributes:
        source: Its source's name.
        id: Its id in the source.
        content: 16 hexadecimal digits.
    """

    source: str
    id: str
    content: str


def read_row_keys(file: Path) -> dict[tuple[str, str], RowKey]:
    """The datastore's name of each row that has a feature, by (source, id), in the file's order.

    Args:
        file: `RUN/02-features/rows.parquet`.
    """
    import pyarrow.parquet as pq

    rows = pq.read_table(file, columns=list(RowKey._fields)).to_pylist()
    return {(row["source"], row["id"]): RowKey(**row) for row in rows if row["content"]}


def named_twice(keys: Sequence[RowKey]) -> list[RowKey]:
    """Rows that are named more than once, which a shard may not do."""
    return [key for key, count in Counter(keys).items() if count > 1]


def pack(keys: Sequence[RowKey]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors, and what they refer to: names of `sources`, and `alphabet`, the ids' code points.

    Raises:
        ValueError: If a content is not of hexadecimal digits.
    """
    sources = sorted({key.source for key in keys})
    number = {source: number for number, source in enumerate(sources)}
    symbols = _code_points("".join(key.id for key in keys))
    alphabet, codes = np.unique(symbols, return_inverse=True)
    tensors = {
        "contents": np.array([int(key.content, 16) for key in keys], dtype=np.uint64),
        "sources": _smallest([number[key.source] for key in keys]),
        "id_lengths": _smallest([len(key.id) for key in keys]),
        "ids": _bits(codes, len(alphabet)),
    }
    return tensors, {"sources": sources, "alphabet": alphabet.tolist()}


def unpack(tensors: Tensors, told: Mapping[str, Any]) -> list[RowKey]:
    """The keys, in their order.

    Raises:
        ValueError, IndexError, KeyError, TypeError: If the tensors don't fit together.
    """
    contents = tensors["contents"].astype(">u8").tobytes().hex()
    lengths = tensors["id_lengths"].tolist()
    codes = _codes(tensors["ids"], sum(lengths), len(told["alphabet"]))
    symbols = _text(np.array(told["alphabet"], dtype=np.uint32)[codes])
    ids = [symbols[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]
    sources = [told["sources"][number] for number in tensors["sources"].tolist()]
    digits = [contents[start : start + 16] for start in range(0, len(contents), 16)]
    return list(map(RowKey._make, zip(sources, ids, digits, strict=True)))


def _smallest(numbers: list[int]) -> NDArray[Any]:
    """As uint8, or uint16 or more if one of them needs it."""
    return np.array(numbers, dtype=np.min_scalar_type(max(numbers)))


def _width(symbols: int) -> int:
    """Bits that tell so many symbols apart."""
    return max(symbols - 1, 0).bit_length()


def _bits(codes: NDArray[Any], symbols: int) -> NDArray[np.uint8]:
    """Numbers below `symbols`, packed lowest bits first."""
    each = codes[:, None] >> np.arange(_width(symbols)) & 1
    return np.packbits(each.astype(np.uint8), bitorder="little")


def _codes(packed: NDArray[np.uint8], count: int, symbols: int) -> NDArray[Any]:
    width = _width(symbols)
    if len(packed) != -(-count * width // 8):
        raise ValueError(f"{len(packed)} bytes for {count} symbols of {width} bits")
    each = np.unpackbits(packed, count=count * width, bitorder="little")
    codes: NDArray[Any] = each.reshape(count, width) @ (1 << np.arange(width))
    return codes


def _code_points(text: str) -> NDArray[np.uint32]:
    """Half of a surrogate pair, which JSON may hold, is a symbol like others."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _text(code_points: NDArray[np.uint32]) -> str:
    return code_points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
