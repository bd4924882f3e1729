# SPDX-License-Identifier: Apache-2.0
"""What a tree in motion shows in one view: path lengths through its tubes at the pixels about it, with gradients.

The exact projector (:func:`licag3d.ops.project_tubes`) has no gradient by the points of a tree. Here every pixel near a
branch sees the nearest piece of it as a straight tube: at distance d from its axis a ray meets the chord
``2 sqrt(r^2 - d^2) / sine`` of it, smeared by the image (the closed form of
:func:`licag3d.inversion.refinement_profiles.smeared_chord`), and branches add up. Vessels that lie over or beside each
other in a view are therefore seen as what they are, which no centreline of a mask can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from licag3d.geometry import Camera
from licag3d.geometry.batch import Cameras

#: Pieces looked at on either side of the nearest one, when points move.
WINDOW = 4
#: Least sine of the angle between ray and vessel, squared.
LEAST_SINE2 = 0.09


@dataclass(frozen=True)
class NearPixels:
    """Pixels of one view near a tree, and for every pixel and branch near each other (P pairs) the pieces to look at.

    ``camera`` of the image (one view); ``seen`` ``(M,)`` line integral there; ``where`` ``(M,)`` its places in the
    flat image; ``pixel`` ``(P,)`` row of ``seen`` for each pair; ``place`` ``(P, 2)`` (col, row); ``pieces`` ``(P, K)``
    first points of the pieces; ``alone`` ``(M,)`` whether one branch only is near.
    """

    camera: Cameras
    source_mm: torch.Tensor
    seen: torch.Tensor
    where: torch.Tensor
    pixel: torch.Tensor
    place: torch.Tensor
    pieces: torch.Tensor
    alone: torch.Tensor


def pooled_view(camera: Camera, line_integral: np.ndarray, pixel_mm: float) -> tuple[Camera, np.ndarray]:
    """A view with pixels of about ``pixel_mm`` at the isocentre: camera, averaged line integrals ``(rows, cols)``."""
    pool = max(1, round(pixel_mm / camera.mm_per_pixel))
    small = camera.cropped(0, 0, camera.rows - camera.rows % pool, camera.cols - camera.cols % pool)
    small = small.resized(small.rows // pool, small.cols // pool)
    image = np.asarray(line_integral, np.float32)[: small.rows * pool, : small.cols * pool]
    return small, image.reshape(small.rows, pool, small.cols, pool).mean((1, 3))


def near_pixels(
    camera: Camera,
    line_integral: np.ndarray,
    points_mm: np.ndarray,
    radius_mm: np.ndarray,
    spans: Sequence[slice],
    *,
    reach_mm: float,
    dtype: torch.dtype = torch.float32,
) -> NearPixels | None:
    """Choose the pixels of a view within ``reach_mm`` of the walls of a tree.

    Args:
        line_integral: ``(rows, cols)``. points_mm, radius_mm: ``(N, 3)`` and ``(N,)``, branch after branch.
        spans: rows of each branch. dtype: of everything.

    Returns:
        None where no part of the tree lies in the image.
    """
    from scipy.spatial import cKDTree

    pixels, depth = camera.project(points_mm)
    scale = camera.sid_mm / depth / camera.spacing_col_mm
    found = []
    for span in spans:
        about = (radius_mm[span] + reach_mm) * scale[span]
        low = np.maximum(np.floor(pixels[span].min(0) - about.max()), 0).astype(int)
        high = np.minimum(np.ceil(pixels[span].max(0) + about.max()) + 1, (camera.cols, camera.rows)).astype(int)
        if (low >= high).any():
            continue
        grid = np.stack(np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1])), -1).reshape(-1, 2)
        distance, nearest = cKDTree(pixels[span]).query(grid, distance_upper_bound=about.max())
        nearest = np.minimum(nearest, len(about) - 1)  # one more where nothing is near
        near = distance < about[nearest]
        first = span.start + nearest[near, None] + np.arange(-WINDOW, WINDOW + 1)
        found.append((grid[near], np.clip(first, span.start, span.stop - 2)))
    if not sum(len(grid) for grid, _ in found):
        return None
    place, pieces = (np.concatenate(part) for part in zip(*found, strict=True))
    every, pixel = np.unique(place[:, 1] * camera.cols + place[:, 0], return_inverse=True)
    return NearPixels(
        camera=Cameras.stack([camera], dtype=dtype),
        source_mm=torch.tensor(camera.source_lps_mm, dtype=dtype),
        seen=torch.from_numpy(np.asarray(line_integral, np.float32).reshape(-1)[every]).to(dtype),
        where=torch.from_numpy(every),
        pixel=torch.from_numpy(pixel),
        place=torch.from_numpy(place).to(dtype),
        pieces=torch.from_numpy(pieces),
        alone=torch.from_numpy(np.bincount(pixel) == 1),
    )


def path_mm(near: NearPixels, points: torch.Tensor, radius: torch.Tensor, blur_px: float) -> torch.Tensor:
    """Path through the tree at every pixel of ``near``, ``(M,)`` mm: see :func:`pair_path_mm`."""
    pairs = pair_path_mm(near, points, radius, blur_px)
    return torch.zeros(len(near.seen), dtype=points.dtype).index_add(0, near.pixel, pairs)


def pair_path_mm(near: NearPixels, points: torch.Tensor, radius: torch.Tensor, blur_px: float) -> torch.Tensor:
    """Path through one branch at one pixel, ``(P,)`` mm, smeared by ``blur_px``.

    Args:
        points: ``(N, 3)``, as :func:`near_pixels` had them but for small movements. radius: ``(N,)`` mm; a
            point of radius 0 shows nothing.
    """
    pixels, depth = near.camera.project(points)
    pixels, depth = pixels[0], depth[0]
    with torch.no_grad():  # which piece is nearest has no gradient, and the others need none
        nearest = near.pieces.gather(1, _offsets(pixels, near.place[:, None], near.pieces).argmin(1)[:, None])[:, 0]
    distance = (_offsets(pixels, near.place, nearest) + 1e-6).sqrt()
    tangent = points[1:] - points[:-1]
    ray = points[:-1] - near.source_mm
    cosine = (tangent * ray).sum(1) / (tangent.norm(dim=1) * ray.norm(dim=1)).clamp_min(1e-9)
    sine = (1 - cosine * cosine).clamp_min(LEAST_SINE2).sqrt()
    scale = near.camera.sid_mm / depth / near.camera.spacing_col_mm
    width = 12**0.5 * blur_px
    r = (radius.clamp_min(1e-3) * scale)[nearest]
    chord = (_half_disc(distance + width / 2, r) - _half_disc(distance - width / 2, r)) / (width * r)
    tall = (2 * radius)[nearest] / sine[nearest]
    return tall * chord


def attenuation(near: NearPixels, path: torch.Tensor, reliable_mm: float) -> float | None:
    """Line integral per mm of path (median) where one branch alone shows ``reliable_mm`` of it; None without such."""
    sure = near.alone & (path > reliable_mm) & (near.seen > 0)
    return float((near.seen[sure] / path[sure]).median()) if sure.any() else None


def _offsets(pixels: torch.Tensor, place: torch.Tensor, pieces: torch.Tensor) -> torch.Tensor:
    """Squared distance of places ``(..., 2)`` from the pieces that begin at points ``(...)``, in pixels."""
    x, y = pixels.unbind(-1)  # numbers of their own: sums over a dimension of two are slow
    across, down = x.diff(), y.diff()
    long = (across * across + down * down).clamp_min(1e-9)
    across, down, long = across[pieces], down[pieces], long[pieces]
    right, below = place[..., 0] - x[pieces], place[..., 1] - y[pieces]
    along = ((right * across + below * down) / long).clamp(0, 1)
    return (right - along * across).square() + (below - along * down).square()


def _half_disc(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Integral of sqrt(r^2 - t^2) from 0 to x, x held within the disc."""
    x = torch.minimum(torch.maximum(x, -0.9999 * r), 0.9999 * r)
    return 0.5 * (x * (r * r - x * x).clamp_min(1e-9).sqrt() + r * r * torch.asin(x / r))
