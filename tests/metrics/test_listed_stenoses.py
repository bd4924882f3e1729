# SPDX-License-Identifier: Apache-2.0
"""Listed stenoses against those of the patient, and which of these a view can show."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the package ``benchmarks``

from benchmarks import listed_stenoses  # noqa: E402
from licag3d.geometry import Camera  # noqa: E402
from licag3d.phantom.disease import Lesion  # noqa: E402
from licag3d.structures import Branch, VesselTree  # noqa: E402
from licag3d.vessels.stenosis import SHOWN, Sight, Stenosis  # noqa: E402

SIZE = 128
CAMERAS = tuple(
    Camera(angle, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=0.8, spacing_col_mm=0.8, rows=SIZE, cols=SIZE)
    for angle in (0, 90)
)


def patient(*others: Branch):
    """A vessel along the table with a stenosis of 70 % in its middle; view 2 looks at it from the side."""
    arc = np.linspace(0.0, 60.0, 121)
    line = np.stack([0 * arc, 0 * arc, arc - 30.0], 1)
    radius = 1.5 - 1.05 * np.clip(1 - np.abs(arc - 30) / 5, 0, 1)
    lesion = Lesion("RCA", 0, "stenosis", 25.0, 10.0, 30.0, 70.0, 0.9, 3.0)
    views = tuple(SimpleNamespace(true_camera=camera, devices=None) for camera in CAMERAS)
    tree = VesselTree((Branch(0, None, line, radius, "RCA"), *others))
    return SimpleNamespace(tree=tree, lesions=(lesion,), views=views)


def listed(place_mm: float, view: int = 0, percent: float = 65.0) -> Stenosis:
    place = np.array([[0.0, 0.0, place_mm - 30.0]])
    pixel = tuple(float(x) for x in CAMERAS[view].project(place)[0][0])
    sight = Sight(view, pixel, SHOWN, percent)
    least = 3 * (1 - percent / 100)
    ends = (0.5 * least, 1.5 * least)
    return Stenosis(
        0, place_mm, tuple(place[0]), least, 3.0, percent, 8.0, 0.3, 10.0, ends, (50.0, 80.0), "moderate", (sight,)
    )


def test_a_lesion_is_hidden_by_what_lies_over_it_and_by_the_ray_along_it():
    (free,) = listed_stenoses.true_stenoses(patient())
    assert free.visible and free.hidden == ("", "") and free.minimal_mm == pytest.approx(0.9, abs=0.15)
    along = np.linspace(-20, 20, 81)
    before = Branch(1, None, np.stack([0 * along, np.full(81, -20.0), along], 1), np.full(81, 1.5))
    (half,) = listed_stenoses.true_stenoses(patient(before))
    assert half.hidden == ("covered", "") and half.visible
    beside = Branch(1, None, np.stack([0 * along + 6, np.full(81, -20.0), along], 1), np.full(81, 1.5))
    assert listed_stenoses.true_stenoses(patient(beside))[0].hidden == ("", "")
    case = patient()
    turned = np.stack([0 * along, np.linspace(-30, 30, 81), 0 * along], 1)
    radius = 1.5 - 1.05 * np.clip(1 - np.abs(np.linspace(0, 60, 81) - 30) / 5, 0, 1)
    case.tree = VesselTree((Branch(0, None, turned, radius, "RCA"),))
    (ray,) = listed_stenoses.true_stenoses(case)
    assert ray.hidden[0] == "foreshortened" and ray.hidden[1] == ""
    for view in case.views:
        view.devices = np.ones((SIZE, SIZE), bool)
    assert not listed_stenoses.true_stenoses(case)[0].visible


def test_listed_ones_are_true_where_their_mark_is_and_false_elsewhere():
    true = listed_stenoses.true_stenoses(patient())
    rows = listed_stenoses.scores([listed(31.0), listed(50.0, 1)], true, CAMERAS, lambda points: points)
    assert rows["true"] == [[70.0, True, True]] and rows["false"] == [65.0]
    (found,) = rows["found"]
    assert found[:2] == [65.0, 70.0] and found[6] == 1.0 and found[7] == 1.0 and found[8] == pytest.approx(1.0, abs=0.2)
    missed = listed_stenoses.scores([], true, CAMERAS, lambda points: points)
    made = listed_stenoses.summary([rows, missed])
    assert made["visible_70"] == {"listed": 1, "of": 2} and made["hidden_50"] == {"listed": 0, "of": 0}
    assert made["false_per_tree"] == 0.5 and made["trees_without_false"] == 1
    assert made["percent"]["bias"] == pytest.approx(-5.0) and made["severe_listed_as_severe"] == {"listed": 0, "of": 1}
    empty = listed_stenoses.summary([missed])
    assert empty["percent"] is None and empty["minimal_within_90"] is None
