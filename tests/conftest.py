"""Fixtures that several test folders share."""

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.testing

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of the hub's libraries: no test needs one

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


LONG = ("tests/trust/", "tests/docs/", "tests/e2e/", "tests/test_api.py", "tests/test_wrong_inputs")
"""Files and folders that take longest: at the end one process would work while the other waits."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; a process takes a file's tests together (`--dist loadfile`)."""

    def place(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What the imports have made stays: each training collects garbage, which took half a second
    because of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def disk_not_waited_for() -> Iterator[None]:
    """Nothing cuts the power here; tests/trust does, in processes of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def commands_made_once() -> Iterator[None]:
    """As in a process; typer makes all commands anew for each call, in 60 ms."""
    made = functools.cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", made)
        patch.setattr("typer.testing._get_command", made)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data is not here: {SHARED_DATA}")
    return SHARED_DATA
