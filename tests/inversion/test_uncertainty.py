# SPDX-License-Identifier: Apache-2.0
"""Expected errors: their shape, what makes them larger, the ensemble, and the fit of the constants."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from match_cases import chains_of, two_cameras, vessels

from licag3d.inversion import uncertainty
from licag3d.inversion.matching import MatchSettings
from licag3d.inversion.rematching import FARTHEST_MM, rematch_ensemble
from licag3d.inversion.several import Correspondence
from licag3d.inversion.uncertainty_constants import LARGEST_MM, MODELS
from licag3d.structures import Branch, VesselTree


@lru_cache(maxsize=1)
def scene():
    """Three vessels seen by two views, the exact tree, and a perfect correspondence."""
    cameras, curves = two_cameras((3.0, 1.0, -2.0)), vessels()
    chains = tuple(chains_of(curves, camera) for camera in cameras)
    points = np.concatenate(curves)
    tree = VesselTree(
        tuple(
            Branch(k, None if k == 0 else 0, curve, np.full(len(curve), radius))
            for k, (curve, radius) in enumerate(zip(curves, (1.6, 1.1, 0.8), strict=True))
        )
    )
    sure = np.ones(len(points))
    found = Correspondence((), cameras, (points, points), (sure, sure), 0.95, 0.9, 0.0, "", (), ())
    return tree, cameras, chains, found


def steady(found, members=4):
    return tuple(np.full((members, len(p)), 0.1) for p in found.points_mm)


def test_one_radius_per_point_within_the_bounds():
    tree, cameras, chains, found = scene()
    for moved in ((), steady(found)):
        for masks in (False, True):
            errors = uncertainty.point_errors(tree, cameras, chains, found, moved, masks_given=masks)
            assert [len(e) for e in errors.error_mm] == [len(b.points_lps_mm) for b in tree.branches]
            everything = np.concatenate(errors.error_mm)
            assert (everything > 0).all() and (everything <= LARGEST_MM).all()
            assert errors.members == (4 if len(moved) else 0)
    marked = uncertainty.with_errors(tree, errors)
    np.testing.assert_array_equal(marked.branches[1].error_mm, errors.error_mm[1])
    assert "90 %" in errors.sentence and "similarity" in errors.sentence


def test_what_is_known_badly_gets_a_larger_ball():
    tree, cameras, chains, found = scene()
    good = uncertainty.point_errors(tree, cameras, chains, found, steady(found))
    start = chains[0].start[1]
    moved = [m.copy() for m in steady(found)]
    for side in (0, 1):
        moved[side][:, start : chains[0].start[2]] = 8.0  # the second vessel goes elsewhere in every matching
    shaky = uncertainty.point_errors(tree, cameras, chains, found, moved)
    assert np.median(shaky.error_mm[1]) > 2 * np.median(good.error_mm[1])
    np.testing.assert_allclose(np.median(shaky.error_mm[2]), np.median(good.error_mm[2]), rtol=0.2)
    points = tuple(p.copy() for p in found.points_mm)
    sure = tuple(c.copy() for c in found.confidence)
    for side in (0, 1):
        points[side][start : chains[0].start[2]] = np.nan
        sure[side][start : chains[0].start[2]] = 0.0
    lost = uncertainty.point_errors(tree, cameras, chains, replace(found, points_mm=points, confidence=sure), ())
    plain = uncertainty.point_errors(tree, cameras, chains, found, ())
    assert np.median(lost.error_mm[1]) > 1.4 * np.median(plain.error_mm[1])


def test_one_view_says_that_the_depth_is_open():
    tree, cameras, chains, found = scene()
    one = replace(found, cameras=cameras[:1], points_mm=found.points_mm[:1], confidence=found.confidence[:1])
    errors = uncertainty.point_errors(tree, cameras[:1], chains[:1], one)
    assert all((e == LARGEST_MM).all() for e in errors.error_mm) and "depth" in errors.sentence
    assert uncertainty.point_errors(VesselTree(), cameras, chains, found).error_mm == ()


def test_constants_are_whole_and_rise():
    known = (("matching", "ensemble"), ("matching", "alone"), ("prior", "alone"))
    assert set(MODELS) == {(kind, *model) for kind in ("images", "masks") for model in known}
    for (_, way, name), model in MODELS.items():
        assert len(model["weights"]) == len(uncertainty.FEATURES)
        assert (np.diff(model["score"]) > 0).all() and (np.diff(model["radius_mm"]) >= 0).all()
        unused = [*(uncertainty.PRIOR if way == "matching" else ()), *(uncertainty.ENSEMBLE if name == "alone" else ())]
        assert all(model["weights"][uncertainty.FEATURES.index(name)] == 0 for name in unused)


def test_ensemble_ignores_a_similarity_and_sees_what_moves():
    tree, cameras, chains, found = scene()
    asked = []

    def again(views, lines, settings):
        asked.append((views, lines, settings))
        points = [1.03 * p + [2.0, -1.0, 4.0] for p in found.points_mm]
        points[0][:10] += [0.0, 3.0, 0.0]
        points[1][-5:] = np.nan
        return replace(found, points_mm=tuple(points))

    settings = MatchSettings()
    moved = rematch_ensemble(found, chains, settings, again, 3, seed=1)
    assert [m.shape for m in moved] == [(3, len(p)) for p in found.points_mm]
    np.testing.assert_allclose(moved[0][:, 10:], 0.0, atol=1e-6)
    np.testing.assert_allclose(moved[0][:, :10], 3.0, rtol=0.05)
    assert (moved[1][:, -5:] == FARTHEST_MM).all()
    # Cameras, calibres and prices differ from member to member, and the same seed gives the same members.
    assert len({a[0][1].offset_lps_mm for a in asked}) == 3
    assert len({a[2].mutual_price for a in asked}) == 3 and asked[0][2] != settings
    assert not np.array_equal(asked[0][1][0].radius_mm, chains[0].radius_mm)
    assert asked[0][0][0].offset_lps_mm == cameras[0].offset_lps_mm
    first = asked[0]
    rematch_ensemble(found, chains, settings, again, 1, seed=1)
    assert asked[-1][2] == first[2] and asked[-1][0] == first[0]


def tool():
    path = Path(__file__).resolve().parents[2] / "tools" / "calibrate_uncertainty.py"
    spec = importlib.util.spec_from_file_location("calibrate_uncertainty", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_up(seed: int) -> dict:
    """A case whose error is lognormal about a size that one column tells."""
    rng = np.random.default_rng(seed)
    features = rng.random((600, len(uncertainty.FEATURES)))
    error = np.exp(2.0 * features[:, 1] - 1.5 + 0.4 * rng.standard_normal(600))
    return {"name": str(seed), "kind": "images", "features": features, "error_mm": error, "weight_mm": np.ones(600)}


@pytest.fixture(scope="module")
def fitted():
    return tool().fit([made_up(k) for k in range(4)], [0, 1, 2])


def test_fit_covers_nine_in_ten_of_what_it_has_not_seen(fitted):
    case = made_up(99)
    radius = uncertainty.radius_of(case["features"], fitted)
    assert (case["error_mm"] <= radius).mean() == pytest.approx(0.9, abs=0.04)
    small, large = (case["features"][:, 1] < 0.3), (case["features"][:, 1] > 0.7)
    for stratum in (small, large):
        assert (case["error_mm"][stratum] <= radius[stratum]).mean() == pytest.approx(0.9, abs=0.06)
    assert np.median(radius[large]) > 2 * np.median(radius[small])
    assert (fitted["weights"][3:] == 0).all() and fitted["weights"][1] > 5 * abs(fitted["weights"][0])
    assert "coverage 0.9" in tool().check([case], fitted, "x") or "coverage 0.8" in tool().check([case], fitted, "x")


def test_pooling_makes_values_rise():
    assert tool().rising([1.0, 3.0, 2.0, 5.0, 4.0, 3.0]).tolist() == [1.0, 2.5, 2.5, 4.0, 4.0, 4.0]
    assert tool().weighted_quantile(np.array([1.0, 2.0, 3.0]), np.array([8.0, 1.0, 1.0]), 0.85) == 2.0


def test_constants_file_reads_back(fitted, tmp_path):
    module = tool()
    text = module.constants_text({("images", "prior", "alone"): fitted}, ["1", "2"], ["what was checked " * 20])
    assert max(len(line) for line in text.splitlines()) <= 120
    names: dict = {}
    exec(compile(text, "constants", "exec"), names)
    model = names["MODELS"]["images", "prior", "alone"]
    case = made_up(5)
    np.testing.assert_allclose(
        uncertainty.radius_of(case["features"], model), uncertainty.radius_of(case["features"], fitted), rtol=0.02
    )
