"""docs/method.md names functions that exist."""

import importlib
import re

import pages


def test_the_tables_functions_exist() -> None:
    text = (pages.ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("|")]
    names = [name for row in rows for name in re.findall(r"`([a-z_.]+\.\w+)`", row)]
    assert len(names) >= 10
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(f"gradsieve.{name}")
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(f"gradsieve.{module}"), attribute), name
