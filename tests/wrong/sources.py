"""Wrong files of a pool, and wrong rows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wrong import Case, Desk

Spoil = Callable[[Desk], object]

GOOD = {"prompt": "say it", "completion": "it"}
LINE = json.dumps(GOOD) + "\n"
DEEP = '{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}"
BINARY = bytes(range(256)) * 40


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    """A row with messages from (role, content) pairs."""
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


USER, ANSWER = ({"role": role, "content": "it"} for role in ("user", "assistant"))
MADE = "b212ce535b0b0992"
"""The id that is generated for GOOD."""

TOO_LONG = turns(("user", "a " * 90), ("assistant", "b"))


def pool(name: str, content: str | bytes) -> Spoil:
    return lambda desk: desk.pool(name, content)


def row(content: dict[str, Any] | str) -> Spoil:
    """Replaces the pool's seventh row."""
    return lambda desk: desk.row(7, content)


def missing(desk: Desk) -> None:
    desk.set("pool.0.path", "ome.jsonl")


def parquet(columns: dict[str, list[Any]], cut: int = 0) -> Spoil:
    def spoil(desk: Desk) -> None:
        pq.write_table(pa.table(columns), "pool.parquet")
        whole = Path("pool.parquet").read_bytes()
        desk.pool("pool.parquet", whole[: len(whole) - cut])

    return spoil


def twice(desk: Desk) -> None:
    for number in (3, 7):
        desk.row(number, {"id": "x", **GOOD})


def made_id(desk: Desk) -> None:
    desk.row(7, GOOD)
    desk.row(8, {"id": MADE, "prompt": "say that", "completion": "that"})


def splits(desk: Desk) -> None:
    import datasets

    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_list([GOOD])
    datasets.DatasetDict({"train_sft": whole}).save_to_disk("saved")
    desk.set("pool", [{"name": "one", "path": "saved"}])


def broken_folder(desk: Desk) -> None:
    desk.write("data/train.jsonl", "{no\n")
    desk.set("pool", [{"name": "one", "path": "data"}])


def empty_folder(desk: Desk) -> None:
    Path("data").mkdir()
    desk.set("pool", [{"name": "one", "path": "data"}])


def folder_of(*files: str) -> Spoil:
    """Sets the pool to a folder with one row in each of these files."""

    def spoil(desk: Desk) -> None:
        for file in files:
            desk.write(f"data/{file}", LINE)
        desk.set("pool", [{"name": "one", "path": "data"}])

    return spoil


def broken_link(desk: Desk) -> None:
    Path("a.jsonl").symlink_to("b.jsonl")
    desk.set("pool.0.path", "a.jsonl")


def saved(spoil: Callable[[Path], object]) -> Spoil:
    """Sets the pool to a damaged saved data set."""

    def whole(desk: Desk) -> None:
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_list([GOOD] * 50).save_to_disk("saved")
        spoil(Path("saved"))
        desk.set("pool", [{"name": "one", "path": "saved"}])

    return whole


def cut_arrow(folder: Path) -> None:
    [file] = folder.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-900])


NAMED = {"prompt": "question", "completion": "answer"}

NOT_THERE = ("pool.0.path", "someone/something")

FILES = (
    Case("a missing file", missing, ("The file does not exist", "ome.jsonl", "mean one.jsonl?")),
    Case(
        "a missing folder",
        lambda desk: desk.set("pool.0.path", "dta/one.jsonl"),
        ("The folder does not exist", "dta", "relative paths start where"),
    ),
    Case("a broken link", broken_link, ("leads to no file", "a.jsonl -> b.jsonl", "Correct the")),
    Case("an empty file", pool("a.jsonl", ""), ("The file is empty", "a.jsonl", "with rows")),
    Case(
        "a file of blank lines",
        pool("a.jsonl", "\n\n"),
        ("no usable row", "a.jsonl: it has no rows"),
    ),
    Case(
        "a binary file", pool("a.jsonl", BINARY), ("not UTF-8 at byte", "a.jsonl:2", "and 31 more")
    ),
    Case("a file of an unknown kind", pool("a.csv", "a,b\n"), ("kind of file", "a.csv", ".jsonl")),
    Case(
        "a JSON array where lines are due",
        pool("a.jsonl", json.dumps([GOOD], indent=1)),
        ("found a JSON array", "a.jsonl:1", "Rename the file to .json"),
    ),
    Case(
        "a row over several lines",
        pool("a.jsonl", json.dumps(GOOD, indent=1)),
        ("found one over several lines", "a.jsonl:1", "each row on a line"),
    ),
    Case(
        "a JSON object that is no list",
        pool("a.json", json.dumps({"data": [GOOD]})),
        ("found an object", "a.json", "Write the rows as a JSON array"),
    ),
    Case(
        "lines where an array is due",
        pool("a.json", LINE * 2),
        ("line 2 column 1", "rename it to .jsonl"),
    ),
    Case("a file in UTF-16", pool("a.jsonl", LINE.encode("utf-16")), ("not UTF-8 at byte 1", ":1")),
    Case(
        "a .gz that is not packed",
        pool("a.jsonl.gz", LINE),
        ("cannot be unpacked", "incorrect header check", "a.jsonl.gz", "take .gz off its name"),
    ),
    Case(
        "a .gz that ends too soon",
        pool("a.jsonl.gz", gzip.compress(LINE.encode() * 999)[:-10]),
        ("cannot be unpacked", "a.jsonl.gz", "Give a whole gzip file"),
    ),
    Case(
        "a Parquet file that ends too soon",
        parquet({"prompt": ["a"], "completion": ["b"]}, cut=100),
        ("not Parquet", "pool.parquet", "whole Parquet file"),
    ),
    Case(
        "Parquet without the columns",
        parquet({"text": ["a"], "label": [1]}),
        (
            "expected messages",
            "found the keys text, label",
            "pool.parquet row 1",
            "columns: {prompt",
        ),
    ),
    Case("a saved data set's other split", splits, ("no split train", "saved", "one of train_sft")),
    Case("a saved data set whose Arrow file is cut", saved(cut_arrow), ("cannot be read", "saved")),
    Case(
        "a saved data set whose state is a list",
        saved(lambda folder: (folder / "state.json").write_text("[]")),
        ("cannot be read", "saved", "Dataset.save_to_disk"),
    ),
    Case(
        "a kind of file in place of a path",
        lambda desk: desk.set("pool.0.path", "parquet"),
        ("parquet is a kind of file, not a data set", "path: parquet", "org/name"),
    ),
    Case("a folder without data", empty_folder, ("any data files", "data, split train", "a file")),
    Case(
        "a folder with files next to those of a split",
        folder_of("flan_train.jsonl", "dolly.jsonl"),
        ("Only some files", "data: not dolly.jsonl", "a source of each file"),
    ),
    Case(
        "a folder of two kinds of files",
        folder_of("a.jsonl", "b.jsonl", "c.parquet"),
        ("Only some files", "data: not c.parquet", "files of one kind"),
    ),
    Case("a folder of broken data", broken_folder, ("JSON parse error", "data, split train")),
    Case(
        "a hub's data set, without a network",
        lambda desk: desk.set(*NOT_THERE),
        ("cannot be loaded", "someone/something, split train", "Give a file that exists"),
    ),
)

ROWS = (
    Case("broken JSON in line 7", row('{"messages": ['), ("1 of 20 rows", "one.jsonl:7: not JSON")),
    Case(
        "a line that is a list", row("[1, 2]"), ("one.jsonl:7", "expected an object, found a list")
    ),
    Case("no messages", row({"text": "a"}), ("one.jsonl:7", "expected messages", "keys text")),
    Case(
        "a column that is not there",
        lambda desk: desk.set("pool.0.columns", NAMED),
        ("20 of 20 rows", "one.jsonl:1: there is no question, which columns names for prompt"),
    ),
    Case(
        "a row without its source",
        lambda desk: desk.set("pool.0.source_field", "dataset"),
        ("one.jsonl:1: expected text in dataset (source_field), found null",),
    ),
    Case("no turns", row({"messages": []}), ("one.jsonl:7", "messages is empty", "on_bad_row")),
    Case(
        "an unknown role",
        row(turns(("user", "a"), ("bot", "b"))),
        ("one.jsonl:7", "unknown role 'bot'; known: system, user, assistant, tool"),
    ),
    Case("a role that is a list", row(turns((["user"], "a"))), ("unknown role ['user']",)),
    Case(
        "an empty answer", row(turns(("user", "a"), ("assistant", " "))), ("the answer is empty",)
    ),
    Case(
        "an answer that is no text",
        row(turns(("user", "a"), ("assistant", 3))),
        ("one.jsonl:7", "expected text in the assistant's turn, found int"),
    ),
    Case(
        "a last turn of the user",
        row(turns(("assistant", "a"), ("user", "b"))),
        ("the last turn is the user's; expected the assistant's",),
    ),
    Case(
        "a weight that is no 0 or 1",
        row({"messages": [USER, {**ANSWER, "weight": 0.5}]}),
        ("one.jsonl:7: expected weight 0 or 1 in the assistant's turn, found 0.5",),
    ),
    Case(
        "every answer taken out of the loss",
        row({"messages": [USER, {**ANSWER, "train": False}]}),
        ("one.jsonl:7: no turn is supervised",),
    ),
    Case(
        "a part of an image",
        row({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}),
        ("one.jsonl:7", "found a part of type image"),
    ),
    Case(
        "tools that are not JSON",
        row({"messages": [USER, ANSWER], "tools": "weather(city)"}),
        ("one.jsonl:7: expected JSON in tools, found 'weather(city)'",),
    ),
    Case(
        "a list as Alpaca's input",
        row({"instruction": "say", "input": ["it"], "output": "it"}),
        ("one.jsonl:7: expected text or a number in input, found a list",),
    ),
    Case(
        "NaN in JSON",
        row('{"instruction": "say", "input": NaN, "output": "it"}'),
        ("one.jsonl:7: not JSON: NaN", "write null"),
    ),
    Case("an id made for another row", made_id, ("one.jsonl:8: the id", "is taken by one.jsonl:7")),
    Case("an id given twice", twice, ("one.jsonl:7: the id 'x' is taken by one.jsonl:3",)),
    Case("a null byte", row('{"prompt": "a\0", "completion": "b"}'), ("one.jsonl:7: not JSON",)),
    Case(
        "half of a surrogate pair",
        row({"prompt": "a\ud800", "completion": "b"}),
        ("one.jsonl:7: the user's turn is no Unicode text", r"surrogate pair, '\ud800'"),
    ),
    Case("JSON of 100,000 brackets", row(DEEP), ("one.jsonl:7", "nested too deeply")),
    Case("a number of 5,000 digits", row(f'{{"n": {"9" * 5000}}}'), ("a number of thousands",)),
    Case(
        "only rows that are too long",
        lambda desk: desk.pool("a.jsonl", json.dumps(TOO_LONG) + "\n"),
        ("No row of the pool has label tokens", "first 64 tokens", "model.max_length"),
    ),
    Case(
        "only bad rows, to be left out",
        lambda desk: desk.pool("a.jsonl", "{}\n") or desk.set("on_bad_row", "skip"),
        ("no usable row", "all of its 1 rows are bad", "one good row"),
    ),
)
