"""Optional libraries: imported when needed, and told how to install where they are missing."""

from __future__ import annotations

import importlib
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
        raise UsageError(
            f"The library {error.name} is not installed.",
            module,
            f"pip install 'gradsieve[{extra}]'",
        ) from None
