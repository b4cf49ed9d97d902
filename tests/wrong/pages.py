"""Writes docs/messages.md: the message of each wrong input. `python -m wrong.pages`, in tests/."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from wrong import Answer, Case, at, call, make_desk
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
    "Targets and the selection": TARGETS,
    "Benchmarks": BENCHMARKS,
    "Chat templates": TEMPLATES,
    "Models": MODELS,
    "Existing checkpoints (`warmup.checkpoints`)": CHECKPOINTS,
    "Run folders": FOLDERS,
    "Damaged runs": DAMAGED,
    "Other commands": OTHERS,
}

HASHES = re.compile(
    r"(?<=shard-)[0-9a-f]{32}-[0-9a-f]{32}|\b[0-9a-f]{8}(?= ->)|(?<=-> )[0-9a-f]{8}\b"
)
"""Hashes of features: other processors round differently."""

DEPTH = " while calling a Python object"
"""Whether Python adds it to a RecursionError depends on how deep the caller is."""

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
    return f"| {case.name} | {answer.status}{old} | {shown} |\n"


def main() -> None:
    """Try every case and write the page."""
    parts = [HEAD]
    with tempfile.TemporaryDirectory() as name:
        desk = make_desk(Path(name) / "desk")
        for table, (heading, cases) in enumerate(TABLES.items()):
            parts.append(f"\n## {heading}\n\n| input | status | message |\n| --- | --- | --- |\n")
            for number, case in enumerate(cases):
                where = Path(name) / f"{table}-{number}"
                with at(desk, where, case.on[0]) as copy:
                    case.spoil(copy)
                    parts.append(line(case, call(case.command)))
    PAGE.write_text("".join(parts), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
