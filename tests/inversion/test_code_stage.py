# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from licag3d.geometry import Camera, Cameras
from licag3d.inversion.code_stage import CodeSettings, refine_code
from licag3d.inversion.prior_fit import PriorFit
from licag3d.inversion.prior_tree import Codes, named_tree
from licag3d.models.generator import labels_of, load_generator
from licag3d.structures import VesselEvidence


@pytest.fixture(scope="module")
def scene():
    """Line integrals of a tree of the generator, and a fit whose code and second camera are somewhat off."""
    generator = load_generator()[0]
    codes = Codes.start(generator, labels_of(["rca"]), np.array([4.0, -5.0, 6.0]))
    codes.z = 0.5 * torch.randn(codes.z.shape, generator=torch.Generator().manual_seed(2))
    size = {"sid_mm": 1050, "sod_mm": 750, "spacing_row_mm": 1.6, "spacing_col_mm": 1.6, "rows": 128, "cols": 128}
    cameras = (Camera(-30, 10, **size), Camera(40, 15, **size))
    with torch.no_grad():
        rest = generator.spread(generator.average(codes.label))[:, generator.config.structure :]
        styles = torch.cat([codes.styles(generator), rest], 1)
        planes = generator.planes(styles, codes.label, detail=False)
        paths = generator.project(planes, Cameras.stack(list(cameras)), samples=160, box_center_mm=(4.0, -5.0, 6.0))
    evidence = []
    for image in paths[0].numpy():
        mask = image > 0.05
        evidence.append(VesselEvidence(mask.astype(np.float32), image * mask, mask.astype(np.float32),
                                       np.where(mask, 1.5, 0).astype(np.float32), mask))  # fmt: skip
    off = codes.take([0])
    off.z = codes.z + 0.15 * torch.randn(codes.z.shape, generator=torch.Generator().manual_seed(4))
    moved = (cameras[0], cameras[1].with_offset((0.0, 0.0, 0.4)))
    tree = named_tree(generator, off)
    w_plus = generator.spread(generator.average(off.label))[0].numpy()
    trust = tuple(np.ones(len(branch.points_lps_mm)) for branch in tree.branches)
    place = (off.center_mm[0].numpy(), np.zeros(3), 1.0)
    judged = ((1.0, 1.0), (0.3, 0.3), 1.0, 0.0)
    fit = PriorFit("rca", off.label[0].numpy(), 1.0, w_plus, off, tree, trust, *place, *judged, moved)
    return generator, fit, evidence


def test_codes_and_cameras_come_to_explain_more_of_the_images(scene):
    generator, fit, evidence = scene
    settings = CodeSettings(steps=(6, 6), rays=800, samples=96, residual_steps=5)
    result = refine_code(fit, evidence, generator=generator, settings=settings)
    assert result.losses[11] < 0.9 * result.losses[0] and result.held_out[11] < result.held_out[0]
    assert min(result.held_out[12:]) <= result.held_out[12]
    assert result.fit.cameras[0] == fit.cameras[0] and result.fit.cameras[1] != fit.cameras[1]
    assert np.isfinite(result.planes.numpy()).all() and len(result.fit.trust) == len(result.fit.tree.branches)
    still = refine_code(fit, evidence, generator=generator, settings=CodeSettings(steps=(1, 1), rays=200, samples=64),
                        move_cameras=False)  # fmt: skip
    assert still.fit.cameras == fit.cameras
