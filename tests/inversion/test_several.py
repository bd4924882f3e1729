# SPDX-License-Identifier: Apache-2.0
"""Three views: one scale for all, and exact cameras stay as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from match_cases import COMMON, chains_of, two_cameras, vessels

from licag3d.geometry import Camera, scale_gauge
from licag3d.inversion.settings import InversionSettings
from licag3d.inversion.several import match_all


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
