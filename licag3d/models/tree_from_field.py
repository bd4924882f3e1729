# SPDX-License-Identifier: Apache-2.0
"""From a tri-plane field to voxels, and from voxels to what can be judged: pieces, vessel tree, surface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from licag3d.errors import InputError
from licag3d.structures import VesselTree
from licag3d.vessels.surface import Surface, volume_surface
from licag3d.vessels.volume import MAX_VOXELS, Volume

if TYPE_CHECKING:
    import torch

    from licag3d.ops.triplane_decoder import TriplaneDecoder

#: Pieces below this are crumbs: the thin end of a true vessel breaks into such when it is put on a 0.5 mm grid.
CRUMB_MM3 = 4.0
#: A field in more pieces than this is noise; only the largest are traced.
MOST_PIECES = 60
_BLOCK = 1 << 18


@dataclass(frozen=True)
class FieldTree:
    """What a field holds above a level.

    Args:
        tree: centrelines with radii, world LPS mm; one root branch per piece.
        surface: watertight, of all pieces that are no crumbs; None where there is none, or it was not asked for.
        pieces_mm3: volume of every 26-connected piece, largest first, crumbs among them.
        level_per_mm: the level.
    """

    tree: VesselTree
    surface: Surface | None
    pieces_mm3: tuple[float, ...]
    level_per_mm: float

    @property
    def pieces(self) -> int:
        """Pieces that are no crumbs; a sound sample has exactly one."""
        return sum(size >= CRUMB_MM3 for size in self.pieces_mm3)

    @property
    def largest_share(self) -> float:
        """Share of the volume that lies in the largest piece; 0 where there is none."""
        return self.pieces_mm3[0] / sum(self.pieces_mm3) if self.pieces_mm3 else 0.0


def bake(
    planes: torch.Tensor,
    decoder: TriplaneDecoder,
    *,
    box_center_mm=(0.0, 0.0, 0.0),
    box_size_mm: float,
    spacing_mm: float = 0.5,
    skip_below_per_mm: float = 0.0,
    near: VesselTree | None = None,
    reach_mm: float = 2.0,
) -> Volume:
    """Voxels of a tri-plane field, float32 in 1/mm; see :func:`bake_function`.

    Args:
        planes: ``(3, C, R, R)``. decoder: its decoder.
    """
    import torch

    from licag3d.ops import query_triplane

    def field(points_mm: np.ndarray) -> np.ndarray:
        points = torch.from_numpy(points_mm).to(planes.device)
        with torch.no_grad():
            value = query_triplane(planes, decoder, points, box_center_mm=box_center_mm, box_size_mm=box_size_mm)
        return value.cpu().numpy()

    return bake_function(
        field,
        box_center_mm=box_center_mm,
        box_size_mm=box_size_mm,
        spacing_mm=spacing_mm,
        skip_below=skip_below_per_mm,
        near=near,
        reach_mm=reach_mm,
    )


def bake_function(
    field: Callable[[np.ndarray], np.ndarray],
    *,
    box_center_mm=(0.0, 0.0, 0.0),
    box_size_mm: float,
    spacing_mm: float = 0.5,
    skip_below: float = 0.0,
    near: VesselTree | None = None,
    reach_mm: float = 2.0,
) -> Volume:
    """Values of a field at the centres of the voxels that fill a box, float32.

    Args:
        field: values ``(N,)`` at points ``(N, 3)`` float32, world LPS mm.
        spacing_mm: brought to the nearest whole number of voxels along the box.
        skip_below: 0 asks for the field at every voxel. Above 0, every other voxel along each axis is asked first, and
            the rest only within two of those above this value; elsewhere 0 is written. That takes an eighth of the time
            and can lose what is smaller than two voxels and stands alone.
        near: a tree (world LPS mm): the field is asked within ``reach_mm`` of its walls alone; elsewhere 0 is written.

    Raises:
        InputError: a spacing that is not positive, or that makes an absurd number of voxels.
    """
    if not (np.isfinite(spacing_mm) and 0 < spacing_mm <= box_size_mm):
        raise InputError(f"the spacing is {spacing_mm} mm; give more than 0 and at most the box, {box_size_mm:g} mm")
    count = max(2, round(box_size_mm / spacing_mm))
    if count**3 > MAX_VOXELS:
        raise InputError(f"a spacing of {spacing_mm} mm needs {count}^3 voxels; give a larger one")
    step = box_size_mm / count
    axes = [center - box_size_mm / 2 + step * (np.arange(count) + 0.5) for center in map(float, box_center_mm)]
    values = np.zeros((count, count, count), np.float32)
    flat = values.reshape(-1)

    def ask(index: np.ndarray) -> np.ndarray:
        points = np.stack([axes[0][index % count], axes[1][index // count % count], axes[2][index // count**2]], -1)
        return field(points.astype(np.float32))

    if near is not None:
        wanted = _near_tree(near, [axis[0] for axis in axes], step, count, reach_mm)
    else:
        wanted = _near_something(count, ask, skip_below) if skip_below > 0 else np.arange(flat.size)
    for start in range(0, len(wanted), _BLOCK):
        part = wanted[start : start + _BLOCK]
        flat[part] = ask(part)
    return Volume(values, (axes[0][0], axes[1][0], axes[2][0]), step)


def _near_tree(tree: VesselTree, origin_mm: list[float], step: float, count: int, reach_mm: float) -> np.ndarray:
    """Flat indices of the voxels within the reach of the walls of a tree (up to a voxel more)."""
    from licag3d.vessels.tree import resample_tree

    near = np.zeros((count, count, count), bool)
    for branch in resample_tree(tree, step).branches:
        reach = float(np.max(branch.radius_mm)) + reach_mm + step
        side = np.arange(-int(reach / step), int(reach / step) + 1)
        z, y, x = np.meshgrid(side, side, side, indexing="ij")
        ball = np.stack([x, y, z], -1)[(x**2 + y**2 + z**2) * step**2 <= reach**2]
        middle = np.round((branch.points_lps_mm - origin_mm) / step).astype(np.int64)
        index = np.unique(middle, axis=0)[:, None] + ball
        index = index[((index >= 0) & (index < count)).all(2)]
        near[index[:, 2], index[:, 1], index[:, 0]] = True
    return np.flatnonzero(near.reshape(-1))


def _near_something(count: int, ask: Callable[[np.ndarray], np.ndarray], threshold: float) -> np.ndarray:
    """Flat indices of the voxels about those of the coarse grid where the field exceeds the threshold."""
    from scipy.ndimage import binary_dilation

    coarse = np.arange(0, count, 2)
    grid = (coarse[:, None, None] * count + coarse[None, :, None]) * count + coarse[None, None, :]
    index = grid.reshape(-1)
    above = np.concatenate([ask(index[k : k + _BLOCK]) for k in range(0, len(index), _BLOCK)]) > threshold
    near = binary_dilation(above.reshape(grid.shape), np.ones((3, 3, 3), bool))
    # A coarse voxel stands for itself and the next one along each axis; by the dilation both of its sides are covered.
    fine = near.repeat(2, 0).repeat(2, 1).repeat(2, 2)[:count, :count, :count]
    return np.flatnonzero(fine.reshape(-1))


def tree_from_field(
    volume: Volume,
    *,
    level_per_mm: float,
    min_branch_mm: float = 3.0,
    mesh: bool = False,
) -> FieldTree:
    """Pieces, centreline tree with radii, and surface of everything above a level.

    Args:
        volume: attenuation, 1/mm, as :func:`bake` makes it.
        level_per_mm: border of the lumen, half of the lumen's attenuation.
        min_branch_mm: shorter side branches are spurs of the thinning.

    Raises:
        InputError: the volume holds NaN, or the level is not positive.

    Example:
        >>> ball = np.zeros((9, 9, 9), np.float32)
        >>> ball[2:7, 2:7, 2:7] = 0.15
        >>> found = tree_from_field(Volume(ball, (0, 0, 0), 1.0), level_per_mm=0.075)
        >>> found.pieces, found.pieces_mm3
        (1, (125.0,))
    """
    from scipy import ndimage

    from licag3d.vessels.skeleton import skeleton_tree
    from licag3d.vessels.tree import prune_spurs

    if not level_per_mm > 0:
        raise InputError(f"the level is {level_per_mm} 1/mm; give a positive number, half of the lumen's attenuation")
    values = np.asarray(volume.values, np.float32)
    if not np.isfinite(values.min()) or not np.isfinite(values.max()):
        raise InputError("the field holds NaN or infinite values; the weights are broken")
    mask = values > level_per_mm
    if not mask.any():
        return FieldTree(VesselTree(), None, (), level_per_mm)
    # Two voxels of room: cross-sections look beyond the border.
    window = tuple(slice(max(low - 2, 0), high + 3) for low, high in _extent(mask))
    values, mask = values[window], mask[window]
    label, _ = ndimage.label(mask, np.ones((3, 3, 3), bool))
    size_mm3 = np.bincount(label.ravel()).astype(np.float64) * volume.spacing_mm**3
    size_mm3[0] = 0
    order = np.argsort(-size_mm3, kind="stable")
    pieces = tuple(float(size_mm3[k]) for k in order if size_mm3[k] > 0)
    kept = [k for k in order[:MOST_PIECES] if size_mm3[k] >= CRUMB_MM3]
    if not kept:
        return FieldTree(VesselTree(), None, pieces, level_per_mm)
    # What is left out must not come back through the field: it is set below the level. What exceeds twice the level is
    # cut, so that the border lies where the field crosses the level between equals and not where a peak pulls it.
    keep = np.isin(label, kept)
    values = np.where(keep | ~mask, np.minimum(values, 2 * level_per_mm), 0.0).astype(np.float32)
    corner = [s.start for s in window]
    cut = Volume(values, tuple(volume.index_to_lps(corner)), volume.spacing_mm)
    tree, _ = skeleton_tree(cut, level=level_per_mm, min_branch_mm=min_branch_mm)
    tree = prune_spurs(VesselTree(tuple(b for b in tree.branches if len(b.points_lps_mm) > 1)), min_branch_mm)
    return FieldTree(tree, volume_surface(cut, level_per_mm) if mesh else None, pieces, level_per_mm)


def _extent(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and last index along each axis."""
    found = []
    for axis in range(3):
        along = np.flatnonzero(mask.any(axis=tuple(k for k in range(3) if k != axis)))
        found.append((int(along[0]), int(along[-1])))
    return found
