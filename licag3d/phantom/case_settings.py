# SPDX-License-Identifier: Apache-2.0
"""Which settings of a simulated case are sound, and what ``phases`` means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from licag3d.errors import InputError

if TYPE_CHECKING:
    from licag3d.structures import VesselTree

BITS = (8, 10, 12, 16)


#: Settings that ``truth/case.json`` always holds, and the defaults of those it holds only where they differ: a plain
#: case stays the same record when the phantom learns something new.
_ALWAYS = {"views": 2, "separation_deg": 60.0, "offset_mm": 0.0, "angle_error_deg": 0.0, "background": "flat",
           "rows": 512, "cols": 512, "isocentre_distance_mm": 20.0, "held_out": 1}  # fmt: skip
_PLAIN = {"disease": "none", "twigs": False, "phases": "same", "respiration_mm": 0.0, "kappa": None, "filling": "full",
          "time_s": None, "bits": 8, "angles": "working", "distance_jitter_mm": 0.0,
          "distance_error_mm": 0.0}  # fmt: skip


def recorded(settings: dict) -> dict:
    """Settings of ``simulate_case`` (all or some) as a case records them."""
    result = {name: settings.get(name, value) for name, value in _ALWAYS.items()}
    for name, value in _PLAIN.items():
        given = settings.get(name, value)
        if name == "phases" and not isinstance(given, str):
            given = [float(phase) for phase in given]
        if given != value:
            result[name] = given
    return result


def check_settings(
    *,
    seed: int = 0,
    artery: str = "rca",
    views: int = 2,
    separation_deg: float = 60.0,
    offset_mm: float = 0.0,
    angle_error_deg: float = 0.0,
    background: str = "flat",
    rows: int = 512,
    cols: int = 512,
    isocentre_distance_mm: float = 20.0,
    held_out: int = 1,
    disease: str = "none",
    twigs: bool = False,
    phases: str | Sequence[float] = "same",
    respiration_mm: float = 0.0,
    kappa: float | None = None,
    filling: str = "full",
    time_s: float | None = None,
    bits: int = 8,
    angles: str = "working",
    distance_jitter_mm: float = 0.0,
    distance_error_mm: float = 0.0,
) -> None:
    """Refuse settings of ``simulate_case`` out of range.

    Raises:
        InputError: naming the setting, its value and the range.
    """
    for name, value, choices in (
        ("artery", artery, ("rca", "lca")),
        ("background", background, ("flat", "full")),
        ("disease", disease, ("none", "random")),
        ("filling", filling, ("full", "random")),
        ("angles", angles, ("working", "free")),
    ):
        if value not in choices:
            raise InputError(f"{name} is '{value}'; choose {' or '.join(choices)}")
    if bits not in BITS:
        raise InputError(f"number of bits is {bits}; choose 8, 10, 12 or 16")
    for name, value, low, high, unit in (
        ("seed", seed, 0, 2**32 - 1, ""),
        ("number of views", views, 1, 4, ""),
        ("separation", separation_deg, 20, 110, " degrees"),
        ("offset", offset_mm, 0, 80, " mm"),
        ("angle error", angle_error_deg, 0, 10, " degrees"),
        ("number of rows", rows, 64, 2048, ""),
        ("number of columns", cols, 64, 2048, ""),
        ("distance from the isocentre", isocentre_distance_mm, 0, 80, " mm"),
        ("number of held-out views", held_out, 0, 4, ""),
        ("respiration", respiration_mm, 0, 25, " mm"),
        ("residual contrast kappa", 0.0 if kappa is None else kappa, 0, 1, ""),
        ("time after the injection", 0.0 if time_s is None else time_s, 0, 60, " s"),
        ("jitter of SID and SOD", distance_jitter_mm, 0, 100, " mm"),
        ("error of SID and SOD", distance_error_mm, 0, 100, " mm"),
    ):
        if not low <= value <= high:  # also catches NaN
            raise InputError(f"{name} is {value}; give {low} to {high}{unit}")
    view_phases(phases, views, np.random.default_rng(0))


def view_phases(phases: str | Sequence[float], views: int, rng: np.random.Generator) -> list[float]:
    """The cardiac phase of every view, 0 (end-diastole) to 1.

    Raises:
        InputError: an unknown word, another number of phases than views, a phase outside 0..1.
    """
    if isinstance(phases, str):
        if phases not in ("same", "different"):
            raise InputError(f"phases is '{phases}'; choose same or different, or give one number per view")
        return [0.0] + [float(phase) if phases == "different" else 0.0 for phase in rng.uniform(0.1, 0.9, views - 1)]
    result = [float(phase) for phase in phases]
    if len(result) != views:
        raise InputError(f"{len(result)} phases for {views} views; give one per view")
    for phase in result:
        if not 0 <= phase <= 1:
            raise InputError(f"phase is {phase}; give 0 (end-diastole) to 1 (the next one)")
    return result


def check_tree(tree: VesselTree) -> None:
    """Refuse a tree from elsewhere that cannot be rendered.

    Raises:
        InputError: no branch with two points, points or radii that are not finite, a radius that is not above 0, a
            number of radii that does not fit, or a size that is not that of a coronary tree in mm.
    """
    if not any(len(branch.points_lps_mm) > 1 for branch in tree.branches):
        raise InputError("the vessel tree has no branch with two points; give a tree with a centreline")
    for branch in tree.branches:
        name = f"branch {branch.name or branch.id}"
        points, radius = np.asarray(branch.points_lps_mm), np.asarray(branch.radius_mm)
        if points.ndim != 2 or points.shape[1] != 3 or radius.shape != points.shape[:1]:
            raise InputError(
                f"{name} has points of shape {points.shape} and radii of shape {radius.shape}; give (n, 3) and (n,)"
            )
        if not np.isfinite(points).all():
            raise InputError(f"{name} has a point that is not finite; give LPS mm")
        bad = radius[~((radius >= 0) & (radius < 50))]
        if len(bad):
            raise InputError(f"{name} has a radius of {bad[0]:g} mm; give radii of 0 to 50 mm")
    size = np.ptp(np.concatenate([branch.points_lps_mm for branch in tree.branches]), axis=0).max()
    if not 5 <= size <= 400:
        raise InputError(f"the vessel tree is {size:g} mm large; give coordinates in mm (5 to 400 mm across)")
