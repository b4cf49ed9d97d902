"""The table of GPUs, and what it predicts."""

import pytest

from gradsieve.errors import UsageError
from gradsieve.pipeline.gpus import GPUS, find_gpu


def test_found_by_name_in_any_case() -> None:
    assert find_gpu("h100") is GPUS["H100"]
    assert find_gpu("RTX-4090").gib == 24


def test_an_unknown_one_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no GPU A100") as caught:
        find_gpu("A100")
    assert "Did you mean A100-40GB?" in caught.value.todo
    assert caught.value.exit_status == 2


def test_every_gpu_has_a_source_and_plausible_numbers() -> None:
    for name, gpu in GPUS.items():
        assert gpu.name == name
        assert gpu.source
        assert 20 < gpu.teraflops / gpu.gigabytes_a_second * 1000 < 600
