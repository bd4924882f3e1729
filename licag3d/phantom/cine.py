# SPDX-License-Identifier: Apache-2.0
"""A cine run of a simulated case: contrast flows in, fills and washes out of a beating, breathing heart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.phantom import display
from licag3d.phantom.filling import opacity_at
from licag3d.phantom.motion import clear_motion, move_surroundings, move_tree
from licag3d.phantom.simulate_case import Case
from licag3d.phantom.twigs import without_twigs
from licag3d.phantom.xray import Exposure, render_frame
from licag3d.structures import VesselTree

#: Length of a breath, s.
_BREATH_S = 4.0
#: Frames count as filled whose mean opacity is at least this share of the best.
_FILLED = 0.9
#: Time before the contrast and after the end of the injection, s.
_LEAD_S, _TAIL_S = 0.5, 1.8
_MAX_FRAMES = 600


@dataclass(frozen=True)
class Cine:
    """One run with its truth. Arrays over frames have length n.

    Args:
        frames: ``(n, rows, cols)`` uint8 (uint16 above 8 bits), vessels dark.
        frame_time_ms: from frame to frame.
        true_camera, user_camera: of all frames.
        time_s: ``(n,)`` since contrast left the catheter; negative before.
        phase: ``(n,)`` cardiac phase in 0..1, 0 end-diastole; ``respiration_mm`` ``(n,)``.
        filling: ``(n,)`` mean opacity over the centrelines, 0..1; ``filled`` ``(n,)`` bool: at least 0.9 of the best.
        points_lps_mm: ``(n, samples, 3)`` float32, centreline samples of all branches in order: the tree of each frame.
        tree: the tree (without twigs) at end-diastole and end-expiration, which names the branches and holds the radii.
    """

    frames: np.ndarray
    frame_time_ms: float
    true_camera: Camera
    user_camera: Camera
    time_s: np.ndarray
    phase: np.ndarray
    respiration_mm: np.ndarray
    filling: np.ndarray
    filled: np.ndarray
    points_lps_mm: np.ndarray
    tree: VesselTree

    def tree_of(self, frame: int) -> VesselTree:
        """The true tree of a frame."""
        ends = np.cumsum([len(branch.radius_mm) for branch in self.tree.branches])[:-1]
        parts = np.split(self.points_lps_mm[frame].astype(np.float64), ends)
        return VesselTree(tuple(replace(b, points_lps_mm=p) for b, p in zip(self.tree.branches, parts, strict=True)))


def simulate_cine(
    case: Case,
    view: int,
    *,
    frames_per_s: float = 15.0,
    respiration_mm: float = 0.0,
    bits: int = 8,
    seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Cine:
    """The run behind a view of a case, through the same camera; the same arguments give the same run bit for bit.

    Each run has an injection of its own start within the heartbeat. Background, devices, shutters and display stay the
    same over the frames; quantum noise is new in every frame and passes the recursive filter of the display.

    Args:
        view: number of the view, counted from 0.
        frames_per_s: 2 to 60. respiration_mm: depth of breathing during the run (0: breath held).
        seconds: length; default half a second before the contrast to 1.8 s after the injection ends.
        progress: called with the number of the finished frame and of all.

    Raises:
        InputError: a number out of range, or a case that was not made by ``simulate_case``.
    """
    patient = case.patient
    if patient is None:
        raise InputError("the case holds no patient to move; make it with simulate_case")
    patient = replace(patient, motion=clear_motion(patient.tree, patient.motion))
    if not 0 <= view < len(case.views):
        raise InputError(f"view is {view}; the case has views 0 to {len(case.views) - 1}")
    for name, value, low, high in (
        ("frames per second", frames_per_s, 2, 60),
        ("respiration", respiration_mm, 0, 25),
        ("seconds", 1.0 if seconds is None else seconds, 0.1, 60),
    ):
        if not low <= value <= high:
            raise InputError(f"{name} is {value}; give {low} to {high}")
    rng = np.random.default_rng([case.seed, 65, view])
    period_s = patient.filling.period_s
    filling = replace(patient.filling, start_s=float(rng.uniform(1.0, 1.0 + period_s)))
    first_s = filling.start_s - _LEAD_S
    length_s = filling.duration_s + _LEAD_S + _TAIL_S if seconds is None else seconds
    count = min(max(2, round(length_s * frames_per_s)), _MAX_FRAMES)
    times = first_s + np.arange(count) / frames_per_s
    phase = np.mod(times / period_s, 1.0)
    breath = respiration_mm * 0.5 * (1 - np.cos(2 * np.pi * (times / _BREATH_S + rng.uniform())))
    trees = [move_tree(patient.tree, p, r, motion=patient.motion) for p, r in zip(phase, breath, strict=True)]
    opacity = [opacity_at(patient.tree, float(t), filling) for t in times]
    mean = np.array([np.concatenate(list(values.values())).mean() for values in opacity])
    truth = case.views[view]
    chain = _Chain(replace(case, patient=patient), view, truth.true_camera, bits)

    def quiet(k: int) -> np.ndarray:
        return chain.intensity(trees[k], float(phase[k]), float(breath[k]), opacity[k])

    # One window for the whole run: that of the frame that is filled best.
    chain.set_window(quiet(int(mean.argmax())))
    frames = np.empty((count, truth.true_camera.rows, truth.true_camera.cols), np.uint8 if bits == 8 else np.uint16)
    for k in range(count):
        frames[k] = chain.shown(quiet(k), k)
        if progress is not None:
            progress(k + 1, count)
    return Cine(
        frames=frames,
        frame_time_ms=1000.0 / frames_per_s,
        true_camera=truth.true_camera,
        user_camera=truth.user_camera,
        time_s=times - filling.start_s,
        phase=phase,
        respiration_mm=breath,
        filling=mean,
        filled=mean >= _FILLED * mean.max(),
        points_lps_mm=np.stack([np.concatenate([b.points_lps_mm for b in tree.branches]) for tree in trees]).astype(
            np.float32
        ),
        tree=without_twigs(patient.tree),
    )


class _Chain:
    """Detector and display of one run: what stays the same over its frames, and the noise that passed the filter."""

    def __init__(self, case: Case, view: int, camera: Camera, bits: int) -> None:
        assert case.patient is not None
        self.patient, self.camera, self.bits = case.patient, camera, bits
        self.seed = [case.seed, 67, view]
        # The picture without quantum noise; the noise is added here, so that nothing else changes between frames.
        self.noiseless: Exposure = replace(case.patient.exposure, quanta=1e12)
        self.blur_px = case.patient.exposure.blur_px(camera)
        # Stream 4 as in render_frame, whose shutters then are these; no burnt-in text, which would name a frame.
        self.settings = replace(display.sample_display(np.random.default_rng([*self.seed, 4])), text=False)
        self.light = display.shutters(self.settings, camera.rows, camera.cols)
        self.residual: np.ndarray | None = None
        self.limits = (0.0, 1.0)

    def intensity(self, tree: VesselTree, phase: float, breath_mm: float, opacity) -> np.ndarray:
        """Detected intensity without noise, shutters open."""
        around = self.patient.surroundings
        if around is not None:
            around = move_surroundings(around, phase, breath_mm, self.patient.motion)
        frame = render_frame(tree, self.camera, self.noiseless, around, self.seed, opacity=opacity)
        seen = np.exp(-frame.measured)
        return seen if around is None else seen / np.maximum(self.light, 0.02)

    def set_window(self, intensity: np.ndarray) -> None:
        self.limits = display.window(intensity, self.settings)

    def shown(self, intensity: np.ndarray, number: int) -> np.ndarray:
        from scipy.ndimage import gaussian_filter

        rng = np.random.default_rng([*self.seed, 100, number])
        quanta = self.patient.exposure.quanta
        noise = rng.poisson(quanta * intensity).astype(np.float32) / np.float32(quanta) - intensity
        noise = gaussian_filter(noise, 0.6 * self.blur_px)
        flat = self.patient.surroundings is None
        keep = 0.0 if flat or self.residual is None else self.settings.smoothing
        # The recursive filter of a motion-compensated chain: it averages noise over frames, not the moving vessels.
        self.residual = noise if keep == 0.0 else keep * self.residual + (1 - keep) * noise
        noisy = np.maximum(intensity + self.residual, 1e-4)
        if flat:
            return display.stored(185.0 / 255.0 * noisy, self.bits)
        marks = np.random.default_rng([*self.seed, 5])
        return display.stored(display.shown(noisy, self.settings, self.limits, self.light, marks), self.bits)
