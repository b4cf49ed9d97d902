"""What other libraries print goes to a run's log, not to the terminal.

Their warnings may matter to whoever looks for the cause of something odd (weights that a model file
lacks, say), so they are kept; but they must not stand between the lines of a run. Everything is put
back at the end: a notebook's own settings are not ours to change.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LIBRARIES = ("transformers", "datasets", "huggingface_hub")
"""Those that print by handlers of their own; all others' records reach the root logger."""


class _ToLog(logging.Handler):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        """One line of the log."""
        self._note(f"[{record.name}] {' '.join(record.getMessage().split())}")


@contextmanager
def third_parties_to(note: Callable[[str], None]) -> Iterator[None]:
    """Send other libraries' warnings to `note`, and their progress bars nowhere."""
    import datasets
    import transformers
    from huggingface_hub import utils as hub

    bars = [part for part in (datasets, hub) if not part.are_progress_bars_disabled()]
    for part in bars:
        part.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # as gradsieve.models does when imported
    handler = _ToLog(note)
    root = logging.getLogger()
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [logger.handlers[:] for logger in loggers]
    shown = warnings.showwarning
    root.addHandler(handler)
    for logger in loggers:
        logger.handlers[:] = [] if logger.propagate else [handler]
    warnings.showwarning = lambda message, category, *_, **__: note(
        f"[{category.__name__}] {' '.join(str(message).split())}"
    )
    try:
        yield
    finally:
        for part in bars:
            part.enable_progress_bars()
        warnings.showwarning = shown
        root.removeHandler(handler)
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
