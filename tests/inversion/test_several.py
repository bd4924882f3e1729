# SPDX-License-Identifier: Apache-2.0
"""Three views: one scale for all, and exact cameras stay as they are. One view: with and without a prior."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from match_cases import COMMON, chains_of, two_cameras, vessels

from licag3d.geometry import Camera, scale_gauge
from licag3d.inversion import prior_stage as stage
from licag3d.inversion.prior_fit import PriorFit
from licag3d.inversion.settings import InversionSettings
from licag3d.inversion.several import match_all
from licag3d.structures import Branch, VesselTree


@pytest.mark.parametrize("correction", ["evolution", "none"])
def test_a_third_view_of_another_scale_is_brought_to_the_first_pair_only_where_cameras_may_move(correction):
    true = (*two_cameras(), Camera(0, 30, **COMMON))
    chains = [chains_of(vessels(), camera) for camera in true]
    wrong = (*true[:2], scale_gauge(true[0], true[2], 1.03)[1])
    found = match_all(wrong, chains, replace(InversionSettings(), camera_correction=correction))
    if correction == "none":
        assert found.cameras == wrong
        return
    # The scale of all views together stays open: the sources tell what the third has beside the second.
    reach = [np.linalg.norm(camera.source_lps_mm - true[0].source_lps_mm) for camera in found.cameras]
    wanted = [np.linalg.norm(camera.source_lps_mm - true[0].source_lps_mm) for camera in true]
    assert reach[2] / reach[1] == pytest.approx(wanted[2] / wanted[1], rel=0.005)


@pytest.mark.parametrize(("overall", "said"), [(0.1, "yields"), (0.9, "prior alone")])
def test_of_one_view_the_flat_curves_count_only_where_the_prior_yields(monkeypatch, overall, said):
    camera = two_cameras()[0]
    chains = chains_of(vessels(), camera)
    found = match_all((camera,), [chains], InversionSettings())
    lines = [line + (0.0, 40.0, 0.0) for line in vessels()]  # elsewhere: nothing of it is shown
    branches = [Branch(k, None if k == 0 else 0, line, np.ones(len(line)), "RCA") for k, line in enumerate(lines)]
    trust = tuple(np.full(len(line), overall) for line in lines)
    fit = PriorFit(
        "rca", np.zeros(3), 1.0, np.zeros((1, 1)), None, VesselTree(tuple(branches)), trust, np.zeros(3), np.zeros(3),
        1.0, (overall,), (1.0,), overall, 0.0, (camera,),
    )  # fmt: skip
    monkeypatch.setattr(stage, "fit_prior", lambda *args, **kwargs: fit)
    staged = stage.prior_stage(found, [chains], generator=None)
    assert len(staged.warnings) == 1 and said in staged.warnings[0]
    middle = np.concatenate([curve.points_mm for curve in staged.curves])[:, 1].mean() if staged.curves else None
    assert len(staged.curves) == 3 and abs(middle) < 30 if overall < 0.5 else not staged.curves
