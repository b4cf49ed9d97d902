"""Cosines straight from packed codes: exact whatever the tile, the order and the count of rows."""

import numpy as np
import pytest
import torch

from gradsieve.store import quantize, scoring
from gradsieve.store.scoring import Cosines

BITS = (32, 16, 8, 4, 2, 1)


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


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_integers_give_the_same_in_any_tile_and_order(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, norms = made(70, 512, bits)
    cosines = Cosines(directions(5, 512), bits)
    whole = cosines(codes, norms)
    monkeypatch.setattr(scoring, "ROWS", 16)
    np.testing.assert_array_equal(Cosines(directions(5, 512), bits)(codes, norms), whole)
    np.testing.assert_array_equal(cosines(codes[::-1], norms[::-1])[::-1], whole)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    np.testing.assert_array_equal(cosines(codes, norms), whole)
    torch.set_num_threads(threads)


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
    """Methods give means of unit vectors, whose length says how well examples agree."""
    codes, norms = made(4, 256, 2)
    of_unit = Cosines(directions(3, 256), 2)(codes, norms)
    scale = np.array([0.1, 1.0, 300.0], dtype=np.float32)
    scaled = Cosines(directions(3, 256) * scale[:, None], 2)(codes, norms)
    np.testing.assert_allclose(scaled, of_unit * scale, rtol=1e-4, atol=1e-6)


def test_unpacking_leaves_the_number_of_threads_alone() -> None:
    """Float products round differently by it, so what follows in the process would change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    codes, norms = made(20, 256, 1)
    Cosines(directions(2, 256), 1)(codes, norms)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
