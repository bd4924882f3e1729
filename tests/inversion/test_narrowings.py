# SPDX-License-Identifier: Apache-2.0
"""Narrowings read view by view: found where a view shows them, and none where nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from licag3d.geometry import Camera
from licag3d.inversion.narrowings import NarrowingRules, find_narrowings
from licag3d.metrics.images import path_mm
from licag3d.report.lesions import lesion_dict, lesion_picture, lesions_html, marks_svg
from licag3d.structures import Branch, VesselEvidence, VesselTree, View
from licag3d.vessels.stenosis import SHOWN

SIZE = 256
CAMERAS = (
    Camera(0, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=0.4, spacing_col_mm=0.4, rows=SIZE, cols=SIZE),
    Camera(60, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=0.4, spacing_col_mm=0.4, rows=SIZE, cols=SIZE),
)
ARC = np.linspace(0.0, 60.0, 121)


def vessel(narrow_percent: float = 0.0, at_mm: float = 30.0, radius_mm: float = 1.6, taper: float = 0.0) -> Branch:
    """A vessel along the table, bent a little, with a smooth narrowing of 8 mm."""
    points = np.stack([3.0 * np.sin(ARC / 15.0), 3.0 * np.cos(ARC / 15.0), ARC - 30.0], 1)
    radius = radius_mm * (1 - taper * ARC / ARC[-1])
    u = np.clip(np.abs(ARC - at_mm) / 4.0, 0.0, 1.0)
    return Branch(0, None, points, radius * (1 - narrow_percent / 100 * 0.5 * (1 + np.cos(np.pi * u))), "RCA")


def across(at_mm: float, id: int = 1) -> Branch:
    """A vessel that crosses the other one at a place in space some way in front of it, seen over it in view 1."""
    along = np.linspace(-25.0, 25.0, 101)
    points = np.stack([along, np.full(101, -30.0), np.full(101, at_mm - 30.0)], 1)
    return Branch(id, None, points, np.full(101, 1.6))


def seen(trees, cameras=CAMERAS):
    """Views and evidence of a tree per camera, with noise, as if vessels had been found well."""
    rng = np.random.default_rng(0)
    views, evidence = [], []
    for tree, camera in zip(trees, cameras, strict=True):
        p = 0.08 * path_mm(tree, camera)
        image = 0.7 * np.exp(-p) + 0.004 * rng.normal(size=p.shape)
        mask = p > 0.04
        views.append(View(image.astype(np.float32), camera, np.ones(p.shape, bool), intensity="linear"))
        like = mask.astype(np.float32)
        evidence.append(VesselEvidence(like, (p * mask).astype(np.float32), like, 3.0 * like, mask))
    return views, evidence


def listed(true: VesselTree, found: VesselTree, *, second: VesselTree | None = None):
    views, evidence = seen((true, second or true))
    return find_narrowings(found, CAMERAS, views, evidence)


@pytest.mark.parametrize("percent", [60.0, 75.0])
def test_a_narrowing_that_both_views_show_is_listed_where_it_is(percent):
    # The tree does not know it: its radius is that of the healthy vessel.
    found = listed(VesselTree((vessel(percent),)), VesselTree((vessel(),)))
    (lesion,) = found.listed
    assert lesion.at_mm == pytest.approx(30, abs=1.5) and lesion.branch_id == 0
    assert lesion.percent_diameter == pytest.approx(percent, abs=12)
    assert lesion.reference_diameter_mm == pytest.approx(3.2, abs=0.3)
    low, high = lesion.minimal_90_mm
    assert low <= 3.2 * (1 - percent / 100) <= high and low < lesion.minimal_diameter_mm < high
    assert lesion.confidence == "high" and [sight.state for sight in lesion.sights] == [SHOWN, SHOWN]
    for sight in lesion.sights:
        pixel = CAMERAS[sight.view].project(np.array([vessel().points_lps_mm[60]]))[0][0]
        assert np.hypot(*(np.array(sight.pixel) - pixel)) < 4
    assert 0.85 < found.judged_share <= 1.0


def test_nothing_is_listed_where_nothing_is():
    assert listed(VesselTree((vessel(),)), VesselTree((vessel(),))).listed == ()
    # A taper, an end and a narrowing at the end have no healthy vessel behind them; a mild narrowing is none.
    tapered = VesselTree((vessel(taper=0.6),))
    assert listed(tapered, tapered).listed == ()
    assert listed(VesselTree((vessel(75.0, at_mm=59.0),)), VesselTree((vessel(),))).listed == ()
    assert listed(VesselTree((vessel(30.0),)), VesselTree((vessel(),))).listed == ()


def test_crossings_make_no_narrowing_and_hide_one():
    """Between two crossings a vessel looks thinner than beneath them; a crossing fills a narrowing up."""
    both = VesselTree((vessel(), across(24.0), across(36.0, 2)))
    assert listed(both, both).listed == ()
    hidden = VesselTree((vessel(75.0), across(30.0)))
    (lesion,) = listed(hidden, VesselTree((vessel(), across(30.0)))).listed
    assert [(sight.view, sight.state) for sight in lesion.sights] == [(1, SHOWN), (0, "covered by another vessel")]
    assert lesion.confidence == "moderate" and lesion.best_sight.view == 1


def test_what_one_view_shows_right_beside_another_vessel_is_not_believed():
    line = vessel().points_lps_mm
    ray = line - CAMERAS[1].source_lps_mm
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    aside = np.cross(ray, np.gradient(line, axis=0))
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)

    def lesions(clearance_mm: float, rules: NarrowingRules | None = None):
        """With another vessel that far from the middle of the narrowed one in view 2, the only view that shows it."""
        near = Branch(2, None, line + 30 * ray + (clearance_mm + 0.6) * aside, np.full(len(line), 0.6))
        others = (across(30.0), near)
        views, evidence = seen(2 * (VesselTree((vessel(70.0), *others)),))
        found = find_narrowings(VesselTree((vessel(), *others)), CAMERAS, views, evidence, rules)
        return [lesion.branch_id for lesion in found.listed]

    assert lesions(6.0) == [0]
    assert lesions(6.0, NarrowingRules(beside_mm=7.0)) == []
    assert lesions(2.5) == lesions(2.5, NarrowingRules(beside_mm=0.0))


def test_a_view_that_sees_the_place_and_no_narrowing_denies_it():
    narrow, healthy = VesselTree((vessel(75.0),)), VesselTree((vessel(),))
    assert listed(narrow, healthy, second=healthy).listed == ()
    # Not so where the tree itself does not know whether both show the same vessel.
    doubtful = VesselTree((replace(vessel(), confidence=np.full(121, 0.29)),))
    (lesion,) = listed(narrow, doubtful, second=healthy).listed
    assert lesion.confidence == "moderate"


def test_a_course_beside_the_vessel_is_drawn_onto_it():
    moved = replace(vessel(), points_lps_mm=vessel().points_lps_mm + (1.2, 0.0, 0.0))
    (lesion,) = listed(VesselTree((vessel(75.0),)), VesselTree((moved,))).listed
    assert lesion.percent_diameter == pytest.approx(75, abs=12)


def test_a_branch_that_ends_at_the_narrowing_goes_on_in_its_child():
    whole = vessel(75.0)
    healthy = vessel()
    first = replace(healthy, points_lps_mm=healthy.points_lps_mm[:64], radius_mm=healthy.radius_mm[:64])
    second = Branch(1, 0, healthy.points_lps_mm[63:], healthy.radius_mm[63:], "RCA")
    found = listed(VesselTree((whole,)), VesselTree((first, second))).listed
    assert len(found) == 1 and found[0].branch_id == 0


def test_the_report_tells_and_shows_it():
    tree = VesselTree((vessel(75.0),))
    views, evidence = seen((tree, tree))
    found = find_narrowings(VesselTree((vessel(),)), CAMERAS, views, evidence)
    (lesion,) = found.listed
    entry = lesion_dict(lesion)
    assert [view["view"] for view in entry["views"]] == [sight.view + 1 for sight in lesion.sights]
    assert entry["percent_area"] == pytest.approx(100 - (100 - entry["percent_diameter"]) ** 2 / 100)
    assert entry["percent_90"][0] < entry["percent_diameter"] < entry["percent_90"][1]
    picture = lesion_picture(views[0].image, lesion.sights[0])
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    half = picture.shape[1] // 2
    red = (picture[..., 0] > 200) & (picture[..., 1] < 140)
    # Marks stand in the second half only, on both sides of the middle, where the lumen stays free.
    assert not red[:, : half - 4].any() and red[:, half + 4 :].any()
    middle = red[picture.shape[0] // 2, half + 4 :]
    columns = np.flatnonzero(middle)
    centre = middle.size // 2
    assert (columns < centre - 5).any() and (columns > centre + 5).any()
    assert not middle[centre - 5 : centre + 5].any()
    page = lesions_html(VesselTree((vessel(),)), views, found.listed, found.judged_share)
    assert page.count("<img ") == 2 and "Stenosis 1, view 1" in page and "RCA" in page and "high" in page
    assert "circle" in marks_svg(found.listed, 0, {"rows": SIZE, "cols": SIZE})
    assert marks_svg(found.listed, 5, {"rows": SIZE, "cols": SIZE}) == ""
    edge = replace(lesion.sights[0], pixel=(0.0, 255.0))
    assert lesion_picture(views[0].image, edge).shape == picture.shape
