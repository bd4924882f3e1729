# SPDX-License-Identifier: Apache-2.0
"""The 3D scene of the report as compact JSON: quantised mesh, attributes per vertex, centrelines, C-arm views."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from licag3d.geometry import Camera
from licag3d.structures import VesselTree
from licag3d.vessels.surface import Surface, decimated
from licag3d.vessels.tree import flatten_tree, resample_tree

MAX_FACES = 90_000
#: Ends of the colours of the expected error, mm; larger ones look like the upper end.
ERROR_SPAN_MM = (0.0, 5.0)


def scene_dict(tree: VesselTree, surface: Surface, cameras: list[Camera] | tuple[Camera, ...]) -> dict[str, Any]:
    """Everything ``viewer.js`` draws.

    Positions are 16 bit in the bounding box (a step below 0.003 mm for 150 mm), radius, confidence and error 8 bit.
    """
    mesh = light_mesh(surface)
    low = mesh.vertices_lps_mm.min(0) if len(mesh.vertices_lps_mm) else np.zeros(3)
    size = np.maximum(np.ptp(mesh.vertices_lps_mm, axis=0), 1e-6) if len(mesh.vertices_lps_mm) else np.ones(3)
    quantised = np.rint((mesh.vertices_lps_mm - low) / size * 65535).astype("<u2")
    index = mesh.faces.astype("<u4" if len(mesh.vertices_lps_mm) > 65535 else "<u2")
    radius, confidence, branch, error = vertex_attributes(tree, mesh.vertices_lps_mm)
    known, measured = bool(np.isfinite(confidence).any()), bool(np.isfinite(error).any())
    span = [float(radius.min()), float(radius.max())] if len(radius) else [0.0, 1.0]
    return {
        "low_mm": low.tolist(), "size_mm": size.tolist(),
        "positions": _base64(quantised), "index": _base64(index), "index_bytes": index.itemsize,
        "radius": _base64(_bytes_of(radius, *span)), "radius_span_mm": span,
        "confidence": _base64(_bytes_of(np.nan_to_num(confidence, nan=0.0), 0.0, 1.0)) if known else None,
        "error": _base64(_bytes_of(np.nan_to_num(error, nan=ERROR_SPAN_MM[1]), *ERROR_SPAN_MM)) if measured else None,
        "error_span_mm": list(ERROR_SPAN_MM),
        "branch": _base64(branch.astype("<u2")),
        "branches": [{"id": int(b.id), "name": b.name} for b in tree.branches],
        "lines": [_base64(np.asarray(b.points_lps_mm, "<f4")) for b in resample_tree(tree, 1.0).branches],
        "views": [camera_dict(camera) for camera in cameras],
    }


def camera_dict(camera: Camera) -> dict[str, Any]:
    """What is needed to look along a view's rays."""
    frame = camera.frame
    return {"source_mm": camera.source_lps_mm.tolist(), "beam": frame.beam.tolist(), "column": frame.column.tolist(),
            "row": frame.row.tolist(), "sid_mm": camera.sid_mm,
            "spacing_mm": [camera.spacing_col_mm, camera.spacing_row_mm],
            "principal_px": [camera.principal_col, camera.principal_row], "size_px": [camera.cols, camera.rows]}


def light_mesh(surface: Surface, max_faces: int = MAX_FACES) -> Surface:
    """The surface itself, or a coarser one for display when it has more than ``max_faces``."""
    if len(surface.faces) <= max_faces:
        return surface
    cell = np.sqrt(2 * surface.area_mm2 / max_faces)  # about two triangles per cell of surface
    for _ in range(12):
        light = decimated(surface, float(cell))
        if len(light.faces) <= max_faces:
            break
        cell *= 1.15
    return light


def vertex_attributes(tree: VesselTree, vertices_lps_mm: np.ndarray) -> tuple[np.ndarray, ...]:
    """Radius in mm, confidence (NaN where unknown), branch position and expected error in mm (NaN where unknown) of the
    vessel each vertex belongs to, ``(n,)`` each.

    A vertex belongs to the centreline point on whose ball it lies: smallest ``distance - radius``, not smallest
    distance, so that a thin branch does not claim the wall of the vessel it leaves.
    """
    from scipy.spatial import cKDTree

    flat = flatten_tree(resample_tree(tree, 0.3))
    if len(flat.points_lps_mm) == 0 or len(vertices_lps_mm) == 0:
        n = len(vertices_lps_mm)
        return np.ones(n), np.full(n, np.nan), np.zeros(n, int), np.full(n, np.nan)
    count = min(24, len(flat.points_lps_mm))
    distance, near = cKDTree(flat.points_lps_mm).query(vertices_lps_mm, k=count)
    distance, near = distance.reshape(-1, count), near.reshape(-1, count)
    best = near[np.arange(len(near)), np.argmin(distance - flat.radius_mm[near], axis=1)]
    return flat.radius_mm[best], flat.confidence[best], flat.branch[best], flat.error_mm[best]


def _bytes_of(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
