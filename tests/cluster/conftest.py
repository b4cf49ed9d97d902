"""A cluster of three nodes on this machine, for the tests in this folder."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="the engine on Ray needs gradsieve[ray]")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_AUTH_MODE"] = "disabled"  # needs no token in the home folder
    import toys
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(toys)
    head = {"num_cpus": 1, "_system_config": {"worker_niceness": 0}, "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)  # the head's handler would stay in this process
    made = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        made.add_node(wait=False, num_cpus=1)
    made.wait_for_nodes()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gradsieve.engine.ray.SECONDS_BETWEEN_LOOKS", 0.2)
            yield made
    finally:
        made.shutdown()
        signal.signal(signal.SIGTERM, before)
