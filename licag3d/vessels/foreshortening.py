# SPDX-License-Identifier: Apache-2.0
"""How short a vessel looks in a view, what covers it there, and the angulations that show it best.

A piece of length l at the angle phi to the ray that meets it appears with the length ``l sin(phi)``; foreshortening is
``100 (1 - sum l sin(phi) / sum l)`` percent (Green et al., Catheter Cardiovasc Interv 2005;64:451). Overlap is the
share of the length whose shadow touches that of another branch. Both together choose the view, as in Chen and Carroll
(IEEE Trans Med Imaging 2000;19:318). Rays diverge from the source; where they end (SID) changes neither figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.geometry.equations import view_frame
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.tree import arc_length_mm

#: How far C-arms reach (not every one, not with every patient), degrees.
REACH_PRIMARY_DEG, REACH_SECONDARY_DEG = 60.0, 40.0
#: Vessels closer than this (beyond their radii) touch in every view, as at a bifurcation: that is no overlap, mm.
TOUCHING_MM = 1.0
#: Angulations whose costs differ by less are alike (percent): of these the least steep is offered. More is bought with
#: overlap in truth: among views that look free, the less steep one is the one whose freedom ends nearby.
ALIKE_PERCENT = 0.2
_STEP_MM, _MOST_PIECES = 2.5, 500
_PAIRS_AT_ONCE = 500_000


@dataclass(frozen=True)
class Pieces:
    """Short straight pieces of vessels: ``start_lps_mm``, ``end_lps_mm`` ``(n, 3)``, ``radius_mm`` ``(n,)`` and
    ``branch`` ``(n,)``, the position of their branch in the tree."""

    start_lps_mm: np.ndarray
    end_lps_mm: np.ndarray
    radius_mm: np.ndarray
    branch: np.ndarray

    def __len__(self) -> int:
        return len(self.radius_mm)


@dataclass(frozen=True)
class ViewMap:
    """What angulations show of a stretch: ``primary_deg`` ``(P,)``, ``secondary_deg`` ``(S,)``, and in percent of its
    length ``foreshortening_percent`` and ``overlap_percent`` ``(P, S)``."""

    primary_deg: np.ndarray
    secondary_deg: np.ndarray
    foreshortening_percent: np.ndarray
    overlap_percent: np.ndarray

    @property
    def cost_percent(self) -> np.ndarray:
        """``(P, S)``: foreshortening and overlap together; what is short and covered is lost twice."""
        return self.foreshortening_percent + self.overlap_percent


@dataclass(frozen=True)
class BestView:
    """An angulation in degrees (LAO and cranial positive), and what it leaves of foreshortening and overlap."""

    primary_deg: float
    secondary_deg: float
    foreshortening_percent: float
    overlap_percent: float


def tree_pieces(tree: VesselTree) -> Pieces:
    """A tree in pieces of about 2.5 mm, longer in trees of more than 1.25 m, so that time stays bounded."""
    step_mm = max(_STEP_MM, tree.length_mm / _MOST_PIECES)
    return joined([branch_pieces(branch, k, step_mm=step_mm) for k, branch in enumerate(tree.branches)])


def branch_pieces(branch: Branch, position: int, *, from_mm: float = 0.0, to_mm: float = np.inf,
                  step_mm: float = _STEP_MM) -> Pieces:
    """The pieces of a branch between two arc lengths; ``position``: of the branch in its tree."""
    points = np.asarray(branch.points_lps_mm, np.float64)
    arc = arc_length_mm(points)
    low, high = max(from_mm, 0.0), min(to_mm, float(arc[-1]))
    if high <= low:
        return joined([])
    at = np.linspace(low, high, max(2, round((high - low) / step_mm) + 1))
    place = np.stack([np.interp(at, arc, points[:, k]) for k in range(3)], -1)
    radius = np.interp((at[:-1] + at[1:]) / 2, arc, np.asarray(branch.radius_mm, np.float64))
    return Pieces(place[:-1], place[1:], radius, np.full(len(radius), position))


def joined(parts: Sequence[Pieces]) -> Pieces:
    """Pieces of several stretches one after the other."""
    return Pieces(np.concatenate([np.zeros((0, 3)), *(p.start_lps_mm for p in parts)]),
                  np.concatenate([np.zeros((0, 3)), *(p.end_lps_mm for p in parts)]),
                  np.concatenate([np.zeros(0), *(p.radius_mm for p in parts)]),
                  np.concatenate([np.zeros(0, int), *(p.branch for p in parts)]))


def view_figures(pieces: Pieces, stretches: Sequence[np.ndarray], sources_lps_mm: np.ndarray,
                 tree: Pieces) -> list[tuple[np.ndarray, np.ndarray]]:
    """Foreshortening and overlap of stretches, percent of their lengths, as seen from sources ``(A, 3)``.

    Args:
        pieces: what is looked at. stretches: indices or masks into them, one per stretch.
        tree: all that may cover them, of the same tree.

    Returns:
        Per stretch two arrays ``(A,)``; zeros for an empty one.
    """
    sources = np.asarray(sources_lps_mm, np.float64).reshape(-1, 3)
    step = pieces.end_lps_mm - pieces.start_lps_mm
    length = np.linalg.norm(step, axis=1)
    ray = (pieces.start_lps_mm + pieces.end_lps_mm) / 2 - sources[:, None]
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    # |step x ray| from |step|^2 - (step . ray)^2, as |ray| = 1.
    lost = length - np.sqrt(np.maximum(length**2 - np.einsum("anc,nc->an", ray, step) ** 2, 0))
    hidden = covered(pieces, sources, tree) * length
    total = [max(length[own].sum(), 1e-9) for own in stretches]
    return [(100 * lost[:, own].sum(1) / all_mm, 100 * hidden[:, own].sum(1) / all_mm)
            for own, all_mm in zip(stretches, total, strict=True)]


def covered(stretch: Pieces, sources_lps_mm: np.ndarray, tree: Pieces) -> np.ndarray:
    """Whether the shadow of a piece's middle touches that of another branch, ``(A, n)`` bool for ``A`` sources.

    A ball of radius r about x touches the shadow of the ball of radius R about y when x passes the ray through y at
    less than ``r + R t_x / t_y``, with the distances t from the source. Branches that touch in space, as at a
    bifurcation, do so in every view and do not count.
    """
    sources = np.asarray(sources_lps_mm, np.float64).reshape(-1, 3)
    out = np.zeros((len(sources), len(stretch)), bool)
    if not len(stretch) or not len(tree):
        return out
    middle = (stretch.start_lps_mm + stretch.end_lps_mm) / 2
    other = (tree.start_lps_mm + tree.end_lps_mm) / 2
    half = np.linalg.norm(tree.end_lps_mm - tree.start_lps_mm, axis=1) / 2
    gap2 = ((other[None] - middle[:, None]) ** 2).sum(-1)
    reach = stretch.radius_mm[:, None] + tree.radius_mm
    free = (stretch.branch[:, None] != tree.branch) & (np.sqrt(gap2) - half > reach + TOUCHING_MM)
    # A fifth more for the divergence of rays: what passes this is looked at exactly.
    wide2 = np.where(free, (1.2 * reach + half) ** 2, -np.inf).astype(np.float32)
    gap2 = gap2.astype(np.float32)
    center = other.mean(0)  # near the vessels, where single precision suffices
    moved = (other - center).astype(np.float32)
    at_once = max(1, _PAIRS_AT_ONCE // gap2.size)
    for begin in range(0, len(sources), at_once):
        some = sources[begin:begin + at_once]
        ray = middle - some[:, None]
        far = np.linalg.norm(ray, axis=-1)
        ray /= far[..., None]
        own = ((middle - center) * ray).sum(-1).astype(np.float32)
        along = (ray.astype(np.float32).reshape(-1, 3) @ moved.T).reshape(*own.shape, -1) - own[..., None]
        view, i, j = np.nonzero(gap2 - along * along < wide2)
        u = ray[view, i]
        start, step = tree.start_lps_mm[j] - middle[i], tree.end_lps_mm[j] - tree.start_lps_mm[j]
        depth = far[view, i] + along[view, i, j]
        start -= (start * u).sum(-1, keepdims=True) * u
        step -= (step * u).sum(-1, keepdims=True) * u
        t = np.clip(-(start * step).sum(-1) / np.maximum((step * step).sum(-1), 1e-12), 0, 1)
        passing = np.linalg.norm(start + t[:, None] * step, axis=-1)
        touch = passing < tree.radius_mm[j] + stretch.radius_mm[i] * depth / far[view, i]
        out[begin + view[touch], i[touch]] = True
    return out


def view_maps(pieces: Pieces, stretches: Sequence[np.ndarray], camera: Camera, tree: Pieces, *,
              step_deg: float = 5.0) -> list[ViewMap]:
    """:func:`view_figures` over all angulations within reach, one map per stretch.

    Args:
        camera: gives the distance of the source and where the patient lies; its angles do not matter.

    Example:
        >>> from licag3d.geometry import Camera
        >>> from licag3d.structures import Branch, VesselTree
        >>> camera = Camera(0, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=0.3, spacing_col_mm=0.3, rows=512, cols=512)
        >>> points = np.linspace([-10.0, 0, 0], [10.0, 0, 0], 41)  # from right to left
        >>> pieces = tree_pieces(VesselTree((Branch(0, None, points, np.full(41, 1.5)),)))
        >>> best_views(view_maps(pieces, [slice(None)], camera, pieces)[0], count=1)[0].primary_deg
        0.0
    """
    primary = np.arange(-REACH_PRIMARY_DEG, REACH_PRIMARY_DEG + step_deg / 2, step_deg)
    secondary = np.arange(-REACH_SECONDARY_DEG, REACH_SECONDARY_DEG + step_deg / 2, step_deg)
    beam = view_frame(np, *np.meshgrid(primary, secondary, indexing="ij")).beam
    sources = -camera.sod_mm * beam.reshape(-1, 3) - np.asarray(camera.offset_lps_mm)
    return [ViewMap(primary, secondary, *(values.reshape(beam.shape[:2]) for values in pair))
            for pair in view_figures(pieces, stretches, sources, tree)]


def best_views(found: ViewMap, *, count: int = 2, apart_deg: float = 30.0) -> tuple[BestView, ...]:
    """The angulations of least cost, at least ``apart_deg`` from each other: best first.

    The cost is averaged with that of the neighbouring angulations (weights 1, 2, 1 each way): neither patient nor
    reconstruction is known so well that a view whose merit ends 5 degrees away is a good one. On simulated cases this
    lowers the cost that the true vessel has in the view offered (docs/output-files.md).
    """
    cost = _smooth(_smooth(found.cost_percent).T).T
    beams = view_frame(np, *np.meshgrid(found.primary_deg, found.secondary_deg, indexing="ij")).beam
    steep = np.degrees(np.arccos(np.clip(-beams[..., 1], -1, 1)))  # from straight above the patient
    free = np.ones(cost.shape, bool)
    chosen = []
    while len(chosen) < count and free.any():
        alike = free & (cost <= cost[free].min() + ALIKE_PERCENT)
        # Rounded, so that mirrored angulations are alike on every machine and the first one counts.
        i, j = np.unravel_index(np.argmin(np.where(alike, np.round(steep, 6), np.inf)), cost.shape)
        chosen.append(BestView(float(found.primary_deg[i]), float(found.secondary_deg[j]),
                               float(found.foreshortening_percent[i, j]), float(found.overlap_percent[i, j])))
        free &= beams @ beams[i, j] < np.cos(np.deg2rad(apart_deg)) + 1e-9
    return tuple(chosen)


def _smooth(values: np.ndarray) -> np.ndarray:
    edged = np.concatenate([values[:1], values, values[-1:]])
    return (edged[:-2] + 2 * edged[1:-1] + edged[2:]) / 4
