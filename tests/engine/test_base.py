"""The local engine: tasks run in order after one setup, and finished tasks keep their files."""

import pickle  # noqa: TID251 - as workers receive a job
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import world
from gradsieve.console import Progress
from gradsieve.engine import Job, LocalEngine
from gradsieve.errors import ModelError
from gradsieve.io import write_text


@dataclass(frozen=True)
class Writing(Job[int, int]):
    folder: Path

    def setup(self, progress: Progress) -> Callable[[int], int]:
        progress.say("set up")

        def run(task: int) -> int:
            if task < 0:
                raise ModelError("A negative task.", str(task), "Give another one.")
            write_text(self.folder / str(task), "done")
            return task**2

        return run


def test_results_come_in_order_after_one_set_up(tmp_path: Path) -> None:
    listening = world.Listening()
    engine = LocalEngine(listening)
    job = pickle.loads(pickle.dumps(Writing(tmp_path)))
    assert list(engine.map(job, [3, 1, 2])) == [9, 1, 4]
    assert listening.lines == ["set up"]
    assert list(engine.map(job, [])) == []
    assert listening.lines == ["set up"]


def test_a_failing_task_leaves_the_files_of_those_before(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="negative"):
        list(LocalEngine(world.Listening()).map(Writing(tmp_path), [1, -1, 2]))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
