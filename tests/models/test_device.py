"""The warning about a dtype that is slow on this machine."""

import pytest
import torch

from gradsieve.models import device
from gradsieve.models.device import slow_dtype


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_that_a_gpu_emulates(
    name: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    said = slow_dtype(name)
    assert (said is not None) == (name == "bfloat16" and not native)
    assert said is None or "set model.dtype: float16" in said
