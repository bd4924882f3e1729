# SPDX-License-Identifier: Apache-2.0
"""Epipolar matching of centrelines with bundle adjustment, in its classical form: the clinical way.

Skeletons of both views; every centreline piece of the first view is led through the second by dynamic programming along
its epipolar lines; bifurcations and vessel ends that the matching brings together are landmarks, on which the pose of
the second view is refined by Levenberg-Marquardt; match and refinement alternate; matched points are triangulated.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.baselines import Inputs, Result
from licag3d.geometry import Camera
from licag3d.inversion.chains import Chains, chains_from_graph
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair, triangulate
from licag3d.structures import VesselTree, View
from licag3d.vessels.graph import trace_tree
from licag3d.vessels.tree import prune_spurs, resample_tree

SOURCE = (
    "Chen and Carroll, IEEE TMI 2000;19:318 (matching along epipolar lines, pose refined on matches); Blondel et al., "
    "IEEE TMI 2006;25:653 (dynamic programming along the vessel); refinement by Levenberg-Marquardt as in Hoffmann et "
    "al., Med Phys 1995;22:1219"
)
CORRECTS_OFFSET = True
DIFFERS = (
    "bifurcations are found, not clicked by an operator; the free scale is fixed by leaving the offset along the "
    "baseline as it is; centrelines are traced by this project's tracer, so that only matching and geometry differ "
    "from ours"
)
ROUNDS = 4
TOLERANCE_MM = 2.5  # a point may lie this far off its epipolar line, at first; halved by the last round
LANDMARK_MM = 8.0  # a landmark and its match may lie this far apart, at first; halved by the last round
MISSED_PRICE = 3.0  # per mm without a match
JUMP_PRICE = 0.6  # per mm of 3D step beyond twice the arc seen
JUMP_CAP_MM = 10.0
CALIBRE_PRICE = 0.5
CANDIDATES = 12
ANGLE_SIGMA_DEG, OFFSET_SIGMA_MM = 1.0, 5.0  # what the refinement expects of reading errors and of the table
SHORTEST_BRANCH_MM = 3.0


def reconstruct(inputs: Inputs) -> Result:
    """Match, refine, match again, build the tree. Raises ValueError where a view shows no centreline."""
    chains = tuple(_chains(inputs, k) for k in (0, 1))
    if min(chain.pieces for chain in chains) == 0:
        raise ValueError("a view shows no centreline")
    cameras = tuple(inputs.cameras[:2])
    cost, matched, marks = 0.0, 0, (np.zeros((0, 2)),) * 2
    for number in range(ROUNDS):
        tolerance = TOLERANCE_MM * 0.5 ** (number / max(ROUNDS - 1, 1))
        where = match_points(cameras, chains, tolerance)
        found = np.isfinite(where[:, 0])
        matched = int(found.sum())
        if matched < 12:
            break
        marks = landmarks(cameras, chains, where, LANDMARK_MM * 0.5 ** (number / max(ROUNDS - 1, 1)))
        points = (chains[0].pixels[found], where[found])
        cameras, cost = refine_pose(inputs.cameras, cameras, points, marks)
    where = match_points(cameras, chains, 0.5 * TOLERANCE_MM)
    tree = build_tree(cameras, chains, where)
    return Result(tree, cameras, {"matched_points": matched, "landmarks": len(marks[0]), "residual_mm": cost})


def _chains(inputs: Inputs, k: int) -> Chains:
    from licag3d.models.centerline2d import trace_centerlines

    view = View(inputs.images[k], inputs.cameras[k], inputs.valid[k])
    return chains_from_graph(trace_centerlines(inputs.evidence[k], view), inputs.cameras[k], spacing_mm=0.6)


def match_points(cameras: tuple[Camera, Camera], chains: tuple[Chains, Chains], tolerance_mm: float) -> np.ndarray:
    """For each point of the first view its place in the second, ``(N, 2)`` (col, row), NaN where there is none.

    Viterbi along every piece: states are the nearest points of the other view's centrelines to the epipolar line (one
    per run of neighbouring points), and a state without a match.
    """
    pair = epipolar_pair(*cameras)
    reach = 0.5 * (cameras[0].sod_mm + cameras[1].sod_mm)
    theta, phi = epipolar_angles(pair, cameras[0], chains[0].pixels)
    other_theta, other_phi = epipolar_angles(pair, cameras[1], chains[1].pixels)
    result = np.full((len(theta), 2), np.nan)
    for p in range(chains[0].pieces):
        own = slice(chains[0].start[p], chains[0].start[p + 1])
        index, miss = _candidates(theta[own], other_theta, chains[1].piece_of, reach, tolerance_mm)
        filled = index >= 0
        safe = np.maximum(index, 0)
        points = triangulate(pair, theta[own][:, None], phi[own][:, None], other_phi[safe])
        # Beyond a heart's width from the isocentre nothing is coronary.
        filled &= np.linalg.norm(points, axis=-1) < 110.0
        calibre = np.abs(np.log(chains[0].radius_mm[own][:, None] / chains[1].radius_mm[safe]))
        unary = np.where(filled, (miss / tolerance_mm) ** 2 + CALIBRE_PRICE * np.minimum(calibre, 1.5), np.inf)
        path = _viterbi(unary, points, chains[0].step_mm[own], chains[0].weight_mm[own])
        for k, state in enumerate(path):
            if state >= 0:
                result[own.start + k] = chains[1].pixels[index[k, state]]
    return result


def _candidates(theta, other_theta, piece, reach_mm, tolerance_mm) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``(n, CANDIDATES)`` into the other view's points (-1: none) and how far off the line they lie, mm."""
    miss = np.abs(theta[:, None] - other_theta[None]) * reach_mm
    near = miss <= tolerance_mm
    # One candidate per crossing: a local minimum of the miss along its piece.
    same_before = np.concatenate([[False], piece[1:] == piece[:-1]])
    same_after = np.concatenate([piece[1:] == piece[:-1], [False]])
    before, after = np.roll(miss, 1, 1), np.roll(miss, -1, 1)
    near &= ~same_before | (miss <= before)
    near &= ~same_after | (miss < after)
    masked = np.where(near, miss, np.inf)
    count = min(CANDIDATES, masked.shape[1])
    order = np.argsort(masked, axis=1, kind="stable")[:, :count]
    value = np.take_along_axis(masked, order, 1)
    return np.where(np.isfinite(value), order, -1), np.where(np.isfinite(value), value, tolerance_mm)


def _viterbi(unary: np.ndarray, points: np.ndarray, step_mm: np.ndarray, weight_mm: np.ndarray) -> list[int]:
    """The cheapest state per point; -1 stands for no match."""
    n, states = unary.shape
    cost = np.concatenate([unary * weight_mm[:, None], (MISSED_PRICE * weight_mm)[:, None]], 1)
    back = np.zeros((n, states + 1), int)
    total = cost[0].copy()
    for k in range(1, n):
        jump = np.linalg.norm(points[k][None] - points[k - 1][:, None], axis=-1)
        move = np.zeros((states + 1, states + 1))
        move[:states, :states] = JUMP_PRICE * np.minimum(np.maximum(jump - 2 * step_mm[k], 0), JUMP_CAP_MM)
        move[states, :states] = move[:states, states] = 1.0
        through = total[:, None] + move
        back[k] = through.argmin(0)
        total = through.min(0) + cost[k]
    state = int(total.argmin())
    path = [state]
    for k in range(n - 1, 0, -1):
        state = int(back[k, state])
        path.append(state)
    return [-1 if s == states else s for s in path[::-1]]


def landmarks(
    cameras: tuple[Camera, Camera], chains: tuple[Chains, Chains], where: np.ndarray, within_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bifurcations and ends of both views that belong together, two arrays ``(M, 2)`` of pixels.

    A point matched on a line says nothing about the pose, as some point of the line always lies in its epipolar plane;
    a landmark does. The landmark of the second view is the one of the same kind nearest to where the matching has led
    the first one's vessel, if it is within reach and off the epipolar plane by no more than half of that.
    """
    pair = epipolar_pair(*cameras)
    reach = 0.5 * (cameras[0].sod_mm + cameras[1].sod_mm)
    kinds = [np.where(c.crossing, -1, np.where(c.degree >= 3, 2, np.where(c.degree == 1, 1, -1))) for c in chains]
    theta = [epipolar_angles(pair, camera, c.node_pixels)[0] for camera, c in zip(cameras, chains, strict=True)]
    led: dict[int, list[np.ndarray]] = {}
    for p in range(chains[0].pieces):
        own = where[chains[0].start[p] : chains[0].start[p + 1]]
        for node, end in zip(chains[0].node[p], (own[:4], own[::-1][:4]), strict=True):
            known = end[np.isfinite(end[:, 0])]
            if len(known):
                led.setdefault(int(node), []).append(known[0])
    first, second = [], []
    for node, places in led.items():
        same = np.flatnonzero(kinds[1] == kinds[0][node]) if kinds[0][node] > 0 else np.zeros(0, int)
        if len(same) == 0:
            continue
        gap = np.linalg.norm(chains[1].node_pixels[same][:, None] - np.array(places)[None], axis=-1).min(1)
        gap = gap * chains[1].mm_per_pixel
        off = np.abs(theta[1][same] - theta[0][node]) * reach
        gap = np.where(off <= 0.5 * within_mm, gap, np.inf)
        best = int(np.argmin(gap))
        if gap[best] <= within_mm:
            first.append(chains[0].node_pixels[node])
            second.append(chains[1].node_pixels[same[best]])
    return np.array(first).reshape(-1, 2), np.array(second).reshape(-1, 2)


def refine_pose(
    given: tuple[Camera, ...],
    cameras: tuple[Camera, Camera],
    points: tuple[np.ndarray, np.ndarray],
    marks: tuple[np.ndarray, np.ndarray],
) -> tuple[tuple[Camera, Camera], float]:
    """Levenberg-Marquardt on matched pixels of both views, each ``(N, 2)``: points along vessels, and landmarks.

    Free: the angles of the second view and the secondary angle of the first, held near their reading; the offset across
    and toward the baseline, held near zero. Minimised: the robust distance of each pixel pair from a common epipolar
    plane. (With the points eliminated this is the bundle adjustment of two views: only the epipolar distance is left of
    the reprojection error.)

    Returns:
        The cameras, and the median distance of the landmarks in mm (0 without any).
    """
    from scipy.optimize import least_squares

    frame = epipolar_pair(*given[:2])
    basis = np.stack([frame.across, frame.toward])
    reach = 0.5 * (given[0].sod_mm + given[1].sod_mm)
    prior = np.array([OFFSET_SIGMA_MM, OFFSET_SIGMA_MM, ANGLE_SIGMA_DEG, ANGLE_SIGMA_DEG, ANGLE_SIGMA_DEG])

    def build(x: np.ndarray) -> tuple[Camera, Camera]:
        one = replace(given[0], secondary_deg=float(np.clip(given[0].secondary_deg + x[2], -90, 90)))
        two = replace(
            given[1],
            primary_deg=float(np.clip(given[1].primary_deg + x[3], -180, 180)),
            secondary_deg=float(np.clip(given[1].secondary_deg + x[4], -90, 90)),
        )
        return one, two.with_offset(np.asarray(given[1].offset_lps_mm) + x[:2] @ basis)

    def off_plane(x: np.ndarray, pixels: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        one, two = build(x)
        pair = epipolar_pair(one, two)
        return (epipolar_angles(pair, one, pixels[0])[0] - epipolar_angles(pair, two, pixels[1])[0]) * reach

    def residuals(x: np.ndarray) -> np.ndarray:
        # A landmark is placed within 0.5 mm; all points along vessels together weigh less than one.
        share = np.sqrt(0.3 / max(len(points[0]), 1))
        parts = []
        for miss in (off_plane(x, marks) / 0.5, off_plane(x, points) / 0.3):
            parts.append(np.sign(miss) * np.sqrt(np.log1p(miss**2)))
        return np.concatenate([parts[0], share * parts[1], x / prior])

    start = np.zeros(5)
    start[:2] = basis @ (np.asarray(cameras[1].offset_lps_mm) - np.asarray(given[1].offset_lps_mm))
    start[2] = cameras[0].secondary_deg - given[0].secondary_deg
    start[3] = cameras[1].primary_deg - given[1].primary_deg
    start[4] = cameras[1].secondary_deg - given[1].secondary_deg
    found = least_squares(residuals, start, method="lm", max_nfev=200)
    left = np.abs(off_plane(found.x, marks))
    return build(found.x), float(np.median(left)) if len(left) else 0.0


def build_tree(cameras: tuple[Camera, Camera], chains: tuple[Chains, Chains], where: np.ndarray) -> VesselTree:
    """Triangulate the matches and join what follows each other along a piece, unless it jumps in depth."""
    pair = epipolar_pair(*cameras)
    theta, phi = epipolar_angles(pair, cameras[0], chains[0].pixels)
    found = np.isfinite(where[:, 0])
    if found.sum() < 2:
        return VesselTree()
    other_phi = epipolar_angles(pair, cameras[1], where[found])[1]
    points = np.full((len(theta), 3), np.nan)
    points[found] = triangulate(pair, theta[found], phi[found], other_phi)
    radius = np.array(chains[0].radius_mm, float)
    radius[found] = _mean_radius(chains, where, found)
    pieces = chains[0].piece_of
    for p in range(chains[0].pieces):
        own = slice(chains[0].start[p], chains[0].start[p + 1])
        points[own] = _smooth(points[own])
    a = np.flatnonzero(found[:-1] & found[1:] & (pieces[:-1] == pieces[1:]))
    step = np.linalg.norm(points[a + 1] - points[a], axis=1)
    a = a[step < 3.0 + 2.0 * chains[0].step_mm[a + 1]]
    edges = [np.stack([a, a + 1], 1), _joints(chains[0], points, found)]
    index = np.cumsum(found) - 1
    joined = index[np.concatenate(edges)]
    tree = trace_tree(points[found], radius[found], joined, min_branch_mm=SHORTEST_BRANCH_MM)
    tree = VesselTree(tuple(b for b in tree.branches if len(b.points_lps_mm) > 2))
    known = {b.id for b in tree.branches}
    tree = VesselTree(tuple(b if b.parent in known else replace(b, parent=None) for b in tree.branches))
    return prune_spurs(resample_tree(tree, 0.5), SHORTEST_BRANCH_MM)


def _mean_radius(chains: tuple[Chains, Chains], where: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Geometric mean of the half widths that both views show."""
    from scipy.spatial import cKDTree

    _, nearest = cKDTree(chains[1].pixels).query(where[found])
    return np.sqrt(chains[0].radius_mm[found] * chains[1].radius_mm[nearest])


def _smooth(points: np.ndarray, sigma: float = 3.0) -> np.ndarray:
    """Gaussian mean along a piece over the places that are matched (depth of single matches is coarse)."""
    from scipy.ndimage import gaussian_filter1d

    known = np.isfinite(points[:, 0])
    if known.sum() < 3:
        return points
    # Means do not cross a jump in depth: each run between jumps is smoothed by itself.
    order = np.flatnonzero(known)
    cuts = np.flatnonzero((np.linalg.norm(np.diff(points[order], axis=0), axis=1) > 4.0) | (np.diff(order) > 8)) + 1
    result = points.copy()
    for run in np.split(order, cuts):
        if len(run) >= 3:
            result[run] = gaussian_filter1d(points[run], min(sigma, len(run) / 4), axis=0, mode="nearest")
    return result


def _joints(chains: Chains, points: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Edges ``(E, 2)`` between the ends of pieces that meet at a node of the image and lie within 4 mm in space."""
    ends: dict[int, list[int]] = {}
    for p in range(chains.pieces):
        own = np.arange(chains.start[p], chains.start[p + 1])
        matched = own[found[own]]
        if len(matched):
            for node, point in zip(chains.node[p], (matched[0], matched[-1]), strict=True):
                ends.setdefault(int(node), []).append(int(point))
    edges = [
        (a, b)
        for group in ends.values()
        for k, a in enumerate(group)
        for b in group[k + 1 :]
        if a != b and np.linalg.norm(points[a] - points[b]) < 4.0
    ]
    return np.array(edges, np.int64).reshape(-1, 2)
