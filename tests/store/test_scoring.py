"""Cosines computed from packed codes: exact for any tile size, order and number of rows."""

import numpy as np
import pytest
import torch

from gradsieve.store import quantize, scoring
from gradsieve.store.scoring import Cosines

BITS = (32, 16, 8, 4, 2, 1)
Whole = tuple[int, np.ndarray, np.ndarray, np.ndarray]
"""Bits, codes, their norms, and cosines to 57 directions."""


def made(count: int, dim: int, bits: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    codes, norms, _ = quantize.encode(rows, bits)
    return codes, norms


def directions(count: int, dim: int) -> np.ndarray:
    rows = np.random.default_rng(9).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("count", "subtasks", "dim"), [(5, 1, 64), (33, 57, 1024), (2, 8, 256)])
def test_as_in_double_precision(bits: int, count: int, subtasks: int, dim: int) -> None:
    codes, norms = made(count, dim, bits)
    wanted = quantize.decode(codes, bits).astype(np.float64) @ directions(subtasks, dim).T
    wanted /= norms[:, None].astype(np.float64)
    found = Cosines(directions(subtasks, dim), bits)(codes, norms)
    assert found.shape == (count, subtasks)
    np.testing.assert_allclose(found, wanted, atol=1e-5 if bits <= 8 else 1e-6)


def misaligned(values: np.ndarray, by: int) -> np.ndarray:
    """A copy that starts a few bytes after a multiple of 64."""
    room = np.empty(values.nbytes + 128, dtype=np.uint8)
    start = -room.ctypes.data % 64 + by
    copy = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


@pytest.fixture(scope="module", params=BITS)
def whole(request: pytest.FixtureRequest) -> Whole:
    codes, norms = made(70, 2048, request.param)
    return request.param, codes, norms, Cosines(directions(57, 2048), request.param)(codes, norms)


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 69])
def test_same_bytes_with_any_number_of_rows_at_a_time(
    whole: Whole, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits, codes, norms, wanted = whole
    monkeypatch.setattr(scoring, "ROWS", rows)
    cosines = Cosines(directions(57, 2048), bits)
    np.testing.assert_array_equal(cosines(codes, norms), wanted)
    np.testing.assert_array_equal(cosines(codes[::-1].copy(), norms[::-1])[::-1], wanted)
    np.testing.assert_array_equal(cosines(codes[rows:], norms[rows:]), wanted[rows:])


@pytest.mark.parametrize("by", [4, 8, 20, 60])
def test_same_bytes_in_misaligned_buffers(whole: Whole, by: int) -> None:
    bits, codes, norms, wanted = whole
    cosines = Cosines(misaligned(directions(57, 2048), by), bits)
    np.testing.assert_array_equal(cosines(misaligned(codes, by), misaligned(norms, by)), wanted)


@pytest.mark.parametrize("subtasks", [1, 2, 9])
def test_same_bytes_with_any_number_of_directions(whole: Whole, subtasks: int) -> None:
    bits, codes, norms, wanted = whole
    found = Cosines(directions(57, 2048)[:subtasks], bits)(codes, norms)
    np.testing.assert_array_equal(found, wanted[:, :subtasks])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bytes_with_any_number_of_threads(whole: Whole, threads: int) -> None:
    bits, codes, norms, wanted = whole
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = Cosines(directions(57, 2048), bits)(codes, norms)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("bits", [8, 1])
def test_many_dims_do_not_overflow(bits: int) -> None:
    dim = 3 * scoring.DIMS
    row = np.ones((1, dim), dtype=np.float32)
    codes, norms, _ = quantize.encode(row, bits)
    along = row / np.float32(np.sqrt(dim))
    found = Cosines(np.concatenate([along, -along]), bits)(codes, norms)
    assert found[0] == pytest.approx([1, -1], abs=1e-5)


def test_nothing_has_a_cosine_of_zero() -> None:
    codes, norms, _ = quantize.encode(np.zeros((1, 64), dtype=np.float32), 8)
    assert Cosines(directions(2, 64), 8)(codes, norms).tolist() == [[0, 0]]
    codes, norms = made(3, 64, 4)
    assert not Cosines(np.zeros((1, 64), dtype=np.float32), 4)(codes, norms).any()


def test_lengths_of_directions_are_kept() -> None:
    """Methods pass means of unit vectors, whose norm measures how well examples agree."""
    codes, norms = made(4, 256, 2)
    of_unit = Cosines(directions(3, 256), 2)(codes, norms)
    scale = np.array([0.1, 1.0, 300.0], dtype=np.float32)
    scaled = Cosines(directions(3, 256) * scale[:, None], 2)(codes, norms)
    np.testing.assert_allclose(scaled, of_unit * scale, rtol=1e-4, atol=1e-6)


def test_unpacking_leaves_the_number_of_threads_alone() -> None:
    """Rounding depends on it, so later float results of the process would change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    codes, norms = made(20, 256, 1)
    Cosines(directions(2, 256), 1)(codes, norms)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("bits", "works"), [(8, False), (8, True), (16, False)])
def test_a_gpu_that_multiplies_no_integers_is_left_out(
    bits: int, works: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def tried() -> None:
        if not works:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED\nm 512 n 16")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(scoring, "_try_integers", tried)
    scoring._multiplies_integers.cache_clear()
    assert scoring._has_gpu(bits) == (works or bits == 16)
    scoring._multiplies_integers.cache_clear()
    said = ["This GPU multiplies no integers (CUDA error: CUBLAS_STATUS_NOT_SUPPORTED): rows are "
            "compared on the processor"]  # fmt: skip
    assert caplog.messages == ([] if works or bits == 16 else said)
