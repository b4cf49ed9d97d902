"""The trials, their records, and the table made from them."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradsieve
import trust
import world
from gradsieve.io import file_hash, fingerprint
from gradsieve.runs.folder import ARCHIVE, RunFolder
from trust.bases import Bases
from trust.children import Kill, run_child
from trust.cuts import cut, remember
from trust.damage import Damage, all_damages, try_damage

HOWS = ("healed", "found", "unread")

BEGIN, END = "<!-- made by `make test-trust` -->", "<!-- end -->"

Records = list[dict[str, Any]]


def main() -> None:
    """Run the trials that are still missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--damages", type=int, help="at most so many; by default all")
    parser.add_argument("--finished", action="store_true", help="damage the finished run alone")
    parser.add_argument("--seeds", type=int, default=2, help="of training in each run")
    parser.add_argument("--only", default="", help="damages of files with this in their kind")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--page", type=Path, help="where the table is written")
    given = parser.parse_args()
    gc.freeze()  # exempt objects created by imports from garbage collection in children
    gc.enable()
    out = given.out.resolve()
    _start(out)
    bases = Bases(out, given.seeds)
    trials: list[Trial] = [
        *_interruptions(bases, "kill", given.kills),
        *_interruptions(bases, "cut", given.cuts),
        *(OneDamage(one) for one in _some_damages(bases, given)),
    ]
    records = run_trials(trials, out, given.jobs)
    print(table(records))
    if given.page:
        write_table(given.page, table(records))
    bad = [record for record in records if not record["ok"]]
    for record in bad:
        print("FAILED", record)
    raise SystemExit(bool(bad))


def _start(out: Path) -> None:
    """Make the folder; its contents are removed if gradsieve or this program has changed."""
    folders = Path(gradsieve.__path__[0]), Path(trust.__path__[0])
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    version = fingerprint([file_hash(file) for file in files])
    mark = out / "version"
    if mark.is_file() and mark.read_text() != version:
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    if not mark.is_file() and list(out.iterdir()):
        raise SystemExit(f"{out} holds something else: give --out a new folder")
    mark.write_text(version)


def run_trials(trials: Sequence[Trial], out: Path, jobs: int) -> Records:
    """Run trials in several processes; returns their records, in the order of the trials.

    A trial's records are one line of trials.jsonl, written when the trial ends: recorded trials are
    not repeated.
    """
    file = out / "trials.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    done = {one["trial"]: one["records"] for one in map(json.loads, _whole_lines(lines))}
    shutil.rmtree(out / "work", ignore_errors=True)
    forking = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, mp_context=forking) as pool, file.open("wb") as opened:
        opened.writelines(_whole_lines(lines))
        missing = [trial for trial in trials if str(trial) not in done]
        running = {pool.submit(_run, trial, out / "work"): trial for trial in missing}
        for ended in as_completed(running):
            name = str(running[ended])
            done[name] = ended.result()
            line = json.dumps({"trial": name, "records": done[name]})
            opened.write(line.encode() + b"\n")
            opened.flush()
    return [record for trial in trials for record in done[str(trial)]]


def _whole_lines(lines: Sequence[bytes]) -> list[bytes]:
    return [line for line in lines if line.endswith(b"\n")]


def _run(trial: Trial, work: Path) -> Records:
    """Run a trial in a folder that belongs to this process of the pool."""
    own = work / str(os.getpid())
    own.mkdir(parents=True, exist_ok=True)
    return trial.run(own)


@dataclass(frozen=True)
class Interruption:
    """A run that is killed several times, and then completes.

    Attributes:
        bases: The base runs, with the recipe and the expected bytes.
        what: `kill`; or `cut`, which also discards unsynced changes of the killed process.
        number: The trial's number, which seeds its kills.
        kills: The number of kills.
    """

    bases: Bases
    what: str
    number: int
    kills: int

    def __str__(self) -> str:
        return f"{self.what} {self.number}, {self.kills} times"

    def run(self, work: Path) -> Records:
        """Kill a run `kills` times; if it completes before that, start a new one."""
        tried: Records = []
        rng, run = random.Random(f"{self.what} {self.number}"), work / "interrupted"
        while len(tried) < self.kills:
            shutil.rmtree(run, ignore_errors=True)
            tried += self._one_run(rng, run, work, self.kills - len(tried))
        return tried

    def _one_run(self, rng: random.Random, run: Path, work: Path, left: int) -> Records:
        tried: Records = []
        while True:
            kill, how = _kill(rng, self.bases, self.what) if len(tried) < left else (None, "")
            before = remember(run, work / "before")
            ended = run_child(self.bases.recipe, run, work / "child", kill)
            if ended.status is not None:
                break
            lost = cut(before, work / "child.synced", rng) if self.what == "cut" else None
            tried.append({"what": self.what, "how": how, "lost": lost})
        wanted, found = (world.results(RunFolder(one)) for one in (self.bases.whole, run))
        names = wanted.keys() | found.keys()
        # A cut may lose a hash file but not the file it is for; finished stages have all hashes.
        names -= {name for name in wanted.keys() - found.keys() if name.endswith(".xxh3")}
        differing = [name for name in names if found.get(name) != wanted.get(name)]
        ok = ended.status == 0 and not differing and "Traceback" not in ended.said
        why = "" if ok else f"{ended.status} {differing[:5]} {ended.said[-1500:]}"
        if not ok:
            kept = self.bases.out / f"failed-{self.what}-{self.number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(run, kept)
        return [{**one, "ok": ok, "why": why} for one in tried]


@dataclass(frozen=True)
class OneDamage:
    """A trial with a damaged file and a command."""

    damage: Damage

    def __str__(self) -> str:
        return str(self.damage)

    def run(self, work: Path) -> Records:
        """Try the damage; returns no record if it changes nothing."""
        outcome = try_damage(self.damage, work)
        if outcome is None:
            return []
        ok = outcome.how != "silent"
        record = {"ok": ok, "why": outcome.why, "outcome": outcome.how}
        return [{"what": "damage", "how": str(self.damage), **record}]


Trial = Interruption | OneDamage


def _interruptions(bases: Bases, what: str, wanted: int) -> Iterator[Interruption]:
    """Trials whose runs are killed `wanted` times in total."""
    number, left = 0, wanted
    while left:
        kills = min(left, random.Random(f"{what} {number}").randint(3, 8))
        yield Interruption(bases, what, number, kills)
        number, left = number + 1, left - kills


def _some_damages(bases: Bases, given: argparse.Namespace) -> list[Damage]:
    """All damages, or a sample."""
    most: int | None = given.damages
    if most == 0:
        return []
    every = all_damages([bases.finished] if given.finished else bases.damaged)
    found = [one for one in every if given.only in one.kind]
    return found if most is None else random.Random(0).sample(found, min(most, len(found)))


def _kill(rng: random.Random, bases: Bases, what: str) -> tuple[Kill, str]:
    """The next kill: at a random moment, or at a random file operation."""
    if what == "kill" and rng.random() < 0.4:
        return Kill(after_seconds=rng.uniform(0.05, bases.seconds)), "at a random moment"
    kill = Kill(operation=rng.randint(1, bases.operations // 2), before=rng.random() < 0.5)
    return kill, f"just {'before' if kill.before else 'after'} a file operation"


def table(records: list[dict[str, Any]]) -> str:
    """A Markdown table of promises, how each was tried, how often, and the result."""
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
    kind = record["how"]
    state = "of an unfinished stage " if kind.startswith("unfinished") else ""
    state = "of the archive " if kind.startswith(ARCHIVE) else state
    then = "the command with the archived settings" if state == "of the archive " else command
    return f"each kind of file {state}{ways[way]}, then {then}"


def _result(records: list[dict[str, Any]]) -> str:
    bad = sum(not record["ok"] for record in records)
    if "outcome" not in records[0]:
        return f"{bad} runs failed or differ" if bad else "the same bytes in all"
    counts = Counter(record["outcome"] for record in records)
    text = ", ".join(f"{counts[how]} {how}" for how in HOWS if counts[how])
    return f"{text}; {bad} used silently"


def write_table(page: Path, text: str) -> None:
    """Write the table between its markers in the page."""
    content = page.read_text(encoding="utf-8")
    before, _, rest = content.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
