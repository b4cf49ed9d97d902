"""Wrong run folders, full disks, damaged runs and datastores."""

from __future__ import annotations

import fcntl
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

from wrong import RUN, Case, Desk

Spoil = Callable[[Desk], object]
FULL = 60
"""Maximum file size in KiB, which simulates a full disk: an adapter fits, a datastore's shard does
not."""


def nothing(desk: Desk) -> None:
    """Changes nothing, since the command itself is wrong."""


def meta(content: str | bytes) -> Spoil:
    return lambda desk: desk.write("run/01-warmup/meta.json", content)


def in_use(desk: Desk) -> None:
    Path("run").mkdir(exist_ok=True)
    lock = desk.undo.enter_context(Path("run/.lock").open("w"))  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)


def full(desk: Desk) -> None:
    """Limits file sizes, like a full disk; mounting a small file system needs privileges."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    desk.undo.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
    desk.set("warmup.seed", 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL * 1024, limits[1]))


def stage_is_a_file(desk: Desk) -> None:
    shutil.rmtree("run/01-warmup")
    desk.write("run/01-warmup", "")


def damaged(pattern: str) -> Spoil:
    def spoil(desk: Desk) -> None:
        file = next(Path("run").glob(pattern))
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    return spoil


def damaged_shard(desk: Desk) -> None:
    """Also removes the scores: if they exist, the datastore is not read."""
    damaged("02-*/*-1/pool/shard-*")(desk)
    shutil.rmtree("run/03-score")


def shortened(pattern: str) -> Spoil:
    def spoil(desk: Desk) -> None:
        file = next(Path("run").glob(pattern))
        file.write_bytes(file.read_bytes()[:-20])

    return spoil


def linked(name: str) -> Spoil:
    def spoil(desk: Desk) -> None:
        desk.write("theirs", "theirs")
        Path("run").mkdir(exist_ok=True)
        Path("run/.lock").touch()
        Path(f"run/{name}").unlink(missing_ok=True)
        Path(f"run/{name}").symlink_to("../theirs")

    return spoil


def foreign(desk: Desk) -> None:
    desk.write(f"{STORE}/keys-of-mine.parquet", "")


def old_format(desk: Desk) -> None:
    file = Path(STORE) / "settings.json"
    desk.write(str(file), file.read_text().replace("datastore/3", "datastore/2"))


def wrong(name: str, spoil: Spoil, *says: str, command: str = RUN, **how: object) -> Case:
    return Case(name, spoil, says, 1, command, on=("finished",), **how)  # type: ignore[arg-type]


STORE = "run/02-features/checkpoint-1/pool"

FOLDERS = (
    Case("a run folder that is a file", nothing, ("cannot be written: File exists", "one.jsonl"),
         command="run recipe.yaml --out one.jsonl"),
    Case("a run folder below a file", nothing, ("cannot be written: Not a directory",),
         command="run recipe.yaml --out one.jsonl/run"),
    Case("a run folder that holds something else", nothing,
         ("holds something else", "--out model: ", "and 3 more", "a new folder"),
         command="run recipe.yaml --out model"),
    Case("a run folder where the recipe is", nothing,
         ("holds something else", "--out .: model, one.jsonl", "a new folder"),
         command="run recipe.yaml --out .", on=("new",)),
    Case("no write permission", nothing, ("cannot be written", "/proc/run", "may write to"),
         command="run recipe.yaml --out /proc/run"),
    Case("a lock that is a link to somebody's file", linked(".lock"),
         ("symbolic link that leads out", "run/.lock", "Replace it")),
    Case("a log that is a link to somebody's file", linked("log.txt"),
         ("symbolic link that leads out", "run/log.txt", "Replace it")),
    Case("a run folder in use by another process", in_use,
         ("Another gradsieve process", "run", "Wait for it or stop it")),
    Case("a full disk", full,
         ("cannot be", "run", "Free disk space", "it resumes"), keeps="in archive",
         late=True),
    Case("a stage before the stages it needs", nothing,
         ("The stage warmup is not finished", "run/01-warmup", "Run `gradsieve warmup`"),
         command="select recipe.yaml --out run", on=("new",)),
)  # fmt: skip

DAMAGED = (
    wrong("a broken meta.json", meta("{"), "it is damaged", "01-warmup/meta.json",
          "what is damaged is made again", command="select recipe.yaml --out run"),
    wrong("a binary meta.json", meta(b"\xff"), "it is damaged", "01-warmup/meta.json",
          "what is damaged is made again", command="select recipe.yaml --out run"),
    wrong("a meta.json of another version", meta('{"schema": 99}'), "schema 2", "another --out"),
    wrong("a stage's folder that is a file", stage_is_a_file, "File exists", "run/01-warmup"),
    wrong("a damaged shard", damaged_shard, "is damaged", STORE,
          "only its rows are computed again", command="score recipe.yaml --out run"),
    wrong("a damaged adapter", damaged("01-*/*-2/adapter_model.safetensors"), "is damaged",
          "checkpoint-2/adapter_model.safetensors", command="features recipe.yaml --out run"),
    wrong("a truncated table of scores", shortened("03-*/mine/less.parquet"), "is damaged",
          "03-score/mine/less.parquet", command="select recipe.yaml --out run"),
    wrong("a truncated selection", shortened("04-*/mine/less/messages.jsonl"), "is damaged",
          "04-select/mine/less/messages.jsonl", command="report recipe.yaml --out run"),
    wrong("a foreign file in a datastore", foreign, "was not written by gradsieve",
          "keys-of-mine.parquet", "archives what is foreign",
          command="score recipe.yaml --out run"),
    wrong("a run's recipe that was edited", damaged("recipe.yaml"), "damaged, or was edited",
          "run/recipe.yaml", command="explain run --target mine --id 1"),
    wrong("a run folder that is none to verify", nothing, "not a run folder",
          command="verify model"),
)  # fmt: skip

OTHERS = (
    wrong("nothing to compare", nothing, "evaluate is not finished", "run/06-evaluate",
          command="compare run"),
    wrong("a folder to compare that is no run", nothing, "not a run folder", "was --out",
          command="compare model"),
    wrong("no datastore", nothing, "no gradient datastore", "Give the folder",
          command="store inspect run"),
    wrong("a datastore's URL of an unknown kind", nothing, "frob", "fsspec",
          command="store inspect frob://x"),
    wrong("more bits than a datastore has", nothing, "fewer bits", "16 bits, wanted 32",
          command=f"store convert {STORE} small --bits 32"),
    wrong("a datastore of an older format", old_format, "datastore/2; this version reads",
          "run `gradsieve features` again to rebuild it", command=f"store inspect {STORE}"),
    wrong("datastores with a row in common to merge", nothing, "the same row", STORE,
          command=f"store merge {STORE} {STORE} --into all"),
    wrong("datastores of other settings to merge", nothing, "same settings",
          "checkpoint has changed",
          command=f"store merge {STORE} {STORE.replace('-1', '-2')} --into whole"),
)  # fmt: skip
