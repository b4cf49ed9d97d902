"""Fixtures that several test folders share."""

import functools
import gc
import os
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.testing

os.environ["HF_HUB_OFFLINE"] = "1"  # set before the hub's libraries are imported
# Nothing here compiles models. Without this, bitsandbytes imports the compiler in every process
# that has an adapter, in 3 s.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


LONG = ("tests/trust/", "tests/docs/", "tests/e2e/", "tests/test_api.py", "tests/test_wrong_inputs")
"""Slow files and folders, run first: otherwise one process would still be busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first; one process runs all tests of a file (`--dist loadfile`)."""

    def place(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))

    items.sort(key=place)


def pytest_sessionstart() -> None:
    """Collect no garbage while test files are imported, which takes a second per process."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exempt the objects that imports created from garbage collection: each training spent half a
    second on them."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def disk_not_waited_for() -> Iterator[None]:
    """Skip fsync: no test here cuts the power; tests/trust does, in processes of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def collected_when_needed() -> Iterator[None]:
    """Leave garbage to Python: accelerate collects it before each training, and in a process with
    the objects of a thousand tests that takes as long as the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.utils.memory.gc", types.SimpleNamespace(collect=lambda: 0))
        yield


@pytest.fixture(scope="session", autouse=True)
def commands_made_once() -> Iterator[None]:
    """Build the commands once, as a process does; typer rebuilds them for each call, in 60 ms."""
    made = functools.cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", made)
        patch.setattr("typer.testing._get_command", made)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data next to the checkout; tests that need it are skipped without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data is not here: {SHARED_DATA}")
    return SHARED_DATA
