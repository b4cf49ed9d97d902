"""Optional libraries: imported when needed, and told how to install where they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from gradsieve.errors import UsageError


def needed(module: str, extra: str) -> Any:
    """Import an optional library.

    Raises:
        UsageError: If it is not installed; it says how to.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(str(error.name), module, extra) from None


def installed(module: str, extra: str) -> None:
    """Whether an optional library is there, without the seconds that importing it may take.

    Raises:
        UsageError: If it is not installed; it says how to.
    """
    if importlib.util.find_spec(module) is None:
        raise _missing(module, module, extra)


def _missing(name: str, module: str, extra: str) -> UsageError:
    todo = f"pip install 'gradsieve[{extra}]'"
    return UsageError(f"The library {name} is not installed.", module, todo)
