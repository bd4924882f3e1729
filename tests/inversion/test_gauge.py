# SPDX-License-Identifier: Apache-2.0
"""The scale gauge: what fixes it, and that it leaves every image alone."""

from __future__ import annotations

import numpy as np
import pytest
from match_cases import COMMON, two_cameras, vessels

from licag3d.geometry import Camera
from licag3d.inversion.catheter import Ruler
from licag3d.inversion.gauge import fix_scale


def three_cameras():
    return (*two_cameras((4.0, -3.0, 2.0)), Camera(0, 30, offset_lps_mm=(-2.0, 5.0, 1.0), **COMMON))


@pytest.mark.parametrize("count", [2, 3])
def test_images_stay_whatever_the_number_of_views(count):
    points, cameras = np.concatenate(vessels()), three_cameras()[:count]
    gauge = fix_scale(cameras, points)
    assert gauge.scale != 1.0
    for before, after in zip(cameras, gauge.cameras, strict=True):
        np.testing.assert_allclose(after.project(gauge.apply(points))[0], before.project(points)[0], atol=1e-8)


def test_two_views_at_one_table_position_fix_the_scale_that_they_saw():
    """Views 2 and 3 share an offset, the tree lies far from the isocentre: the isocentres alone would shrink it."""
    cameras = (
        Camera(-30, 5, **COMMON),
        Camera(30, -5, offset_lps_mm=(30.0, 25.0, -20.0), **COMMON),
        Camera(0, 30, offset_lps_mm=(30.0, 25.0, -20.0), **COMMON),
    )
    points = np.concatenate(vessels()) - [0.0, 25.0, 0.0]
    wrong = fix_scale(cameras[:2], points).scale
    right = fix_scale(cameras, points).scale
    assert abs(np.log(right)) < 0.5 * abs(np.log(wrong))
    assert abs(np.log(right)) < 0.01


def test_a_catheter_is_averaged_by_precision():
    points, cameras = np.concatenate(vessels()), two_cameras((4.0, -3.0, 2.0))
    alone = fix_scale(cameras, points)
    sharp = fix_scale(cameras, points, lambda c, p: Ruler(1.05 * alone.scale, 0.001, (2,)))
    assert sharp.scale == pytest.approx(1.05 * alone.scale, rel=0.01) and sharp.sigma < alone.sigma
    blunt = fix_scale(cameras, points, lambda c, p: Ruler(1.05 * alone.scale, 0.2, (1, 2)))
    assert blunt.scale == pytest.approx(alone.scale, rel=0.005)
    assert "catheter in views 1 and 2" in blunt.reason and not blunt.warnings


def test_a_catheter_that_contradicts_the_isocentre_decides_and_says_so():
    points, cameras = np.concatenate(vessels()), two_cameras()
    alone = fix_scale(cameras, points)
    far = fix_scale(cameras, points, lambda c, p: Ruler(1.3 * alone.scale, 0.07, (1,)))
    assert far.scale == pytest.approx(1.3 * alone.scale)
    assert any("30 % larger" in warning for warning in far.warnings)


def test_a_catheter_that_is_not_seen_is_said():
    points, cameras = np.concatenate(vessels()), two_cameras()
    missing = fix_scale(cameras, points, lambda c, p: None)
    assert missing.scale == fix_scale(cameras, points).scale
    assert any("not found" in warning for warning in missing.warnings)
