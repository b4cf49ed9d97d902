"""Inputs that would exhaust memory or take hours: pipes, decompression bombs, endless templates.

They are cheap to make. docs/messages.md reports the time and memory until each is rejected.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from wrong import Case, Desk
from wrong.sources import GOOD, LINE, row

Spoil = Callable[[Desk], object]


def path(name: str) -> Spoil:
    return lambda desk: desk.set("pool.0.path", name)


def pipe(name: str, key: str, value: str) -> Spoil:
    def spoil(desk: Desk) -> None:
        Path(name).parent.mkdir(exist_ok=True)
        os.mkfifo(name)
        desk.set(key, value)

    return spoil


def packed(start: bytes, times: int, block: bytes) -> Spoil:
    """Sets the pool to a .zst file: `start`, then `times` copies of `block`."""

    def spoil(desk: Desk) -> None:
        with pa.CompressedOutputStream("a.jsonl.zst", "zstd") as out:
            out.write(start)
            for _ in range(times):
                out.write(block)
        desk.set("pool.0.path", "a.jsonl.zst")

    return spoil


def template(text: str, **settings: Any) -> Spoil:
    def spoil(desk: Desk) -> None:
        desk.write("own.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}" + text)
        desk.set("model.chat_template", "own.jinja")
        for key, value in settings.items():
            desk.set(f"limits.{key}", value)

    return spoil


def recipe(change: Callable[[str], str]) -> Spoil:
    def spoil(desk: Desk) -> None:
        file = desk.folder / "recipe.yaml"
        desk.write("recipe.yaml", change(file.read_text(encoding="utf-8")))

    return spoil


def aliases(start: str, many: str) -> str:
    """Twenty levels of YAML aliases, each with nine references to the level before."""
    lines = [f"a0: &a0 {start}"]
    lines += [f"a{n}: &a{n} {many.format(', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, 20)]
    return "\n".join(lines) + "\n"


def many_sources(desk: Desk) -> None:
    one = {"name": "one", "path": "one.jsonl"}
    desk.set("pool", [{**one, "name": f"s{number % 2999}"} for number in range(3000)])


def nested(levels: int) -> str:
    deep = "[" * levels + "]" * levels
    return json.dumps(GOOD)[:-1] + f', "deep": {deep}}}'


WRITES = "{% for i in range(99999) %}{% for j in range(99) %}{{ x }}{% endfor %}{% endfor %}"
FIFO, LOOP = "not a file", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"

LIMITS = (
    Case("a pipe as a source", pipe("a.jsonl", "pool.0.path", "a.jsonl"), (FIFO, "a.jsonl")),
    Case("a device as a source", path("/dev/zero"), (FIFO, "/dev/zero", "Write the rows")),
    Case(
        "a pipe in a folder of data", pipe("data/a.jsonl", "pool.0.path", "data"), (FIFO, "data/")
    ),
    Case(
        "a pipe as chat template",
        pipe("own.jinja", "model.chat_template", "own.jinja"),
        ("a folder or a pipe", "own.jinja"),
    ),
    Case(
        "a pipe as recipe",
        lambda desk: os.mkfifo("pipe.yaml"),
        ("it is a pipe or a device", "pipe.yaml"),
        2,
        "run pipe.yaml --out run",
    ),
    Case(
        "a row of 300 MB, packed in 30 kB",
        packed(b'{"prompt": "', 300, b"a" * (1 << 20)),
        ("A row has more than 268435456 bytes", "a.jsonl.zst:1", "limits.row_bytes"),
    ),
    Case(
        "rows of 1.1 GB, packed in 100 kB",
        packed(b"", 1100, (LINE.encode() * 30_000)[: 1 << 20]),
        ("unpacks to more than 200 times its size", "a.jsonl.zst", "limits.unpacked_times"),
    ),
    Case("a row nested 900 deep", row(nested(900)), ("one.jsonl:7", "more than 100 levels")),
    Case(
        "a template that loops for hours",
        template(LOOP + "{% endfor %}", render_seconds=1),
        ("The chat template takes more than 1 s", "limits.render_seconds"),
    ),
    Case(
        "a template that writes 10 TB, piece by piece",
        template("{% set x = 'x' * 1000000 %}" + WRITES, render_seconds=60),
        ("writes more than 536870912 characters", "limits.render_characters"),
    ),
    Case(
        "a template whose macro writes 10 TB",
        template(
            "{% macro a() %}{% set x = 'x' * 1000000 %}" + WRITES + "{% endmacro %}{{ a() }}",
            render_seconds=60,
        ),
        ("writes more than 536870912 characters", "limits.render_characters"),
    ),
    Case(
        "a template that writes 10 TB",
        template("{{ 'x' * 10000000000000 }}"),
        ("The chat template computes a power, or with numbers above 10000000", "own.jinja:1"),
    ),
    Case(
        "a template that pads to 3 GB",
        template("{{ 'x'|center(3000000000) }}"),
        ("The chat template computes a power, or with numbers above 10000000", "own.jinja:1"),
    ),
    Case(
        "aliases for billions of values",
        recipe(lambda text: aliases("[x]", "[{}]") + text),
        ("more than 500000 values", "recipe.yaml"),
        2,
    ),
    Case(
        "merges of billions of keys",
        recipe(lambda text: aliases("{x: 1}", "{{<<: [{}]}}") + text),
        ("more than 500000 values", "recipe.yaml"),
        2,
    ),
    Case("3,000 sources, two of one name", many_sources, ("the name s0 is used twice",), 2),
)
