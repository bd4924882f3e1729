# SPDX-License-Identifier: Apache-2.0
"""The catheter as a ruler, on rendered tubes of known calibre."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from match_cases import COMMON

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.inversion.catheter import (
    FRENCH_MM,
    Catheter,
    catheter_of,
    catheter_scale,
    check_french,
    device_paths,
)
from licag3d.phantom.tubes import Line, path_length_mm
from licag3d.structures import View


@lru_cache(maxsize=4)
def frame(depth_mm: float = 0.0, french: float = 6.0, below: bool = False):
    """A view in which a catheter from the upper edge ends at a vessel; mask of the vessel, shadow of the catheter."""
    camera = Camera(0, 0, **COMMON)
    s = np.linspace(0, 1, 120)[:, None]
    tip = np.array([5.0, -depth_mm, 10.0])  # at a = b = 0 the beam runs along -y
    way = np.array([8.0, 0.0, -90.0 if below else 90.0])
    catheter = Line(tip + s * way + np.sin(3 * s) * [3.0, 0, 0], np.full(120, 0.5 * french * FRENCH_MM))
    vessel = Line(tip + s * [-30.0, 0, -40.0], np.linspace(2.0, 1.0, 120))
    shadow, vessels = (path_length_mm([line], camera) for line in (catheter, vessel))
    rng = np.random.default_rng(0)
    image = 0.7 * np.exp(-0.12 * shadow - 0.25 * vessels) + 0.01 * rng.standard_normal(shadow.shape)
    from scipy.ndimage import gaussian_filter

    view = View(gaussian_filter(image, 0.8).astype(np.float32), camera, np.ones(shadow.shape, bool))
    return view, vessels > 0, (shadow > 0).astype(np.float32), catheter


def test_width_tells_the_depth():
    widths = {}
    for depth_mm in (-60.0, 0.0, 60.0):
        view, vessels, device, catheter = frame(depth_mm)
        found = catheter_of(view, vessels, device, 6.0)
        assert found is not None
        pixels, depths = view.camera.project(catheter.points_lps_mm[:40])
        true_mm = 6 * FRENCH_MM * view.camera.sid_mm / np.median(depths)
        # What the lumen holds and what the display does to edges is not known: 7 %, one standard deviation.
        assert found.width_mm == pytest.approx(true_mm, rel=0.15)
        assert np.linalg.norm(found.tip_px - pixels[0]) < 12
        widths[depth_mm] = found.width_mm
        assert np.median(depths) == pytest.approx(750 + depth_mm, abs=8)
    # What is not known is the same for all three: the ratio of two widths is that of the depths.
    for near, far in ((-60.0, 0.0), (0.0, 60.0)):
        assert widths[near] / widths[far] == pytest.approx((750 + far) / (750 + near), rel=0.03)


def test_scale_from_the_tip():
    view, vessels, device, catheter = frame(0.0)
    found = catheter_of(view, vessels, device, 6.0)
    tree = catheter.points_lps_mm[0] + np.linspace(0, 1, 50)[:, None] * [-30.0, 0, -40.0]
    right = catheter_scale([found], [view.camera], tree, 6.0)
    assert right.scale == pytest.approx(1.0, abs=0.15) and right.views == (1,) and 0.05 < right.sigma < 0.15
    source = view.camera.source_lps_mm
    small = catheter_scale([found], [view.camera], source + 0.8 * (tree - source), 6.0)
    assert small.scale == pytest.approx(right.scale / 0.8, rel=0.01)
    # Told a larger size than it has, the same shadow lies farther away.
    assert catheter_scale([found], [view.camera], tree, 7.0).scale == pytest.approx(7 / 6 * right.scale)


def test_what_is_no_catheter():
    view, vessels, device, _ = frame(0.0, below=True)
    assert device_paths(device, vessels, view.camera.mm_per_pixel) == []  # electrodes come from below
    view, vessels, device, _ = frame(0.0)
    assert catheter_of(view, np.zeros_like(vessels), device, 6.0) is None
    assert catheter_of(view, vessels, np.zeros_like(device), 6.0) is None
    far = np.zeros_like(vessels)
    far[-40:-20, :40] = True  # ends nowhere near
    assert catheter_of(view, far, device, 6.0) is None
    thin = frame(0.0, french=3.0)
    assert catheter_of(*thin[:3], 6.0) is None  # a wire


def test_no_scale_without_points_near_the_tip():
    camera = Camera(0, 0, **COMMON)
    found = Catheter(np.array([[100.0, 100.0], [100.0, 0.0]]), 2.67, 0.01)
    assert catheter_scale([found], [camera], np.array([[60.0, 0, -60.0]]), 6.0) is None
    assert catheter_scale([None], [camera], np.zeros((3, 3)), 6.0) is None
    assert catheter_scale([found], [replace(camera)], np.zeros((0, 3)), 6.0) is None


@pytest.mark.parametrize("french", [0.0, 2.0, 30.0, float("nan")])
def test_sizes_that_do_not_exist(french):
    with pytest.raises(InputError, match="--catheter-french"):
        check_french(french)
