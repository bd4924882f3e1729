# SPDX-License-Identifier: Apache-2.0
"""Radius of vessels from the contrast on their axis."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from licag3d.models.calibre import radius_from_contrast


def tube(distance, radius):
    return 0.1 * np.sqrt(np.maximum(radius**2 - distance**2, 0))  # 0.05 per px of path


def test_thin_vessels_get_their_radius_from_the_attenuation_of_thick_ones():
    row = np.mgrid[:160, :200][0].astype(float)
    p = tube(abs(row - 40), 6.0) + tube(abs(row - 100), 4.0) + tube(abs(row - 140), 1.2)
    # A network's outline of the thin vessel is too wide.
    mask = ndimage.binary_dilation(p > 0, iterations=1) & ((p > 0) | (row > 120))
    radius, per_px = radius_from_contrast(mask, ndimage.maximum_filter(p, (3, 1)) * mask)
    assert per_px == pytest.approx(0.05, rel=0.1)
    for at, true in ((40, 6.0), (100, 4.0), (140, 1.2)):
        assert np.median(radius[at, 30:-30]) == pytest.approx(true, rel=0.25)
    assert not radius[~mask].any()


def test_a_crossing_does_not_thicken_the_vessels():
    row, col = np.mgrid[:160, :160].astype(float)
    p = tube(abs(row - 80), 4.0) + tube(abs(col - 80), 4.0)
    radius, _ = radius_from_contrast(p > 0, p)
    assert p[80, 80] > 1.9 * p[80, 30] and radius[80, 80] < 1.6 * np.median(radius[80, 20:60])


@pytest.mark.parametrize("p", [np.zeros((20, 30)), np.ones((20, 30))])
def test_nothing_to_measure(p):
    radius, per_px = radius_from_contrast(np.zeros(p.shape, bool), p)
    assert not radius.any() and per_px == 0
    radius, per_px = radius_from_contrast(p == 0, p)  # vessels without any contrast, or no vessels
    assert not radius.any() and per_px == 0
