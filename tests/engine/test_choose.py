"""Which engine `auto` chooses, and why."""

import pytest
import torch

import world
from gradsieve.engine import LocalEngine
from gradsieve.engine.choose import choose_engine
from gradsieve.engine.ray import RayEngine
from gradsieve.recipe.schema import EngineConfig


def chosen(
    monkeypatch: pytest.MonkeyPatch, gpus: int, has_ray: bool, **settings: str
) -> tuple[type, list[str]]:
    noting = world.Noting()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object() if has_ray else None)
    monkeypatch.setattr("gradsieve.engine.ray.needed", lambda *_: None)
    return type(choose_engine(EngineConfig(**settings), noting)), noting.lines


def test_one_gpu_or_none_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert chosen(monkeypatch, 0, True) == (
        LocalEngine,
        ["engine: local, because no GPUs here, no RAY_ADDRESS"],
    )
    assert chosen(monkeypatch, 1, True) == (
        LocalEngine,
        ["engine: local, because 1 GPU here, no RAY_ADDRESS"],
    )


def test_several_gpus_or_a_cluster_take_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert chosen(monkeypatch, 8, True) == (RayEngine, ["engine: ray, because 8 GPUs here"])
    assert chosen(monkeypatch, 0, True, kind="ray")[0] is RayEngine
    reason = "engine: ray, because engine.address is auto"
    assert chosen(monkeypatch, 0, True, address="auto") == (RayEngine, [reason])
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert chosen(monkeypatch, 0, True) == (
        RayEngine,
        ["engine: ray, because RAY_ADDRESS is head:6379"],
    )
    monkeypatch.setenv("WORLD_SIZE", "4")  # as `accelerate launch` sets it
    assert chosen(monkeypatch, 8, True)[0] is LocalEngine


def test_idle_gpus_are_named_with_the_line_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    kind, lines = chosen(monkeypatch, 8, False)
    assert kind is LocalEngine
    assert lines[-1].startswith("warning: 7 of 8 GPUs are idle: pip install 'gradsieve[ray]'")
    kind, lines = chosen(monkeypatch, 8, True, kind="local")
    assert kind is LocalEngine
    assert "7 of 8 GPUs are idle" in lines[-1]
    kind, lines = chosen(monkeypatch, 8, True, kind="local", gpus_per_worker="2")
    assert "6 of 8 GPUs are idle" in lines[-1]
