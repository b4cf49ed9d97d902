"""Projections preserve inner products, and are identical in every run and with any thread count."""

import math

import pytest
import torch
from torch.nn import functional

from gradsieve.gradients import projection
from gradsieve.gradients.projection import Projection, random_words, unpack_signs

SHAPES = {"q.lora_A": (8, 300), "q.lora_B": (300, 8), "v.lora_A": (16, 1100), "v.lora_B": (999, 16)}


def values(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows with a common component, so that cosines are not all near zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(1, *shape, generator=generator)
        + torch.randn(count, *shape, generator=generator)
        for name, shape in SHAPES.items()
    }


def cosines(rows: torch.Tensor) -> torch.Tensor:
    unit = functional.normalize(rows.double(), dim=1)
    return (unit @ unit.T)[torch.triu_indices(len(rows), len(rows), 1).unbind()]


@pytest.mark.parametrize("kind", ["sketch", "rademacher"])
@pytest.mark.parametrize("dim", [1024, 8192])
def test_rms_error_of_cosines(kind: str, dim: int) -> None:
    rows = values(24)
    exact = cosines(Projection("none").project(rows))
    squares = [
        (cosines(Projection(kind, dim, seed).project(rows)) - exact).square().mean()
        for seed in range(3)
    ]
    assert math.sqrt(sum(squares) / 3) <= 1.2 / math.sqrt(dim)


@pytest.mark.parametrize("kind", ["sketch", "rademacher"])
def test_is_linear_and_the_whole_is_the_sum_of_its_parts(kind: str) -> None:
    rows = values(3)
    made = Projection(kind, 512, 0)
    whole = made.project(rows)
    parts = sum(made.project({name: piece}) for name, piece in rows.items())
    backwards = made.project(dict(reversed(rows.items())))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))
    torch.testing.assert_close(backwards, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


GOLDEN = {
    "sketch": "-46 -69 -48 75 -50 -29 11 -29 27 -27 -35 -37 11 -11 6 5",
    "rademacher": "-69 40 -78.5 -7 -13 -54 -4 -39 -25 -3.5 -1 -37.5 -19.5 -3 -15 80",
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_matrix_never_changes(kind: str) -> None:
    """Old datastores must fit new targets; a change of the matrix requires a new VERSION."""
    found = Projection(kind, 16, 3).project({"w": torch.arange(1.0, 41.0).view(1, 5, 8)})[0]
    assert found.tolist() == [float(value) for value in GOLDEN[kind].split()]


def test_thread_count_does_not_matter() -> None:
    rows = values(4)
    threads = torch.get_num_threads()
    try:
        for kind in ("sketch", "none"):
            found = []
            for count in (1, 2):
                torch.set_num_threads(count)
                found.append(Projection(kind, 1024, 0).project(rows))
            assert torch.equal(*found)
    finally:
        torch.set_num_threads(threads)


def test_kept_signs_are_the_ones_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, keeps, forgets = values(3), Projection("rademacher", 512), Projection("rademacher", 512)
    first, again = keeps.project(rows), keeps.project(rows)
    assert keeps._kept_bytes >= sum(piece[0].numel() for piece in rows.values()) * 512 / 8
    monkeypatch.setattr(projection, "KEPT_BYTES", 0)
    assert torch.equal(first, again)
    assert torch.equal(first, forgets.project(rows))
    assert forgets._kept_bytes == 0


def test_seed_changes_the_matrix() -> None:
    rows = values(2)
    assert not torch.equal(
        Projection("sketch", 512, 0).project(rows), Projection("sketch", 512, 1).project(rows)
    )


def test_none_keeps_all_values() -> None:
    rows = values(2)
    kept = Projection("none").project(rows)
    assert kept.shape == (2, sum(math.prod(shape) for shape in SHAPES.values()))
    assert torch.equal(kept[:, : 8 * 300], rows["q.lora_A"].flatten(1))


def test_words_are_splitmix64() -> None:
    """First outputs of the reference implementation for the seed 1234567."""
    words = random_words(1234567, 0, 3, torch.device("cpu"))
    found = [word % (1 << 64) for word in words.tolist()]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_signs_are_balanced_and_uncorrelated() -> None:
    signs = unpack_signs(random_words(7, 0, 4096, torch.device("cpu")))
    bound = 4 / math.sqrt(len(signs))
    assert abs(float(signs.mean())) < bound
    for lag in (1, 8, 63, 64):
        assert abs(float((signs[lag:] * signs[:-lag]).mean())) < bound


def test_does_not_touch_its_input() -> None:
    rows = values(2)
    copies = {name: piece.clone() for name, piece in rows.items()}
    Projection("sketch", 256, 0).project(rows)
    assert all(torch.equal(rows[name], copies[name]) for name in rows)
