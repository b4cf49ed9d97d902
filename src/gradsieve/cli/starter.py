"""`gradsieve init`: a recipe to start from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gradsieve.cli.shared import echo, option
from gradsieve.errors import UsageError


def init(
    model: Annotated[str | None, option("--model", "M", "A folder or a hub id.")] = None,
    pool: Annotated[
        list[str] | None, option("--pool", "FILE", "A source of candidate rows; repeatable.")
    ] = None,
    target: Annotated[str | None, option("--target", "FILE", "Examples of the skill.")] = None,
    test: Annotated[str | None, option("--test", "FILE", "Held-out examples, to evaluate.")] = None,
    from_: Annotated[str | None, option("--from", "NAME", "Copy a ready recipe instead.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the ready recipes.")] = False,
    out: Annotated[
        Path | None, option("--out", "FILE", "Default: recipe.yaml; with --from NAME.yaml.")
    ] = None,
) -> None:
    """Write a starter recipe; prompts for what the options leave out."""
    from gradsieve.recipe import starter

    if list_:
        names = starter.ready_recipes()
        echo("\n".join(f"{name:{max(map(len, names))}}  {what}" for name, what in names.items()))
        return
    if from_ is not None:
        given = {"--model": model, "--pool": pool, "--target": target, "--test": test}
        if unused := [name for name, value in given.items() if value]:
            todo = "Leave it out, and edit the copy, or set keys with --set when you run it."
            raise UsageError("A ready recipe is copied as it is.", f"--from, {unused[0]}", todo)
        files, kept = starter.copy_ready(from_, out or Path(f"{from_}.yaml"))
    else:
        out = out or Path("recipe.yaml")
        model = _answer(model, "--model", "Model: a folder, or a hub id")
        pool = pool or _answer(None, "--pool", "Pool: files of candidate rows, with spaces").split()
        target = _answer(target, "--target", "Target: a file with examples of the skill")
        text = starter.starter(model, pool, target, test, str(out))
        files, kept = [starter.write_recipe(text, out)], []
    extended = "".join(f" It extends {file}, which was there." for file in kept)
    echo(f"{', '.join(map(str, files))} written.{extended} Next: gradsieve plan {files[0]}")


def _answer(given: str | None, option: str, question: str) -> str:
    if not given and not sys.stdin.isatty():
        todo = f"Give {option}, or a ready recipe's name: --from NAME (--list shows them)."
        raise UsageError("A recipe needs a model, a pool and a target.", option, todo)
    return given or str(typer.prompt(question, err=True))
