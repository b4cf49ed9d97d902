"""Wrong inputs: how each is made, the command that reads it, and its message.

Used by tests/test_wrong_inputs.py and docs/messages.md. A `Desk` is a user's folder: a model, a
pool, targets, a recipe with relative paths, and a run that is finished up to its selections. A
`Case` breaks something in it and calls the command line. The cases are in the other modules of this
package; `pages.TABLES` lists them all.

Commands run in this process, since importing torch takes seconds; the test also runs some cases in
a separate process.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shlex
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

os.environ["HF_HUB_OFFLINE"] = "1"  # as in conftest.py, which wrong.pages doesn't import

import yaml

import world
from gradsieve.__main__ import main
from gradsieve.console import Progress
from gradsieve.pipeline import run as pipeline

RUN = "run recipe.yaml --out run"
ROWS = 40


@dataclass(frozen=True)
class Desk:
    """A user's folder; it is the working directory while a case runs.

    Attributes:
        folder: Its path.
        finished: Path of the desk that was copied, which has an undamaged run.
        undo: Releases locks and restores limits after the case.
    """

    folder: Path
    finished: Path
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def set(self, key: str, value: Any) -> None:
        """Set a key of the recipe, e.g. `pool.0.path`."""
        file = self.folder / "recipe.yaml"
        tree = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)
        node, *path = tree, *key.split(".")
        for part in path[:-1]:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(path[-1]) if isinstance(node, list) else path[-1]] = value
        written = yaml.dump(tree, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
        file.write_text(written, encoding="utf-8")

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        file.write_bytes(content)

    def pool(self, name: str, content: str | bytes) -> None:
        """Write a file and make it the pool."""
        self.write(name, content)
        self.set("pool", [{"name": "one", "path": name}])

    def row(self, number: int, content: dict[str, Any] | str) -> None:
        """Replace a row of the pool's first source, counted from 1."""
        lines = (self.folder / "one.jsonl").read_text(encoding="utf-8").split("\n")
        lines[number - 1] = content if isinstance(content, str) else json.dumps(content)
        self.write("one.jsonl", "\n".join(lines))

    def edit(self, name: str, **changes: Any) -> None:
        """Change keys of a JSON file; None removes one."""
        file = self.folder / name
        tree = {**json.loads(file.read_text(encoding="utf-8")), **changes}
        kept = {key: value for key, value in tree.items() if value is not None}
        file.write_text(json.dumps(kept), encoding="utf-8")


@dataclass(frozen=True)
class Case:
    """A wrong input.

    Attributes:
        name: What is wrong; shown on the page and used as the test's name.
        spoil: Makes the input wrong.
        says: Expected parts of the message: what is wrong, where, what to do.
        status: The expected exit status.
        command: Arguments of `gradsieve`.
        on: The runs that it is tried on: a new one, a finished one, or both.
        keeps: Where a finished run's files are afterwards: `in place`, or some `in archive`, if a
            stage runs again.
        late: Whether the error can only be detected after training has started.
    """

    name: str
    spoil: Callable[[Desk], object]
    says: tuple[str, ...]
    status: int = 1
    command: str = RUN
    on: tuple[Literal["new", "finished"], ...] = ("new", "finished")
    keeps: Literal["in place", "in archive"] = "in place"
    late: bool = False


@dataclass(frozen=True)
class Answer:
    """The result of a command."""

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The error message alone, as shown on the page."""
        text = f"\n{self.err}"
        starts = max(text.rfind("\nerror: "), text.rfind("\nError: "))
        return text[starts + len("\nerror: ") :].strip() if starts >= 0 else self.err.strip()


def make_desk(folder: Path) -> Desk:
    """A desk with valid inputs and a finished run."""
    data = world.make(folder, rows=ROWS)
    relative = json.loads(json.dumps(data).replace(f"{folder}/", ""))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(relative, sort_keys=False), encoding="utf-8")
    with contextlib.chdir(folder):
        pipeline.run("recipe.yaml", "run", progress=Progress(quiet=True))
    return Desk(folder, folder)


@contextlib.contextmanager
def at(desk: Desk, folder: Path, run: str = "finished") -> Iterator[Desk]:
    """A copy of a desk, with or without its run, as the working directory."""
    ignored = shutil.ignore_patterns("run") if run == "new" else None
    shutil.copytree(desk.folder, folder, ignore=ignored)
    with contextlib.chdir(folder), contextlib.ExitStack() as undo:
        yield Desk(folder, desk.folder, undo)


def call(command: str) -> Answer:
    """Call the command line in this process, as a shell would."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        patch.object(sys, "argv", ["gradsieve", *shlex.split(command)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # pytest's filter would turn them into errors
        try:
            main()
        except SystemExit as stopped:
            status = int(stopped.code or 0)
    here = f"{os.path.realpath('.')}/"
    return Answer(status, out.getvalue(), err.getvalue().replace(here, ""))


def state(run: Path) -> dict[str, str]:
    """A hash of each file of a run, except its lock and its log, which keeps growing."""
    files = [file for file in sorted(run.rglob("*")) if file.is_file()]
    files = [file for file in files if file.name not in (".lock", "log.txt")]
    return {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def lost(before: dict[str, str], after: dict[str, str], keeps: str) -> list[str]:
    """Files of a run that changed or, for `in archive`, whose bytes are nowhere in the run."""
    if keeps == "in place":
        return [
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        ]
    missing = Counter(before.values()) - Counter(after.values())
    return [name for name, digest in before.items() if digest in missing and name != "recipe.yaml"]
