# SPDX-License-Identifier: Apache-2.0
"""From a vessel mask or an attenuation volume to a tree of centrelines with radii.

Thinning (Lee, Kashyap and Chu 1994) gives the topology; position and radius come from cross-sections of the field
itself, so both are finer than a voxel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from licag3d.errors import InputError
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.graph import trace_tree
from licag3d.vessels.tree import arc_length_mm, resample_branch
from licag3d.vessels.volume import Volume

_DIRECTIONS = 16


@dataclass(frozen=True)
class SkeletonReport:
    """What happened on the way.

    ``components_mm3``: volume of every connected piece of the mask, largest first. ``skipped_mm3``: those below
    ``min_component_mm3``, which have no centreline. ``thinning_failures``: pieces where thinning returned nothing and
    the longest path through the piece was taken instead.
    """

    components_mm3: tuple[float, ...]
    skipped_mm3: tuple[float, ...]
    thinning_failures: int


def skeleton_tree(volume: Volume, *, level: float = 0.5, root_lps_mm=None, min_branch_mm: float = 3.0,
                  min_component_mm3: float = 0.0, smooth_mm: float = 1.5, step_mm: float = 0.5,
                  ) -> tuple[VesselTree, SkeletonReport]:
    """Centreline tree of everything above ``level``.

    Args:
        volume: a mask (bool or uint8, ``level`` 0.5) or an attenuation volume; the latter gives finer radii.
        root_lps_mm: ``(3,)`` where the tree starts (the skeleton point nearest to it); default its thickest end.
        min_branch_mm: side branches that stick out of their parent by less are pruned.
        min_component_mm3: smaller pieces are left out, and reported.
        smooth_mm: standard deviation of the smoothing along the centreline.
        step_mm: distance of the points returned.

    Returns:
        The tree (one root branch per piece) and the report.

    Raises:
        InputError: nothing lies above the level, or the volume holds NaN.
    """
    from scipy import ndimage

    values = np.asarray(volume.values, np.float32)
    if not np.isfinite(values).all():
        raise InputError("the volume holds NaN or infinite values, so it has no centreline")
    mask = np.pad(values > level, 1)
    label, count = ndimage.label(mask, np.ones((3, 3, 3), bool))
    if count == 0:
        raise InputError(f"nothing in the volume lies above {level:g} (its maximum is {values.max():g}); "
                         "lower the level")
    size_mm3 = np.bincount(label.ravel())[1:] * volume.spacing_mm**3
    keep = size_mm3 >= min_component_mm3
    nodes, failures = [], 0
    for piece, box in enumerate(ndimage.find_objects(label)):
        if not keep[piece]:
            continue
        found, failed = _thin(label[box] == piece + 1)
        nodes.append(found + [s.start for s in box])
        failures += failed
    report = SkeletonReport(tuple(sorted(map(float, size_mm3), reverse=True)),
                            tuple(sorted(map(float, size_mm3[~keep]), reverse=True)), failures)
    if not nodes:
        return VesselTree(), report
    index = np.concatenate(nodes)
    # Distance to the nearest voxel centre outside; the border lies half a voxel before it. Asked only where it is
    # needed: a distance transform of the whole volume takes most of the time of everything here.
    depth = _depth(mask, index) * volume.spacing_mm
    radius = np.maximum(depth - volume.spacing_mm / 2, volume.spacing_mm / 2)
    points = volume.index_to_lps(index - 1)
    root = None if root_lps_mm is None else int(np.argmin(((points - np.asarray(root_lps_mm)) ** 2).sum(1)))
    tree = trace_tree(points, radius, _voxel_edges(index), root=root, min_branch_mm=min_branch_mm)
    refined = [_refined(branch, volume, values, level, smooth_mm, step_mm) for branch in tree.branches]
    return _reattached(VesselTree(tuple(refined))), report


def _depth(mask: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Distance ``(N,)`` in voxels from voxels ``(N, 3)`` of the mask to the nearest voxel outside.

    That voxel has a face neighbour in the mask: one step towards the asking voxel leads nearer, so it is not outside.
    """
    from scipy import ndimage
    from scipy.spatial import cKDTree

    shell = np.argwhere(ndimage.binary_dilation(mask) & ~mask)
    return cKDTree(shell).query(index)[0]


def _thin(mask: np.ndarray) -> tuple[np.ndarray, bool]:
    """Skeleton voxels ``(N, 3)`` of one connected piece, and whether thinning failed and a path was taken instead."""
    from skimage.morphology import skeletonize

    found = np.argwhere(skeletonize(np.pad(mask, 1), method="lee")) - 1
    # Thinning may return nothing for a blob of even size, and may lose all but a stub of a longer one.
    if len(found) and (len(found) > 1 or mask.sum() <= 27):
        return found, False
    return _longest_path(mask), True


def _longest_path(mask: np.ndarray) -> np.ndarray:
    """The path between two far ends of a piece that keeps to its middle; for a round blob its deepest voxel."""
    from scipy import ndimage
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import dijkstra

    voxels = np.argwhere(mask)
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1][mask]
    deepest = int(np.argmax(depth))
    edges = _voxel_edges(voxels)
    if len(edges) == 0:
        return voxels[[deepest]]
    step = np.linalg.norm(voxels[edges[:, 0]] - voxels[edges[:, 1]], axis=1)

    def search(weight: np.ndarray, start: int):
        graph = coo_matrix((weight, (edges[:, 0], edges[:, 1])), shape=(len(voxels), len(voxels))).tocsr()
        return dijkstra(graph, directed=False, indices=start, return_predecessors=True)

    first = int(np.argmax(search(step, deepest)[0]))
    distance, _ = search(step, first)
    last = int(np.argmax(distance))
    if distance[last] < 2.5 * depth[deepest]:  # no longer than wide
        return voxels[[deepest]]
    _, before = search(step / depth[edges].mean(1) ** 2, first)
    path = [last]
    while path[-1] != first:
        path.append(int(before[path[-1]]))
    return voxels[path]


def _voxel_edges(index: np.ndarray) -> np.ndarray:
    """Pairs of 26-neighbours among voxels ``(N, 3)``."""
    from scipy.spatial import cKDTree

    return cKDTree(index).query_pairs(1.8, output_type="ndarray") if len(index) > 1 else np.zeros((0, 2), np.int64)


def _refined(branch: Branch, volume: Volume, values: np.ndarray, level: float, smooth_mm: float,
             step_mm: float) -> Branch:
    """Smooth the voxel staircase, centre every point in its cross-section, take the radius of a disc of equal area."""
    branch = _smoothed(resample_branch(branch, step_mm), smooth_mm)
    if len(branch.points_lps_mm) < 3:
        return branch
    for _ in range(2):
        center, radius = _cross_sections(branch, volume, values, level)
        branch = _smoothed(replace(branch, points_lps_mm=center, radius_mm=radius), smooth_mm)
    return resample_branch(branch, step_mm)


def _smoothed(branch: Branch, smooth_mm: float) -> Branch:
    """Gaussian smoothing along the arc; reflected about the end points, so that the ends stay where they are."""
    from scipy.ndimage import gaussian_filter1d

    points = np.asarray(branch.points_lps_mm, np.float64)
    arc = arc_length_mm(points)
    if len(points) < 3 or arc[-1] == 0:
        return branch
    # A short branch keeps its shape: at most a quarter of its length is averaged.
    sigma = min(smooth_mm, arc[-1] / 4) / (arc[-1] / (len(points) - 1))
    pad = min(len(points) - 1, int(np.ceil(4 * sigma)))
    before, after = 2 * points[:1] - points[pad:0:-1], 2 * points[-1:] - points[-2:-pad - 2:-1]
    padded = np.concatenate([before, points, after])
    smooth = gaussian_filter1d(padded, sigma, axis=0, truncate=4)[pad:pad + len(points)]
    smooth[0], smooth[-1] = points[0], points[-1]
    radius = gaussian_filter1d(np.asarray(branch.radius_mm, np.float64), sigma, mode="nearest")
    return replace(branch, points_lps_mm=smooth, radius_mm=radius)


def _cross_sections(branch: Branch, volume: Volume, values: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Centre ``(n, 3)`` and radius ``(n,)`` of the lumen's cross-section at every point.

    Rays in the plane normal to the centreline are followed to where the interpolated field falls below the level. A ray
    that runs into a neighbouring vessel is cut at 1.5 times the median distance of its fan.
    """
    from scipy.ndimage import map_coordinates

    points, guess = np.asarray(branch.points_lps_mm), np.asarray(branch.radius_mm)
    tangent = np.gradient(points, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-12)
    helper = np.eye(3)[np.argmin(np.abs(tangent), axis=1)]
    first = np.cross(tangent, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(tangent, first)
    angle = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    fan = first[:, None] * np.cos(angle)[:, None] + second[:, None] * np.sin(angle)[:, None]
    step = volume.spacing_mm / 4
    reach = np.arange(0, 2.5 * float(guess.max()) + 2 * volume.spacing_mm, step)
    samples = points[:, None, None] + fan[:, :, None] * reach[:, None]
    field = map_coordinates(values, np.moveaxis(volume.lps_to_index(samples), -1, 0), order=1, mode="constant") - level
    outside = field < 0
    last = np.where(outside.any(2), outside.argmax(2), len(reach) - 1)
    before = np.maximum(last - 1, 0)
    high = np.take_along_axis(field, before[..., None], 2)[..., 0]
    low = np.take_along_axis(field, last[..., None], 2)[..., 0]
    crossing = np.clip(high / np.where(high - low > 1e-12, high - low, 1.0), 0, 1)
    distance = (before + crossing) * step
    inside = field[:, 0, 0] > 0
    median = np.median(distance, axis=1, keepdims=True)
    distance = np.minimum(distance, 1.5 * median)
    area = 0.5 * np.sin(2 * np.pi / _DIRECTIONS) * (distance * np.roll(distance, -1, axis=1)).sum(1)
    # A polygon of n corners on a circle is smaller than the disc by this factor.
    radius = np.sqrt(area / (_DIRECTIONS / 2 * np.sin(2 * np.pi / _DIRECTIONS)))
    shift = (fan * (distance**2)[..., None]).sum(1) / np.maximum(distance.sum(1), 1e-12)[:, None]
    size = np.linalg.norm(shift, axis=1, keepdims=True)
    shift *= np.minimum(1, 0.5 * median / np.maximum(size, 1e-12))
    shift[0] = shift[-1] = 0
    floor = volume.spacing_mm / 4
    return points + shift * inside[:, None], np.where(inside, np.maximum(radius, floor), np.maximum(guess, floor))


def _reattached(tree: VesselTree) -> VesselTree:
    """Centring moved the parents: put the first point of every child back on its parent."""
    by_id: dict[int, Branch] = {}
    for branch in tree.branches:
        if branch.parent is not None:
            parent = by_id[branch.parent]
            points = np.array(branch.points_lps_mm, np.float64)
            near = np.argmin(((parent.points_lps_mm - points[0]) ** 2).sum(1))
            points[0] = parent.points_lps_mm[near]
            branch = replace(branch, points_lps_mm=points)
        by_id[branch.id] = branch
    return VesselTree(tuple(by_id[b.id] for b in tree.branches))
