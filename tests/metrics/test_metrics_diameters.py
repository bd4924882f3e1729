# SPDX-License-Identifier: Apache-2.0
"""Diameter errors along vessels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from licag3d.metrics.diameters import diameter_errors_mm, diameter_metrics
from licag3d.structures import Branch, VesselTree


def tree() -> VesselTree:
    """A main vessel of 4 to 1 mm diameter and a side branch of 2 mm."""
    main = np.linspace((0, 0, 0), (60, 0, 0), 241)
    side = np.linspace((20, 0, 0), (20, 25, 0), 101)
    return VesselTree(
        (Branch(0, None, main, np.linspace(2.0, 0.5, 241)), Branch(1, 0, side, np.linspace(1.0, 1.0, 101)))
    )


def wider(by_mm: float) -> VesselTree:
    return VesselTree(tuple(replace(b, radius_mm=b.radius_mm + by_mm / 2) for b in tree().branches))


def test_a_constant_error_is_bias_and_no_scatter():
    scores = diameter_metrics(wider(0.3), tree())
    assert scores["diameter_bias_mm"] == pytest.approx(0.3, abs=0.005)
    assert scores["diameter_sd_mm"] == pytest.approx(0.0, abs=0.01)
    assert diameter_metrics(wider(-0.2), tree())["diameter_mae_mm"] == pytest.approx(0.2, abs=0.005)


def test_thin_vessels_and_the_inside_of_the_parent_are_left_out():
    # 4 to 1 mm over 60 mm passes 1.5 mm at 50 mm; 1.5 mm of the side branch lie in its parent (radius 1.5 mm there).
    errors = diameter_errors_mm(tree(), tree())
    assert len(errors) * 0.25 == pytest.approx(50 + 25 - 1.5, abs=0.6)
    spoiled = list(tree().branches)
    radius = spoiled[1].radius_mm.copy()
    radius[:5] = 9.0  # within the first 1.25 mm: no diameter of the branch's own
    spoiled[1] = replace(spoiled[1], radius_mm=radius)
    assert np.abs(diameter_errors_mm(VesselTree(tuple(spoiled)), tree())).max() < 0.01


def test_what_is_off_the_truth_does_not_count():
    moved = VesselTree(tuple(replace(b, points_lps_mm=b.points_lps_mm + (0, 0, 1.2)) for b in wider(1.0).branches))
    assert len(diameter_errors_mm(moved, tree())) == 0
    assert math.isnan(diameter_metrics(moved, tree())["diameter_sd_mm"])
    assert math.isnan(diameter_metrics(VesselTree(), tree())["diameter_bias_mm"])
