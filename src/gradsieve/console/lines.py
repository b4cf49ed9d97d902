"""Lines on standard error and in the log file, without control characters from the data.

Other libraries' warnings go only to the log file, and their progress bars are hidden; all their
settings are restored afterwards, since a notebook's settings are not ours to change. Rejected:
`RichHandler` (it wraps and pads lines, so that a path copied from a terminal is broken).
"""

from __future__ import annotations

import logging
import os
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path

import tqdm
from rich.console import Console
from rich.text import Text

log = logging.getLogger("gradsieve")

LIBRARIES = ("transformers", "datasets", "huggingface_hub")
"""Libraries with their own logging handlers; records of all others reach the root logger."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
"""Format characters that Persian, Indic scripts and emoji need; harmless to terminals."""


class _Formatter(logging.Formatter):
    """Readable lines: warnings are marked, other libraries named, control characters replaced."""

    def __init__(self, times: bool) -> None:
        super().__init__()
        self._times = times

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if not is_ours(record):
            text = f"[{record.name}] {clean(text)}"
        elif record.levelno >= logging.WARNING:
            text = f"warning: {text}"
        now = datetime.fromtimestamp(record.created).astimezone()
        start = f"{now.isoformat(sep=' ', timespec='seconds')} " if self._times else ""
        return start + clean_lines(text)


class ConsoleHandler(logging.Handler):
    """Prints lines on standard error, above the bars."""

    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self._console = console
        self.setFormatter(_Formatter(times=False))

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        self._console.print(Text(self.format(record)), soft_wrap=True)


class _FileHandler(logging.FileHandler):
    """A log file that follows no symbolic link; if it can't be written, the run continues."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        opened = os.open(self.baseFilename, flags, 0o666)
        return os.fdopen(opened, "a", encoding=self.encoding, errors=self.errors)

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore the error: the run continues without this line."""

    def close(self) -> None:
        """Close the file; lines that the disk has no room for are lost."""
        with suppress(OSError):
            super().close()


def file_handler(file: Path | None) -> logging.Handler:
    """A handler for gradsieve's records and other libraries' warnings; None discards them."""
    handler: logging.Handler = logging.NullHandler()
    if file is not None:
        try:
            handler = _FileHandler(file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            log.debug("no log file: %s", error)
    handler.setFormatter(_Formatter(times=True))
    handler.addFilter(lambda record: is_ours(record) or record.levelno >= logging.WARNING)
    return handler


def is_ours(record: logging.LogRecord) -> bool:
    """Whether a record is gradsieve's."""
    return record.name.partition(".")[0] == log.name


@contextmanager
def third_parties_to(handler: logging.Handler) -> Iterator[None]:
    """Send other libraries' warnings to a handler, and hide their progress bars."""
    root = logging.getLogger()
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [logger.handlers[:] for logger in loggers]
    shown, init = warnings.showwarning, vars(tqdm.tqdm)["__init__"]
    make = tqdm.tqdm.__init__
    root.addHandler(handler)
    for logger in loggers:
        logger.handlers[:] = [] if logger.propagate else [handler]
    warnings.showwarning = lambda message, category, *_, **__: logging.getLogger(
        category.__name__
    ).warning(message)
    # All libraries' bars are subclasses of this one, whatever their own switches.
    tqdm.tqdm.__init__ = lambda self, *a, **k: make(self, *a, **{**k, "disable": True})
    try:
        yield
    finally:
        tqdm.tqdm.__init__ = init
        warnings.showwarning = shown
        root.removeHandler(handler)
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers


# --- control characters in data -------------------------------------------------------------------


def clean(text: str) -> str:
    """Text without control characters, on one line."""
    return _printable(" ".join(text.split()))


def clean_lines(text: str) -> str:
    """Text without control characters, with its lines and indents."""
    return "\n".join(_printable(line.expandtabs()) for line in text.split("\n"))


def _printable(line: str) -> str:
    """Replace escape sequences, direction marks and halves of surrogate pairs."""
    return line if line.isprintable() else "".join(map(_printable_character, line))


def _printable_character(character: str) -> str:
    if character.isprintable() or character in JOINERS:
        return character
    return " " if unicodedata.category(character) == "Zs" else REPLACEMENT
