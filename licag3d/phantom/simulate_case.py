# SPDX-License-Identifier: Apache-2.0
"""One synthetic patient with exact truth: tree, cameras, images, as a user would have them and as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.phantom import views as view_choice
from licag3d.phantom.anatomy import sample_patient, sample_tree
from licag3d.phantom.case_settings import check_settings, check_tree, recorded, view_phases
from licag3d.phantom.filling import Filling, filled_time_s, opacified_path_mm, opacity_at, sample_filling
from licag3d.phantom.motion import Motion, clear_motion, motion_of_tree, move_surroundings, move_tree, sample_motion
from licag3d.phantom.thorax import sample_thorax
from licag3d.phantom.twigs import without_twigs
from licag3d.phantom.xray import Exposure, Surroundings, render_frame, sample_surroundings
from licag3d.structures import VesselTree

__all__ = ["Case", "Patient", "ViewTruth", "check_settings", "simulate_case"]


@dataclass(frozen=True)
class ViewTruth:
    """One view: ``true_camera`` with its offset, ``user_camera`` without; ``image`` uint8 (uint16 above 8 bits),
    ``measured`` float32 (minus log of the detected intensity), ``line_integral`` float32 (p = mu x path length of the
    vessels, no unit) and ``mask`` bool, all ``(rows, cols)``.

    Args:
        devices: ``(rows, cols)`` bool, pixels whose ray meets a catheter, a wire or another device.
        tree: the tree at the moment of this view where it is not that of the case (another phase or breath), else None.
        phase: cardiac phase, 0 end-diastole; ``respiration_mm`` how far the heart has gone down with the breath.
        opacity: relative iodine concentration by branch id and sample; None where everything is filled.
        contrast_free_image, contrast_free_measured: the same moment with kappa times the contrast, where asked for.
        twigs: ``(rows, cols)`` bool, pixels of vessels too fine for any truth, or None (flat background).
    """

    true_camera: Camera
    user_camera: Camera
    image: np.ndarray
    measured: np.ndarray
    line_integral: np.ndarray
    mask: np.ndarray
    devices: np.ndarray | None = None
    tree: VesselTree | None = None
    phase: float = 0.0
    respiration_mm: float = 0.0
    opacity: dict[int, np.ndarray] | None = None
    contrast_free_image: np.ndarray | None = None
    contrast_free_measured: np.ndarray | None = None
    twigs: np.ndarray | None = None


@dataclass(frozen=True)
class Patient:
    """What a case is rendered from, so that a cine of it can be: the tree at end-diastole and end-expiration, how the
    heart moves, the exposure, what surrounds the tree (None: flat background) and the injection."""

    tree: VesselTree
    motion: Motion
    exposure: Exposure
    surroundings: Surroundings | None
    filling: Filling


@dataclass(frozen=True)
class Case:
    """A simulated case. Views are in order; the first is the reference view with offset zero.

    ``tree`` is the truth in LPS mm at the moment of view 1, origin at the isocentre of that view. ``held_out`` views
    show the same moment, have true cameras with offset zero and are never shown to a method. ``mu_per_mm`` is the
    attenuation of the opacified blood. ``lesions`` are those of ``licag3d.phantom.disease``.
    """

    seed: int
    artery: str
    tree: VesselTree
    views: tuple[ViewTruth, ...]
    held_out: tuple[ViewTruth, ...]
    mu_per_mm: float
    settings: dict
    lesions: tuple = ()
    patient: Patient | None = field(default=None, repr=False)

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
        """Display images ``(rows, cols)`` uint8 (uint16 above 8 bits), vessels dark."""
        return [view.image for view in self.views]

    @property
    def line_integrals(self) -> list[np.ndarray]:
        """True vessel line integrals ``(rows, cols)`` float32, no unit."""
        return [view.line_integral for view in self.views]

    @property
    def masks(self) -> list[np.ndarray]:
        """True vessel masks ``(rows, cols)`` bool."""
        return [view.mask for view in self.views]

    @property
    def trees(self) -> list[VesselTree]:
        """The tree at the moment of every view."""
        return [self.tree if view.tree is None else view.tree for view in self.views]


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
    disease: str = "none",
    twigs: bool = False,
    tree: VesselTree | None = None,
    phases: str | Sequence[float] = "same",
    respiration_mm: float = 0.0,
    kappa: float | None = None,
    filling: str = "full",
    time_s: float | None = None,
    bits: int = 8,
    angles: str = "working",
    distance_jitter_mm: float = 0.0,
    distance_error_mm: float = 0.0,
) -> Case:
    """Simulate one case; the same arguments give the same case bit for bit.

    The tree, angles, geometry and directions of the errors depend on ``seed``, ``artery`` and ``separation_deg`` only:
    changing ``offset_mm``, ``angle_error_deg``, ``distance_error_mm``, ``background``, ``kappa`` or ``bits`` changes
    nothing else. Every further effect draws from a stream of its own.

    Args:
        seed: not negative. artery: ``rca`` or ``lca``.
        views: 1 to 4 views; each after the first lies ``separation_deg`` from it.
        offset_mm: length of the random offset (the table) of every view but the first.
        angle_error_deg: size of the reading error of the angles of every view (norm over both angles).
        background: ``flat`` (uniform, noise) or ``full`` (thorax, catheter, scatter, blur, noise, display).
        isocentre_distance_mm: the centre of the tree lies within this distance of the isocentre, along each axis.
        held_out: number of views that no method sees.
        disease: ``none`` or ``random``; ``twigs`` renders the vessels below 0.7 mm, which no truth
            holds. Both as in ``sample_tree``.
        tree: a tree from elsewhere (CT labels) instead of a sampled one; ``disease`` is then put on it.
        phases: ``same`` (all views at end-diastole), ``different`` (the first at end-diastole, the others anywhere in
            the beat) or one cardiac phase per view.
        respiration_mm: every view but the first shows the heart this much lower or higher by breathing.
        kappa: share of the contrast left in the contrast-free frame of the same moment, 0..1; None makes none.
        filling: ``full`` (contrast everywhere) or ``random`` (each view at a moment of its own between inflow and
            washout); ``time_s`` fixes that moment for all views, in s after the contrast left the catheter.
        bits: grey levels of the images, 8, 10, 12 or 16 bits.
        angles: ``working`` views of operators or ``free`` angles within reach of a C-arm.
        distance_jitter_mm: every view has its own SID and SOD, this far from the common ones (norm over both).
        distance_error_mm: size of the reading error of SID and SOD in the user's cameras (norm over both).

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
        "disease": disease,
        "twigs": twigs,
        "phases": phases,
        "respiration_mm": respiration_mm,
        "kappa": kappa,
        "filling": filling,
        "time_s": time_s,
        "bits": bits,
        "angles": angles,
        "distance_jitter_mm": distance_jitter_mm,
        "distance_error_mm": distance_error_mm,
    }
    check_settings(seed=seed, artery=artery, **settings)
    settings = recorded(settings)
    seed = int(seed)
    rng = np.random.default_rng([seed, 10 + ("rca", "lca").index(artery), round(1000 * separation_deg)])
    rest, lesions = _sampled_tree(seed, artery, tree, disease, twigs)
    rest, move = _placed(rest, rng.uniform(-1, 1, 3) * isocentre_distance_mm)
    heart = sample_patient(seed).heart
    if tree is None:
        heart_centre = move
        motion = sample_motion(np.random.default_rng([seed, 62]), heart, heart_centre)
    else:
        motion = motion_of_tree(rest)
        heart_centre = motion.centre_mm
    geometry = view_choice.choose_geometry(rng)
    chosen = view_choice.choose_angles(rng, artery, views, separation_deg, free=angles == "free")
    offsets = [np.zeros(3)] + [offset_mm * view_choice.random_direction(rng) for _ in chosen[1:]]
    true = [view_choice.make_camera(a, geometry, rows, cols, o) for a, o in zip(chosen, offsets, strict=True)]
    hidden = [view_choice.make_camera(a, geometry, rows, cols) for a in _held_out_angles(rng, chosen, held_out)]
    if distance_jitter_mm > 0:
        jitter = np.random.default_rng([seed, 21])
        true = [view_choice.with_other_distances(camera, jitter, distance_jitter_mm) for camera in true]
    moments = _moments(seed, views, phases, respiration_mm) + [None] * held_out
    moments = [moments[0] if moment is None else moment for moment in moments]
    if any(phase != 0 for phase, _ in moments):
        motion = clear_motion(rest, motion)
    trees = [move_tree(rest, *moment, motion=motion) for moment in moments]
    points = np.concatenate([b.points_lps_mm for t in _distinct(trees, moments) for b in t.branches])
    spacing = view_choice.fit_spacing(true + hidden, points)
    true, hidden = ([view_choice.with_spacing(camera, spacing) for camera in group] for group in (true, hidden))
    reading = np.random.default_rng([seed, 20, round(1000 * separation_deg)])
    user = [view_choice.as_read(camera, reading, angle_error_deg) for camera in true]
    if distance_error_mm > 0:
        distances = np.random.default_rng([seed, 22])
        user = [view_choice.with_other_distances(camera, distances, distance_error_mm) for camera in user]
    exposure = Exposure.sample(np.random.default_rng([seed, 30]))
    surroundings = None
    if background == "full":
        chest = np.random.default_rng([seed, 50])
        thorax = sample_thorax(chest, heart, heart_centre)
        surroundings = sample_surroundings(chest, rest, thorax)
    flow = np.random.default_rng([seed, 63])
    injection = sample_filling(flow, artery, period_s=float(flow.uniform(0.7, 1.0)))
    patient = Patient(rest, motion, exposure, surroundings, injection)
    times = _times(seed, patient, views, filling, time_s) + [None] * held_out
    made = []
    for k, (camera, moment, shown) in enumerate(zip(true + hidden, moments, trees, strict=True)):
        time = times[k] if k < views else times[0]
        opacity = None if time is None else opacity_at(rest, time, injection)
        around = None if surroundings is None else move_surroundings(surroundings, *moment, motion)
        frame = render_frame(
            shown, camera, exposure, around, seed=[seed, 40, k], opacity=opacity, kappa=kappa, bits=bits
        )
        line_integral, unscored = frame.line_integral, frame.twigs
        scored = without_twigs(shown)
        if twigs:  # rendered, but no part of the truth
            line_integral = exposure.mu_per_mm * opacified_path_mm(scored, opacity, camera)
            unscored = (frame.mask | (False if unscored is None else unscored)) & ~(line_integral > 0)
        made.append(
            ViewTruth(
                camera,
                (user + hidden)[k],
                frame.image,
                frame.measured,
                line_integral,
                line_integral > 0,
                frame.devices,
                None if moment == moments[0] else scored,
                *moment,
                opacity,
                frame.contrast_free_image,
                frame.contrast_free_measured,
                unscored,
            )
        )
    tree = without_twigs(trees[0])
    return Case(
        seed, artery, tree, tuple(made[:views]), tuple(made[views:]), exposure.mu_per_mm, settings, lesions, patient
    )


def _sampled_tree(
    seed: int, artery: str, tree: VesselTree | None, disease: str, twigs: bool
) -> tuple[VesselTree, tuple]:
    """The tree at end-diastole and its lesions."""
    extra = {"twigs": True} if twigs else {}
    if tree is not None:
        check_tree(tree)
    healthy = sample_tree(seed, artery, **extra) if tree is None else tree
    if disease == "none":
        return healthy, ()
    from licag3d.phantom.disease import sample_disease

    return sample_disease(seed, artery, healthy)


def _moments(
    seed: int, views: int, phases: str | Sequence[float], respiration_mm: float
) -> list[tuple[float, float] | None]:
    """Cardiac phase and respiration in mm of every view."""
    signs = np.random.default_rng([seed, 61]).choice((-1.0, 1.0), views)
    depth = [0.0] + [float(respiration_mm * sign) for sign in signs[1:]]
    return list(zip(view_phases(phases, views, np.random.default_rng([seed, 60])), depth, strict=True))


def _times(seed: int, patient: Patient, views: int, filling: str, time_s: float | None) -> list[float | None]:
    """When every view was taken, s after the contrast left the catheter; None where the tree is filled throughout."""
    if time_s is not None:
        return [float(time_s)] * views
    if filling == "full":
        return [None] * views
    best = filled_time_s(patient.tree, patient.filling)
    rng = np.random.default_rng([seed, 64])
    return [float(time) for time in rng.uniform(0.35 * best, patient.filling.duration_s + 0.6, views)]


def _distinct(trees: list[VesselTree], moments: list) -> list[VesselTree]:
    return [tree for k, tree in enumerate(trees) if moments[k] not in moments[:k]]


def _placed(tree: VesselTree, centre_mm: np.ndarray) -> tuple[VesselTree, np.ndarray]:
    """The tree with the middle of its bounding box at ``centre_mm``, and how far it was moved for that."""
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
