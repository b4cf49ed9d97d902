"""The map's axes are principal components, and its sample shows the selected rows."""

import numpy as np
import pytest

from gradsieve.report.map import _sample, principal_axes


def test_axes_are_the_principal_components() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(40, 64)).astype(np.float32)
    rows[:20, 0] += 30
    places, share = principal_axes(rows)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centered = units - units.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centered.astype(np.float64), full_matrices=False)
    wanted = left[:, :2] * sizes[:2]
    wanted /= np.abs(wanted).max()
    assert np.abs(places) == pytest.approx(np.abs(wanted), abs=1e-5)
    assert share == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum(), rel=1e-5)
    assert places.max(axis=0) == pytest.approx(np.abs(places).max(axis=0))  # signs are fixed
    assert len({*np.sign(places[:20, 0])}) == len({*np.sign(places[20:, 0])}) == 1


def test_equal_rows_are_one_point() -> None:
    places, share = principal_axes(np.ones((5, 8), np.float32))
    assert np.isfinite(places).all()
    assert 0 <= share <= 1
    assert np.isfinite(principal_axes(np.zeros((3, 8), np.float32))[0]).all()


@pytest.mark.parametrize(("selected", "wanted"), [(80, 10), (4, 4), (0, 0)])
def test_half_of_the_sample_is_selected_if_enough_is(selected: int, wanted: int) -> None:
    usable = np.random.default_rng(1).permutation(100)
    chosen = usable[:selected]
    found = _sample(usable, np.concatenate([chosen, chosen]), 20)
    assert len(found) == len(set(found.tolist())) == 20
    assert np.isin(found, chosen).sum() == wanted
    places = [usable.tolist().index(number) for number in found.tolist()]
    assert places == sorted(places)
    assert len(_sample(usable, chosen, 1000)) == 100
