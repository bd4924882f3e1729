# SPDX-License-Identifier: Apache-2.0
"""3D queries for training: where to ask, and the exact signed distance to the tubes of many trees at once.

The same distance as :mod:`licag3d.vessels.distance` (which fills grids on the CPU). A tree has a thousand cones, and a
point is near to few of them, so cones are taken in runs of eight along a branch: with the ball ``(c, R)`` round a run
and one ball ``(c, r)`` of the union inside it, no cone of the run is nearer than ``|p - c| - R`` and the tree is no
farther than the least ``|p - c| - r``. Only runs that this leaves possible are evaluated, so nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from licag3d.geometry import Camera
from licag3d.structures import VesselTree
from licag3d.vessels.distance import Cones, tree_cones

_RUN = 8
#: Point-run pairs, and pairs that are evaluated, held at a time: some tens of megabytes.
_CHUNK_BOUNDS, _CHUNK_PAIRS = 1 << 21, 1 << 17
#: float32 rounding of the bounds at coordinates below a metre, mm.
_SLACK_MM = 1e-3


@dataclass(frozen=True)
class TreeQueries:
    """The cones of B trees as padded tensors: G runs of at most eight cones each.

    ``start`` and ``axis`` (unit vector) are ``(B, G, 8, 3)``; ``length``, ``radius`` (at the start) and ``slope``
    (loss of radius per mm) ``(B, G, 8)``; ``center`` ``(B, G, 3)``, ``reach`` and ``core`` ``(B, G)`` are c, R and r of
    the module's text. Padding can never be nearest.
    """

    start: torch.Tensor
    axis: torch.Tensor
    length: torch.Tensor
    radius: torch.Tensor
    slope: torch.Tensor
    center: torch.Tensor
    reach: torch.Tensor
    core: torch.Tensor

    @classmethod
    def stack(
        cls, trees: Sequence[Cones], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> TreeQueries:
        """Pack the cones of each tree (``licag3d.vessels.distance.tree_cones``); a tree may be empty.

        Raises:
            ValueError: no tree given.
        """
        if len(trees) == 0:
            raise ValueError("no tree given")
        packed = [_runs(cones) for cones in trees]
        most = max(len(item["reach"]) for item in packed)

        def padded(name: str) -> torch.Tensor:
            # A run that reaches nowhere and holds nothing: infinitely far by both bounds.
            fill = -np.inf if name in ("core", "reach") else 0.0
            rows = [
                np.concatenate([item[name], np.full((most - len(item[name]), *item[name].shape[1:]), fill)])
                for item in packed
            ]
            return torch.from_numpy(np.stack(rows)).to(device=device, dtype=dtype)

        return cls(
            *(padded(name) for name in ("start", "axis", "length", "radius", "slope", "center", "reach", "core"))
        )

    @torch.no_grad()
    def signed_distance_mm(self, points_mm: torch.Tensor) -> torch.Tensor:
        """Signed distance to the surface of each tree's union of tubes.

        Args:
            points_mm: ``(B, N, 3)``, world LPS mm, on the device of the cones; N may be 0.

        Returns:
            ``(B, N)`` in the type of the cones, mm, negative inside; infinite where a tree has no cone.

        Raises:
            ValueError: wrong shape, or another device.
        """
        batch, runs = self.reach.shape
        if points_mm.dim() != 3 or points_mm.shape[0] != batch or points_mm.shape[2] != 3:
            raise ValueError(f"points_mm has shape {tuple(points_mm.shape)}; expected ({batch}, N, 3)")
        if points_mm.device != self.reach.device:
            raise ValueError(f"points_mm is on {points_mm.device} and the trees on {self.reach.device}; move one")
        points_mm = points_mm.to(self.reach.dtype)
        out = points_mm.new_full(points_mm.shape[:2], torch.inf)
        if runs:
            width = max(1, _CHUNK_BOUNDS // (batch * runs))
            for first in range(0, points_mm.shape[1], width):
                out[:, first : first + width] = self._chunk(points_mm[:, first : first + width])
        return out

    def _chunk(self, points: torch.Tensor) -> torch.Tensor:
        # By differences, not by products of large coordinates, which lose a hundredth of a millimetre.
        away = torch.cdist(points, self.center, compute_mode="donot_use_mm_for_euclid_dist")
        least = (away - self.core[:, None]).amin(2, keepdim=True)
        bound = away - self.reach[:, None]
        possible = (bound <= least + _SLACK_MM) & (bound < torch.inf)  # padding is infinitely far
        tree, point, run = possible.nonzero(as_tuple=True)
        out = points.new_full((points.shape[0] * points.shape[1],), torch.inf)
        for part in torch.arange(len(tree), device=points.device).split(_CHUNK_PAIRS):
            b, n, g = tree[part], point[part], run[part]
            out.scatter_reduce_(0, b * points.shape[1] + n, self._distance(points[b, n], b, g), "amin")
        return out.view(points.shape[:2])

    def _distance(self, points: torch.Tensor, tree: torch.Tensor, run: torch.Tensor) -> torch.Tensor:
        """Distance ``(P,)`` of point k to the nearest cone of run k; formula: licag3d/vessels/distance.py."""
        offset = points[:, None] - self.start[tree, run]
        slope = self.slope[tree, run]
        along = (offset * self.axis[tree, run]).sum(-1)
        across = ((offset * offset).sum(-1) - along * along).clamp(min=0)
        nearest = along - slope * torch.rsqrt(1 - slope * slope) * across.sqrt()
        nearest = torch.minimum(nearest.clamp(min=0), self.length[tree, run])
        return (((along - nearest) ** 2 + across).sqrt() - (self.radius[tree, run] - slope * nearest)).amin(1)


def near_points(rng: np.random.Generator, tree: VesselTree, count: int, near_mm: float) -> np.ndarray:
    """Points ``(count, 3)`` float32 about the vessels: a place uniform by arc length, moved by a normal deviate."""
    cones = tree_cones(tree)
    length = np.linalg.norm(cones.end - cones.start, axis=1) + 1e-9
    chosen = rng.choice(len(cones), count, p=length / length.sum())
    along = rng.uniform(0, 1, count)
    centre = cones.start[chosen] + along[:, None] * (cones.end - cones.start)[chosen]
    radius = cones.start_radius[chosen] + along * (cones.end_radius - cones.start_radius)[chosen]
    # Of a normal deviate with this standard deviation per axis about half lies inside a tube of this radius.
    spread = np.where(np.arange(count) % 2 == 0, radius / np.sqrt(2 * np.log(2)), radius + near_mm)
    return (centre + spread[:, None] * rng.normal(size=(count, 3))).astype(np.float32)


def center_from_views(cameras: Sequence[Camera], masks: Sequence[np.ndarray]) -> np.ndarray:
    """Point ``(3,)``, LPS mm, nearest to the rays through the middle of the vessels in each view.

    What anybody can know who has the views alone. The middle is that of the bounding box of all but the outermost
    hundredth of the mask, so that a speck far out counts for nothing. One view leaves the depth open; there, and where
    a mask is empty, the point nearest to the isocentre is taken.
    """
    normal, right = 1e-6 * np.eye(3), np.zeros(3)
    for camera, mask in zip(cameras, masks, strict=True):
        place = np.argwhere(mask)
        if len(place) == 0:
            continue
        row, col = np.quantile(place, (0.01, 0.99), axis=0).mean(0)
        source, ray = camera.rays(col, row)
        ray = ray / np.linalg.norm(ray)
        across = np.eye(3) - np.outer(ray, ray)
        normal += across
        right += across @ source
    return np.linalg.solve(normal, right)


def _runs(cones: Cones) -> dict[str, np.ndarray]:
    """The arrays of :class:`TreeQueries` of one tree, float64."""
    start, end = np.asarray(cones.start, np.float64), np.asarray(cones.end, np.float64)
    first, last = np.asarray(cones.start_radius, np.float64), np.asarray(cones.end_radius, np.float64)
    axis = end - start
    length = np.linalg.norm(axis, axis=1)
    ball = (length <= np.abs(first - last)) | (length == 0)
    # The larger ball holds the smaller one: it is kept alone, as a cone without length.
    start = np.where((ball & (last > first))[:, None], end, start)
    radius = np.where(ball, np.maximum(first, last), first)
    safe = np.where(ball, 1.0, length)
    axis = np.where(ball[:, None], np.array([0.0, 0.0, 1.0]), axis / safe[:, None])
    slope = np.where(ball, 0.0, (first - last) / safe)
    length = np.where(ball, 0.0, length)
    # Runs end where a branch ends, so that they stay short in space; a short run repeats its last cone.
    pieces = []
    for group in np.unique(cones.group):
        members = np.flatnonzero(cones.group == group)
        pieces += [members[k : k + _RUN] for k in range(0, len(members), _RUN)]
    index = np.array([np.pad(piece, (0, _RUN - len(piece)), mode="edge") for piece in pieces], int).reshape(-1, _RUN)
    middle = np.array([piece[len(piece) // 2] for piece in pieces], int)
    center = start[middle]
    far = start + axis * length[:, None]
    far_radius = radius - slope * length
    reach = np.maximum(
        np.linalg.norm(start[index] - center[:, None], axis=2) + radius[index],
        np.linalg.norm(far[index] - center[:, None], axis=2) + far_radius[index],
    )
    return {
        "start": start[index],
        "axis": axis[index],
        "length": length[index],
        "radius": radius[index],
        "slope": slope[index],
        "center": center,
        "reach": reach.max(1, initial=0.0),
        "core": radius[middle],
    }
