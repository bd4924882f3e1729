# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from vessel_trees import coronary, tube

from licag3d.structures import VesselTree
from licag3d.vessels.stenosis import find_stenoses, reference_diameter_mm


def narrowed(percent: float, at_mm=25.0, width_mm=3.0, noise=0.0, length_mm=60.0) -> VesselTree:
    """A tapering tube with one smooth narrowing of the given depth."""
    branch = tube(length_mm=length_mm, radius_mm=1.8, end_radius_mm=1.2, step_mm=0.25).branches[0]
    arc = np.linspace(0, length_mm, len(branch.radius_mm))
    radius = branch.radius_mm * (1 - percent / 100 * np.exp(-0.5 * ((arc - at_mm) / width_mm) ** 2))
    radius *= 1 + noise * np.random.default_rng(0).normal(size=len(arc))
    return VesselTree((replace(branch, radius_mm=radius),))


@pytest.mark.parametrize("percent", [30, 50, 80])
def test_depth_place_and_reference(percent):
    (lesion,) = find_stenoses(narrowed(percent))
    assert lesion.percent_diameter == pytest.approx(percent, abs=1.5)
    assert lesion.at_mm == pytest.approx(25, abs=0.5)
    assert lesion.reference_diameter_mm == pytest.approx(2 * (1.8 - 0.6 * 25 / 60), abs=0.06)
    assert lesion.minimal_diameter_mm == pytest.approx(lesion.reference_diameter_mm * (1 - percent / 100), abs=0.06)
    # The stretch below 90 %: Gaussian of 3 mm.
    assert lesion.length_mm == pytest.approx(2 * 3 * np.sqrt(2 * np.log(percent / 10)), abs=1.0)
    point = narrowed(percent).branches[0].points_lps_mm[100]
    assert lesion.position_lps_mm == pytest.approx(tuple(point), abs=0.6)


def test_taper_alone_is_no_stenosis():
    assert find_stenoses(narrowed(0)) == ()
    assert find_stenoses(coronary()) == ()
    assert find_stenoses(narrowed(0, noise=0.03)) == ()


def test_noise_and_two_lesions():
    (lesion,) = find_stenoses(narrowed(60, noise=0.03), min_percent=40)
    assert lesion.percent_diameter == pytest.approx(60, abs=6)
    first, second = narrowed(50, 15).branches[0], narrowed(70, 42).branches[0]
    both = replace(first, radius_mm=np.minimum(first.radius_mm, second.radius_mm))
    worst, other = find_stenoses(VesselTree((both,)))
    assert worst.at_mm == pytest.approx(42, abs=0.5) and other.at_mm == pytest.approx(15, abs=0.5)
    assert worst.percent_diameter > other.percent_diameter


def test_short_branches_have_no_reference():
    assert find_stenoses(narrowed(60, at_mm=3, width_mm=1, length_mm=7)) == ()
    assert find_stenoses(VesselTree()) == ()


def test_reference_is_a_line_through_the_healthy_part():
    arc = np.linspace(0, 40, 161)
    healthy = 3.6 - 0.03 * arc
    lesion = np.where((arc > 12) & (arc < 20), 0.4 * healthy, healthy)
    np.testing.assert_allclose(reference_diameter_mm(arc, lesion), healthy, atol=0.01)
    assert reference_diameter_mm([0.0, 1.0], [2.0, 4.0]).tolist() == [3.0, 3.0]


def test_deviations_of_radii_become_those_of_minimal_diameter_and_percent():
    tree = narrowed(80)
    (lesion,) = find_stenoses(tree)
    assert lesion.minimal_sigma_mm is None and lesion.percent_sigma is None and lesion.minimal_90_mm is None
    branch = tree.branches[0]
    (lesion,) = find_stenoses(VesselTree((replace(branch, radius_sigma_mm=0.1 + 0 * branch.radius_mm),)))
    least, usual = lesion.minimal_diameter_mm, lesion.reference_diameter_mm
    # Being the least of all costs a quarter of it.
    assert lesion.minimal_sigma_mm == pytest.approx(np.hypot(0.2, 0.25 * least))
    # 1 - minimal / reference: that of the minimum, and a fifth of 0.2 mm from the reference itself.
    assert lesion.percent_sigma == pytest.approx(100 / usual * np.hypot(lesion.minimal_sigma_mm, 0.2 * 0.2), rel=0.02)
    low, high = lesion.minimal_90_mm
    assert 0 < low < least < high < usual
    assert low * high == pytest.approx(least**2)  # even in the logarithm
    assert np.log(high / least) == pytest.approx(1.75 * lesion.minimal_sigma_mm / least)


def test_at_most_nothing_is_narrowed():
    branch = narrowed(60).branches[0]
    (lesion,) = find_stenoses(VesselTree((replace(branch, radius_sigma_mm=0.6 + 0 * branch.radius_mm),)))
    low, high = lesion.minimal_90_mm
    assert high == lesion.reference_diameter_mm and 0 < low < 0.4 * lesion.minimal_diameter_mm


def test_narrowings_of_thin_vessels_can_be_left_out():
    tree = narrowed(80)  # of a vessel of 3.1 mm
    assert len(find_stenoses(tree, min_reference_mm=2.9)) == 1
    assert find_stenoses(tree, min_reference_mm=3.3) == ()
