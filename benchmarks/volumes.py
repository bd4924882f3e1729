# SPDX-License-Identifier: Apache-2.0
"""What the volume rivals share: the box they work in, projection of views of unequal size, and volume to tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.baselines import BOX_MM, Inputs
from licag3d.geometry import Camera, Cameras
from licag3d.geometry.batch import Rays
from licag3d.ops import backproject, project_volume
from licag3d.structures import VesselTree
from licag3d.vessels.skeleton import skeleton_tree
from licag3d.vessels.tree import prune_spurs
from licag3d.vessels.volume import Volume, covering_grid

#: Pieces of a thresholded volume below this are dropped before thinning (chosen on validation seeds).
SMALLEST_PIECE_MM3 = 12.0
#: Side branches that stick out of their parent by less are spurs of the thinning.
SHORTEST_BRANCH_MM = 3.0
#: A tree of more pieces is noise; the largest are kept, so that a bad volume costs seconds and not minutes.
MOST_PIECES = 60


def volume_tree(volume: Volume, level: float) -> VesselTree:
    """The common way from a volume to a tree: threshold, pieces of at least ``SMALLEST_PIECE_MM3``, thinning.

    Returns:
        One root branch per piece; an empty tree where nothing is above the level.
    """
    from scipy import ndimage

    mask = np.asarray(volume.values) > level
    label, count = ndimage.label(mask, np.ones((3, 3, 3), bool))
    if count == 0:
        return VesselTree()
    size = np.bincount(label.ravel())
    size[0] = 0
    keep = np.argsort(-size, kind="stable")[:MOST_PIECES]
    keep = keep[size[keep] * volume.spacing_mm**3 >= SMALLEST_PIECE_MM3]
    if len(keep) == 0:
        return VesselTree()
    mask = np.isin(label, keep)
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    # Two voxels of room: cross-sections look beyond the border of the mask.
    low = np.maximum([s.start - 2 for s in box], 0)
    high = np.minimum([s.stop + 2 for s in box], mask.shape)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    # Dropped pieces must not come back through the field: they are set below the level.
    values = np.where(mask | ~(np.asarray(volume.values) > level), volume.values, 0)[window].astype(np.float32)
    cut = Volume(values, tuple(volume.index_to_lps(low)), volume.spacing_mm)
    tree, _ = skeleton_tree(cut, level=level, min_branch_mm=SHORTEST_BRANCH_MM)
    return prune_spurs(VesselTree(tuple(b for b in tree.branches if len(b.points_lps_mm) > 1)), SHORTEST_BRANCH_MM)


def view_box(inputs: Inputs, margin_mm: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Corners ``(3,)`` x, y, z of the box of all points that lie within the bounding rectangles of all masks, mm.

    Raises:
        ValueError: a mask is empty, or no point of the cube of ``BOX_MM`` projects into all rectangles.
    """
    step = 2.0
    axis = np.arange(-BOX_MM / 2, BOX_MM / 2 + step / 2, step)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    for mask, camera in zip(inputs.masks, inputs.cameras, strict=True):
        rows, cols = np.nonzero(mask)
        if len(rows) == 0:
            raise ValueError("a view shows no vessel")
        reach = margin_mm / camera.mm_per_pixel
        pixels, _ = camera.project(points)
        inside = (pixels[:, 0] >= cols.min() - reach) & (pixels[:, 0] <= cols.max() + reach)
        inside &= (pixels[:, 1] >= rows.min() - reach) & (pixels[:, 1] <= rows.max() + reach)
        points = points[inside]
    if len(points) == 0:
        raise ValueError("no point projects into the vessel areas of all views")
    return points.min(0) - step, points.max(0) + step


@dataclass(frozen=True)
class System:
    """Projection of a volume to all views, and its exact transpose, on the operators of this project.

    ``rays`` per view ``(rows, cols, 3)`` float32; ``targets`` per view float32 line integrals at the size of the rays.
    """

    rays: tuple[Rays, ...]
    targets: tuple[torch.Tensor, ...]
    shape: tuple[int, int, int]
    origin_mm: tuple[float, float, float]
    spacing_mm: float

    def project(self, volume: torch.Tensor) -> list[torch.Tensor]:
        """Line integrals ``(rows, cols)`` per view of a volume ``(D, H, W)``."""
        return [
            project_volume(volume, rays, voxel_size_mm=self.spacing_mm, origin_mm=self.origin_mm) for rays in self.rays
        ]

    def back(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """The transpose, ``(D, H, W)``."""
        return sum(self.back_view(k, image) for k, image in enumerate(images))

    def back_view(self, k: int, image: torch.Tensor) -> torch.Tensor:
        """The transpose of the projection to view k alone."""
        where = {"shape": self.shape, "voxel_size_mm": self.spacing_mm, "origin_mm": self.origin_mm}
        return backproject(image, self.rays[k], **where)

    def support(self) -> torch.Tensor:
        """1 where every view has contrast along some ray through the voxel, else 0; ``(D, H, W)`` float32.

        Outside it x >= 0 and the empty rays force zero; to say so at once spares hundreds of iterations.
        """
        inside = torch.ones(self.shape)
        for k, target in enumerate(self.targets):
            inside *= self.back_view(k, (target > 0).float()) > 0
        return inside

    def volume(self, values: torch.Tensor) -> Volume:
        """The values with their place in space."""
        return Volume(values.detach().numpy(), self.origin_mm, self.spacing_mm)


def make_system(inputs: Inputs, *, spacing_mm: float, shrink: int = 2) -> System:
    """A system on the box of the views, images reduced by ``shrink`` (means of blocks).

    Pixels outside the X-ray field count as empty, as their line integral is zero in ``inputs``.
    """
    low, high = view_box(inputs)
    origin, shape = covering_grid(low, high, spacing_mm)
    rays, targets = [], []
    for image, camera in zip(inputs.line_integrals, inputs.cameras, strict=True):
        small, smaller = shrunk(image, camera, shrink)
        start, to_pixel = Cameras.stack([smaller], dtype=torch.float32).rays()
        rays.append(Rays(start[0].contiguous(), to_pixel[0].contiguous()))
        targets.append(torch.from_numpy(small))
    return System(tuple(rays), tuple(targets), shape, origin, spacing_mm)


def shrunk(image: np.ndarray, camera: Camera, factor: int) -> tuple[np.ndarray, Camera]:
    """Means of ``factor x factor`` blocks, and the camera of the smaller image (a remainder is cut off below/right)."""
    rows, cols = image.shape[0] // factor, image.shape[1] // factor
    cut = np.asarray(image[: rows * factor, : cols * factor], np.float32)
    small = cut.reshape(rows, factor, cols, factor).mean((1, 3))
    return np.ascontiguousarray(small), camera.cropped(0, 0, rows * factor, cols * factor).resized(rows, cols)


def robust_peak(volume: Volume) -> float:
    """The attenuation of a well opacified place: 99th percentile of the voxels above a twentieth of the maximum."""
    values = np.asarray(volume.values)
    high = values[values > 0.05 * values.max()] if values.max() > 0 else values.ravel()[:1]
    return float(np.percentile(high, 99))
