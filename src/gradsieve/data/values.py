"""Converts a row's values to JSON data, which is what a selection's files can hold.

In: a row from a reader of JSON, Parquet, saved data sets or rows in memory. Out: the same row as
JSON values, so that it is written, hashed and compared by its values alone. Columns that JSON can't
hold are left out and reported; no value is replaced by Python's `str` of an object.

| value | becomes |
| --- | --- |
| text, whole and finite numbers, booleans, null | itself |
| list, tuple, array (NumPy, torch, pandas) | a list |
| NumPy's and pandas' scalars | the number, boolean or text |
| NaN, NaT, pandas' NA: a missing value | null |
| date, time, timestamp | text in ISO 8601 |
| Decimal | a number, if a double holds all its digits |
| UUID | its text |
| bytes, images, sets, durations, infinity, objects with keys that are not text, anything else | \
nothing: the column is left out |
"""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from gradsieve.data.formats import FIELDS, BadRow, kind_of

MAX_DEPTH = 100
"""Maximum depth of nested objects and lists. Conversations with tools need 10; Python's JSON writer
and reader fail near 1,000."""


class Unrepresentable(ValueError):
    """Raised for a value that JSON cannot hold; the message names its type."""


LeftOutColumn = tuple[str, str, int]
"""The location of the first row that has the column, the type of its value, number of rows."""


class LeftOut:
    """The columns that are left out of a source's rows, by name."""

    def __init__(self, columns: Mapping[str, LeftOutColumn] = {}) -> None:
        self.columns = dict(columns)

    def add(self, columns: Mapping[str, str], where: str) -> None:
        """Add the columns left out of a row, each with the type of its value."""
        for column, kind in columns.items():
            first, first_kind, rows = self.columns.get(column, (where, kind, 0))
            self.columns[column] = (first, first_kind, rows + 1)

    def warnings(self) -> tuple[str, ...]:
        """One line per column."""
        return tuple(
            f"the column {column} is left out of {rows} rows, the first {where}: it holds {kind}, "
            "which JSON cannot hold"
            for column, (where, kind, rows) in self.columns.items()
        )


def json_row(row: Any) -> tuple[Any, dict[str, str]]:
    """A row as JSON values, and the columns that are left out, each with the type of its value.

    Raises:
        BadRow: If JSON can't hold a column that formats read, or the row is not a JSON object.
    """
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise BadRow(f"expected an object, found {kind_of(row)}")
    kept: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for key, value in row.items():
        try:
            if not isinstance(key, str):
                raise Unrepresentable(f"a key that is {kind_of(key)}")
            kept[key] = _json_value(value, 1)
        except Unrepresentable as error:
            if key in FIELDS:
                raise BadRow(f"{key} holds {error}, which JSON cannot hold") from None
            left_out[str(key) if isinstance(key, str | int) else kind_of(key)] = str(error)
    return kept, left_out


def _json_value(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is list or kind is dict:  # most values; the checks below are slower
        return _json_container(value, depth)
    if isinstance(value, BadRow):
        raise value
    for types, convert in _CONVERSIONS:
        if isinstance(value, types):
            return convert(value)
    if isinstance(value, list | tuple | Mapping):
        return _json_container(value, depth)
    if hasattr(value, "tolist") and not isinstance(value, memoryview):
        listed = value.tolist()
        if type(listed) is not kind:
            return _json_value(listed, depth)
    raise Unrepresentable(kind_of(value))


def _json_container(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise BadRow(f"nested too deeply: more than {MAX_DEPTH} levels")
    if not isinstance(value, Mapping):
        return [_json_value(item, depth + 1) for item in value]
    wrong = next((key for key in value if not isinstance(key, str)), None)
    if wrong is not None:
        raise Unrepresentable(f"an object with a key that is {kind_of(wrong)}")
    return {key: _json_value(item, depth + 1) for key, item in value.items()}


def _number(value: float) -> float | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        raise Unrepresentable("infinity")
    return float(value)


def _decimal(value: decimal.Decimal) -> int | float | None:
    if value.is_nan():
        return None
    if not value.is_finite():
        raise Unrepresentable("infinity")
    if value == value.to_integral_value():
        return int(value)
    if decimal.Decimal(repr(float(value))) != value:
        raise Unrepresentable("a decimal of more digits than a double has")
    return float(value)


_CONVERSIONS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (str, str.__str__),  # string enums and NumPy's strings are instances
    (int, int),
    (float, _number),
    (decimal.Decimal, _decimal),
    ((datetime.date, datetime.time), lambda v: None if v is pd.NaT else v.isoformat()),
    (np.datetime64, lambda v: None if np.isnat(v) else str(np.datetime_as_string(v))),
    (type(pd.NA), lambda _: None),
    (uuid.UUID, str),
)
