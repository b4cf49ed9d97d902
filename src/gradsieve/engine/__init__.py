"""Where a stage's tasks run: an engine decides where and when, never what."""

from gradsieve.engine.base import Engine, Job, LocalEngine, Size

__all__ = ["Engine", "Job", "LocalEngine", "Size"]
