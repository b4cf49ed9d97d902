"""Methods from a user's Python file, which the recipe names as `FILE.py:OBJECT`."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from gradsieve.errors import UsageError
from gradsieve.io import file_fingerprint
from gradsieve.methods.base import Method
from gradsieve.methods.own import checked_method


def load_method(place: str) -> Method:
    """Run a Python file and return a method from it.

    Raises:
        UsageError: If the file or object doesn't exist, or it is not a method.
    """
    file = Path(place.rpartition(":")[0])
    if not file.is_file():
        todo = "Give a Python file as FILE.py:OBJECT, relative to where gradsieve is started."
        raise UsageError("The file of a method does not exist.", f"score.methods: {place}", todo)
    return _loaded(place, file_fingerprint(file))


@cache
def _loaded(place: str, contents: str) -> Method:
    """`load_method`, cached: the file runs again only after its contents change."""
    file, _, name = place.rpartition(":")
    where = f"score.methods: {place}"
    module = ModuleType(f"gradsieve_method_{Path(file).stem}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses need it there
    try:
        # Not imported: the import system's bytecode cache only checks time and size.
        exec(compile(Path(file).read_bytes(), file, "exec"), vars(module))
    except Exception as error:  # whatever the user's code raises
        what = f"The file of a method cannot be run: {type(error).__name__}: {error}"
        raise UsageError(what, where, "Correct the file.") from error
    known = [key for key, value in vars(module).items() if hasattr(value, "score")]
    return checked_method(getattr(module, name, None), name, where, known)
