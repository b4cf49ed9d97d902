"""Chooses the engine of a run, and logs why."""

from __future__ import annotations

import importlib.util

import torch

from gradsieve.console import Progress
from gradsieve.engine.base import Engine, LocalEngine
from gradsieve.engine.connect import named_cluster
from gradsieve.engine.ray import RayEngine
from gradsieve.models import distributed
from gradsieve.recipe.schema import EngineConfig

INSTALL = "pip install 'gradsieve[ray]'"


def choose_engine(settings: EngineConfig, progress: Progress) -> Engine:
    """The engine for a recipe; the choice and its reason are logged.

    Raises:
        UsageError: If the recipe asks for Ray and it is not installed.
    """
    gpus, (named, address) = torch.cuda.device_count(), named_cluster(settings)
    if distributed.count() > 1:
        kind, why = "local", "a launcher has started several processes"
    elif settings.kind != "auto":
        kind, why = settings.kind, "the recipe says so"
    elif not (address or gpus > 1):
        kind, why = "local", f"{gpus or 'no'} GPU{'s' * (gpus != 1)} here, no RAY_ADDRESS"
    elif importlib.util.find_spec("ray") is None:
        kind, why = "local", f"Ray is not installed ({INSTALL})"
    else:
        kind, why = "ray", f"{named} is {address}" if address else f"{gpus} GPUs here"
    progress.note(f"engine: {kind}, because {why}")
    if kind == "ray":
        return RayEngine(settings, progress)
    idle = gpus - settings.gpus_of_model
    if idle > 0 and distributed.count() == 1:
        progress.warn(
            f"{idle} of {gpus} GPUs are idle: {INSTALL} and engine.kind: auto use them all"
        )
    return LocalEngine(progress)
