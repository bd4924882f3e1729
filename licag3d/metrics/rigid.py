# SPDX-License-Identifier: Apache-2.0
"""Rigid alignment of two centrelines whose frames are unrelated: from the CT scanner to the C-arm.

Both are patient axes (LPS) of a patient on his back, so rotations are moderate; the translation is anything. Search:
rotations of 0, 15 and 30 degrees about many axes, the best translations of each by cross-correlation, iterated closest
points with shrinking tolerance in both directions (P. J. Besl, N. D. McKay, IEEE TPAMI 14 (1992) 239-256, trimmed),
and at last a least-squares fit with a robust loss. Deterministic.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from licag3d.errors import InputError
from licag3d.metrics.alignment import _correlation_peaks, _log_rotation, _rotation
from licag3d.metrics.centerline import harmonic

SCHEMA = "licag3d-cta-alignment-1"
_ANGLES_DEG = (15.0, 30.0)
_POINTS = 700
#: Pairs farther apart than this do not pull in the last fit, mm.
_LAST_MM = 4.0


@dataclass(frozen=True)
class Rigid:
    """``x -> rotation @ x + translation_mm``, LPS mm."""

    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    translation_mm: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def apply(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """Points ``(..., 3)`` moved."""
        return np.asarray(points_lps_mm) @ self.rotation.T + self.translation_mm

    def inverse(self) -> Rigid:
        """The way back."""
        return Rigid(self.rotation.T, -self.rotation.T @ self.translation_mm)

    @property
    def rotation_deg(self) -> float:
        """Angle of the rotation, degrees."""
        return float(np.rad2deg(np.linalg.norm(_log_rotation(self.rotation))))


@dataclass(frozen=True)
class Fit:
    """An alignment and how well it fits: ``share_2mm`` of the target within 2 mm of the moved source, ``f1_2mm`` of
    both directions, ``residual_median_mm`` and ``residual_rms_mm`` over the pairs of both directions within 4 mm."""

    rigid: Rigid
    share_2mm: float
    f1_2mm: float
    residual_median_mm: float
    residual_rms_mm: float


def align_rigid(source_mm: np.ndarray, target_mm: np.ndarray, *, outliers: bool = False) -> Fit:
    """The rigid motion that brings the source (CTA vessels) onto the target (reconstruction).

    Args:
        source_mm, target_mm: points ``(n, 3)``, ``(m, 3)`` of equal arc length along centrelines, LPS mm.
        outliers: the source holds much besides the target (vessels found by a filter): only the share of the target
            that is met decides.

    Raises:
        InputError: fewer than 20 points in either.
    """
    if len(source_mm) < 20 or len(target_mm) < 20:
        raise InputError(
            f"the alignment has {len(source_mm)} points of CTA vessels and {len(target_mm)} of the reconstruction; "
            "both need at least 5 mm of centreline (give --cta-labels or --alignment)"
        )
    search = _Search(source_mm, target_mm, outliers)
    starts = []
    for vector in _rotations():
        rotation = _rotation(vector)
        turned = search.source @ rotation.T
        # The rest of a larger source must not decide on its translation: the target is correlated with it.
        starts += [Rigid(rotation, -shift) for shift in _correlation_peaks(search.target, turned)]
    starts = sorted(starts, key=lambda rigid: search.value(rigid, 8.0), reverse=True)[:16]
    rough = [search.closest_points(rigid, (12.0, 8.0, 5.0)) for rigid in starts]
    rough = sorted(rough, key=lambda rigid: search.value(rigid, 4.0), reverse=True)[:5]
    fine = [search.closest_points(rigid, (4.0, 3.0, 2.0)) for rigid in rough]
    best = max(fine, key=lambda rigid: search.value(rigid, 2.0))
    full = _Search(source_mm, target_mm, outliers, thin=False)
    polished = full.least_squares(best)
    return full.fit(max((best, polished), key=lambda rigid: full.value(rigid, 2.0)))


def measure(rigid: Rigid, source_mm: np.ndarray, target_mm: np.ndarray) -> Fit:
    """How well a given motion fits."""
    return _Search(source_mm, target_mm, False, thin=False).fit(rigid)


class _Search:
    def __init__(self, source: np.ndarray, target: np.ndarray, outliers: bool, thin: bool = True) -> None:
        from scipy.spatial import cKDTree

        limit = _POINTS * (4 if outliers else 1)
        self.source = source[:: max(1, len(source) // limit)] if thin else source
        self.target = target[:: max(1, len(target) // _POINTS)] if thin else target
        self.source_tree, self.target_tree = cKDTree(self.source), cKDTree(self.target)
        self.outliers = outliers

    def pairs(self, rigid: Rigid, limit_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Target to source and source to target: distances (inf beyond the limit) and indices."""
        back = (self.target - rigid.translation_mm) @ rigid.rotation
        seen, i = self.source_tree.query(back, distance_upper_bound=limit_mm)
        sent, j = self.target_tree.query(rigid.apply(self.source), distance_upper_bound=limit_mm)
        return seen, i, sent, j

    def value(self, rigid: Rigid, limit_mm: float) -> float:
        """Soft share of the target that is met, or soft F1 of both."""
        seen, _, sent, _ = self.pairs(rigid, limit_mm)
        recall = float(np.maximum(1 - seen / limit_mm, 0).mean())
        return recall if self.outliers else harmonic(recall, float(np.maximum(1 - sent / limit_mm, 0).mean()))

    def closest_points(self, rigid: Rigid, tolerances_mm: tuple[float, ...]) -> Rigid:
        """Iterated closest points with shrinking tolerance."""
        for tolerance in tolerances_mm:
            for _ in range(12):
                seen, i, sent, j = self.pairs(rigid, tolerance)
                met, near = np.isfinite(seen), np.isfinite(sent) & (not self.outliers)
                if met.sum() + near.sum() < 12:
                    break
                source = np.concatenate((self.source[i[met]], self.source[near]))
                target = np.concatenate((self.target[met], self.target[j[near]]))
                previous, rigid = rigid, _kabsch(source, target)
                if np.abs(rigid.apply(source) - previous.apply(source)).max() < 1e-3:
                    break
        return rigid

    def least_squares(self, rigid: Rigid) -> Rigid:
        """Robust least squares on the distances across the lines, pairs sought anew at every step."""
        from scipy.optimize import least_squares

        pivot = self.target.mean(0)
        for _ in range(4):
            seen, i, sent, j = self.pairs(rigid, _LAST_MM)
            met, near = np.isfinite(seen), np.isfinite(sent) & (not self.outliers)
            source = np.concatenate((self.source[i[met]], self.source[near]))
            target = np.concatenate((self.target[met], self.target[j[near]]))
            if len(source) < 12:
                return rigid
            moved = rigid.apply(source) - pivot

            def residuals(x: np.ndarray, moved=moved, target=target) -> np.ndarray:
                return (moved @ _rotation(x[:3] / 50).T + x[3:] + pivot - target).ravel()

            step = least_squares(residuals, np.zeros(6), loss="soft_l1", f_scale=0.7).x
            turn = _rotation(step[:3] / 50)
            rigid = Rigid(turn @ rigid.rotation, turn @ (rigid.translation_mm - pivot) + pivot + step[3:])
        return rigid

    def fit(self, rigid: Rigid) -> Fit:
        seen, _, sent, _ = self.pairs(rigid, _LAST_MM)
        used = np.concatenate((seen[np.isfinite(seen)], sent[np.isfinite(sent)]))
        share = float((seen <= 2).mean())
        return Fit(
            rigid,
            share,
            harmonic(share, float((sent <= 2).mean())),
            float(np.median(used)) if len(used) else math.nan,
            float(np.sqrt((used**2).mean())) if len(used) else math.nan,
        )


def _rotations() -> list[np.ndarray]:
    """Rotation vectors, radians: none, and 15 and 30 degrees about 26 directions."""
    axes = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), -1).reshape(-1, 3).astype(float)
    axes = axes[np.abs(axes).sum(1) > 0]
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    return [np.zeros(3)] + [np.deg2rad(angle) * axis for angle in _ANGLES_DEG for axis in axes]


def _kabsch(source: np.ndarray, target: np.ndarray) -> Rigid:
    """Least-squares rigid motion of pairs (W. Kabsch, Acta Cryst. A32 (1976) 922)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, _, vt = np.linalg.svd(b.T @ a)
    rotation = (u * np.array((1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))))) @ vt
    return Rigid(rotation, target.mean(0) - rotation @ source.mean(0))


def alignment_json(fit: Fit) -> str:
    """The content of ``cta_alignment.json``, accepted by :func:`read_alignment`."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "frame": "LPS",
            "unit": "mm",
            "from": "CTA",
            "to": "reconstruction",
            "rotation": fit.rigid.rotation.tolist(),
            "translation_mm": fit.rigid.translation_mm.tolist(),
        },
        indent=1,
    )


def read_alignment(path: str | Path) -> Rigid:
    """A given alignment: ``rotation`` (3 x 3) and ``translation_mm``, CTA to reconstruction, LPS mm.

    Raises:
        InputError: missing, no JSON, another frame or unit, or no rotation.
    """
    from licag3d.io.files import check_file

    path = Path(path)
    check_file(path, what="alignment", limit=1 << 20)
    name = path.name
    try:
        content = json.loads(path.read_text("utf-8"))
        frame, unit = content.get("frame", "LPS"), content.get("unit", "mm")
        rotation = np.array(content["rotation"], np.float64)
        translation = np.array(content["translation_mm"], np.float64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"alignment {name}: expected JSON with rotation (3 x 3) and translation_mm (x, y, z), as "
            "cta_alignment.json has them"
        ) from None
    if (frame, unit) != ("LPS", "mm"):
        raise InputError(
            f"alignment {name}: frame {str(frame)[:20]!r}, unit {str(unit)[:20]!r}; only LPS and mm are understood"
        )
    good = rotation.shape == (3, 3) and translation.shape == (3,) and np.isfinite(translation).all()
    good = good and np.isfinite(rotation).all() and np.abs(translation).max() < 1e5
    if not (good and np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4) and np.linalg.det(rotation) > 0):
        raise InputError(
            f"alignment {name}: rotation must be a rotation matrix (3 x 3, no mirror image) and "
            "translation_mm three numbers"
        )
    return Rigid(rotation, translation)
