"""The trials, their record, and the table made of it."""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradsieve
import world
from gradsieve.demo.skills import make_questions
from gradsieve.io import file_hash, fingerprint
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.folder import RunFolder
from trust.children import Kill, run_child
from trust.cuts import cut, remember
from trust.damage import COMMANDS, WAYS, kinds, try_damage

ROWS = 40
METHODS = ["less", "random", "bm25"]
BEGIN, END = "<!-- made by `make test-trust` -->", "<!-- end -->"


def main() -> None:
    """Run the trials that are still missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--damages", type=int, help="at most so many; by default all")
    parser.add_argument("--page", type=Path, help="where the table is written")
    arguments = parser.parse_args()
    trials = Trials(arguments.out)
    trials.kill(arguments.kills)
    trials.cut(arguments.cuts)
    trials.damage(arguments.damages)
    print(table(trials.records))
    if arguments.page:
        write_table(arguments.page, table(trials.records))
    bad = [record for record in trials.records if not record["ok"]]
    for record in bad:
        print("FAILED", record)
    raise SystemExit(bool(bad))


class Trials:
    """Trials in a folder, with their record.

    Args:
        out: The folder; what it has already, of the same code, is not tried again.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()
        self._start()
        self._file = self.out / "trials.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self.records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.recipe = self._recipe("inputs", seed=0)
        self.whole = self._finished("whole", self.recipe)
        self.wanted = world.results(RunFolder(self.whole))
        self.operations = int((self.out / "whole.ops").read_text())

    def _start(self) -> None:
        """Make the folder; what is there is of no use if gradsieve has changed since."""
        files = sorted(Path(gradsieve.__path__[0]).rglob("*.py"))
        version = fingerprint([file_hash(file) for file in files])
        mark = self.out / "version"
        if mark.is_file() and mark.read_text() != version:
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        if not mark.is_file() and list(self.out.iterdir()):
            raise SystemExit(f"{self.out} holds something else: give --out a new folder")
        mark.write_text(version)

    def _recipe(self, name: str, seed: int) -> Recipe:
        folder = self.out / name
        data = world.make(folder, rows=ROWS)
        test = [world.record(row) for row in make_questions("reverse", 2, 1 + seed)]
        world.write(folder / "test.jsonl", test)
        data["targets"] = [{**t, "test": str(folder / "test.jsonl")} for t in data["targets"]]
        return world.recipe(
            data,
            warmup__seed=seed,
            score={"methods": METHODS},
            select={"count": 6 + seed},
            train={"epochs": 2, "seeds": [0, 1]},
            evaluate={"tasks": ["target_loss"]},
        )

    def _finished(self, name: str, recipe: Recipe) -> Path:
        run = self.out / name
        if not (RunFolder(run).stage("report") / "meta.json").exists():
            ended = run_child(recipe, run, self.out / name)
            assert ended.status == 0, ended.said
        return run

    def _record(self, **record: Any) -> None:
        self.records.append(record)
        with self._file.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _count(self, what: str) -> int:
        return sum(record["what"] == what for record in self.records)

    def kill(self, wanted: int) -> None:
        """Kill runs until they have been killed so often, and get each of them through."""
        self._interrupted("kill", wanted, lambda rng: None)

    def cut(self, wanted: int) -> None:
        """As `kill`; what the killed process had not synced is lost."""
        self._interrupted("cut", wanted, self._lose)

    def _lose(self, rng: random.Random) -> list[str]:
        return cut(self._before, self.out / "child.synced", rng)

    def _interrupted(
        self, what: str, wanted: int, lose: Callable[[random.Random], list[str] | None]
    ) -> None:
        while self._count(what) < wanted:
            number = self._count(what)
            rng, run = random.Random(f"{what} {number}"), self.out / "interrupted"
            shutil.rmtree(run, ignore_errors=True)
            tried, left = [], min(wanted - number, rng.randint(3, 8))
            while True:
                kill, how = _kill(rng, self.operations, what) if len(tried) < left else (None, "")
                self._before = remember(run, self.out / "before")
                ended = run_child(self.recipe, run, self.out / "child", kill)
                if ended.status is not None:
                    break
                tried.append({"how": how, "lost": lose(rng)})
            found = world.results(RunFolder(run))
            differing = [
                name
                for name in {**self.wanted, **found}
                if found.get(name) != self.wanted.get(name)
            ]
            ok = ended.status == 0 and not differing and "Traceback" not in ended.said
            why = "" if ok else f"{ended.status} {differing[:5]} {ended.said[-1500:]}"
            if not ok:
                shutil.rmtree(self.out / f"failed-{what}-{number}", ignore_errors=True)
                shutil.copytree(run, self.out / f"failed-{what}-{number}")
            for one in tried or [{"how": "none: it got through", "lost": None}]:
                self._record(what=what, ok=ok, why=why, **one)

    def damage(self, most: int | None) -> None:
        """Damage each kind of file in each way, and run each command."""
        older = self._finished("older", self._recipe("older-inputs", seed=1))
        done = {record["how"] for record in self.records if record["what"] == "damage"}
        every = list(_damages(self.whole))
        if most is not None:
            every = random.Random(0).sample(every, most)
        for kind, way, command in every:
            how = f"{kind}, {way}, {command}"
            if how in done:
                continue
            outcome = try_damage(self.recipe, self.whole, older, kind, way, command, self.out)
            if outcome is not None:
                ok = outcome.how != "silent"
                self._record(what="damage", how=how, ok=ok, why=outcome.why, outcome=outcome.how)


def _damages(whole: Path) -> Iterator[tuple[str, str, str]]:
    return ((kind, way, command) for kind in kinds(whole) for way in WAYS for command in COMMANDS)


def _kill(rng: random.Random, operations: int, what: str) -> tuple[Kill, str]:
    """The next kill: at a random moment, or at a random file operation."""
    if what == "kill" and rng.random() < 0.4:
        return Kill(after_seconds=rng.uniform(0.05, 8.0)), "at a random moment"
    kill = Kill(operation=rng.randint(1, operations // 2), before=rng.random() < 0.5)
    return kill, f"just {'before' if kill.before else 'after'} a file operation"


def table(records: list[dict[str, Any]]) -> str:
    """Promise, how it was tried, how often, and the result."""
    rows = ["| promise | tried by | times | result |", "| --- | --- | ---: | --- |"]
    promises = {
        "kill": "A killed run resumes and ends with the same bytes",
        "cut": "So does one after a power cut",
        "damage": "Damaged, missing and older files are never used",
    }
    for what, promise in promises.items():
        own = [record for record in records if record["what"] == what]
        groups = Counter(_group(record) for record in own)
        for group in sorted(groups):
            of = [record for record in own if _group(record) == group]
            rows.append(f"| {promise} | {group} | {len(of)} | {_result(of)} |")
    return "\n".join(rows)


def _group(record: dict[str, Any]) -> str:
    if record["what"] == "kill":
        return f"SIGKILL {record['how']}"
    if record["what"] == "cut":
        return "SIGKILL at a file operation; files and names that were not synced are lost"
    _, way, command = record["how"].rsplit(", ", 2)
    ways = {"flip": "a bit flipped", "cut": "the end cut off", "empty": "emptied"}
    ways |= {"delete": "deleted", "older": "replaced by an older version"}
    return f"each kind of file {ways[way]}, then {command}"


def _result(records: list[dict[str, Any]]) -> str:
    bad = sum(not record["ok"] for record in records)
    if "outcome" not in records[0]:
        return f"{bad} runs failed or differ" if bad else "the same bytes in all"
    counts = Counter(record["outcome"] for record in records)
    text = ", ".join(f"{counts[how]} {how}" for how in ("healed", "found") if counts[how])
    return f"{text}; {bad} used silently"


def write_table(page: Path, text: str) -> None:
    """Put the table between its marks."""
    content = page.read_text(encoding="utf-8")
    before, _, rest = content.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
