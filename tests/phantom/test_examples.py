# SPDX-License-Identifier: Apache-2.0
"""The bundled examples: small, complete, synthetic, and what their seeds give."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from licag3d.evaluate import read_truth
from licag3d.metrics.files import read_cameras
from licag3d.phantom.simulate_case import simulate_case

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_they_stay_under_two_megabytes_and_say_that_they_are_synthetic():
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file()) < 2_000_000
    assert "synthetic" in (EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize("artery", ["rca", "lca"])
def test_they_are_what_their_seed_gives(artery):
    folder = EXAMPLES / artery
    about = json.loads((folder / "truth" / "case.json").read_text())
    case = simulate_case(about["seed"], about["artery"], **about["settings"])
    truth = read_truth(folder / "truth")
    for one, two in zip(truth.tree.branches, case.tree.branches, strict=True):
        np.testing.assert_allclose(one.points_lps_mm, two.points_lps_mm, atol=1e-3)
        np.testing.assert_allclose(one.radius_mm, two.radius_mm, atol=1e-3)
    for one, two in zip(truth.cameras, case.true_cameras, strict=True):
        np.testing.assert_allclose(one.offset_lps_mm, two.offset_lps_mm, atol=1e-3)
        assert abs(one.primary_deg - two.primary_deg) + abs(one.secondary_deg - two.secondary_deg) < 1e-4
    for k, view in enumerate(case.views):
        image = imageio.imread(folder / f"view_{k + 1}.png")
        assert image.shape == (512, 512)
        # Other processors round otherwise, and from the first photon count that comes out otherwise all later noise is
        # another draw. What is no noise is in the means of 16 x 16 px (half a mm of table: 0.17 and 1.26 at least).
        off = np.abs((image.astype(float) - view.image).reshape(32, 16, 32, 16).mean((1, 3)))
        assert off.mean() < 0.15 and off.max() < 1.0
        for name, ours in (("mask", view.mask), ("devices", view.devices), ("twigs", view.twigs)):
            stored = imageio.imread(folder / "truth" / f"view_{k + 1}_{name}.png") > 0
            assert (stored != ours).mean() < 1e-3


@pytest.mark.parametrize("artery", ["rca", "lca"])
def test_the_user_does_not_know_the_offset_of_five_millimetres(artery):
    user, true = (read_cameras(EXAMPLES / artery / name) for name in ("cameras.json", "truth/cameras.json"))
    assert all(camera.offset_lps_mm == (0, 0, 0) for camera in user)
    assert np.linalg.norm(true[1].offset_lps_mm) == pytest.approx(5)
    assert len(read_truth(EXAMPLES / artery / "truth").held_out) == 1
