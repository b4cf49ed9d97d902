"""Rows that try to inject code into a page, and a recipe whose pool and target contain them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import world

RUN = "window.hacked = true"
TEXTS = {
    "script": f"<script>{RUN}</script>",
    "end": f"</script><script>{RUN}</script>",
    "link": f'<a href="javascript:{RUN}">click</a> javascript:{RUN}',
    "broken": f'<div <p class=\'><img src=x onerror="{RUN}"> </title></style></textarea>',
    "comment": "<!-- <script> --!> ]]> <![CDATA[ $data ${data} {{data}}",
    "lines": "one\u2028two\u2029three\r\nfour\x00\x1b[31m five\x85",
    "rtl": "\u202egnp.exe\u202c \u05e9\u05dc\u05d5\u05dd \u200f\u061c abc \u2066def",
    "half": "half \ud83d of a pair \udc00",
    "wide": "\U0001f600 \ufeff \ufffe \u0130stanbul \u4f60\u597d",
    "long": "begin" + "x" * 100_000 + "end",
    "many": " ".join(["word"] * 20_000),
}


def world_of(folder: Path, rows: int = 60) -> dict[str, Any]:
    """A small recipe and its files, with `TEXTS` as rows, ids, subtasks and target examples."""
    made = world.make(folder, rows=rows)
    records = [
        {
            "id": f"{name} {text[:40]}",
            "messages": [
                # A long question would leave no room for the answer.
                {"role": "user", "content": text if len(text) < 1000 else "say it"},
                {"role": "assistant", "content": f"{text} a b c"},
            ],
        }
        for name, text in TEXTS.items()
        if name != "half"  # tokenizers reject a lone surrogate
    ]
    world.write(folder / "hostile.jsonl", records)
    made["pool"].append({"name": "hostile", "path": str(folder / "hostile.jsonl")})
    kinds = ("<b>one</b>", "two\u202e")
    examples = [{**row, "kind": kind} for row, kind in zip(records, kinds, strict=False)]
    world.write(folder / "evil.jsonl", examples)
    # JavaScript functions have a property with this name.
    evil = {"name": "length", "path": str(folder / "evil.jsonl"), "subtask": "kind"}
    made["targets"].append(evil)
    return made
