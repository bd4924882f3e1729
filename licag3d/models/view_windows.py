# SPDX-License-Identifier: Apache-2.0
"""The pictures the tree encoder sees: windows of fixed size in mm about the vessels of a view.

Coordinates ``(u, v)`` of a view are mm along its columns and rows at the isocentre, from the principal point: a shift
of the table moves them all alike, and a window about the vessels does not see it at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from licag3d.geometry import Camera
from licag3d.structures import VesselEvidence

#: Line integrals are multiplied by this: vessels of 3 mm then have about the value of their probability.
LINE_GAIN = 2.0


@dataclass(frozen=True)
class Window:
    """``picture`` ``(channels, S, S)`` float32; ``center_mm`` ``(2,)``: (u, v) of its middle."""

    picture: np.ndarray
    center_mm: np.ndarray


def camera_numbers(cameras: Sequence[Camera], centers_mm: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """``(V, 11)`` float32: beam, column and row direction (docs/geometry.md), distances near zero.

    Args:
        centers_mm: (u, v) of the middle of each window. The directions are those of the ray through it: a tree 60 mm
            beside the central beam is seen from 4.6 degrees aside.
    """
    rows = []
    for k, camera in enumerate(cameras):
        frame = camera.frame
        u, v = (0.0, 0.0) if centers_mm is None else centers_mm[k]
        beam = camera.sod_mm * frame.beam + u * frame.column + v * frame.row
        beam = beam / np.linalg.norm(beam)
        column = frame.column - (frame.column @ beam) * beam
        column = column / np.linalg.norm(column)
        row = np.cross(beam, column)  # column x row = -beam, as in the frame of the view
        row = row if row @ frame.row > 0 else -row
        distances = ((camera.sod_mm - 750.0) / 100.0, camera.sid_mm / camera.sod_mm - 1.4)
        rows.append(np.concatenate([beam, column, row, distances]))
    return np.array(rows, np.float32).reshape(-1, 11)


def plane_mm(camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """(u, v) ``(..., 2)`` in mm at the isocentre of pixels ``(..., 2)`` (col, row)."""
    pixels = np.asarray(pixels, np.float64)
    spacing = np.array([camera.spacing_col_mm, camera.spacing_row_mm]) / camera.magnification
    return (pixels - [camera.principal_col, camera.principal_row]) * spacing


def plane_pixels(camera: Camera, at_mm: np.ndarray) -> np.ndarray:
    """Inverse of :func:`plane_mm`."""
    spacing = np.array([camera.spacing_col_mm, camera.spacing_row_mm]) / camera.magnification
    return np.asarray(at_mm, np.float64) / spacing + [camera.principal_col, camera.principal_row]


def middle_of_vessels_mm(vessels: np.ndarray, camera: Camera) -> np.ndarray:
    """Middle (u, v) of where ``vessels`` (rows, cols) bool are: of the 1st to 99th percentile of their pixels, along
    both axes.

    Without any vessel it is the middle of the picture.
    """
    row, col = np.nonzero(vessels)
    if len(row) == 0:
        return plane_mm(camera, np.array([(camera.cols - 1) / 2, (camera.rows - 1) / 2]))
    low, high = np.percentile(np.stack([col, row], 1), (1, 99), axis=0)
    return plane_mm(camera, 0.5 * (low + high))


def cut_window(
    evidence: VesselEvidence,
    camera: Camera,
    *,
    window_px: int,
    window_mm: float,
    image: np.ndarray | None = None,
) -> Window:
    """The window of one view: vessel probability, line integral and, where given, the frame (0..1).

    Outside the picture there are no vessels; the frame continues there by its mean.
    """
    center = middle_of_vessels_mm(evidence.mask, camera)
    layers = [evidence.probability, LINE_GAIN * evidence.line_integral]
    if image is not None:
        layers.append(image - float(np.mean(image)))
    picture = cut_layers(layers, camera, center, window_px=window_px, window_mm=window_mm)
    if image is not None:
        picture[2] += float(np.mean(image))
    return Window(picture, center)


def cut_layers(
    layers: Sequence[np.ndarray], camera: Camera, center: np.ndarray, *, window_px: int, window_mm: float
) -> np.ndarray:
    """Layers ``(rows, cols)`` of one view in the window about ``center`` (u, v): ``(layers, window_px, window_px)``."""
    step = window_mm / window_px
    at = (np.arange(window_px) + 0.5) * step - 0.5 * window_mm
    col = plane_pixels(camera, np.stack([center[0] + at, np.zeros_like(at)], 1))[:, 0]
    row = plane_pixels(camera, np.stack([np.zeros_like(at), center[1] + at], 1))[:, 1]
    source = torch.from_numpy(np.stack(layers).astype(np.float32))[None]
    # Averages over as many pixels as one of the window covers, so that thin vessels do not fall between samples.
    pool = max(1, int((col[1] - col[0]) + 0.5), int((row[1] - row[0]) + 0.5))
    if pool > 1:
        h, w = source.shape[-2:]
        source = F.avg_pool2d(F.pad(source, (0, -w % pool, 0, -h % pool)), pool)
        col, row = (col + 0.5) / pool - 0.5, (row + 0.5) / pool - 0.5
    h, w = source.shape[-2:]
    x, y = ((2 * torch.from_numpy(a) + 1) / n - 1 for a, n in ((col, w), (row, h)))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None].float()
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0].numpy()
