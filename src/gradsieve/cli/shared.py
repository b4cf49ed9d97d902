"""Options and printing shared by several commands."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from gradsieve.errors import RunError


def option(name: str, metavar: str, help: str, **more: Any) -> Any:
    """An option with a value."""
    return typer.Option(name, metavar=metavar, help=help, **more)


Quiet = Annotated[bool, typer.Option("--quiet", help="Print only warnings and the result.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def importing() -> Iterator[None]:
    """Exempt what a command imports from garbage collection: a million objects, none of them
    garbage, which would take a third of the time in which a process starts and exits.
    """
    if "torch" in sys.modules:  # called from a program, whose objects these are
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def echo(result: Any, err: bool = False) -> None:
    """Print text, or other data as JSON; control characters in names and rows are replaced."""
    from gradsieve.console import clean_lines

    if isinstance(result, str):
        text = clean_lines(result)
    else:
        text = json.dumps(result, ensure_ascii=False)
        text = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    try:
        typer.echo(text, err=err)
    except BrokenPipeError:
        raise
    except OSError as error:
        if err:  # of a closed terminal: there is nowhere else to say it
            return
        todo = "Free disk space, and run the same command again."
        raise RunError(f"The result cannot be written: {error.strerror}.", "stdout", todo) from None
