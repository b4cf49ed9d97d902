"""The pool on disk is independent of format, number of processes, kills and row order.

A pool's contents are compared with reading and tokenizing the same rows in memory.
"""

import gzip
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

from conversations import byte_tokenizer
from gradsieve.data.batching import PoolTokens, batches_of
from gradsieve.data.pool import Pool
from gradsieve.data.pool.build import build_pool, check_rows
from gradsieve.data.pool.chunks import Chunk, RawChunk, make_chunk
from gradsieve.data.sources import SourceSpec, read_source, source_key
from gradsieve.data.template import ChatTemplate
from gradsieve.errors import DataError, ErrorGroup
from world import Killed

SHORT_CHUNKS = 7


@pytest.fixture(scope="session")
def template() -> ChatTemplate:
    """One token per byte, in the tulu format; a low max_length, so that some rows have no label."""
    return ChatTemplate(byte_tokenizer([]), "tulu", max_length=60)


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradsieve.data.pool.chunks.CHUNK_ROWS", SHORT_CHUNKS)
    monkeypatch.setattr("gradsieve.data.pool.workers.default_workers", lambda: 1)


def row(number: int) -> dict:
    conversation = [
        {"role": "user", "content": f"How many? {'é' * (number % 50)}"},
        {"role": "assistant", "content": f"{number} \u2028三"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes"},
    ]
    extra = {"x": [1, None, 2.5], "name": "\ud800" if number == 3 else "n"}
    kept = {"messages": conversation[: 2 + 2 * (number % 2)], "extra": extra}
    return kept if number % 3 == 0 else {"id": f"id-{number % 1000}", **kept}


ROWS = [row(number) for number in range(40)]


def jsonl(file: Path, rows: list) -> str:
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(file)


def everything(pool: Pool) -> list[tuple]:
    """All that a pool stores about its rows, by (source, id)."""
    columns = ["length", "n_label_tokens", "truncated", "skip_reason", "content_hash"]
    taken = pool.take(pool.order, columns).to_pylist()
    return list(
        zip(
            pool.keys(pool.order),
            pool.rows(pool.order),
            pool.messages(pool.order),
            pool.tokenized(pool.order),
            [tuple(one.values()) for one in taken],
            strict=True,
        )
    )


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def test_holds_what_reading_and_tokenizing_gives(tmp_path: Path, template: ChatTemplate) -> None:
    file = jsonl(tmp_path / "rows.jsonl", ROWS)
    pool = build_pool(tmp_path / "pool", [SourceSpec("s", file)], template)
    examples = read_source("s", file).examples
    encoded = template.try_encode_all(examples)
    numbers = range(len(examples))
    assert len(pool) == len(examples) == 40
    assert pool.keys(numbers) == [(example.source, example.id) for example in examples]
    assert pool.examples(numbers) == list(examples)
    assert pool.rows(numbers) == ROWS
    assert pool.tokenized(numbers) == encoded
    lazy = PoolTokens(pool, pool.order)
    assert list(lazy) == [encoded[number] for number in pool.order]
    assert lazy.__getitems__([3, 1]) == [lazy[3], lazy[1]] == list(lazy[1:4:2])[::-1]
    for (one, tensors), (other, same) in zip(
        batches_of(lazy, 100), batches_of(list(lazy), 100), strict=True
    ):
        assert one.tolist() == other.tolist()
        assert all(torch.equal(tensors[name], same[name]) for name in tensors)
    assert pool.lengths.tolist() == [len(tokens.input_ids) for tokens in encoded]
    assert pool.n_label_tokens.tolist() == [tokens.n_labels for tokens in encoded]
    assert pool.texts([1]) == ["How many? é\n1 \u2028三\nSure?\nYes"]
    assert pool.column("line").tolist() == list(range(1, 41))
    hashes = [
        hashlib.sha256(tokens.input_ids.tobytes() + tokens.labels.tobytes()).hexdigest()[:16]
        for tokens in encoded
    ]
    assert pool.store_keys(numbers)["content"].to_pylist() == hashes


def test_keys_of_a_datastore(tmp_path: Path, template: ChatTemplate) -> None:
    sources = [SourceSpec("b", ROWS[:25]), SourceSpec("a", ROWS[10:])]
    pool = build_pool(tmp_path / "pool", sources, template)
    numbers = [54, 3, 0, 20]
    encoded = pool.tokenized(numbers)
    expected = [
        (*key, hashlib.sha256(one.input_ids.tobytes() + one.labels.tobytes()).hexdigest()[:16])
        for key, one in zip(pool.keys(numbers), encoded, strict=True)
    ]
    found = pool.store_keys(numbers)
    assert found.column_names == ["source", "id", "content"]
    assert [tuple(row.values()) for row in found.to_pylist()] == expected
    assert pool.store_keys([]).num_rows == 0
    missing = pa.table({"source": ["a"], "id": ["missing"], "content": [""]})
    assert pool.locate(pa.concat_tables([missing, found])).tolist() == [-1, *numbers]
    assert pool.locate(missing[:0]).tolist() == []


def test_rows_without_a_label_token_have_a_reason(tmp_path: Path, template: ChatTemplate) -> None:
    pool = build_pool(tmp_path / "pool", [SourceSpec("s", ROWS)], template)
    without = [number for number in range(40) if pool.n_label_tokens[number] == 0]
    assert 0 < len(without) < 40
    reasons = pool.skip_reasons.to_pylist()
    assert {reasons[number] for number in without} == {"no label token within the first 60 tokens"}
    assert [number for number in range(40) if reasons[number]] == without
    assert sorted(pool.usable.tolist()) == [n for n in range(40) if n not in without]
    keys = pool.keys(pool.usable)
    assert keys == sorted(keys)


def test_rows_are_found_and_taken_in_any_order(tmp_path: Path, template: ChatTemplate) -> None:
    sources = [SourceSpec("b", ROWS[:25]), SourceSpec("a", ROWS[10:])]
    pool = build_pool(tmp_path / "pool", sources, template)
    keys = pool.keys(range(len(pool)))
    assert [keys[number] for number in pool.order] == sorted(keys)
    assert [pool.find(key.id)[key.source] for key in keys] == list(range(len(pool)))
    assert pool.find("id-11") == {"a": keys.index(("a", "id-11")), "b": keys.index(("b", "id-11"))}
    assert pool.find("missing") == {}
    mixed = [54, 3, 3, 0, 20]
    assert pool.keys(mixed) == [keys[number] for number in mixed]
    assert pool.rows(mixed) == [pool.rows([number])[0] for number in mixed]
    assert pool.keys([]) == []
    assert pool.tokenized([]) == []
    with pytest.raises(IndexError):
        pool.keys([len(pool)])


def test_is_a_data_set_of_the_library_datasets(tmp_path: Path, template: ChatTemplate) -> None:
    pool = build_pool(tmp_path / "pool", [SourceSpec("s", ROWS)], template)
    loaded = datasets.load_from_disk(str(tmp_path / "pool" / "dataset"))
    assert isinstance(loaded, datasets.Dataset)
    assert loaded.cache_files
    assert loaded["id"][:] == [key.id for key in pool.keys(range(40))]
    assert list(loaded[5]["input_ids"]) == list(pool.tokenized([5])[0].input_ids)


def write(folder: Path, kind: str, rows: list) -> str:
    path = folder / f"rows.{kind}"
    text = "".join(json.dumps(one) + "\n" for one in rows).encode()
    if kind == "jsonl":
        path.write_bytes(text)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(text))
    elif kind == "jsonl.zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(text)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif kind == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    elif kind == "hub-folder":
        path.mkdir()
        (path / "data.jsonl").write_bytes(text)
    return str(path)


KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "json", "parquet", "saved", "hub-folder", "in-memory"]


@pytest.mark.parametrize("kind", KINDS)
def test_format_and_order_change_nothing(
    tmp_path: Path, template: ChatTemplate, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"id": str(n), "prompt": f"p{n}", "completion": "c", "n": n} for n in range(20)]
    expected = build_pool(tmp_path / "expected", [SourceSpec("s", rows)], template)
    random.Random(0).shuffle(rows)
    path = rows if kind == "in-memory" else write(tmp_path, kind, rows)
    pool = build_pool(tmp_path / "pool", [SourceSpec("s", path)], template)
    assert everything(pool) == everything(expected)
    assert pool.fingerprints == expected.fingerprints
    rows[0]["n"] = -1
    changed = build_pool(tmp_path / "changed", [SourceSpec("s", rows)], template)
    assert changed.fingerprints != expected.fingerprints


def test_the_order_of_sources_changes_no_byte(tmp_path: Path, template: ChatTemplate) -> None:
    sources = [SourceSpec("b", ROWS[:25]), SourceSpec("a", ROWS[10:])]
    build_pool(tmp_path / "one", sources, template)
    build_pool(tmp_path / "two", sources[::-1], template)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_the_number_of_processes_changes_no_byte(
    tmp_path: Path, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "no answer"}])
    for workers in (1, 2):
        monkeypatch.setattr(
            "gradsieve.data.pool.workers.default_workers", lambda count=workers: count
        )
        build_pool(tmp_path / str(workers), [SourceSpec("s", file)], template, on_bad_row="skip")
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2")


@pytest.mark.parametrize(("free", "under_way"), [(1, 0), (3, 7), (100, 33)])
def test_free_cores_of_a_cluster_tokenize_if_they_are_more(
    tmp_path: Path,
    template: ChatTemplate,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    under_way: int,
) -> None:
    monkeypatch.setattr("gradsieve.data.pool.chunks.CHUNK_ROWS", 1)
    sources = [SourceSpec("s", ROWS), SourceSpec("t", ROWS)]
    build_pool(tmp_path / "here", sources, template)
    calls: list[Any] = []
    most = [0]

    class Call(Future[Chunk]):
        def result(self, timeout: float | None = None) -> Chunk:
            calls.remove(self)
            return super().result(timeout)

    def submit(_: object, chunk: RawChunk, only_check: bool) -> Call:
        call = Call()
        call.set_result(make_chunk(chunk, template, only_check))
        calls.append(call)
        most.append(len(calls))
        return call

    engine = Mock()
    engine.executor.return_value = Mock(submit=submit), free
    build_pool(tmp_path / "there", sources, template, engine=engine)
    assert bytes_of(tmp_path / "here") == bytes_of(tmp_path / "there")
    assert max(most) == under_way
    where = "on the cluster" if under_way else "here"
    note = f"pool: tokenized {where}, because {free} cores are free on the cluster, 1 here"
    engine.progress.note.assert_called_once_with(note)  # not for each source
    engine.progress.warn.assert_not_called()


def test_a_cluster_whose_cores_are_taken_is_waited_for_with_a_warning(
    tmp_path: Path, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsieve.data.pool.workers.SECONDS_TO_WARN", 0.01)
    monkeypatch.setattr("gradsieve.data.pool.workers._template", template, raising=False)
    with ThreadPoolExecutor(1) as cores:
        cores.submit(time.sleep, 0.1)  # another program
        engine = Mock()
        engine.executor.return_value = cores, 2
        build_pool(tmp_path, [SourceSpec("s", ROWS)], template, engine=engine)
    engine.progress.warn.assert_called_once()
    assert "other programs may use" in engine.progress.warn.call_args.args[0]


def killing(monkeypatch: pytest.MonkeyPatch, name: str, after: int) -> None:
    """Kill the process when a function of part.py is called after `after` completed calls."""
    import gradsieve.data.pool.part as part

    calls: Iterator[int] = iter(range(after))
    original: Callable = getattr(part, name)

    def killed(*arguments: object) -> object:
        if next(calls, None) is None:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(part, name, killed)


@pytest.mark.parametrize("at", ["_synced", "write_json"])
def test_a_killed_build_resumes_and_ends_with_the_same_bytes(
    tmp_path: Path, template: ChatTemplate, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*ROWS, *ROWS[:9], {"prompt": "no answer"}]  # rows with duplicate ids or equal contents
    sources = [SourceSpec("a", jsonl(tmp_path / "a.jsonl", rows)), SourceSpec("b", ROWS)]
    build_pool(tmp_path / "whole", sources, template, on_bad_row="skip")
    kills = 0
    for after in range(100):
        with monkeypatch.context() as patch:
            killing(patch, at, after % 3 + 1)
            try:
                build_pool(tmp_path / "killed", sources, template, on_bad_row="skip")
                break
            except Killed:
                kills += 1
        data = sorted((tmp_path / "killed" / "dataset").glob("*.arrow"))[-1]
        with data.open("ab") as file:
            file.write(b"what a kill left behind")
    assert kills > 5
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_finished_chunks_are_not_made_again(
    tmp_path: Path, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = jsonl(tmp_path / "rows.jsonl", ROWS)
    with monkeypatch.context() as patch:
        killing(patch, "write_json", 3)
        with pytest.raises(Killed):
            build_pool(tmp_path / "pool", [SourceSpec("s", file)], template)
    finished: list[int] = []
    made = tokenized(template, monkeypatch)
    build_pool(tmp_path / "pool", [SourceSpec("s", file)], template, report=finished.append)
    assert made() == 40 - 3 * SHORT_CHUNKS
    assert finished == [21, 28, 35, 40]


def tokenized(template: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the rows that are tokenized from now on."""
    counts: list[int] = []
    original = template.try_encode_all

    def counted(examples: list) -> list:
        counts.append(len(examples))
        return original(examples)

    monkeypatch.setattr(template, "try_encode_all", counted)
    return lambda: sum(counts)


def test_a_changed_source_redoes_its_own_part_only(
    tmp_path: Path, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (jsonl(tmp_path / f"{name}.jsonl", ROWS) for name in "ab")
    sources = [SourceSpec("a", a), SourceSpec("b", b)]
    build_pool(tmp_path / "pool", sources, template)
    made = tokenized(template, monkeypatch)
    jsonl(tmp_path / "a.jsonl", ROWS[:10])
    pool = build_pool(tmp_path / "pool", sources, template)
    assert made() == 10
    assert len(pool) == 50
    moved = [SourceSpec("b", str((tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")))]
    pool = build_pool(tmp_path / "pool", moved, template)
    assert made() == 10
    assert len(pool) == 40
    assert not (tmp_path / "pool" / "dataset" / "a.arrow").exists()
    build_pool(tmp_path / "alone", moved, template)
    assert bytes_of(tmp_path / "pool") == bytes_of(tmp_path / "alone")


def test_another_template_makes_all_again(tmp_path: Path, template: ChatTemplate) -> None:
    sources = [SourceSpec("s", ROWS)]
    build_pool(tmp_path / "pool", sources, template)
    other = ChatTemplate(template.tokenizer, "tulu", max_length=60)
    pool = build_pool(tmp_path / "pool", sources, other)
    assert pool.lengths.max() == 60


def test_a_damaged_part_is_made_again(tmp_path: Path, template: ChatTemplate) -> None:
    sources = [SourceSpec("s", ROWS)]
    build_pool(tmp_path / "pool", sources, template)
    before = bytes_of(tmp_path / "pool")
    data = tmp_path / "pool" / "dataset" / "s.arrow"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged or not finished"):
        Pool(tmp_path / "pool")
    build_pool(tmp_path / "pool", sources, template)
    assert bytes_of(tmp_path / "pool") == before
    with pytest.raises(DataError, match="no finished pool"):
        Pool(tmp_path)


BAD = [
    b'{"id": "a", "prompt": "p", "completion": "c"}',
    b'{"id": "b", "prompt": "p"',
    b"",
    b'{"id": "a", "prompt": "q", "completion": "c"}',
    b'{"id": "d", "prompt": "p", "completion": "\xff"}',
    *[b'{"id": "%d", "prompt": "p", "completion": "  "}' % number for number in range(20)],
]


def test_bad_rows_are_all_counted_as_reading_does(tmp_path: Path, template: ChatTemplate) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b"\n".join(BAD))
    with pytest.raises(DataError) as of_reading:
        read_source("s", str(file))
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            build_pool(tmp_path / "pool", [SourceSpec("s", str(file))], template)
        assert str(caught.value) == str(of_reading.value)
    message = str(caught.value)
    assert "23 of 24 rows" in message
    assert f"{file}:4: the id 'a' is taken by {file}:1" in message
    assert "and 13 more" in message


def test_bad_rows_can_be_skipped(tmp_path: Path, template: ChatTemplate) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b"\n".join(BAD))
    sources = [SourceSpec("good", ROWS), SourceSpec("s", str(file))]
    pool = build_pool(tmp_path / "pool", sources, template, on_bad_row="skip")
    lines = (tmp_path / "pool" / "skipped.jsonl").read_text().splitlines()
    expected = [
        {"source": "s", "where": bad.where, "reason": bad.reason}
        for bad in read_source("s", str(file), on_bad_row="skip").bad_rows
    ]
    assert [json.loads(line) for line in lines] == expected
    assert (pool.sources["s"].rows, pool.sources["s"].skipped) == (1, 23)
    assert pool.sources["good"].skipped == 0
    assert pool.first_skipped == {"s": (expected[0]["where"], expected[0]["reason"])}
    with pytest.raises(DataError, match="23 of 24 rows"):
        build_pool(tmp_path / "pool", sources, template, on_bad_row="fail")


def test_the_first_skipped_rows_of_many_sources_are_read_once(
    tmp_path: Path, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [ROWS[0], {"prompt": "no answer"}, {"prompt": "no answer"}]
    names = [f"s{number:02}" for number in range(20)]
    sources = [SourceSpec(name, rows) for name in names]
    pool = build_pool(tmp_path / "pool", sources, template, on_bad_row="skip")
    read: list[Path] = []

    def counted(file: Path) -> Iterator[dict]:
        read.append(file)
        yield from map(json.loads, file.read_text().splitlines())

    monkeypatch.setattr("gradsieve.data.pool.mapped.read_lines", counted)
    found = {name: where for name, (where, _) in pool.first_skipped.items()}
    assert found == {name: f"{name} (in memory) row 2" for name in names}
    assert len(read) == 1


def test_after_a_bad_row_nothing_is_tokenized(
    tmp_path: Path, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": "no answer"}, *ROWS, {"prompt": "no answer"}]
    made = tokenized(template, monkeypatch)
    with pytest.raises(DataError, match="2 of 42 rows"):
        build_pool(tmp_path / "pool", [SourceSpec("s", rows)], template)
    assert made() == SHORT_CHUNKS - 1
    pool = build_pool(tmp_path / "pool", [SourceSpec("s", rows)], template, on_bad_row="skip")
    assert len(pool) == 40


def test_a_source_without_a_usable_row_is_refused(tmp_path: Path, template: ChatTemplate) -> None:
    rows = [{"prompt": "no answer"}]
    with pytest.raises(DataError, match="There is no usable row"):
        build_pool(tmp_path / "pool", [SourceSpec("s", rows)], template, on_bad_row="skip")
    with pytest.raises(DataError, match="There is no usable row"):
        build_pool(tmp_path / "pool", [SourceSpec("s", [])], template)


def test_equal_rows_and_ids_that_meet(tmp_path: Path, template: ChatTemplate) -> None:
    plain = {"prompt": "p", "completion": "c"}
    made = build_pool(tmp_path / "one", [SourceSpec("s", [plain] * 20)], template).keys(range(20))
    first = made[0].id
    assert [key.id for key in made] == [first, *(f"{first}-{n}" for n in range(2, 21))]
    rows = [{"id": first, "prompt": "q", "completion": "c"}, plain]
    with pytest.raises(
        DataError, match=f"'{first}' made from its content is taken by s .in memory. row 1"
    ):
        build_pool(tmp_path / "two", [SourceSpec("s", rows)], template)
    with pytest.raises(DataError, match=f"the id '{first}' is taken by s .in memory. row 1"):
        build_pool(tmp_path / "three", [SourceSpec("s", rows[::-1])], template)


def test_a_file_that_changes_while_it_is_read_is_named(
    tmp_path: Path, template: ChatTemplate
) -> None:
    file = Path(jsonl(tmp_path / "rows.jsonl", ROWS))

    def grow(rows: int) -> None:
        with file.open("a") as opened:
            opened.write(json.dumps({"prompt": "p", "completion": str(rows)}) + "\n")

    with pytest.raises(DataError, match="changed while it was read"):
        build_pool(tmp_path / "pool", [SourceSpec("s", str(file))], template, report=grow)


def test_a_source_key_is_of_bytes_not_of_the_path(tmp_path: Path) -> None:
    one, two = (jsonl(tmp_path / name, ROWS) for name in ("a.jsonl", "b.jsonl"))
    other = jsonl(tmp_path / "c.jsonl", ROWS[:-1])
    keys = [
        source_key(SourceSpec("s", path)).digest for path in (one, two, other, ROWS, iter(ROWS))
    ]
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == keys[4] != source_key(SourceSpec("s", ROWS[:-1])).digest


def test_values_that_json_cannot_hold(tmp_path: Path, template: ChatTemplate) -> None:
    good = {"prompt": "p", "completion": "c", "vector": np.arange(2), "raw": b"x"}
    rows = [good, {**good, "prompt": "q"}, {"prompt": b"p", "completion": "c"}]
    pool = build_pool(tmp_path / "pool", [SourceSpec("s", rows)], template, on_bad_row="skip")
    assert pool.rows([0]) == [{"prompt": "p", "completion": "c", "vector": [0, 1]}]
    source = read_source("s", rows, on_bad_row="skip")
    assert len(source.warnings) == 1
    assert pool.sources["s"].warnings == source.warnings
    assert pool.sources["s"].skipped == len(source.bad_rows) == 1


def test_what_is_supervised_is_kept_and_part_of_the_fingerprint(
    tmp_path: Path, template: ChatTemplate
) -> None:
    turns = [*row(1)["messages"]]
    rows = [{"id": 1, "prompt": turns[:3], "completion": "Yes"}, ROWS[0]]
    pools = {
        supervise: build_pool(
            tmp_path / supervise, [SourceSpec("s", rows, supervise=supervise)], template
        )
        for supervise in ("completion", "all")
    }
    for supervise, pool in pools.items():
        examples = read_source("s", rows, supervise=supervise).examples
        assert pool.examples([0, 1]) == list(examples)
        assert pool.tokenized([0, 1]) == template.try_encode_all(examples)
    assert pools["completion"].fingerprints != pools["all"].fingerprints


def test_rows_that_the_template_refuses_are_bad_rows(
    tmp_path: Path, template: ChatTemplate
) -> None:
    file = tmp_path / "strict.jinja"
    file.write_text(
        "{% for m in messages %}{% if 'é' in m.content %}{{ raise_exception('no é') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    strict = ChatTemplate(template.tokenizer, str(file), max_length=200)
    with pytest.raises(DataError, match="40 rows of s") as caught:
        build_pool(tmp_path / "pool", [SourceSpec("s", ROWS)], strict)
    assert "row 2: the chat template refuses it: no é" in str(caught.value)
    pool = build_pool(tmp_path / "pool", [SourceSpec("s", ROWS)], strict, on_bad_row="skip")
    assert len(pool) == 1
    assert pool.sources["s"].skipped == 39


def named(number: int) -> dict:
    return {**row(number), "dataset": f"org/{'abc'[number % 3]}"}


def test_a_file_with_many_sources(tmp_path: Path, template: ChatTemplate) -> None:
    rows = [named(number) for number in range(40)]
    specs = [SourceSpec("mix", rows, source_field="dataset"), SourceSpec("a", ROWS)]
    pool = build_pool(tmp_path / "pool", specs, template)
    assert pool.source_names == ["a", "mix/org/a", "mix/org/b", "mix/org/c"]
    assert np.bincount(pool.source_codes).tolist() == [40, 14, 13, 13]
    assert {name: source.rows for name, source in pool.sources.items()} == {"a": 40, "mix": 40}
    assert pool.rows([pool.find("id-1")["mix/org/b"]]) == [rows[1]]
    assert pool.keys(pool.order) == sorted(pool.keys(range(80)))
    plain = build_pool(tmp_path / "plain", [SourceSpec("mix", rows)], template)
    assert plain.fingerprints["mix"] != pool.fingerprints["mix"]


def test_a_field_with_a_value_for_each_row_is_no_source(
    tmp_path: Path, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsieve.data.pool.build.MOST_SOURCES", 2)
    spec = SourceSpec("mix", [named(number) for number in range(9)], source_field="dataset")
    with pytest.raises(DataError, match="The field dataset names 3 sources; at most 2"):
        build_pool(tmp_path / "pool", [spec], template)


def test_columns_are_part_of_the_fingerprint(tmp_path: Path, template: ChatTemplate) -> None:
    rows = [{"q": "p", "a": "one", "b": "two"}]
    pools = [
        build_pool(
            tmp_path / answer,
            [SourceSpec("s", rows, columns={"prompt": "q", "completion": answer})],
            template,
        )
        for answer in "ab"
    ]
    assert [pool.messages([0])[0][-1]["content"] for pool in pools] == ["one", "two"]
    assert pools[0].fingerprints != pools[1].fingerprints


def test_problems_of_all_sources_are_reported_at_once(
    tmp_path: Path, template: ChatTemplate
) -> None:
    bad = [*ROWS, {"prompt": "no answer"}]
    specs = [SourceSpec("a", bad), SourceSpec("b", ROWS), SourceSpec("c", [])]
    specs += [SourceSpec(name, str(tmp_path / f"{name}.jsonl")) for name in "de"]
    with pytest.raises(ErrorGroup) as caught:
        build_pool(tmp_path / "pool", specs, template)
    said = [str(error) for error in caught.value.errors]
    assert [str(error) for error in check_rows(specs, skips=False)] == said
    expected = ("1 of 41 rows of a", "no usable row", "d.jsonl", "e.jsonl")
    assert [part in text for part, text in zip(expected, said, strict=True)] == [True] * 4
