"""Engines run a stage's tasks: an engine decides where and when they run, never what they do."""

from gradsieve.engine.base import Engine, Job, LocalEngine, Size

__all__ = ["Engine", "Job", "LocalEngine", "Size"]
