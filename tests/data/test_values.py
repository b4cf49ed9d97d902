"""Values of every kind are read as JSON values, or left out by name; never as Python's repr."""

import datetime
import decimal
import json
import types
import uuid
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gradsieve.data.formats import BadRow
from gradsieve.data.values import MAX_DEPTH, json_row

D, UTC = datetime.datetime, datetime.UTC
UUID = "12345678-1234-5678-1234-567812345678"


class Text(str):
    """A string whose `str()` is a different text, as for an enumeration of strings."""

    def __str__(self) -> str:
        return "Text.A"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (("a", ("b",)), ["a", ["b"]]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([{"role": "user", "tags": np.array(["a"])}], dtype=object),
         [{"role": "user", "tags": ["a"]}]),
        (types.MappingProxyType({"a": (1,)}), {"a": [1]}),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Text("a"), "a"),
        (float("nan"), None),
        ([np.float64("nan"), 1.0], [None, 1.0]),
        (pd.NaT, None),
        (pd.NA, None),
        (np.datetime64("NaT"), None),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (D(2024, 1, 2, 3, tzinfo=UTC), "2024-01-02T03:00:00+00:00"),
        (pd.Timestamp("2024-01-02T03:04:05.000000006"), "2024-01-02T03:04:05.000000006"),
        (np.datetime64("2024-01-02T03:04:05", "ns"), "2024-01-02T03:04:05.000000000"),
        (datetime.time(3, 4), "03:04:00"),
        (decimal.Decimal("0.10"), 0.1),
        (decimal.Decimal("12345678901234567890"), 12345678901234567890),
        (decimal.Decimal("NaN"), None),
        (uuid.UUID(UUID), UUID),
    ],
)  # fmt: skip
def test_what_json_can_hold_is_kept(value: Any, kept: Any) -> None:
    row, left_out = json_row({"x": value})
    assert (row, left_out) == ({"x": kept}, {})
    assert type(row["x"]) is type(kept)
    assert json.loads(json.dumps(row, allow_nan=False)) == row


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"x", "bytes"),
        ({"bytes": b"\x89PNG", "path": None}, "bytes"),
        (memoryview(b"x"), "memoryview"),
        ({1, 2}, "set"),
        (np.array([{1}], dtype=object), "set"),
        (float("inf"), "infinity"),
        ([-np.inf], "infinity"),
        (decimal.Decimal("0.1234567890123456789"), "a decimal of more digits than a double has"),
        (decimal.Decimal("Infinity"), "infinity"),
        (datetime.timedelta(1), "timedelta"),
        (1j, "complex"),
        (np.longdouble(1), "longdouble"),
        (object(), "object"),
        ({"a": {1: "b"}}, "an object with a key that is int"),
    ],
)
def test_what_json_cannot_hold_is_left_out_by_name(value: Any, kind: str) -> None:
    assert json_row({"prompt": "a", "x": value}) == ({"prompt": "a"}, {"x": kind})
    with pytest.raises(BadRow) as caught:
        json_row({"prompt": value})
    assert str(caught.value) == f"prompt holds {kind}, which JSON cannot hold"


def test_columns_without_a_text_for_a_name() -> None:
    kept, left_out = json_row({"prompt": "a", 1: "b", None: "c"})
    assert kept == {"prompt": "a"}
    assert left_out == {"1": "a key that is int", "null": "a key that is null"}


def test_nested_too_deeply_is_a_bad_row() -> None:
    deep: Any = "a"
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert json_row({"x": deep}) == ({"x": deep}, {})
    with pytest.raises(BadRow, match="nested too deeply: more than 100 levels"):
        json_row({"x": [deep]})
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(BadRow, match="nested too deeply"):
        json_row({"x": circle})
