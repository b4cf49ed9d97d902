"""Writes docs/messages.md: the message of each wrong input. `python -m wrong.pages`, in tests/."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from wrong import Answer, Case, at, call, make_desk
from wrong.broken import ADAPTERS, CONFIGURATIONS, TOKENIZERS, WEIGHT_FILES
from wrong.limits import LIMITS
from wrong.models import CHECKPOINTS, MODELS, TEMPLATES
from wrong.recipes import COMMANDS, RECIPES
from wrong.runs import DAMAGED, FOLDERS, OTHERS
from wrong.skills import BENCHMARKS, TARGETS
from wrong.sources import FILES, ROWS

PAGE = Path(__file__).parents[2] / "docs" / "messages.md"

TABLES: dict[str, tuple[Case, ...]] = {
    "The recipe": RECIPES,
    "The command": COMMANDS,
    "Files of the pool": FILES,
    "Rows": ROWS,
    "Limits": LIMITS,
    "Targets and the selection": TARGETS,
    "Benchmarks": BENCHMARKS,
    "Chat templates": TEMPLATES,
    "Models": MODELS,
    "A model's configuration": CONFIGURATIONS,
    "A model's tokenizer": TOKENIZERS,
    "A model's weights": WEIGHT_FILES,
    "Existing checkpoints (`warmup.checkpoints`)": CHECKPOINTS,
    "Files of existing checkpoints": ADAPTERS,
    "Run folders": FOLDERS,
    "Damaged runs": DAMAGED,
    "Other commands": OTHERS,
}

MEASURED = (" CPU seconds | peak memory, MiB |", " ---: | ---: |")
"""Extra columns for the limits; the memory includes the libraries' own."""

HASHES = re.compile(
    r"(?<=shard-)[0-9a-f]{32}-[0-9a-f]{32}|\b[0-9a-f]{8}(?= ->)|(?<=-> )[0-9a-f]{8}\b"
)
"""Hashes of features, which depend on how a processor rounds."""

DEPTH = " while calling a Python object"
"""Python adds this to a RecursionError or not, depending on the depth of the caller."""

HEAD = """# Error messages

<!-- made by tests/wrong/pages.py -->

tests/test_wrong_inputs.py tries each input below. The result is one message on standard error,
nothing on standard output, and this exit status: 1 failed, 2 wrong usage or recipe. Whatever can be
found before training is reported before training. A finished run keeps its bytes: in place, or
(marked *archive*) in its folder `archive/`, which receives the outputs of a stage that runs again.

`model`, `one.jsonl`, `target.jsonl`, `recipe.yaml` and `run` are the user's files.
"""


def line(case: Case, answer: Answer) -> str:
    """A row of the page's tables."""
    escaped = HASHES.sub("0000", answer.message.replace(DEPTH, "")).replace("\\", "\\\\")
    for letter in "|<>*_`[]":
        escaped = escaped.replace(letter, f"&#{ord(letter)};")
    shown = "<br>".join(part.strip() for part in escaped.splitlines() if part.strip())
    old = " *archive*" if case.keeps == "in archive" else ""
    return f"| {case.name} | {answer.status}{old} | {shown} |"


def measured(case: Case) -> tuple[Answer, str]:
    """The answer of a separate process, and its time and memory as extra columns."""
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, json.dumps(asdict(call(case.command))).encode())
        os._exit(0)
    _, _, used = os.wait4(child, 0)
    answer = Answer(**json.loads(os.read(read, 1 << 16)))
    seconds = used.ru_utime + used.ru_stime
    return answer, f" {seconds:.1f} | {used.ru_maxrss / 1024:,.0f} |"


def main() -> None:
    """Try every case and write the page."""
    parts = [HEAD]
    with tempfile.TemporaryDirectory() as name:
        desk = make_desk(Path(name) / "desk")
        for table, (heading, cases) in enumerate(TABLES.items()):
            more = MEASURED if cases is LIMITS else ("", "")
            parts.append(f"\n## {heading}\n\n| input | status | message |{more[0]}\n")
            parts.append(f"| --- | --- | --- |{more[1]}\n")
            for number, case in enumerate(cases):
                where = Path(name) / f"{table}-{number}"
                with at(desk, where, case.on[0]) as copy:
                    case.spoil(copy)
                    answer, used = measured(case) if more[0] else (call(case.command), "")
                    parts.append(f"{line(case, answer)}{used}\n")
    PAGE.write_text("".join(parts), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
