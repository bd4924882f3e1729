# SPDX-License-Identifier: Apache-2.0
"""A small ensemble: the views are matched again with cameras, prices and calibres moved within their errors.

A place that the same views give again and again is better known than one that every small change moves elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.chains import Chains
from licag3d.inversion.matching import MatchSettings
from licag3d.inversion.several import Correspondence
from licag3d.metrics.alignment import best_rotation

#: How the views are matched once more: cameras, chains and settings of the matching in, what they agree on out.
Rematch = Callable[[tuple[Camera, ...], tuple[Chains, ...], MatchSettings], Correspondence]
#: Displacements count up to this, and a place that is lost counts as this, mm.
FARTHEST_MM = 10.0


@dataclass(frozen=True)
class Perturbation:
    """Standard deviations of what an ensemble changes.

    Args:
        across_mm, toward_mm: offset of every further view across the epipolar planes of its pair, and toward the
            detector: what the camera search leaves (docs/matching.md: 0.3 mm across).
        angle_deg: of every positioner angle.
        price: natural logarithm of every price. calibre: natural logarithm of the radius of a whole piece.
    """

    across_mm: float = 0.3
    toward_mm: float = 1.0
    angle_deg: float = 0.3
    price: float = 0.3
    calibre: float = 0.15


_PRICES = ("node_price", "mutual_price", "slope_price", "bore_price", "end_price", "witness_price")
_PATH_PRICES = ("none", "jump", "gap", "turn", "calibre")


def rematch_ensemble(
    found: Correspondence,
    chains: Sequence[Chains],
    settings: MatchSettings,
    rematch: Rematch,
    members: int,
    *,
    perturbation: Perturbation | None = None,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> tuple[np.ndarray, ...]:
    """How far every matched place moves when the views are matched again.

    Args:
        found: the matching that is asked about, with its cameras.
        rematch: matches all views (:data:`Rematch`).
        members: number of further matchings.

    Returns:
        Per view ``(members, N)`` mm: displacement of the place of every centreline point after the best similarity of
        that member (two views do not show scale and place), at most ``FARTHEST_MM``, which also stands for "no match
        in this member"; NaN where ``found`` has no place.
    """
    perturbation = perturbation or Perturbation()
    rng = np.random.default_rng([seed, 6])
    moved: list[list[np.ndarray]] = [[] for _ in chains]
    for k in range(members):
        if progress:
            progress(k / members, f"matching again, {k + 1} of {members}")
        other = rematch(
            _moved_cameras(found.cameras, perturbation, rng),
            tuple(_moved_calibres(chain, perturbation, rng) for chain in chains),
            _moved_prices(settings, perturbation, rng),
        )
        align = _similarity(other, found)
        for view, (was, now) in enumerate(zip(found.points_mm, other.points_mm, strict=True)):
            gap = np.linalg.norm(align(now) - was, axis=1)
            gap = np.where(np.isnan(now[:, 0]), FARTHEST_MM, np.minimum(gap, FARTHEST_MM))
            moved[view].append(np.where(np.isnan(was[:, 0]), np.nan, gap))
    return tuple(np.array(rows).reshape(members, -1) for rows in moved)


def _moved_cameras(cameras, by: Perturbation, rng) -> tuple[Camera, ...]:
    from licag3d.inversion.epipolar import epipolar_pair

    out = []
    for k, camera in enumerate(cameras):
        turn = by.angle_deg * rng.standard_normal(2)
        step = rng.standard_normal(2)
        offset = np.asarray(camera.offset_lps_mm)
        if k:
            frame = epipolar_pair(cameras[0], camera)
            offset = offset + by.across_mm * step[0] * frame.across + by.toward_mm * step[1] * frame.toward
        turned = replace(
            camera,
            primary_deg=float(np.clip(camera.primary_deg + turn[0] * (k > 0), -180, 180)),
            secondary_deg=float(np.clip(camera.secondary_deg + turn[1], -90, 90)),
        )
        # A turn about the isocentre moves the tree in the image by next to nothing only where the tree is at the
        # isocentre; the offset is what was searched, so the turn is about the point that the search saw: the origin.
        out.append(turned.with_offset(offset))
    return tuple(out)


def _moved_calibres(chains: Chains, by: Perturbation, rng) -> Chains:
    factor = np.exp(by.calibre * rng.standard_normal(chains.pieces))
    return replace(chains, radius_mm=chains.radius_mm * factor[chains.piece_of]) if chains.pieces else chains


def _moved_prices(settings: MatchSettings, by: Perturbation, rng) -> MatchSettings:
    def scaled(values, names):
        return {name: getattr(values, name) * float(np.exp(by.price * rng.standard_normal())) for name in names}

    path = replace(settings.path, **scaled(settings.path, _PATH_PRICES))
    return replace(settings, path=path, **scaled(settings, _PRICES))


def _similarity(other: Correspondence, found: Correspondence):
    """The similarity that takes the places of ``other`` to those of ``found``, fitted to the half that moves least."""
    a = np.concatenate(other.points_mm)
    b = np.concatenate(found.points_mm)
    both = np.isfinite(a[:, 0]) & np.isfinite(b[:, 0])
    a, b = a[both], b[both]
    if len(a) < 20:
        return lambda points: points
    keep = np.ones(len(a), bool)
    for _ in range(6):
        source, target = a[keep].mean(0), b[keep].mean(0)
        mine, theirs = a[keep] - source, b[keep] - target
        rotation = best_rotation(mine, theirs)
        scale = float(np.clip((theirs * (mine @ rotation.T)).sum() / max((mine**2).sum(), 1e-12), 0.5, 2.0))
        gap = np.linalg.norm(scale * (a - source) @ rotation.T + target - b, axis=1)
        keep = gap <= max(float(np.quantile(gap, 0.5)), 1e-9)
    return lambda points: scale * (points - source) @ rotation.T + target
