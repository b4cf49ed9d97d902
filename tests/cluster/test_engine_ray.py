"""The Ray engine with tasks that need no model: results, every kind of failure, nodes."""

import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
import toys
from toys import Elsewhere, Toy, ToyJob, attempts

import world
from gradsieve.data.pool.build import build_pool
from gradsieve.data.sources import SourceSpec
from gradsieve.data.template import ChatTemplate
from gradsieve.demo.model import make_tokenizer
from gradsieve.engine.executor import RayExecutor
from gradsieve.engine.ray import ATTEMPTS, RayEngine
from gradsieve.errors import ModelError, RunError
from gradsieve.recipe.schema import EngineConfig


@pytest.fixture
def listening() -> world.Listening:
    return world.Listening()


@pytest.fixture(scope="module")
def shared(cluster: Any) -> Iterator[RayEngine]:
    settings = EngineConfig(kind="ray", address=cluster.address, cpus_per_worker=1)
    made = RayEngine(settings, world.Listening())
    yield made
    made.close()


@pytest.fixture
def engine(
    shared: RayEngine, listening: world.Listening, tmp_path_factory: pytest.TempPathFactory
) -> RayEngine:
    """An engine with a worker on each of three nodes."""
    scratch = tmp_path_factory.mktemp("scratch")
    nodes: set[str] = set()
    for _ in range(500):
        if len(nodes) == 3:
            break
        list(shared.map(ToyJob(scratch), [Toy(number, seconds=0.2) for number in range(6)]))
        nodes = {node for _, node in attempts(scratch)[-6:]}
    assert len(nodes) == 3
    shared.take_work()
    shared.progress = listening
    return shared


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.isdecimal()}


def test_every_node_takes_tasks_the_largest_first(engine: RayEngine, tmp_path: Path) -> None:
    tasks = [Toy(number, seconds=0.3) for number in range(20)]
    found = list(engine.map(ToyJob(tmp_path), tasks))
    assert sorted(found) == list(range(20))
    assert len({node for _, node in attempts(tmp_path)}) == 3
    assert attempts(tmp_path)[0][0] >= 17
    workers = len(engine.workers)
    assert list(engine.map(ToyJob(tmp_path), [Toy(99)])) == [99]
    assert len(engine.workers) == workers  # the same workers take the next job
    work = engine.take_work()
    assert sum(one["tasks"] for one in work) == 21
    assert sum(one["tokens"] for one in work) == sum(range(20)) + 99
    assert engine.take_work() == []


def test_a_killed_worker_is_replaced(
    engine: RayEngine, listening: world.Listening, tmp_path: Path
) -> None:
    tasks = [Toy(7, "killed once"), *(Toy(number, seconds=0.2) for number in range(6))]
    assert sorted(engine.map(ToyJob(tmp_path), tasks)) == [0, 1, 2, 3, 4, 5, 7]
    assert any("toy 7 failed on" in line and "runs again" in line for line in listening.lines)


def test_memory_that_runs_out_halves_the_batch(engine: RayEngine, tmp_path: Path) -> None:
    assert list(engine.map(ToyJob(tmp_path), [Toy(3, "memory")])) == [3]
    assert len(attempts(tmp_path)) == 3


def test_a_task_that_fails_three_times_stops_the_run(engine: RayEngine, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        list(engine.map(ToyJob(tmp_path), [Toy(1), Toy(2), Toy(5, "bug")]))
    assert "LookupError: no such thing" in caught.value.what
    assert f"toy 5: failed {ATTEMPTS} times, on " in caught.value.where
    assert "resumes" in caught.value.todo
    nodes = [node for number, node in attempts(tmp_path) if number == 5]
    assert len(set(nodes)) == ATTEMPTS  # each attempt on another node, if any


def test_a_job_that_workers_cannot_load_says_why(
    engine: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the answer to the task, which has no job, arrives before the reason for that."""
    wait = engine._ray.wait

    def last_first(calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        ready, others = wait(calls, num_returns=len(calls), timeout=timeout)
        return ready[-1:], others

    monkeypatch.setattr(engine._ray, "wait", last_first)
    with pytest.raises(RunError, match=r"was lost: [^(]*No module named 'mine'"):
        list(engine.map(Elsewhere(tmp_path), [Toy(1)]))


def test_a_mistake_stops_the_run_at_once(engine: RayEngine, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="The model is wrong") as caught:
        list(engine.map(ToyJob(tmp_path), [Toy(2, "mistake")]))
    assert "toy 2: on " in caught.value.where
    assert len(attempts(tmp_path)) == 1


@pytest.fixture
def executor(shared: RayEngine, tmp_path: Path) -> Executor:
    """Calls on the three nodes' cores, once the workers of earlier tests have left them."""
    shared.close()
    for _ in range(100):
        made, cores = shared.executor(toys.prepare, tmp_path) or (None, 0)
        if made and cores == 3:
            return made
        time.sleep(0.1)
    raise AssertionError("the cores did not become free")


def test_calls_run_on_every_node_in_prepared_processes(executor: Executor, tmp_path: Path) -> None:
    calls = [executor.submit(toys.call, number, seconds=0.2) for number in range(12)]
    numbers, nodes, processes = zip(*(call.result() for call in calls), strict=True)
    assert numbers == tuple(range(12))
    assert len(set(nodes)) == 3
    prepared = (tmp_path / "prepared.txt").read_text().split()
    assert sorted(prepared) == sorted(set(processes))  # each of them once


def test_a_lost_call_is_repeated_and_errors_are_the_calls_own(executor: Executor) -> None:
    assert executor.submit(toys.killed_once).result() == "second try"
    with pytest.raises(ModelError, match="The model is wrong") as caught:
        executor.submit(toys.mistaken).result()
    assert type(caught.value) is ModelError
    with pytest.raises(RunError, match="process on the Ray cluster failed") as failed:
        executor.submit(toys.not_here).result()
    assert failed.value.where == "ModuleNotFoundError: No module named 'mine'"


def test_the_pool_is_tokenized_on_the_cluster(
    shared: RayEngine, executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same bytes as here."""
    monkeypatch.setattr("gradsieve.data.pool.chunks.CHUNK_ROWS", 5)
    monkeypatch.setattr("gradsieve.data.pool.workers.default_workers", lambda: 1)
    rows = [{"prompt": f"How many? {n % 90}", "completion": f"{n}"} for n in range(200)]
    world.write(tmp_path / "rows.jsonl", [*rows, {"prompt": "no answer"}])
    sources = [SourceSpec("s", str(tmp_path / "rows.jsonl"))]
    template = ChatTemplate(make_tokenizer(), "tulu", 64)
    found = {}
    calls, submit = [], RayExecutor.submit
    monkeypatch.setattr(
        RayExecutor, "submit", lambda self, *args: calls.append(1) or submit(self, *args)
    )
    for where, engine in (("here", None), ("there", shared)):
        out = tmp_path / where
        build_pool(out, sources, template, on_bad_row="skip", engine=engine)
        files = (file for file in out.rglob("*") if file.is_file())
        found[where] = {file.relative_to(out): file.read_bytes() for file in files}
    assert found["here"] == found["there"]
    assert len(calls) == 41


def test_a_full_disk_on_one_node(
    engine: RayEngine, listening: world.Listening, cluster: Any, tmp_path: Path
) -> None:
    (tmp_path / "full-node").write_text(cluster.head_node.node_id)
    tasks = [Toy(number, seconds=0.1) for number in range(30)]
    assert sorted(engine.map(ToyJob(tmp_path), tasks)) == list(range(30))
    assert files(tmp_path) == {str(number) for number in range(30)}
    assert any("is left out" in line for line in listening.lines)
    there = [node for _, node in attempts(tmp_path)].count(cluster.head_node.node_id)
    assert there == ATTEMPTS


def test_a_node_that_joins_takes_work_and_one_that_is_lost_does_not_matter(
    engine: RayEngine, listening: world.Listening, cluster: Any, tmp_path: Path
) -> None:
    joined = None
    # The largest tasks go first; the others wait for the node that joins.
    tasks = [Toy(n, "with a fourth node" if n < 50 else "", 0.1) for n in range(60)]
    for done, _ in enumerate(engine.map(ToyJob(tmp_path), tasks), start=1):
        if done == 3:
            joined = cluster.add_node(num_cpus=1)
        if done == 40:
            cluster.remove_node(joined, allow_graceful=False)
    assert joined is not None
    assert files(tmp_path) == {str(number) for number in range(60)}
    assert joined.node_id in {node for _, node in attempts(tmp_path)}


def test_a_worker_with_two_gpus_sees_both(
    cluster: Any, listening: world.Listening, tmp_path: Path
) -> None:
    node = cluster.add_node(num_cpus=2, num_gpus=4)  # Ray does not check that the GPUs exist
    settings = EngineConfig(kind="ray", address=cluster.address, gpus_per_worker=2)
    engine = RayEngine(settings, listening)
    try:
        assert list(engine.map(ToyJob(tmp_path), [Toy(n, "two GPUs") for n in range(4)])) == [2] * 4
        assert len(engine.workers) == 2
    finally:
        engine.close()
        cluster.remove_node(node)
