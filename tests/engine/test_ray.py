"""The Ray engine, as far as it can be tested without Ray (see tests/cluster)."""

import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import typer

import world
from gradsieve.cli.signals import interruptible
from gradsieve.console import Progress
from gradsieve.engine import Size
from gradsieve.engine.base import Worker
from gradsieve.engine.ray import ATTEMPTS, RayEngine
from gradsieve.engine.waiting import Attempt, Seat
from gradsieve.engine.worker import VERSION, Failure, Node, failure_of
from gradsieve.errors import GradsieveError, ModelError, RunError, UsageError
from gradsieve.models.device import out_of_memory
from gradsieve.recipe.schema import EngineConfig


@pytest.mark.parametrize(
    ("address", "says"),
    [(None, "Ray cannot be started here"), ("auto", "The Ray cluster cannot be reached")],
)
def test_a_ray_that_does_not_start_is_one_message(
    monkeypatch: pytest.MonkeyPatch, address: str | None, says: str
) -> None:
    """On a machine that is too slow, Ray raises a plain Exception."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = Mock(is_initialized=lambda: False)
    ray.init.side_effect = Exception("The current node timed out during startup.")
    monkeypatch.setattr("gradsieve.engine.ray.needed", lambda *_: ray)
    engine = RayEngine(EngineConfig(kind="ray", address=address), world.Noting())
    with pytest.raises(GradsieveError, match=says) as caught:
        list(engine._run(Mock(), ["a task"]))
    assert "timed out during startup" in caught.value.where


def test_a_signal_while_ray_starts_ends_as_at_other_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own handler exits with the signal's number as status."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    ray = Mock(is_initialized=lambda: False, init=init)
    monkeypatch.setattr("gradsieve.engine.ray.needed", lambda *_: ray)
    with pytest.raises(typer.Exit) as caught, interruptible():
        RayEngine(EngineConfig(kind="ray"), world.Noting())._connect()
    assert caught.value.exit_code == 128 + signal.SIGTERM
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    with pytest.raises(SystemExit):  # not on with a Ray that has started in part
        RayEngine(EngineConfig(kind="ray"), world.Noting())._connect()
    signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_rays_warnings_go_to_the_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its logger has its own handler, which `ray.init` removes."""
    logger = logging.Logger("ray")
    logger.parent, logger.propagate = logging.getLogger(), False
    monkeypatch.setattr(logging.Logger.manager, "loggerDict", {"ray": logger})
    monkeypatch.setattr("gradsieve.engine.ray.needed", lambda *_: Mock())
    progress = Progress()
    with progress.running(["features"], tmp_path / "log.txt"):
        RayEngine(EngineConfig(kind="ray"), progress)
        logger.warning("Token authentication is enabled.")
    assert "[ray] Token authentication" in (tmp_path / "log.txt").read_text()
    assert "Token" not in capfd.readouterr().err


@pytest.mark.parametrize("imported", [False, True])
def test_rays_token_is_used_unless_ray_has_looked_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, imported: bool
) -> None:
    """A process with Ray imported would start nodes that ask it for a token it doesn't send."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setattr("gradsieve.engine.ray.needed", lambda *_: Mock())
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    if imported:
        monkeypatch.setitem(sys.modules, "ray", Mock())
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    RayEngine(EngineConfig(kind="ray"), world.Noting())
    assert os.environ.get("RAY_AUTH_MODE") == (None if imported else "token")


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://[::1]:{}", "a..b:1", "a:99999"])
def test_a_cluster_that_does_not_answer_is_one_message(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """Ray itself would try for five minutes."""
    ray = Mock(is_initialized=lambda: False)
    monkeypatch.setattr("gradsieve.engine.ray.needed", lambda *_: ray)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        RayEngine(EngineConfig(address=f"127.0.0.1:{port}"), world.Noting())._connect()
    assert ray.init.call_args.kwargs["address"] == f"127.0.0.1:{port}"
    ray.init.reset_mock()
    monkeypatch.setenv("RAY_ADDRESS", address.format(port))
    for named, settings in (
        ("engine.address", {"address": address.format(port)}),
        ("RAY_ADDRESS", {}),
    ):
        with pytest.raises(UsageError, match="cannot be reached") as caught:
            RayEngine(EngineConfig(**settings), world.Noting())._connect()
        assert caught.value.where.startswith(f"{named} {address.format(port)}: ")
        assert caught.value.todo.endswith(f", or remove {named} to use this machine.")
    assert not ray.init.called


def test_a_log_line_counts_units_only_if_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradsieve.engine.ray.needed", lambda *_: Mock())
    noting = world.Noting()
    engine = RayEngine(EngineConfig(kind="ray"), noting)
    worker = Worker("worker 1", "node")
    engine.workers.append(worker)
    for size, unit in ((Size(1), "models"), (Size(2000, 6000), "rows")):
        job = Mock(unit=unit, size=lambda _, size=size: size, **{"name.return_value": "this"})
        engine._note(job, "task", worker, 2.0)
    worker.add(Size(), 1.0)
    engine.take_work()
    assert noting.lines[:2] == [
        "  worker 1 on node: this in 2 s",
        "  worker 1 on node: this: 2,000 rows in 2 s, 3,000 tokens/s",
    ]
    assert noting.lines[2].startswith("  worker 1 (node, cpu): 1 task in 1 s")


def test_a_traceback_in_the_log_names_task_and_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node("1", "there", 7, VERSION)
    ray = Mock(**{"nodes.return_value": [{"NodeID": "1", "Alive": True}]})
    monkeypatch.setattr("gradsieve.engine.ray.needed", lambda *_: ray)
    noting = world.Noting()
    engine = RayEngine(EngineConfig(kind="ray"), noting)
    seat, attempt = Seat(None, Worker("worker 2", "there"), node), Attempt("task", None)
    job = Mock(**{"name.return_value": "shard 1"})
    failure = Failure(RunError("A task failed: LookupError: no."), "Traceback (...)\nLookupError")
    for _ in range(ATTEMPTS - 1):
        engine._failed(job, attempt, seat, failure)
    assert noting.lines[0] == "shard 1 on there, worker 2: Traceback (...)\nLookupError"
    with pytest.raises(RunError) as caught:
        engine._failed(job, attempt, seat, failure)
    assert caught.value.where == "shard 1: failed 3 times, on there"


def test_a_task_without_enough_memory_runs_again() -> None:
    """On another GPU, or when other programs and workers use less of this one."""
    failure = failure_of(out_of_memory("9 tokens"))
    assert failure.again
    assert failure.memory
    assert failure.error.__cause__ is None  # its frames would keep the model in memory
    assert not failure_of(ModelError("The model cannot be built.")).again


def ray_with(monkeypatch: pytest.MonkeyPatch, cpus: int) -> Mock:
    """A Ray of one node, on which no worker starts."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = Mock(is_initialized=lambda: False)
    ray.nodes.return_value = [{"NodeID": "1", "Alive": True, "Resources": {"CPU": cpus}}]
    ray.available_resources.return_value = {"CPU": 1.0, "node:192.0.2.2": 1.0}
    monkeypatch.setattr("gradsieve.engine.ray.needed", lambda *_: ray)
    return ray


@pytest.mark.parametrize("settings", [{"cpus_per_worker": 8}, {"gpus_per_worker": 1}])
def test_workers_that_do_not_fit_on_this_machine_are_refused(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, float]
) -> None:
    """Ray would wait for a node with more."""
    ray_with(monkeypatch, cpus=2)
    with pytest.raises(UsageError, match="No worker fits") as caught:
        RayEngine(EngineConfig(kind="ray", **settings), world.Noting())._connect()
    assert caught.value.where.startswith("engine, per worker: CPUs ")
    assert "(here 2), GPUs" in caught.value.where
    RayEngine(EngineConfig(kind="ray", workers=3), world.Noting())._connect()


def test_a_cluster_without_room_is_warned_of_once_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the process had connected to Ray before."""
    ray = ray_with(monkeypatch, cpus=8)
    ray.is_initialized = lambda: True
    monkeypatch.setattr("gradsieve.engine.ray.SECONDS_TO_WARN", 0.1)
    noting, warnings = world.Noting(), list[int]()

    def wait(*_: object, **__: object) -> tuple[list[Any], list[Any]]:
        time.sleep(0.03)
        warnings.append(len(noting.lines))
        if len(warnings) == 9:
            raise KeyboardInterrupt
        return [], []

    ray.wait = wait
    engine = RayEngine(EngineConfig(kind="ray"), noting)
    monkeypatch.setattr(engine, "_look_for_nodes", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        list(engine._run(Mock(**{"size.return_value": Size()}), ["a task"]))
    room = "CPUs 4 (1 free on the cluster), GPUs 0 (0 free)"
    assert noting.lines == [f"warning: waiting for room for a worker: {room}"]
    assert warnings[0] == 0
