"""Any file format gives the same examples; bad rows are named by file and line; ids are stable."""

import gzip
import json
from pathlib import Path

import datasets
import pytest

from gradsieve.data.readers import Source, read_source
from gradsieve.errors import DataError

ROWS = [
    {"id": "a", "prompt": "One\u2028line", "completion": "1", "extra": {"x": [1, None]}},
    {"id": "b", "prompt": "Zwei", "completion": "2", "extra": {"x": [2, None]}},
    {"id": "c", "prompt": "三", "completion": "3", "extra": {"x": [3, None]}},
]


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
    elif kind == "json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif kind == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    elif kind == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    elif kind == "saved-splits":
        data = datasets.Dataset.from_list(ROWS)
        datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(path)
    elif kind == "hub-folder":  # a data set repository's layout, as the hub has it
        path.mkdir()
        (path / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files: data.jsonl\n---\n"
        )
        jsonl(path, ROWS, "data.jsonl")
    return str(path)


KINDS = ["jsonl", "jsonl.gz", "json", "parquet", "saved", "saved-splits", "hub-folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_files_give_the_same(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = read_source("s", write(tmp_path, kind))
    assert [dict(example.row) for example in source.examples] == ROWS
    assert [example.id for example in source.examples] == ["a", "b", "c"]
    assert source.examples[2].messages[0]["content"] == "三"
    assert source.fingerprint == read_source("t", jsonl(tmp_path, ROWS)).fingerprint


def test_fingerprint_ignores_order_and_sees_content(tmp_path: Path) -> None:
    first = read_source("s", jsonl(tmp_path, ROWS))
    assert read_source("s", jsonl(tmp_path, ROWS[::-1], "b.jsonl")).fingerprint == first.fingerprint
    changed = [*ROWS[:2], {**ROWS[2], "completion": "4"}]
    assert read_source("s", jsonl(tmp_path, changed)).fingerprint != first.fingerprint


def ids(source: Source) -> dict[str, str]:
    return {example.messages[0]["content"]: example.id for example in source.examples}


def test_made_ids_are_stable_and_equal_rows_are_told_apart(tmp_path: Path) -> None:
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
        ("binary.json", b"\xff\xfe", "not JSON"),
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
    with pytest.raises(DataError, match="folder is not there"):
        read_source("s", str(tmp_path / "none" / "doly.jsonl"))


def test_a_missing_split_names_those_there(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_source("s", write(tmp_path, "saved-splits"), split="dev")
    assert "train, test" in caught.value.todo


def test_paths_with_spaces_and_other_letters(tmp_path: Path) -> None:
    folder = tmp_path / "мои данные"
    folder.mkdir()
    assert len(read_source("s", jsonl(folder, ROWS)).examples) == 3


def test_real_sources_are_read(shared_data: Path) -> None:
    for file in sorted((shared_data / "train").glob("*.jsonl")):
        lines = file.read_bytes().count(b"\n")
        source = read_source(file.stem, str(file))
        assert len(source.examples) == lines, file.name
