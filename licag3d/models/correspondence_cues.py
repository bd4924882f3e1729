# SPDX-License-Identifier: Apache-2.0
"""What the correspondence network is told of centreline points and of candidate places, besides the pictures.

Everything is described from a view's own side, with its partner as the other view, so that both views of a pair are
alike and their order does not matter. Lengths are mm at the isocentre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.candidates import Candidates
from licag3d.inversion.chains import Chains
from licag3d.inversion.contrast import contrast_mismatch, expected_stretch, image_planes
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair
from licag3d.ops.match import PathPrices

#: Numbers per point, per candidate and per view.
POINT_CUES, PLACE_CUES, VIEW_CUES = 16, 12, 10
#: Lengths are divided by this, mm: about half a coronary tree.
TREE_MM = 40.0


@dataclass(frozen=True)
class ViewCues:
    """One view of a pair, T points.

    Args:
        points: ``(T, POINT_CUES)`` float32. view: ``(VIEW_CUES,)`` float32, angles of this view and of the other.
        place_mm: ``(T, 2)`` height across the epipolar planes (sign as seen from this side) and place along the line.
        piece, arc_mm: ``(T,)`` piece and arc length along it.
        at: ``(T, 2)`` (col, row) as share of the longer side of the image, 0..1.
    """

    points: np.ndarray
    view: np.ndarray
    place_mm: np.ndarray
    piece: np.ndarray
    arc_mm: np.ndarray
    at: np.ndarray


def middle_mm(cameras: tuple[Camera, Camera], chains: tuple[Chains, Chains]) -> np.ndarray:
    """Where the mean centreline pixels of both views (nearly) meet, ``(3,)`` LPS mm: the origin of all depths."""
    sources, rays = [], []
    for camera, chain in zip(cameras, chains, strict=True):
        weight = np.maximum(chain.weight_mm, 1e-6)
        pixel = np.array([camera.principal_col, camera.principal_row])
        if len(weight):
            pixel = (chain.pixels * weight[:, None]).sum(0) / weight.sum()
        source, ray = camera.rays(pixel[:1], pixel[1:])
        sources.append(source)
        rays.append(ray[0] / np.linalg.norm(ray[0]))
    # The point nearest to both rays: sum of the projections off them.
    off = [np.eye(3) - np.outer(ray, ray) for ray in rays]
    total = off[0] + off[1] + 1e-9 * np.eye(3)
    return np.linalg.solve(total, off[0] @ sources[0] + off[1] @ sources[1])


def view_cues(cameras: tuple[Camera, Camera], chains: tuple[Chains, Chains], middle: np.ndarray) -> ViewCues:
    """Cues of the points of the first view of the arguments; the second is its partner."""
    camera, own = cameras[0], chains[0]
    pair = epipolar_pair(*cameras)
    reach_mm = 0.5 * (cameras[0].sod_mm + cameras[1].sod_mm)
    origin = epipolar_angles(pair, camera, camera.project(middle[None])[0])
    theta, phi = epipolar_angles(pair, camera, own.pixels)
    place = np.stack([theta - origin[0], phi - origin[1]], 1) * reach_mm
    along = _tangents(place, own)
    ratio = np.nan_to_num(np.log(np.clip(expected_stretch(own), 0.2, 5.0))) if len(own.pixels) else np.zeros(0)
    seen = own.line_integral[own.line_integral > 0]
    usual = float(np.median(seen)) if len(seen) else 1.0
    bright = np.where(own.line_integral > 0, np.log(np.clip(own.line_integral / usual, 0.1, 10.0)), 0.0)
    arc, to_start, to_stop = _arcs(own)
    degree = own.degree[own.node[own.piece_of]].astype(float) if own.pieces else np.zeros((0, 2))
    ends = [np.exp(-gap / 6.0) for gap in (to_start, to_stop)]
    # Which end of a piece comes first is chance: the two are told apart by what is there, not by order.
    finish = sum((degree[:, k] == 1) * ends[k] for k in (0, 1))
    branch = sum((degree[:, k] >= 3) * ends[k] for k in (0, 1))
    size = max(camera.rows, camera.cols)
    at = (own.pixels + 0.5) / size
    points = np.stack(
        [
            place[:, 0] / TREE_MM,
            place[:, 1] / TREE_MM,
            along[:, 0] ** 2 - along[:, 1] ** 2,
            2 * along[:, 0] * along[:, 1],
            np.log(own.radius_mm),
            ratio,
            bright,
            (own.line_integral > 0).astype(float),
            finish,
            branch,
            np.log1p(to_start + to_stop) - 2.5,
            np.log1p(np.minimum(to_start, to_stop)) - 1.5,
            2 * at[:, 0] - 1,
            2 * at[:, 1] - 1,
            _open_end(own, at),
            np.full(len(at), np.log(max(own.length_mm, 1.0) / 300.0)),
        ],
        1,
    )
    return ViewCues(points.astype(np.float32), _view_numbers(cameras), place, own.piece_of, arc, at)


def _open_end(own: Chains, at: np.ndarray) -> np.ndarray:
    """Nearness to the edge of the image, where a vessel may go on unseen."""
    return np.exp(-np.minimum(np.minimum(at, 1 - at).min(axis=1), 0.2) * 20.0) if len(at) else np.zeros(0)


def _view_numbers(cameras: tuple[Camera, Camera]) -> np.ndarray:
    own, other = cameras
    frame = own.frame
    toward = other.frame.beam
    across, up = frame.column, frame.row
    angles = np.radians([own.primary_deg, own.secondary_deg])
    return np.array(
        [
            *np.sin(angles),
            *np.cos(angles),
            toward @ frame.beam,
            toward @ across,
            toward @ up,
            np.log(own.mm_per_pixel * max(own.rows, own.cols) / 110.0),
            np.sin(np.radians(other.primary_deg)),
            np.sin(np.radians(other.secondary_deg)),
        ],
        np.float32,
    )


def _tangents(place: np.ndarray, chains: Chains) -> np.ndarray:
    """Unit direction along each piece, chords of about 3 mm; ``(T, 2)``."""
    out = np.zeros_like(place)
    for a, b in zip(chains.start[:-1], chains.start[1:], strict=True):
        arc = np.cumsum(chains.step_mm[a:b])
        ahead, behind = np.minimum(arc + 1.5, arc[-1]), np.maximum(arc - 1.5, arc[0])
        for k in (0, 1):
            out[a:b, k] = np.interp(ahead, arc, place[a:b, k]) - np.interp(behind, arc, place[a:b, k])
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def _arcs(chains: Chains) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arc length along the piece, and to its two ends; each ``(T,)`` mm."""
    arc = np.zeros(len(chains.step_mm))
    whole = np.zeros(len(arc))
    for a, b in zip(chains.start[:-1], chains.start[1:], strict=True):
        arc[a:b] = np.cumsum(chains.step_mm[a:b])
        whole[a:b] = arc[b - 1]
    return arc, arc, whole - arc


def place_cues(
    candidates: Candidates,
    cameras: tuple[Camera, Camera],
    chains: tuple[Chains, Chains],
    middle: np.ndarray,
    prices: PathPrices,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is known of every candidate of the first view of the arguments.

    Args:
        prices: those that the candidates' cost was made with.

    Returns:
        ``cues`` ``(N, K, PLACE_CUES)`` float32; ``near`` ``(N, K)`` the point of the second view; ``real`` ``(N, K)``
        bool, False where there is no candidate.
    """
    own, other = chains
    real = np.isfinite(candidates.cost)
    edge = np.where(real, candidates.edge, 0)
    near = np.minimum(edge + (candidates.fraction > 0.5), max(len(other.step_mm) - 1, 0))
    cues = np.zeros((*real.shape, PLACE_CUES), np.float32)
    if not len(other.step_mm) or not len(own.step_mm):
        return cues, near, real
    planes = image_planes(cameras[0], own), image_planes(cameras[1], other)
    slope, bore = contrast_mismatch(planes, near, chains)
    direction = np.cross(planes[0].normal[:, None], planes[1].normal[near])
    size = np.linalg.norm(direction, axis=-1)
    direction /= np.maximum(size, 1e-9)[..., None]
    sines = [
        np.linalg.norm(np.cross(direction, rays), axis=-1) for rays in (planes[0].ray[:, None], planes[1].ray[near])
    ]
    away = np.where(real[..., None], candidates.points_mm - middle, 0.0)
    calibre = np.log(own.radius_mm[:, None] / other.radius_mm[near])
    at_edge = np.abs(np.log(np.maximum(own.radius_mm[:, None], 0.1) / np.maximum(other.radius_mm[edge], 0.1)))
    # What is left of the cost is the epipolar miss.
    miss = np.where(real, candidates.cost, 0.0) - prices.calibre * np.minimum(at_edge, prices.calibre_cap)
    cues[..., 0] = np.clip(miss, 0.0, 1.0)
    cues[..., 1] = np.clip(calibre, -2, 2)
    cues[..., 2], cues[..., 3] = slope, bore
    cues[..., 4] = np.log(np.clip(sines[0], 0.1, 1.0))
    cues[..., 5] = np.log(np.clip(sines[1], 0.1, 1.0))
    cues[..., 6] = np.clip(size, 0, 1)
    cues[..., 7:10] = np.clip(away / TREE_MM, -3, 3)
    cues[..., 10] = np.clip(away @ cameras[0].frame.beam / TREE_MM, -3, 3)
    cues[..., 11] = np.log(np.maximum(real.sum(axis=1), 1))[:, None] / 2 - 0.5
    return np.where(real[..., None], cues, 0.0).astype(np.float32), near, real
