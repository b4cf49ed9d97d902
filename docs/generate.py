"""Writes docs/recipe.md and docs/cli.md from the code; `--check` fails if they are out of date.

Run by `make format`; checked by `make check`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import Tag
from pydantic_core import PydanticUndefined

from gradsieve.cli import app
from gradsieve.recipe.load import section_of
from gradsieve.recipe.schema import Recipe
from gradsieve.recipe.section import SEVERAL, Section

HERE = Path(__file__).parent


EFFECTS = {
    "yes": "changes results; stages that depend on it run again.",
    "no": "changes speed, memory or presentation only.",
    "contents": "names something; its contents count, not its name or path.",
    "adds": "adds results and keeps the others.",
    "repeats": "a seed: makes another repetition.",
}
"""Meanings of the effects in the schema (`gradsieve.recipe.section.Effect`)."""


def recipe_page() -> str:
    """The page with every key of the recipe."""
    parts = [
        "# Recipe\n",
        "<!-- made by docs/generate.py -->\n",
        "Every key, with its type, its default and its effect on results. Paths are relative to",
        "the directory in which `gradsieve` is started. Any key can be set on the command line:",
        "`--set warmup.epochs=2`, `--set pool.0.path=a.jsonl`.\n",
        "A recipe can extend another: `base: other.yaml` at the top, relative to the recipe's own",
        "folder. Its keys override those of the base; sections are merged key by key, lists are",
        "replaced, null takes a key away. The run folder holds the resolved recipe.\n",
        "Effects on results:\n",
        *(f"- {effect}: {meaning}" for effect, meaning in EFFECTS.items()),
        "",
    ]
    return "\n".join(parts) + "".join(_section(Recipe, ""))


def _section(section: type[Section], path: str) -> list[str]:
    rows, inner = [], []
    for name, field in section.model_fields.items():
        below = section_of(field.annotation)
        described = field.description or _first_line(below)
        effect = "" if below else section.effect(name)
        cells = (f"`{name}`", _type(field.annotation), _default(field), effect, described)
        rows.append(f"| {' | '.join(cells)} |\n")
        if below is not None:
            inner += _section(below, f"{path}{name}.")
    heading = path.rstrip(".") or "Sections"
    head = "| key | type | default | effect | meaning |\n| --- | --- | --- | --- | --- |\n"
    return [f"\n## {heading}\n\n{_first_line(section)}\n\n", head, *rows, *inner]


def _first_line(section: type[Section] | None) -> str:
    return (section.__doc__ or "").split("\n")[0] if section else ""


def _type(annotation: Any) -> str:
    """A readable type: `list of int`, `str or null`, `1 / 2 / 4`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if Tag(SEVERAL) in inner:  # the list of a value or a list of them
        return "a list"
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return " / ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(_type, inner))
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"{{name: {_type(inner[1])}}}"
    return "null" if annotation is type(None) else str(annotation.__name__)


def _default(field: Any) -> str:
    if isinstance(field.default, Section):
        return "see below"
    if field.default is PydanticUndefined:
        return "required"
    return "null" if field.default is None else f"`{field.default}`"


CLI_START = """# Command line

<!-- made by docs/generate.py -->

Results are on standard output (`--json` for machines), progress and warnings on standard error.
Exit status 0: done; 1: failed; 2: wrong usage or recipe; 128 and its number: stopped by a signal
(130: Ctrl-C).

"""


def cli_page() -> str:
    """The page with the help of every command."""
    command: Any = typer.main.get_command(app)
    context = _context(command, "gradsieve")
    return "".join([CLI_START, *_help(command, context, "#")])


def _help(command: Any, context: Any, level: str) -> Iterator[str]:
    """The help of a command, followed by that of its subcommands."""
    yield f"```text\n{command.get_help(context)}\n```\n"
    for name, sub in getattr(command, "commands", {}).items():
        own = _context(sub, name, context)
        yield f"\n{level}# {own.command_path}\n\n"
        yield from _help(sub, own, f"{level}#")


def _context(command: Any, name: str, parent: Any = None) -> Any:
    return command.context_class(
        command,
        info_name=name,
        parent=parent,
        terminal_width=90,
        max_content_width=90,
        **command.context_settings,
    )


PAGES = {"recipe.md": recipe_page, "cli.md": cli_page}


def main() -> int:
    """Write the pages, or with `--check` compare them."""
    stale = []
    for name, page in PAGES.items():
        text = re.sub(r"[ \t]+\n", "\n", page())
        file = HERE / name
        if "--check" not in sys.argv:
            file.write_text(text, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        print(f"out of date: {', '.join(stale)}; run `make format`", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
