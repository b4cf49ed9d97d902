"""Calls on a cluster's processes, as far as they can be tested without one (see tests/cluster)."""

import pytest

from gradsieve.engine.executor import _call
from gradsieve.engine.worker import VERSION
from gradsieve.errors import RunError


def test_another_version_on_a_node_is_refused() -> None:
    with pytest.raises(RunError, match="different versions") as caught:
        _call("0.0.0", [], list)
    assert caught.value.where.endswith(f" {VERSION}, the driver 0.0.0")
