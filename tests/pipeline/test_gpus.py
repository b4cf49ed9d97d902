"""The table of GPUs, and what it predicts."""

from dataclasses import replace

import pytest

from gradsieve.errors import UsageError
from gradsieve.pipeline.gpus import DISK_BYTES_A_SECOND, GPUS, find_gpu
from gradsieve.stages.estimate import Estimate


def test_found_by_name_in_any_case() -> None:
    assert find_gpu("h100") is GPUS["H100"]
    assert find_gpu("RTX-4090").gib == 24


def test_an_unknown_one_names_the_known() -> None:
    with pytest.raises(UsageError, match="no GPU A100") as caught:
        find_gpu("A100")
    assert caught.value.todo == f"One of {', '.join(GPUS)}."
    assert caught.value.exit_status == 2


def test_every_gpu_has_a_source_and_plausible_numbers() -> None:
    for name, gpu in GPUS.items():
        assert gpu.name == name
        assert gpu.source
        assert 20 < gpu.teraflops / gpu.gigabytes_a_second * 1000 < 600


def test_workers_share_the_tasks_and_not_the_disk() -> None:
    gpu = find_gpu("H100")
    one = Estimate(flops=1e18, loads=4, weight_bytes=10**10, disk_bytes=10**11, tasks=200)
    alone, eight = gpu.seconds(one), gpu.seconds(one, 8)
    fixed = 20.0 + 1e11 / DISK_BYTES_A_SECOND
    assert eight - fixed == pytest.approx((alone - fixed) / 8)
    assert gpu.seconds(one, 150) - fixed == pytest.approx((alone - fixed) * 2 / 200)
    assert gpu.seconds(replace(one, tasks=1), 8) == alone


def test_a_narrow_model_reaches_less_of_the_peak() -> None:
    """Measured on an H200: features of SmolLM2-135M for 12,000 rows took 106 to 108 s."""
    features = Estimate(flops=4.0e15, hidden=576, loads=4, weight_bytes=27 * 10**7)
    assert 90 < find_gpu("H200").seconds(features) < 120
    wide = Estimate(flops=4.0e15, hidden=8192)
    assert find_gpu("H200").seconds(wide) == find_gpu("H200").seconds(Estimate(flops=4.0e15))
