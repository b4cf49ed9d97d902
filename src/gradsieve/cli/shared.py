"""Options and printing shared by several commands."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from gradsieve.errors import RunError


def option(name: str, metavar: str, help: str, **more: Any) -> Any:
    """An option with a value."""
    return typer.Option(name, metavar=metavar, help=help, **more)


Quiet = Annotated[bool, typer.Option("--quiet", help="Print only warnings and the result.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


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
