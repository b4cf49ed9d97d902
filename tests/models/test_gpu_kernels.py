"""A GPU whose kernels can't be compiled is used without them; the reason is reported once."""

import logging

import pytest
import torch

from gradsieve.models import kernels
from gradsieve.models.kernels import has_kernels

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def asked_anew() -> None:
    has_kernels.cache_clear()


def test_a_missing_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def launch(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify\nvia CC")

    monkeypatch.setattr(kernels, "_launch", launch)
    with caplog.at_level(logging.WARNING):
        assert [has_kernels(GPU) for _ in range(3)] == [False] * 3
    (said,) = caplog.messages
    assert "(Failed to find C compiler. Please specify): " in said
    assert "build-essential" in said


def test_a_processor_has_none(caplog: pytest.LogCaptureFixture) -> None:
    assert not has_kernels(torch.device("cpu"))
    assert not caplog.messages


def test_one_that_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_launch", lambda device: None)
    assert has_kernels(GPU)
