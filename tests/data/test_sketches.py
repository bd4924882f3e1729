# SPDX-License-Identifier: Apache-2.0
"""Sketches of an expected tree: what a guided segmentor is shown, and how it is made wrong for training."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from licag3d.data.sketches import SketchErrors, faulty_points
from licag3d.models.sketch import FADE_PX, sketch

EXACT = SketchErrors(0.0, (0.0, 0.0), 0.0, (0.0, 0.0), 0.0, 0.0, 0.0, (0.0, 0.0), 0.0, 0.0)


@pytest.fixture()
def labels():
    """A stem down the middle (1) with a branch to the right (2) and one to the left (3), 5 px wide."""
    image = np.zeros((121, 161), int)
    image[10:110, 78:83] = 1
    for k in range(60):
        image[40 + k // 2 - 2 : 40 + k // 2 + 3, 83 + k] = 2
        image[60 + k // 3 - 2 : 60 + k // 3 + 3, 77 - k] = 3
    return image


def _points(labels, seed=0, **errors):
    values = {name: getattr(EXACT, name) for name in SketchErrors.__dataclass_fields__} | errors
    return faulty_points(np.random.default_rng(seed), labels, 0.25, SketchErrors(**values))


def _gap(points, labels):
    """Distance of points to the branches, px."""
    row, col = np.nonzero(labels)
    return cKDTree(np.stack((col, row), 1)).query(points)[0]


def test_a_sketch_is_the_nearness_of_its_points():
    points = np.array([[20.0, 10.4], [np.nan, 3.0], [-5.0, 4.0], [400.0, 4.0]])
    near = sketch(points, (41, 61))
    assert near.dtype == np.float32 and near[10, 20] == 1
    assert near[10, 28] == pytest.approx(np.exp(-8 / FADE_PX)) and near[16, 28] == pytest.approx(np.exp(-10 / FADE_PX))
    assert not sketch(np.zeros((0, 2)), (5, 7)).any() and not sketch(points[1:], (41, 61)).any()


def test_without_errors_it_is_the_middle_of_the_branches(labels):
    points = _points(labels)
    assert _gap(points, labels).max() == 0
    row, col = np.nonzero(labels)
    assert cKDTree(points).query(np.stack((col, row), 1))[0].max() < 8  # and of all of them
    assert np.array_equal(points, _points(labels)) and len(_points(np.zeros((30, 40), int))) == 0


def test_every_error_does_what_it_says(labels):
    whole = len(_points(labels))
    assert len(_points(labels, lost=1.0)) == 0 and len(_points(labels, absent=1.0)) == 0
    assert 0.2 * whole < len(_points(labels, short=1.0)) < 0.95 * whole
    longer = _points(labels, long=1.0, long_mm=(5.0, 5.0))
    assert 15 < _gap(longer, labels).max() < 22  # 5 mm of 0.25 mm per px beyond the ends
    wrong = _points(labels, wrong=1.0)
    assert len(wrong) > 1.5 * whole and _gap(wrong, labels).max() > 8
    # Displaced by 2 mm, 8 px, root mean square: far more than the 2 px that the branches are wide.
    bent = np.mean([_gap(_points(labels, seed, bend_mm=(2.0, 2.0)), labels).mean() for seed in range(6)])
    assert 2 < bent < 16
    shifted = _points(labels, shift_mm=1.0) - _points(labels)
    assert np.ptp(shifted, axis=0).max() < 1e-9 and np.abs(shifted).max() > 0.1


def test_seeds_give_other_sketches(labels):
    one, other = (faulty_points(np.random.default_rng(seed), labels, 0.25) for seed in (3, 4))
    assert one.shape != other.shape or not np.allclose(one, other)
