"""Loading a recipe: YAML, the recipes it extends, `--set` overrides, and validation.

In: a YAML file and `section.key=value` overrides. Out: one `Recipe` with every default filled in.
All problems are reported at once, each with its line, the expected value and the nearest known key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from gradsieve.errors import RecipeError
from gradsieve.recipe.schema import Recipe
from gradsieve.recipe.section import TAGS, Section
from gradsieve.recipe.selecting import SIZES


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: A YAML file.
        overrides: `section.key=value` strings with the value in YAML; they override the file.

    Raises:
        RecipeError: If the recipe is invalid; lists every problem.
    """
    tree, lines = _read(Path(path))
    for override in overrides:
        place = _override(tree, override)
        below = [key for key in lines if key[: len(place)] == place]
        lines |= dict.fromkeys([*below, place], f"--set {override}")
    return check_recipe(tree, str(path), lines)


def as_recipe(given: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """Convert any form of a recipe to a `Recipe`: a `Recipe`, plain data, or the path of a file."""
    if isinstance(given, Recipe):
        return given
    return check_recipe(given) if isinstance(given, Mapping) else load_recipe(given)


Lines = dict[tuple[str, ...], str]
"""Maps a key's path to the place where it is set: `line 3`, `FILE:3` in a recipe that is extended,
or `--set KEY=VALUE`.
"""


def _read(path: Path, extended_by: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Lines]:
    """A recipe's data, merged over the data of its `base`, and the place where each key is set."""
    tree, numbers = _parse_yaml(_text(path), str(path))
    name = f"{path}:" if extended_by else "line "
    lines = {key: f"{name}{number}" for key, number in numbers.items()}
    base = tree.pop("base", None)
    if base is None:
        return tree, lines
    file, chain = path.parent / str(base), (*extended_by, path.resolve())
    problem = None
    if not isinstance(base, str):
        problem = f"expected a path; got {base!r}"
    elif file.resolve() in chain:
        problem = f"{base} extends this recipe"
    elif not file.exists():
        problem = (
            f"there is no {file}; a base is relative to the folder of the recipe that names it"
        )
    if problem:
        raise RecipeError([f"base ({lines[('base',)]}): {problem}"], str(path))
    below, their_lines = _read(file, chain)
    return _merged(below, tree), {**their_lines, **lines}


def _merged(
    below: Mapping[str, Any], above: Mapping[str, Any], section: str = ""
) -> dict[str, Any]:
    """Keys of `above` win; sections are merged key by key, lists are replaced, null removes."""
    replaced = {other for key in above if above[key] for other in _alternatives(section, key)}
    merged = {**{key: value for key, value in below.items() if key not in replaced}, **above}
    for key in below.keys() & above.keys():
        if above[key] is None:
            del merged[key]
        elif key not in LISTS and all(isinstance(part[key], Mapping) for part in (below, above)):
            merged[key] = _merged(below[key], above[key], key)
    return merged


LISTS = ("pool", "targets")
"""Sections that are lists; a single item may be written without the list."""


def _alternatives(section: str, key: str) -> set[str]:
    """Keys that exclude `key`: setting `key` removes them from the base, or from the file."""
    groups = {"select": SIZES, "score": ("method", "methods")}
    group = groups.get(section, ())
    return {*group} - {key} if key in group else set()


MOST_BYTES = 16 << 20
"""Maximum size of a recipe; ten thousand sources take 1 MB."""

MOST_VALUES = 500_000
"""Maximum number of values with aliases and merges expanded; a few lines can expand to billions."""


def _refuse_expanding(root: yaml.Node | None, where: str) -> None:
    known: dict[int, int] = {}

    def size(node: Any) -> int:
        if isinstance(node, tuple):
            return sum(map(size, node))
        if id(node) not in known:
            below = node.value if isinstance(node.value, list) else []
            known[id(node)] = 1 + sum(map(size, below))
        return known[id(node)]

    if root is not None and size(root) > MOST_VALUES:
        problem = f"its aliases stand for more than {MOST_VALUES} values"
        raise RecipeError([problem], where, "Write them out, or remove the aliases.")


def _text(path: Path) -> str:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise RecipeError(["it is a pipe or a device"], str(path), "Use a YAML file.")
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise RecipeError([f"it has more than {MOST_BYTES} bytes"], str(path), "Use a recipe.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        problem, todo = f"it cannot be read: {error.strerror}", "Check the path."
    except UnicodeDecodeError:
        problem, todo = "it is not UTF-8 text", "Use a YAML file."
    raise RecipeError([problem], str(path), todo)


def check_recipe(
    tree: Mapping[str, Any], where: str = "recipe", lines: Lines | None = None
) -> Recipe:
    """Validate data as a `Recipe`; `lines` maps a key's path to the place where it is set."""
    try:
        return Recipe.model_validate(_with_text_paths(tree))
    except ValidationError as error:
        problems = [_problem(dict(item), lines or {}) for item in error.errors()]
        raise RecipeError(problems, where) from None


def _with_text_paths(value: Any) -> Any:
    """The same data with each `Path` as a string, as in YAML."""
    if isinstance(value, Mapping):
        return {key: _with_text_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_text_paths(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, including defaults; `load_recipe` reads it back as an equal recipe."""
    tree = recipe.model_dump(mode="json")
    for key in recipe.features.unused:
        del tree["features"][key]
    tree["select"] = {key: value for key, value in tree["select"].items() if value is not None}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


# --- reading YAML -------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Reads 010 and 1:30 as text; YAML 1.1 reads them as 8 (octal) and 90 (base 60)."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a value that has none in the file."""
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        is_number = tag.endswith((":int", ":float"))
        odd = is_number and re.match(r"[-+]?0[0-9_]|.*:", value)
        return self.DEFAULT_SCALAR_TAG if odd else tag


def _parse_yaml(text: str, where: str) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The file's data, and the line number of each key; a duplicate key is an error."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        _refuse_expanding(root, where)
        keys = list(_key_lines(root, ()))  # first: `construct_document` expands merges in place
        tree = None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", "it cannot be parsed")
        begun = getattr(error, "context_mark", None)
        if mark and begun and begun.line != mark.line:  # an open quote is seen at the file's end
            context = getattr(error, "context", None)
            reason = f"{reason} {context} that begins on line {begun.line + 1}"
        raise RecipeError([f"not YAML: {reason}"], where + line, "Correct the YAML.") from None
    except (ValueError, RecursionError) as error:  # e.g. month 13; an anchor that contains itself
        deep = isinstance(error, RecursionError)
        reason = "nested too deeply, or an anchor that contains itself" if deep else error
        raise RecipeError(
            [f"a value cannot be read: {reason}"], where, "Correct the YAML."
        ) from None
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else type(tree).__name__
        raise RecipeError([f"expected a mapping of sections at the top, found {found}"], where)
    lines: dict[tuple[str, ...], int] = {}
    twice: list[str] = []
    for key, number in keys:
        if key in lines:
            name = ".".join(key)
            twice.append(f"{name} (line {number}): written twice, first on line {lines[key]}")
        lines.setdefault(key, number)
    if twice:
        raise RecipeError(twice, where)
    return tree, lines


def _key_lines(
    node: yaml.Node | None, above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here = (*above, str(key.value))
            yield here, key.start_mark.line + 1
            if here[-1] not in seen:  # a duplicate is reported once, without the keys below it
                yield from _key_lines(value, here)
            seen.add(here[-1])
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield (*above, str(position)), value.start_mark.line + 1
            yield from _key_lines(value, (*above, str(position)))


def _override(tree: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set one `section.key=value` in the tree, and return the key's path."""
    path, equals, text = override.partition("=")
    keys = tuple(path.strip().split("."))
    try:
        if not equals or not all(keys):
            raise ValueError("expected section.key=value")
        _set(tree, keys, yaml.load(text, _Loader))
    except (ValueError, yaml.YAMLError) as error:
        problem = "the value is not YAML" if isinstance(error, yaml.YAMLError) else error
        todo = "Write for example --set warmup.epochs=2 or --set pool.0.path=a.jsonl."
        raise RecipeError([f"--set {override}: {problem}"], "command line", todo) from None
    return keys


def _set(node: Any, keys: Sequence[str], value: Any, section: str = "") -> None:
    """Set the value at a path of keys below a node; list items are counted from 0.

    Raises:
        ValueError: If the path leads through a single value, or beyond a list's end.
    """
    key, *below = keys
    place: Any = key
    if isinstance(node, dict):
        node.setdefault(key, None)
    elif not isinstance(node, list):
        raise ValueError(f"{section} is a value ({node!r}), not a section")
    elif not key.isdigit() or int(key) >= len(node):
        raise ValueError(f"{key} is not a position in a list of {len(node)}, counted from 0")
    else:
        place = int(key)
    if below:
        if node[place] is None:
            node[place] = {}
        _set(node[place], below, value, key)
    elif value is None and isinstance(node, dict) and node[key] is not None:
        del node[key]
    else:
        for other in _alternatives(section, key) if value is not None else ():
            node.pop(other, None)
        node[place] = value


# --- reporting problems -------------------------------------------------------------------------


def _problem(error: dict[str, Any], lines: Lines) -> str:
    """One line: the place in the recipe, what is wrong, and what was expected or likely meant."""
    path = tuple(str(part) for part in error["loc"] if part not in TAGS)
    section = section_at(path[:-1])
    is_ours = path and (path[-1].isdigit() or (section and path[-1] in section.model_fields))
    is_ours = is_ours or path in lines  # a name that the user chose, such as a source's
    if not is_ours and error["type"] not in ("extra_forbidden", "missing"):
        # pydantic ends the path with the member of a union ("int"), which is not a key.
        path = path[:-1]
    written = path[:-1] if error["type"] == "missing" else path
    line = f" ({lines[written]})" if written in lines else ""
    return f"{'.'.join(path) or 'recipe'}{line}: {_explain(error, path)}"


def _explain(error: dict[str, Any], path: tuple[str, ...]) -> str:
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "missing":
        return "missing; this key must be set"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}; got {given!r}"
    wanted = error["msg"][0].lower() + error["msg"][1:]
    wanted = wanted.removeprefix("input should be ").replace("'", "")
    return f"expected {wanted}; got {given!r}"


_EXPECTED = {
    "model_type": "a section of keys",
    "too_short": "a list of at least one",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_pattern_mismatch": "letters, digits, `.`, `_` or `-`, not starting with a mark",
}
"""Replaces the pydantic messages that only a programmer would understand, by error type."""


_OTHER_NAMES = {
    "lr": "learning_rate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "micro_batch_size",
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "lora_r": "r",
    "lora_rank": "r",
    "rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "model_name_or_path": "name",
    "precision": "dtype",
    "num_samples": "count",
}
"""Keys as other training libraries name them (transformers, TRL, peft, LLaMA-Factory)."""


def _unknown_key(path: tuple[str, ...]) -> str:
    section, key = section_at(path[:-1]), _OTHER_NAMES.get(path[-1], path[-1])
    keys = list(section.model_fields) if section else []
    places = (place for place, other in SECTIONS.items() if place and key in other.model_fields)
    elsewhere = " or ".join(f"`{place}`" for place in places)
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.8 if elsewhere else 0.6)
    if near:
        return f"unknown key; did you mean `{near[0]}`?"
    if elsewhere:
        return f"unknown key here; `{key}` belongs in {elsewhere}"
    return f"unknown key; known here: {', '.join(keys)}"


def section_at(path: Iterable[str]) -> type[Section] | None:
    """The section class at a path of keys, ignoring list positions; None if there is none."""
    return SECTIONS.get(".".join(part for part in path if not part.isdigit()))


def section_of(annotation: Any) -> type[Section] | None:
    """The section class within an annotation such as `list[SourceConfig]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (section_of(part) for part in get_args(annotation))
    return next((section for section in found if section), None)


def _sections(section: type[Section], path: str = "") -> Iterator[tuple[str, type[Section]]]:
    yield path, section
    for name, field in section.model_fields.items():
        if inner := section_of(field.annotation):
            yield from _sections(inner, f"{path}.{name}".strip("."))


SECTIONS = dict(_sections(Recipe))
"""Each section class by its path, such as `features.projection`; `pool` has no positions."""
