"""Methods from a user's Python file, which the recipe names as `FILE.py:OBJECT`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import cast

from gradsieve.errors import UsageError
from gradsieve.methods.base import Method


def load_method(place: str) -> Method:
    """Run a Python file and take a method from it; a class is instantiated.

    Args:
        place: `FILE.py:OBJECT`, relative to where gradsieve is started.

    Raises:
        UsageError: If there is no such file or object, or it is no method.
    """
    file, _, name = place.rpartition(":")
    where = f"score.methods: {place}"
    spec = importlib.util.spec_from_file_location(f"gradsieve_method_{Path(file).stem}", file)
    if not Path(file).is_file() or spec is None or spec.loader is None:
        todo = "Give a Python file as FILE.py:OBJECT, relative to where gradsieve is started."
        raise UsageError("The file of a method is not there.", where, todo)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        what = f"The file of a method cannot be run: {type(error).__name__}: {error}"
        raise UsageError(what, where, "Correct the file.") from error
    found = getattr(module, name, None)
    try:
        method = found() if isinstance(found, type) else found
    except TypeError as error:
        what = f"The method cannot be made: {error}"
        raise UsageError(what, where, "Give an object, or a class without arguments.") from error
    lacks = [part for part in ("source", "uses", "score") if not hasattr(method, part)]
    if lacks:
        known = [key for key, value in vars(module).items() if hasattr(value, "score")]
        todo = f"One of {', '.join(known)}." if known else "See docs/methods.md."
        raise UsageError(f"{name} is no method: it lacks {', '.join(lacks)}.", where, todo)
    return cast(Method, method)
