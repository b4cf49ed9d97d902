"""Types of the columns of rows that came from different sources.

In: rows as JSON data, whose keys and types may differ. Out: `datasets.Features` with which every
row is read as it was written. `datasets` finds types by itself, but block by block: a column that
starts late in a file, or changes its type there, stops it; and text that looks like a time comes
back in another form. So a selection's card names the types.

Rejected: making rows alike (they are to be given back as they came in).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

_TIME = re.compile(r"\d{4}-\d\d-\d\d")
"""How text starts that Arrow's JSON reader may take for a time."""


def features_of(rows: Iterable[Mapping[str, Any]]) -> datasets.Features:
    """A type for each key of any row; `Json` where values don't share a type of Arrow's."""
    import datasets

    columns: dict[str, list[Any]] = {}
    for count, row in enumerate(rows):
        for key, value in row.items():
            column = columns.setdefault(key, [])
            column += [None] * (count - len(column))
            column.append(value)
    return datasets.Features({key: _type(values) for key, values in columns.items()})


def _type(values: Sequence[Any]) -> Any:
    import datasets
    import pyarrow as pa
    from datasets.features.features import generate_from_arrow_type

    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return datasets.Json()
    # Objects with different keys would come back with all keys.
    if pa.types.is_nested(array.type) and array.to_pylist() != values:
        return datasets.Json()
    if any(map(_may_be_a_time, values)):
        return datasets.Json()
    return generate_from_arrow_type(array.type)


def _may_be_a_time(value: Any) -> bool:
    if isinstance(value, str):
        return _TIME.match(value) is not None
    if isinstance(value, Mapping):
        return any(map(_may_be_a_time, value.values()))
    return isinstance(value, list) and any(map(_may_be_a_time, value))
