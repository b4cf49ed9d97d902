"""Connects to the Ray cluster of the settings or of RAY_ADDRESS; without one, starts Ray here."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradsieve.errors import RunError, UsageError, first_line
from gradsieve.recipe.schema import EngineConfig

SECONDS_TO_ANSWER = 5.0
"""How long a cluster may take to accept a connection."""


def named_cluster(settings: EngineConfig) -> tuple[str, str | None]:
    """What names the cluster, and its address; None without a cluster."""
    if settings.address:
        return "engine.address", settings.address
    return "RAY_ADDRESS", os.environ.get("RAY_ADDRESS") or None


def connect(ray: Any, settings: EngineConfig) -> None:
    """Connect `ray` to the cluster, or start it on this machine.

    Raises:
        UsageError: If the cluster can't be reached.
        RunError: If Ray can't be started here.
    """
    named, address = named_cluster(settings)
    _check_answer(named, address or "")
    # By default Ray's workers yield to all other processes (niceness 15).
    own = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}}
    try:
        with _own_signal_handlers():
            ray.init(
                address=address or "local",  # never another run's cluster on this machine
                log_to_driver=False,
                configure_logging=False,
                **({} if address else own),
            )
    except Exception as error:  # Ray raises plain Exception if a node fails to start
        if address is None:
            todo = "Free memory and processors and run again, or set engine.kind: local."
            raise RunError("Ray cannot be started here.", first_line(error), todo) from None
        raise _unreachable(named, address, error) from None


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Restore the handlers that Ray replaces; if its own one raised SystemExit, ours is called."""
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for one, handler in before.items():
                    signal.signal(one, handler)
    except SystemExit:
        signal.raise_signal(signal.SIGTERM)
        raise  # a handler that returns must not leave a Ray that has started in part


def _check_answer(named: str, address: str) -> None:
    """Raise a UsageError if nothing answers at an address. Ray would try for five minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise _unreachable(named, address, error) from None


def _unreachable(named: str, address: str, error: Exception) -> UsageError:
    return UsageError(
        "The Ray cluster cannot be reached.",
        f"{named} {address}: {first_line(error)}",
        f"Start it (`ray start --head`), or remove {named} to use this machine.",
    )
