# SPDX-License-Identifier: Apache-2.0
"""A complete, small reconstruction made by hand, with names chosen to hurt."""

from __future__ import annotations

import numpy as np
from vessel_trees import coronary

from licag3d.geometry import Camera
from licag3d.report import Reconstruction, StageRecord
from licag3d.structures import VesselEvidence, View
from licag3d.vessels.rasterize import tree_attenuation, tree_grid

HOSTILE = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>{{viewer}} \N{SNOWMAN}.png'


def camera(primary_deg=30.0, secondary_deg=0.0, offset=(0.0, 0.0, 0.0), size=256) -> Camera:
    return Camera(primary_deg, secondary_deg, sid_mm=1000, sod_mm=750, spacing_row_mm=200 / size,
                  spacing_col_mm=200 / size, rows=size, cols=size, offset_lps_mm=offset)


def absorption(camera: Camera, tree) -> np.ndarray:
    """Path length in mm through the tree, by points spread along the branches: good enough for a picture."""
    image = np.zeros((camera.rows, camera.cols))
    rng = np.random.default_rng(0)
    for branch in tree.branches:
        for point, radius in zip(branch.points_lps_mm, branch.radius_mm, strict=True):
            ball = rng.normal(size=(60, 3))
            ball *= radius * rng.random((60, 1)) ** (1 / 3) / np.linalg.norm(ball, axis=1, keepdims=True)
            pixels = np.rint(camera.project(point + ball)[0]).astype(int)
            inside = np.all((pixels >= 0) & (pixels < [camera.cols, camera.rows]), axis=1)
            np.add.at(image, (pixels[inside, 1], pixels[inside, 0]), radius / 30)
    return image


def reconstruction(file=HOSTILE, size=256) -> Reconstruction:
    tree = coronary()
    cameras = (camera(30, 0, size=size), camera(-40, 20, (4.0, -3.0, 8.0), size=size))
    rng = np.random.default_rng(1)
    views, evidence = [], []
    for k, cam in enumerate(cameras):
        path = absorption(cam, tree)
        image = np.clip(0.72 * np.exp(-0.25 * path) + 0.02 * rng.normal(size=path.shape), 0, 1).astype(np.float32)
        valid = np.ones(path.shape, bool)
        views.append(View(image, cam.with_offset((0, 0, 0)), valid, file=file if k == 0 else "second view\udcff.dcm",
                          frame=None if k == 0 else 8, notes=("Pixel spacing derived from the field of view.",)))
        probability = np.clip(path, 0, 1).astype(np.float32)
        line_integral = path.astype(np.float32)
        evidence.append(VesselEvidence(probability, line_integral, probability, probability, probability > 0.5))
    losses = {"reprojection": list(np.exp(-np.linspace(0, 4, 60)) + 0.01), "sparsity": [0.3, 0.2, 0.15]}
    shots = {f"view {k}": e.probability for k, e in enumerate(evidence, 1)}
    stages = (StageRecord("evidence", 1.25, pictures=shots),
              StageRecord("camera search", 8.5, losses, note="Offset 9.4 mm, spread 0.3 mm over five starts."),
              StageRecord(HOSTILE, 0.5, {HOSTILE: [1.0, float("nan")]}, {HOSTILE: views[0].image}, HOSTILE))
    return Reconstruction(
        views=tuple(views), cameras=cameras, tree=tree, attenuation=tree_attenuation(tree, tree_grid(tree, 1.0), 0.03),
        evidence=tuple(evidence), stages=stages,
        metrics=({"ssim": 0.93, "centerline_distance_px": 1.24}, {"ssim": 0.9}),
        warnings=("The two views are 72 degrees apart.", HOSTILE),
        assumptions=("The patient lies head first, supine.",),
        scale_from="the tree is assumed to lie near the isocentre of view 1 (error about 1 % per 7 mm).", seed=3,
        command="python -m licag3d.invert --views a.png b.dcm#8 --out out")
