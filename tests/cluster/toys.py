"""Jobs that need no model, whose tasks fail in the ways that occur on clusters."""

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from gradsieve.console import Progress
from gradsieve.engine import Job, Size
from gradsieve.errors import ModelError, StoreError


@dataclass(frozen=True)
class Toy:
    """A task that writes a file; `how` names what happens before it writes."""

    number: int
    how: str = ""
    seconds: float = 0.0
    halvings: int = 0


@dataclass(frozen=True)
class ToyJob(Job[Toy, int]):
    folder: Path

    def setup(self, progress: Progress) -> Callable[[Toy], int]:
        return self._run

    def size(self, task: Toy) -> Size:
        return Size(1, task.number)

    def smaller(self, task: Toy) -> Toy:
        return replace(task, halvings=task.halvings + 1)

    def name(self, task: Toy) -> str:
        return f"toy {task.number}"

    def _run(self, task: Toy) -> int:
        node = ray.get_runtime_context().get_node_id()
        with (self.folder / "attempts.txt").open("a") as file:
            file.write(f"{task.number} {node}\n")
        time.sleep(task.seconds)
        deadline = time.monotonic() + 300
        while task.how == "with a fourth node" and time.monotonic() < deadline:
            if len({node for _, node in attempts(self.folder)}) == 4:
                break
            time.sleep(0.1)
        tries = (
            (self.folder / "attempts.txt").read_text().split("\n").count(f"{task.number} {node}")
        )
        if task.how == "killed once" and not (self.folder / "killed").exists():
            (self.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task.how == "memory" and task.halvings < 2:
            raise MemoryError
        if task.how == "two GPUs":
            return len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
        if task.how == "bug":
            raise LookupError("no such thing")
        if task.how == "mistake":
            raise ModelError("The model is wrong.", f"try {tries}", "Give another one.")
        full = self.folder / "full-node"
        if full.exists() and full.read_text() == node:
            cause = OSError(errno.ENOSPC, "No space left on device")
            raise StoreError(
                "A shard cannot be written.", str(self.folder), "Free space."
            ) from cause
        (self.folder / f"{task.number}").write_text(str(task.number))
        return task.number


class Elsewhere(ToyJob):
    """A job of a module that the workers don't have."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return not_here, ()


def not_here() -> None:
    raise ModuleNotFoundError("No module named 'mine'")


def prepare(folder: Path) -> None:
    """Record in this folder, and for later calls, that the process is prepared."""
    os.environ["PREPARED"] = str(folder)
    with (folder / "prepared.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")


def call(number: int, seconds: float) -> tuple[int, str, str]:
    """The number, the node and the process, after some time."""
    assert os.environ["PREPARED"]
    time.sleep(seconds)
    return number, ray.get_runtime_context().get_node_id(), str(os.getpid())


def killed_once() -> str:
    mark = Path(os.environ["PREPARED"]) / "killed"
    if mark.exists():
        return "second try"
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def mistaken() -> None:
    raise ModelError("The model is wrong.", "m", "Give another one.")


def attempts(folder: Path) -> list[tuple[int, str]]:
    """The (task, node) of each attempt."""
    lines = (folder / "attempts.txt").read_text().split("\n")[:-1]
    return [(int(line.split()[0]), line.split()[1]) for line in lines]
