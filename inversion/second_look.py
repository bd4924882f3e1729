# SPDX-License-Identifier: Apache-2.0
"""A second look at the frames, by a network that is told where the fitted tree expects vessels.

The first look knows nothing of the heart: where a catheter crosses the left main stem it may leave a gap, a pacemaker
lead may pass for a vessel, and a faint side branch is one of many faint lines. After the prior has been fitted to what
was found, the guided segmentor (:mod:`licag3d.models.sketch`) sees every frame again beside the projected tree. It was
trained with trees that are wrong in the ways fits are, so it believes the frame where both disagree. What the first
look took for a vessel stays one: a vessel that the prior does not know must not be lost to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.chains import Chains, chains_from_graph
from licag3d.structures import VesselEvidence, VesselTree, View

#: Of the points along the projected tree, mm.
SPACING_MM = 0.3
#: Name of the embedded weights.
WEIGHTS = "segmentor_guided"


def look_again(
    views: Sequence[View],
    evidence: Sequence[VesselEvidence],
    chains: Sequence[Chains],
    tree: VesselTree,
    cameras: Sequence[Camera],
    *,
    weights: str = WEIGHTS,
    device: str = "cpu",
) -> tuple[tuple[VesselEvidence, ...], tuple[Chains, ...]]:
    """Evidence and centrelines of every view, with the tree in mind; those of views with a mask of the user stay.

    Args:
        evidence, chains: of the first look.
        tree, cameras: as fitted.
        weights: embedded name or ``.safetensors`` file of ``licag3d.train segmentor --guided``.
    """
    from licag3d.models.centerline2d import trace_centerlines
    from licag3d.models.learned_evidence import guided_evidence

    points = tree_points(tree)
    seen, lines = [], []
    for view, item, chain, camera in zip(views, evidence, chains, cameras, strict=True):
        if view.mask is None:
            again = guided_evidence(view, camera.project(points)[0], weights=weights, device=device)
            item = either(item, again)
            chain = chains_from_graph(trace_centerlines(item, view), view.camera)
        seen.append(item)
        lines.append(chain)
    return tuple(seen), tuple(lines)


def either(first: VesselEvidence, second: VesselEvidence) -> VesselEvidence:
    """What either look takes for a vessel: line integral and confidence of the surer one, width of the second's."""
    kept = first.probability > second.probability
    return VesselEvidence(
        probability=np.maximum(first.probability, second.probability),
        mask=first.mask | second.mask,
        line_integral=np.where(kept, first.line_integral, second.line_integral),
        confidence=np.where(kept, first.confidence, second.confidence),
        radius_px=np.where(second.mask | ~first.mask, second.radius_px, first.radius_px),
    )


def tree_points(tree: VesselTree) -> np.ndarray:
    """Points ``(n, 3)`` every ``SPACING_MM`` along all branches, mm."""
    parts = []
    for branch in tree.branches:
        line = branch.points_lps_mm
        along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
        at = np.arange(0.0, along[-1], SPACING_MM)
        parts.append(np.stack([np.interp(at, along, line[:, axis]) for axis in range(3)], 1))
    return np.concatenate(parts) if parts else np.zeros((0, 3))
