# SPDX-License-Identifier: Apache-2.0
"""Minimal lumen diameter and percent stenosis by lesion."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.metrics.centerline import tree_points
from licag3d.metrics.lesions import check_lesions, lesion_metrics
from licag3d.structures import Branch, VesselTree

LESION = {"branch": "LAD", "kind": "stenosis", "start_mm": 20.0, "length_mm": 10.0, "percent_diameter": 50.0}


def vessel(narrowing: float, width: float = 1.0) -> VesselTree:
    """60 mm of 3 mm diameter, narrowed by a cosine from 20 to 30 mm."""
    points = np.linspace((0, 0, 0), (60, 0, 0), 241)
    arc = points[:, 0]
    dip = np.where((arc > 20) & (arc < 30), 0.5 - 0.5 * np.cos(2 * np.pi * (arc - 20) / 10), 0)
    return VesselTree((Branch(0, None, points, width * 1.5 * (1 - narrowing * dip), "LAD"),))


def scored(pred: VesselTree, truth: VesselTree, lesion=LESION) -> dict[str, float]:
    return lesion_metrics(tree_points(pred), truth, [lesion])


def test_the_exact_tree_has_no_error():
    scores = scored(vessel(0.5), vessel(0.5))
    assert scores["lesion_recall_2mm"] == 1
    assert scores["mld_error_mm"] == pytest.approx(0, abs=0.02)
    assert scores["stenosis_error_percent"] == pytest.approx(0, abs=0.7)


def test_a_vessel_without_the_narrowing_misses_all_of_it():
    scores = scored(vessel(0.0), vessel(0.5))
    assert scores["mld_bias_mm"] == pytest.approx(1.5, abs=0.03) == scores["mld_error_mm"]
    assert scores["stenosis_bias_percent"] == pytest.approx(-50, abs=1)


def test_a_common_factor_of_calibre_leaves_the_percentage():
    scores = scored(vessel(0.5, width=1.2), vessel(0.5))
    assert scores["mld_bias_mm"] == pytest.approx(0.3, abs=0.02)
    assert scores["stenosis_error_percent"] == pytest.approx(0, abs=0.7)


def test_a_lesion_that_was_not_reconstructed_is_not_found():
    cut = vessel(0.5).branches[0]
    before = VesselTree((replace(cut, points_lps_mm=cut.points_lps_mm[:60], radius_mm=cut.radius_mm[:60]),))
    scores = scored(before, vessel(0.5))
    assert scores["lesion_recall_2mm"] == 0 and math.isnan(scores["mld_error_mm"])
    assert scored(VesselTree(), vessel(0.5))["lesion_recall_2mm"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "aneurysm"},
        {"kind": "occlusion"},
        {"kind": "ectasia"},
        {"percent_diameter": 100.0},
        {"percent_diameter": 3.0},
    ],
)
def test_what_narrows_nothing_or_everything_is_not_scored(change):
    assert math.isnan(scored(vessel(0.5), vessel(0.5), LESION | change)["lesion_recall_2mm"])


@pytest.mark.parametrize(
    "content",
    [
        "x",
        [3],
        [{"branch": 1}],
        [{"branch": "LAD", "start_mm": "a"}],
        [LESION | {"length_mm": math.nan}],
        [LESION | {"start_mm": True}],
    ],
)
def test_lesions_that_are_none_are_refused(content):
    with pytest.raises(InputError, match="lesions"):
        check_lesions(content, "case.json")


def test_a_missing_list_is_no_lesion_and_an_unknown_branch_an_error():
    assert check_lesions(None, "case.json") == ()
    with pytest.raises(InputError, match="branch 'LCx'"):
        scored(vessel(0.5), vessel(0.5), LESION | {"branch": "LCx"})
