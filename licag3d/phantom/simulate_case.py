# SPDX-License-Identifier: Apache-2.0
"""One synthetic patient with exact truth: tree, cameras, images, as a user would have them and as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.phantom import views as view_choice
from licag3d.phantom.anatomy import sample_patient, sample_tree
from licag3d.phantom.thorax import sample_thorax
from licag3d.phantom.xray import Exposure, render_frame, sample_surroundings
from licag3d.structures import VesselTree


@dataclass(frozen=True)
class ViewTruth:
    """One view: ``true_camera`` with its offset, ``user_camera`` without; ``image`` uint8, ``measured`` float32 (minus
    log of the detected intensity), ``line_integral`` float32 (p = mu x path length of the vessels, no unit) and
    ``mask`` bool, all ``(rows, cols)``."""

    true_camera: Camera
    user_camera: Camera
    image: np.ndarray
    measured: np.ndarray
    line_integral: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Case:
    """A simulated case. Views are in order; the first is the reference view with offset zero.

    ``tree`` is the truth in LPS mm, origin at the isocentre of the first view. ``held_out`` views have true cameras
    with offset zero and are never shown to a method. ``mu_per_mm`` is the attenuation of the opacified blood.
    """

    seed: int
    artery: str
    tree: VesselTree
    views: tuple[ViewTruth, ...]
    held_out: tuple[ViewTruth, ...]
    mu_per_mm: float
    settings: dict

    @property
    def true_cameras(self) -> list[Camera]:
        """Cameras with true angles and offsets."""
        return [view.true_camera for view in self.views]

    @property
    def user_cameras(self) -> list[Camera]:
        """Cameras as a user has them: offset zero, angles with reading error."""
        return [view.user_camera for view in self.views]

    @property
    def images(self) -> list[np.ndarray]:
        """Display images ``(rows, cols)`` uint8, vessels dark."""
        return [view.image for view in self.views]

    @property
    def line_integrals(self) -> list[np.ndarray]:
        """True vessel line integrals ``(rows, cols)`` float32, no unit."""
        return [view.line_integral for view in self.views]

    @property
    def masks(self) -> list[np.ndarray]:
        """True vessel masks ``(rows, cols)`` bool."""
        return [view.mask for view in self.views]


def simulate_case(
    seed: int,
    artery: str,
    *,
    views: int = 2,
    separation_deg: float = 60.0,
    offset_mm: float = 0.0,
    angle_error_deg: float = 0.0,
    background: str = "flat",
    rows: int = 512,
    cols: int = 512,
    isocentre_distance_mm: float = 20.0,
    held_out: int = 1,
) -> Case:
    """Simulate one case; the same arguments give the same case bit for bit.

    The tree, angles, geometry and directions of the errors depend on ``seed``, ``artery`` and ``separation_deg`` only:
    changing ``offset_mm``, ``angle_error_deg`` or ``background`` changes nothing else.

    Args:
        seed: not negative. artery: ``rca`` or ``lca``.
        views: 1 to 4 views; each after the first lies ``separation_deg`` from it.
        offset_mm: length of the random offset of every view but the first.
        angle_error_deg: size of the reading error of the angles of every view (norm over both angles).
        background: ``flat`` (uniform, noise) or ``full`` (thorax, catheter, scatter, blur, noise, display).
        isocentre_distance_mm: the centre of the tree lies within this distance of the isocentre, along each axis.
        held_out: number of views that no method sees.

    Raises:
        InputError: a value out of range.
    """
    settings = {
        "views": views,
        "separation_deg": separation_deg,
        "offset_mm": offset_mm,
        "angle_error_deg": angle_error_deg,
        "background": background,
        "rows": rows,
        "cols": cols,
        "isocentre_distance_mm": isocentre_distance_mm,
        "held_out": held_out,
    }
    check_settings(seed=seed, artery=artery, **settings)
    rng = np.random.default_rng([int(seed), 10 + ("rca", "lca").index(artery), round(1000 * separation_deg)])
    tree, heart_centre = _placed(sample_tree(seed, artery), rng.uniform(-1, 1, 3) * isocentre_distance_mm)
    geometry = view_choice.choose_geometry(rng)
    angles = view_choice.choose_angles(rng, artery, views, separation_deg)
    offsets = [np.zeros(3)] + [offset_mm * view_choice.random_direction(rng) for _ in angles[1:]]
    true = [view_choice.make_camera(a, geometry, rows, cols, o) for a, o in zip(angles, offsets, strict=True)]
    hidden = [view_choice.make_camera(a, geometry, rows, cols) for a in _held_out_angles(rng, angles, held_out)]
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    spacing = view_choice.fit_spacing(true + hidden, points)
    true, hidden = ([view_choice.with_spacing(camera, spacing) for camera in group] for group in (true, hidden))
    reading = np.random.default_rng([int(seed), 20, round(1000 * separation_deg)])
    user = [view_choice.as_read(camera, reading, angle_error_deg) for camera in true]
    exposure = Exposure.sample(np.random.default_rng([int(seed), 30]))
    surroundings = None
    if background == "full":
        chest = np.random.default_rng([int(seed), 50])
        thorax = sample_thorax(chest, sample_patient(seed).heart, heart_centre)
        surroundings = sample_surroundings(chest, tree, thorax)
    frames = [
        render_frame(tree, camera, exposure, surroundings, seed=[int(seed), 40, k])
        for k, camera in enumerate(true + hidden)
    ]
    made = [
        ViewTruth(camera, read, frame.image, frame.measured, frame.line_integral, frame.mask)
        for camera, read, frame in zip(true + hidden, user + hidden, frames, strict=True)
    ]
    return Case(int(seed), artery, tree, tuple(made[:views]), tuple(made[views:]), exposure.mu_per_mm, settings)


def _placed(tree: VesselTree, centre_mm: np.ndarray) -> tuple[VesselTree, np.ndarray]:
    """The tree with the middle of its bounding box at ``centre_mm``, and where its heart has its centre then."""
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    move = centre_mm - 0.5 * (points.min(0) + points.max(0))
    return VesselTree(
        tuple(replace(branch, points_lps_mm=branch.points_lps_mm + move) for branch in tree.branches)
    ), move


def _held_out_angles(
    rng: np.random.Generator, angles: list[tuple[float, float]], count: int
) -> list[tuple[float, float]]:
    """Directions far from every given view (best of 200 draws), so that depth errors show."""
    chosen = list(angles)
    for _ in range(count):
        draws = [
            (float(a), float(b)) for a, b in zip(rng.uniform(-60, 60, 200), rng.uniform(-35, 35, 200), strict=True)
        ]
        chosen.append(max(draws, key=lambda draw: min(view_choice.angle_between_deg(draw, other) for other in chosen)))
    return chosen[len(angles) :]


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
) -> None:
    """Refuse settings out of range.

    Raises:
        InputError: naming the setting, its value and the range.
    """
    if artery not in ("rca", "lca"):
        raise InputError(f"artery is '{artery}'; choose rca or lca")
    if background not in ("flat", "full"):
        raise InputError(f"background is '{background}'; choose flat or full")
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
    ):
        if not low <= value <= high:  # also catches NaN
            raise InputError(f"{name} is {value}; give {low} to {high}{unit}")
