"""Any file format gives the same examples; bad rows are named by file and line; ids are stable."""

import datetime
import decimal
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradsieve.api import _rows as in_memory_rows
from gradsieve.data.sources import Source, read_source
from gradsieve.errors import DataError
from gradsieve.recipe.schema import LimitsConfig

ROWS = [
    {"id": "a", "prompt": "One\u2028line", "completion": "1", "extra": {"x": [1, None]}},
    {"id": "b", "prompt": "Zwei", "completion": "2", "extra": {"x": [2, None]}},
    {"id": "c", "prompt": "三", "completion": "3", "extra": {"x": [3, None]}},
]


def identity(source: Source) -> list[str]:
    """All that a source's tokens and labels depend on, independent of row order."""
    parts = ([one.id, one.row, one.supervised] for one in source.examples)
    return sorted(json.dumps(part, sort_keys=True) for part in parts)


def jsonl(folder: Path, rows: list, name: str = "rows.jsonl") -> str:
    file = folder / name
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8", newline="\n")
    return str(file)


def write(folder: Path, kind: str) -> str:
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        return jsonl(folder, ROWS)
    if kind == "jsonl.gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(Path(jsonl(folder, ROWS)).read_text(encoding="utf-8"))
    elif kind == "jsonl.zst":
        with pa.CompressedOutputStream(str(path), "zstd") as packed:
            packed.write(Path(jsonl(folder, ROWS)).read_bytes())
    elif kind == "json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif kind == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    elif kind == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    elif kind == "saved-splits":
        data = datasets.Dataset.from_list(ROWS)
        datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(path)
    elif kind == "hub-folder":  # the layout of a data set repository on the hub
        path.mkdir()
        (path / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files: data.jsonl\n---\n"
        )
        jsonl(path, ROWS, "data.jsonl")
    return str(path)


KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "json", "parquet", "saved", "saved-splits", "hub-folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_files_give_the_same(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = read_source("s", write(tmp_path, kind))
    assert [dict(example.row) for example in source.examples] == ROWS
    assert [example.id for example in source.examples] == ["a", "b", "c"]
    assert source.examples[2].messages[0]["content"] == "三"
    assert identity(source) == identity(read_source("t", jsonl(tmp_path, ROWS)))


def test_fingerprint_ignores_order_and_sees_content(tmp_path: Path) -> None:
    first = read_source("s", jsonl(tmp_path, ROWS))
    assert identity(read_source("s", jsonl(tmp_path, ROWS[::-1], "b.jsonl"))) == identity(first)
    changed = [*ROWS[:2], {**ROWS[2], "completion": "4"}]
    assert identity(read_source("s", jsonl(tmp_path, changed))) != identity(first)


def ids(source: Source) -> dict[str, str]:
    return {example.messages[0]["content"]: example.id for example in source.examples}


def test_made_ids_are_stable_and_equal_rows_are_distinguished(tmp_path: Path) -> None:
    rows = [{"prompt": p, "completion": "x"} for p in "abca"]
    first = read_source("s", jsonl(tmp_path, rows))
    assert len({example.id for example in first.examples}) == 4
    again = read_source("other", jsonl(tmp_path, rows[::-1], "moved.jsonl"))
    assert {e.id for e in again.examples} == {e.id for e in first.examples}
    assert ids(again)["b"] == ids(first)["b"]


def test_integer_ids_are_kept(tmp_path: Path) -> None:
    rows = [{"id": 0, "prompt": "a", "completion": "b"}]
    assert read_source("s", jsonl(tmp_path, rows)).examples[0].id == "0"


BAD = [
    b'{"id": "a", "prompt": "p", "completion": "c"}',
    b'{"id": "b", "prompt": "p"',
    b"",
    b'{"id": "a", "prompt": "q", "completion": "c"}',
    b'{"id": "d", "prompt": "p", "completion": "\xff"}',
    b'{"id": "e", "prompt": "p", "completion": "  "}',
]


def test_bad_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b"\n".join(BAD))
    with pytest.raises(DataError) as caught:
        read_source("s", str(file))
    told = str(caught.value)
    assert "4 of 5 rows" in told
    assert f"{file}:2: not JSON" in told
    assert f"{file}:4: the id 'a' is taken by {file}:1" in told
    assert f"{file}:5: not UTF-8 at byte" in told
    assert f"{file}:6: the answer is empty" in told
    assert "on_bad_row: skip" in told


def test_bad_rows_can_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b"\n".join(BAD))
    source = read_source("s", str(file), on_bad_row="skip")
    assert [example.id for example in source.examples] == ["a"]
    assert len(source.bad_rows) == 4


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="30 of 30 rows") as caught:
        read_source("s", jsonl(tmp_path, [{"x": 1}] * 30))
    assert "and 20 more" in str(caught.value)


def test_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "bom.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + Path(jsonl(tmp_path, ROWS)).read_bytes())
    assert len(read_source("s", str(file)).examples) == 3
    array = tmp_path / "bom.json"
    array.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS).encode())
    assert len(read_source("s", str(array)).examples) == 3


@pytest.mark.parametrize(
    ("before", "after"), [("\ufeff", ""), ("", "\N{NO-BREAK SPACE}"), ("", "\x1c")]
)
def test_only_white_space_of_json_surrounds_a_row(tmp_path: Path, before: str, after: str) -> None:
    # The pool keeps the text of a row and reads it again, when it exports the row.
    file = tmp_path / "rows.jsonl"
    good = json.dumps(ANONYMOUS)
    file.write_text(f"{good}\n{before}{good}{after}\n \t{good} \r\n", encoding="utf-8")
    source = read_source("s", str(file), on_bad_row="skip")
    assert len(source.examples) == 2
    [bad] = source.bad_rows
    assert bad.where == f"{file}:2"
    assert "not JSON" in bad.reason


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", b"", "The file is empty"),
        ("blank.jsonl", b"\n\n", "no usable row"),
        ("array.jsonl", b'[{"prompt": "a", "completion": "b"}]', "found a JSON array"),
        ("array.jsonl", b"[\n{}\n]", "found a JSON array"),
        ("lines.json", b'{"a": 1}\n{"a": 2}\n', "not JSON"),
        ("object.json", b'{"rows": []}', "found an object"),
        ("empty.json", b"[]", "no usable row"),
        ("binary.jsonl", bytes(range(256)) * 4, "cannot be read"),
        ("binary.json", b"\xff\xfe", "not UTF-8"),
        ("text.parquet", b"no parquet", "not Parquet"),
        ("rows.csv", b"a,b", "kind of file is not known"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_source("s", str(file))
    assert said in caught.value.what
    assert name in str(caught.value)
    assert caught.value.todo


def test_a_missing_file_names_a_near_one(tmp_path: Path) -> None:
    jsonl(tmp_path, ROWS, "dolly.jsonl")
    with pytest.raises(DataError) as caught:
        read_source("s", str(tmp_path / "doly.jsonl"))
    assert "dolly.jsonl?" in caught.value.todo
    with pytest.raises(DataError, match="folder does not exist"):
        read_source("s", str(tmp_path / "none" / "doly.jsonl"))


def test_a_missing_split_names_those_there(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_source("s", write(tmp_path, "saved-splits"), split="dev")
    assert "train, test" in caught.value.todo


def test_paths_with_spaces_and_other_letters(tmp_path: Path) -> None:
    folder = tmp_path / "мои данные"
    folder.mkdir()
    assert len(read_source("s", jsonl(folder, ROWS)).examples) == 3


@pytest.mark.parametrize("most", [2e6, pytest.param(1e9, marks=pytest.mark.slow)])
def test_real_sources_are_read(shared_data: Path, most: float) -> None:
    for file in sorted((shared_data / "train").glob("*.jsonl")):
        if file.stat().st_size > most:
            continue
        lines = file.read_bytes().count(b"\n")
        source = read_source(file.stem, str(file))
        assert len(source.examples) == lines, file.name


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PNG = b"\x89PNG\r\n\x1a\n"


def with_images() -> datasets.Dataset:
    """A data set with images, built without Pillow, which may not be installed."""
    features = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "image": datasets.Image(),
            "pages": datasets.List(datasets.Image()),
            "n": datasets.Value("int64"),
        }
    )
    image = {"bytes": PNG, "path": None}
    rows = [{"messages": TURNS, "image": image, "pages": [image], "n": n} for n in range(3)]
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))


@pytest.mark.parametrize("kind", ["saved", "parquet", "hub-folder", "in memory", "stream"])
def test_image_columns_are_left_out_with_a_word(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    given: Any = with_images()
    if kind == "saved":
        given.save_to_disk(tmp_path / "saved")
        given = str(tmp_path / "saved")
    elif kind in ("parquet", "hub-folder"):
        (tmp_path / "hub").mkdir()
        file = tmp_path / "hub" / "train.parquet"
        pq.write_table(given.data.table, file)
        given = str(file if kind == "parquet" else file.parent)
    elif kind == "stream":
        given = in_memory_rows(given.to_iterable_dataset())
    source = read_source("s", given)
    assert [example.row for example in source.examples] == [
        {"messages": TURNS, "n": n} for n in range(3)
    ]
    place = given if isinstance(given, str) else "s (in memory)"
    assert source.warnings == tuple(
        f"the column {name} is left out of 3 rows, the first {place} row 1: it holds bytes, which "
        "JSON cannot hold"
        for name in ("image", "pages")
    )
    plain = read_source("s", [{"messages": TURNS, "n": n} for n in range(3)])
    assert [e.id for e in plain.examples] == [e.id for e in source.examples]
    assert (identity(plain), plain.warnings) == (identity(source), ())


TYPED = {
    "when": ([datetime.datetime(2024, 1, 2, 3, 4)], "2024-01-02T03:04:00"),
    "day": ([datetime.date(2024, 1, 2)], "2024-01-02"),
    "price": ([decimal.Decimal("1.50")], 1.5),
    "score": ([float("nan")], None),
    "tags": ([["a", "b"]], ["a", "b"]),
    "blob": ([b"x"], ...),
    "level": (pa.array(["low"]).dictionary_encode(), "low"),
    "map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), {"a": 1}),
    "lasts": ([datetime.timedelta(1)], ...),
}


def test_types_of_parquet_come_back_or_are_named(tmp_path: Path) -> None:
    columns = {name: values for name, (values, _) in TYPED.items()}
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"], **columns}), file)
    source = read_source("s", str(file))
    kept = {name: value for name, (_, value) in TYPED.items() if value is not ...}
    assert source.examples[0].row == {"prompt": "a", "completion": "b", **kept}
    assert [warning.split()[2] for warning in source.warnings] == ["blob", "lasts"]
    assert read_source("s", str(file)).examples[0].id == source.examples[0].id


def test_a_time_that_python_has_not_is_a_bad_row(tmp_path: Path) -> None:
    when = pa.array([0, 2**50, 1], pa.timestamp("s"))
    table = pa.table({"prompt": list("abc"), "completion": list("abc"), "when": when})
    pq.write_table(table, tmp_path / "rows.parquet")
    source = read_source("s", str(tmp_path / "rows.parquet"), on_bad_row="skip")
    assert [example.row["prompt"] for example in source.examples] == ["a", "c"]
    assert source.bad_rows[0].where.endswith("row 2")
    assert "a value cannot be read" in source.bad_rows[0].reason


def test_json_kept_in_a_column_comes_back_as_it_was(tmp_path: Path) -> None:
    """`datasets` stores columns of mixed types as JSON text; a selection's card requests this."""
    rows = [{"messages": TURNS, "meta": {"a": 1}}, {"messages": TURNS, "meta": ["b", None]}]
    features = datasets.Features({"messages": datasets.Json(), "meta": datasets.Json()})
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "rows.parquet")
    for given in (made, str(tmp_path / "saved"), str(tmp_path / "rows.parquet")):
        assert [example.row for example in read_source("s", given).examples] == rows


def test_records_of_pandas_are_as_the_file(tmp_path: Path) -> None:
    rows = [{"messages": TURNS, "tags": ["a"], "n": n, "x": None if n else 0.5} for n in range(3)]
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(rows).to_parquet(file)
    records = pd.read_parquet(file).to_dict("records")
    in_memory, from_file = read_source("s", records), read_source("s", str(file))
    assert [example.row for example in in_memory.examples] == rows
    assert identity(in_memory) == identity(from_file)


@pytest.mark.parametrize("empty", [float("nan"), None, np.nan, pd.NA])
def test_a_missing_input_of_alpaca_is_none(empty: Any) -> None:
    row = {"instruction": "a", "input": empty, "output": "b"}
    (example,) = read_source("s", [row]).examples
    assert example.messages[0]["content"] == "a"
    assert example.row["input"] is None


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_json_has_no_nan(tmp_path: Path, name: str) -> None:
    rows = ['{"prompt": "a", "completion": "b"}', f'{{"prompt": "a", "n": [{name}]}}']
    lines, array = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    lines.write_text("\n".join(rows))
    array.write_text(f"[{','.join(rows)}]")
    said = f"not JSON: {name} is not a JSON value; write null if there is none"
    for file, place in ((lines, f"{lines}:2"), (array, f"{array} row 2")):
        source = read_source("s", str(file), on_bad_row="skip")
        assert (len(source.examples), source.bad_rows) == (1, ((place, said),))


def test_a_number_beyond_doubles_is_left_out(tmp_path: Path) -> None:
    row = '{"prompt": "a", "completion": "b", "n": 1e999}'
    (tmp_path / "rows.jsonl").write_text(row)
    source = read_source("s", str(tmp_path / "rows.jsonl"))
    assert source.examples[0].row == {"prompt": "a", "completion": "b"}
    assert "the column n is left out of 1 rows" in source.warnings[0]


def test_made_ids_do_not_depend_on_addresses() -> None:
    rows = [{"prompt": "a", "completion": "b", "x": object()} for _ in range(2)]
    first, second = (read_source("s", [row]).examples[0].id for row in rows)
    plain = read_source("s", [{"prompt": "a", "completion": "b"}]).examples[0].id
    assert first == second == plain


ANONYMOUS = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize("suffix", ["", "-2"])
def test_a_rows_id_is_never_one_made_for_another(suffix: str) -> None:
    (made,) = (example.id for example in read_source("s", [ANONYMOUS]).examples)
    named = {"id": made + suffix, "prompt": "other", "completion": "row"}
    nameless = [ANONYMOUS] * (2 if suffix else 1)
    for rows, said in (
        (
            [named, *nameless],
            f"the id '{made}{suffix}' made from its content is taken by s (in memory) row 1",
        ),
        (
            [*nameless, named],
            f"the id '{made}{suffix}' is taken by s (in memory) row {len(nameless)}",
        ),
    ):
        source = read_source("s", rows, on_bad_row="skip")
        assert len({example.id for example in source.examples}) == len(source.examples)
        assert len(source.examples) == len(rows) - 1
        assert said in source.bad_rows[0].reason
        with pytest.raises(DataError, match="1 of"):
            read_source("s", rows)


def test_what_is_supervised_is_in_the_fingerprint() -> None:
    row = {"prompt": [*TURNS, TURNS[0]], "completion": [TURNS[1]]}
    completion, both = (read_source("s", [row], supervise=how) for how in ("completion", "all"))
    assert completion.examples[0].supervised == (False, False, False, True)
    assert both.examples[0].supervised is None
    assert identity(completion) != identity(both)
    assert completion.examples[0].id == both.examples[0].id


@pytest.mark.parametrize(("kind", "packed"), [("gz", "gzip"), ("zst", "zstd")])
def test_a_packed_file_that_is_cut_or_not_packed(tmp_path: Path, kind: str, packed: str) -> None:
    whole = Path(write(tmp_path, f"jsonl.{kind}")).read_bytes()
    file = tmp_path / f"broken.jsonl.{kind}"
    for content in (whole[:-10], b"{}\n"):
        file.write_bytes(content)
        with pytest.raises(DataError, match="cannot be unpacked") as caught:
            read_source("s", str(file))
        assert f"Give a whole {packed} file, or take .{kind} off its name" in str(caught.value)


COLUMNS = {"prompt": "question", "completion": "answer", "id": "key", "system": "rules"}
OTHER_NAMES = {"question": "q", "answer": "a", "key": 7, "rules": "Be brief.", "text": "z"}


def test_columns_name_the_fields_of_a_format() -> None:
    [example] = read_source("s", [OTHER_NAMES], columns=COLUMNS).examples
    same = {"prompt": "q", "completion": "a", "id": 7, "system": "Be brief."}
    [expected] = read_source("s", [same]).examples
    assert (example.id, example.messages) == (expected.id, expected.messages)
    assert example.row == OTHER_NAMES  # the row is unmodified


def test_columns_choose_among_formats_and_may_swap() -> None:
    turns = [{"role": "user", "content": "m"}, {"role": "assistant", "content": "n"}]
    row = {"messages": turns, "prompt": "answer", "completion": "question"}
    swapped = {"prompt": "completion", "completion": "prompt"}
    [example] = read_source("s", [row], columns=swapped).examples
    assert [turn["content"] for turn in example.messages] == ["question", "answer"]
    dolly = {"instruction": "i", "context": "c", "response": "r"}
    columns = {"input": "context", "output": "response"}
    [example] = read_source("s", [dolly], columns=columns).examples
    assert [turn["content"] for turn in example.messages] == ["i\n\nc", "r"]


def test_a_row_without_a_mapped_column_is_bad() -> None:
    bad = {"question": "q", "text": "a"}
    source = read_source("s", [OTHER_NAMES, bad], columns=COLUMNS, on_bad_row="skip")
    assert source.bad_rows == (
        (
            "s (in memory) row 2",
            "there is no answer, which columns names for completion; found the keys question, text",
        ),
    )


@pytest.mark.parametrize("value", [None, 3, "", "a\nb", "\ud800"])
def test_a_row_without_its_source_is_bad(value: Any) -> None:
    rows = [{"prompt": "q", "completion": "a", "dataset": name} for name in ("org/cot", value)]
    source = read_source("mix", rows, source_field="dataset", on_bad_row="skip")
    assert [one.source for one in source.examples] == ["mix/org/cot"]
    [(_, reason)] = source.bad_rows
    assert reason.startswith("expected text in dataset (source_field), found ")


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_row_that_is_too_long_ends_reading(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    longest = max(len(line) for line in Path(jsonl(tmp_path, ROWS)).read_bytes().splitlines(True))
    assert len(read_source("s", path, limits=LimitsConfig(row_bytes=longest)).examples) == 3
    with pytest.raises(DataError, match=f"more than {longest - 1} bytes"):
        read_source("s", path, limits=LimitsConfig(row_bytes=longest - 1))


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet"])
def test_a_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsieve.data.readers.UNPACKED_BYTES", 1 << 20)
    rows = [{"prompt": "p", "completion": "same " * 2000}] * 300
    path, text = tmp_path / f"rows.{kind}", Path(jsonl(tmp_path, rows)).read_bytes()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        packer = "gzip" if kind.endswith("gz") else "zstd"
        with pa.CompressedOutputStream(str(path), packer) as packed:
            packed.write(text)
    assert len(text) > 50 * path.stat().st_size
    with pytest.raises(DataError, match="unpacks to more than 50 times its size"):
        read_source("s", str(path), limits=LimitsConfig(unpacked_times=50))
    source = read_source("s", str(path), limits=LimitsConfig(unpacked_times=10**6))
    assert len(source.examples) == 300


def test_a_large_file_that_packs_as_text_does_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsieve.data.readers.UNPACKED_BYTES", 1 << 10)
    monkeypatch.setattr("gradsieve.data.readers.LOOKED_AT", 1 << 11)
    rows = [{"id": n, "prompt": f"{n * 7919}", "completion": "yes"} for n in range(5000)]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(Path(jsonl(tmp_path, rows)).read_bytes()))
    assert len(read_source("s", str(path)).examples) == 5000


def test_a_folder_may_hold_files_that_it_says_are_not_read(tmp_path: Path) -> None:
    """Other splits, hidden files, files that a card excludes; any other unread file is an error."""
    row = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
    for name in ("train/a.jsonl", "test/b.jsonl", ".c.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(row)
    assert len(read_source("s", str(tmp_path)).examples) == 1
    (tmp_path / "d.jsonl").write_text(row)
    with pytest.raises(DataError, match="Only some files") as caught:
        read_source("s", str(tmp_path))
    assert caught.value.where.endswith("not d.jsonl")
    card = "---\nconfigs:\n- config_name: default\n  data_files: train/*.jsonl\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert len(read_source("s", str(tmp_path)).examples) == 1


def test_a_folder_whose_files_have_different_columns(tmp_path: Path) -> None:
    """`datasets` reports that it could not cast."""
    rows = [{"prompt": "a", "completion": "b"}, {"messages": [], "kind": "x"}]
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        read_source("s", str(tmp_path))
    assert "don't have the same columns" in caught.value.what
    assert caught.value.where.endswith("completion, prompt and completion, kind, messages, prompt")
    assert "source of each file" in caught.value.todo


def test_a_folder_with_a_damaged_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    jsonl(tmp_path, ROWS)
    with pytest.raises(DataError, match="data set cannot be loaded: while parsing a flow node"):
        read_source("s", str(tmp_path))
