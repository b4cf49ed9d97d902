"""`gradsieve store`: inspect, verify, convert and merge datastores."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from gradsieve.cli.shared import Json, Quiet, echo, importing, option

store_app = typer.Typer(
    name="store",
    help="Inspect, verify, convert or merge gradient datastores.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
A_STORE = "runs/first/02-features/checkpoint-1/pool"

StorePath = Annotated[
    str, typer.Argument(metavar="STORE", help="A datastore's folder, or a URL of fsspec.")
]


@store_app.command(epilog=f"Example: gradsieve store inspect {A_STORE}")
def inspect(store: StorePath, as_json: Json = False) -> None:
    """Summarize a datastore without reading its features."""
    with importing():
        from gradsieve.store import inspect as inspected

    summary = inspected(store)
    settings = json.dumps(summary["settings"], ensure_ascii=False, indent=1)
    echo(summary if as_json else f"{_in_words(summary)}\n{settings}")


@store_app.command(epilog=f"Example: gradsieve store verify {A_STORE}")
def verify(store: StorePath, as_json: Json = False) -> None:
    """Check each file's hash, row counts and values; exit status 1 if any is wrong."""
    with importing():
        from gradsieve.store import open_store

    problems = open_store(store).verify()
    echo(problems if as_json else "\n".join(problems or ["no problems"]))
    if problems:
        raise typer.Exit(1)


@store_app.command(epilog=f"Example: gradsieve store convert {A_STORE} small --bits 4")
def convert(
    store: StorePath,
    into: Annotated[str, typer.Argument(metavar="INTO", help="The new datastore.")],
    bits: Annotated[int, option("--bits", "BITS", "16, 8, 4, 2 or 1.")],
    quiet: Quiet = False,
) -> None:
    """Write a copy of a datastore with fewer bits."""
    with importing():
        from gradsieve.console import Progress
        from gradsieve.store import convert as converted
        from gradsieve.store import inspect as inspected
        from gradsieve.store import open_store

    with Progress(quiet).counting("convert", len(open_store(store)), "rows") as report:
        converted(store, into, bits, report)
    echo(_in_words(inspected(into)))


@store_app.command(epilog="Example: gradsieve store merge part-1 part-2 --into all")
def merge(
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="Datastores.")],
    into: Annotated[str, option("--into", "INTO", "The new datastore.")],
    quiet: Quiet = False,
) -> None:
    """Merge datastores that have the same settings and no row in common."""
    with importing():
        from gradsieve.console import Progress
        from gradsieve.store import inspect as inspected
        from gradsieve.store import merge as merged

    shards = sum(inspected(store)["shards"] for store in stores)
    with Progress(quiet).counting("merge", shards, "shards") as report:
        merged(stores, into, report)
    echo(_in_words(inspected(into)))


def _in_words(summary: dict[str, Any]) -> str:
    sources = ", ".join(f"{name} {count}" for name, count in summary["sources"].items())
    state = "finished" if summary["finished"] else "unfinished"
    return (
        f"{summary['rows']} rows ({sources}), {summary['skipped']} skipped; {state}\n"
        f"{summary['shards']} shards, {summary['bytes'] / 2**20:.1f} MiB, "
        f"{summary['bits']}-bit values"
    )
