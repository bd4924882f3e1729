# SPDX-License-Identifier: Apache-2.0
"""Synthetic angiograms of graded quality with exact truth, for the training and the test of CAS-IQA.

A scene is a phantom patient at one moment on one display: contrast-free frame, true angiogram, vessels, branches. A
degradation of severity 0..1 spoils the synthetic frame in one way; what it draws is known pixel by pixel, so that
:mod:`licag3d.losses.iqa` can compute what a perfect judge would say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from licag3d.data.phantom_frames import DEVICE, LABELS, VESSEL
from licag3d.data.vendors import VENDORS, Look, detect, vendor_look
from licag3d.errors import InputError
from licag3d.phantom.display import shown, shutters, window

#: Rows and columns of a scene.
SIDE = 256


@dataclass(frozen=True)
class Anatomy:
    """Layers of a pool frame at :data:`SIDE`, all ``(rows, cols)``: line integrals without and of the contrast, vessel
    mask, branch labels (0 off the vessels)."""

    contrast_free: np.ndarray
    contrast: np.ndarray
    mask: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Drawn:
    """What a synthetic frame draws, before noise: line integrals, mask, the grey image without (``bare``) and with
    (``clean``) vessels, and its noise as an image."""

    contrast_free: np.ndarray
    contrast: np.ndarray
    mask: np.ndarray
    bare: np.ndarray | None = None
    clean: np.ndarray | None = None
    noise: np.ndarray | None = None


@dataclass(frozen=True)
class Scene:
    """A patient on a display. ``frame`` contrast-free and ``reference`` angiogram are as seen, with noise; ``bare`` and
    ``clean`` the angiogram without noise, without and with vessels; all ``(rows, cols)`` in 0..1."""

    anatomy: Anatomy
    look: Look
    limits: tuple[float, float]
    light: np.ndarray
    bright: float
    frame: np.ndarray
    frame_clean: np.ndarray
    reference: np.ndarray
    bare: np.ndarray
    clean: np.ndarray
    field: np.ndarray


def reduced(layers: np.ndarray, side: int = SIDE) -> Anatomy:
    """Layers ``(5, rows, rows)`` of a pool at ``side`` (a divisor of rows)."""
    factor = layers.shape[-1] // side
    if factor < 1 or layers.shape[-1] != factor * side:
        raise InputError(f"a pool of frames of {layers.shape[-1]} px cannot serve; give one of {side} times 1, 2, ...")

    def mean(x: np.ndarray) -> np.ndarray:
        return x.reshape(side, factor, side, factor).mean((1, 3))

    stack = np.asarray(layers[1:], np.float32)
    codes = stack[3].astype(np.int32)
    vessel = (codes % DEVICE) >= VESSEL
    mask = mean(vessel.astype(np.float32)) >= 0.5
    labels = np.where(vessel, codes % LABELS, 0).reshape(side, factor, side, factor).max((1, 3))
    return Anatomy(mean(stack[0]).clip(-4, 6), mean(stack[1]).clip(0), mask, np.where(mask, labels, 0))


def make_scene(anatomy: Anatomy, rng: np.random.Generator, kappa: float, vendor: str | None = None) -> Scene:
    """Put a patient on a display.

    Args:
        kappa: share of the contrast left in the contrast-free frame. vendor: drawn where not given.
    """
    side = anatomy.mask.shape[0]
    look = vendor_look(rng, vendor or str(rng.choice(VENDORS[:4])), side)
    light = shutters(look.display, side, side)
    depth = anatomy.contrast_free + anatomy.contrast
    bright = float(np.median(np.exp(-np.clip(depth, -4, 9))))
    clean = detect(depth, look, rng, noisy=False, bright=bright)
    limits = window(clean, look.display)

    def grey(intensity: np.ndarray) -> np.ndarray:
        return shown(intensity, look.display, limits, light, rng)

    left = anatomy.contrast_free + kappa * anatomy.contrast
    scene = Scene(
        anatomy, look, limits, light, bright,
        frame=grey(detect(left, look, rng, bright=bright)),
        frame_clean=grey(detect(left, look, rng, noisy=False, bright=bright)),
        reference=grey(detect(depth, look, rng, bright=bright)),
        bare=np.zeros(0), clean=grey(clean),
        field=(anatomy.contrast_free < 4) & (light > 0.5),
    )  # fmt: skip
    return replace(scene, bare=displayed(scene, anatomy.contrast_free))


def moved_reference(scene: Scene, anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """The angiogram of another moment of a scene's patient on the display of the scene, with noise of its own: what a
    reference of another heartbeat is.
    """
    intensity = detect(anatomy.contrast_free + anatomy.contrast, scene.look, rng, bright=scene.bright)
    return shown(intensity, scene.look.display, scene.limits, scene.light, rng)


def displayed(scene: Scene, depth: np.ndarray) -> np.ndarray:
    """Grey image in 0..1 of a line integral on the scene's display, without noise."""
    intensity = detect(depth, scene.look, np.random.default_rng(0), noisy=False, bright=scene.bright)
    return shown(intensity, scene.look.display, scene.limits, scene.light, np.random.default_rng(0))


def synthetic(
    scene: Scene, other: Anatomy, defects: dict[str, float], seed: int, *, own_noise: bool = False
) -> tuple[np.ndarray, Drawn]:
    """A synthetic angiogram of a scene with some defects.

    Args:
        other: another patient, for ghosts and strange backgrounds.
        defects: severity in 0..1 by kind (:data:`KINDS`); the same seed spoils the same places, more or less.
        own_noise: noise of its own, as of an image generator; otherwise that of the contrast-free frame, into which
            vessels were drawn.

    Returns:
        The frame ``(rows, cols)`` float32 in 0..1, and what it draws.

    Raises:
        InputError: an unknown kind, or a severity out of range.
    """
    for kind, severity in defects.items():  # checked in the order given, done in that of KINDS
        if kind not in KINDS:
            raise InputError(f"degradation {kind!r} is not known; give one of {', '.join(KINDS)}")
        if not 0 <= severity <= 1:
            raise InputError(f"severity of {kind} is {severity}; give 0 to 1")
    a = scene.anatomy
    drawn = Drawn(a.contrast_free, a.contrast, a.mask)
    defects = {kind: defects[kind] for kind in KINDS if kind in defects}
    for kind, severity in defects.items():
        if kind in LAYER_KINDS and severity > 0:
            rng = np.random.default_rng([seed, 1, KINDS.index(kind)])
            drawn = LAYER_KINDS[kind](drawn, scene, other, severity, rng)
    same = drawn.contrast_free is a.contrast_free
    bare = scene.bare if same else displayed(scene, drawn.contrast_free)
    untouched = same and drawn.contrast is a.contrast
    clean = scene.clean if untouched else displayed(scene, drawn.contrast_free + drawn.contrast)
    noise = scene.reference - scene.clean
    noise = np.roll(noise, (97, 61), (0, 1)) if own_noise else scene.frame - scene.frame_clean
    drawn = replace(drawn, bare=bare, clean=clean, noise=noise)
    for kind, severity in defects.items():
        if kind in IMAGE_KINDS and severity > 0:
            drawn = IMAGE_KINDS[kind](drawn, severity, np.random.default_rng([seed, 2, KINDS.index(kind)]))
    assert drawn.clean is not None and drawn.noise is not None
    return np.clip(drawn.clean + drawn.noise, 0, 1).astype(np.float32), drawn


def _contrast(drawn: Drawn, scene: Scene, other: Anatomy, severity: float, rng) -> Drawn:
    return replace(drawn, contrast=(1 - 0.95 * severity) * drawn.contrast)


def _chosen(labels: np.ndarray, share: float, rng) -> np.ndarray:
    """Vessels (bool) of branches in random order, until ``share`` of the vessel pixels is reached; the last branch in
    part, so that more is always more."""
    names, sizes = np.unique(labels[labels > 0], return_counts=True)
    order = rng.permutation(len(names))
    left = share * sizes.sum()
    taken = np.zeros(labels.shape, bool)
    for k in order:
        if left <= 0:
            break
        rows, cols = np.nonzero(labels == names[k])
        angle = rng.uniform(0, 2 * np.pi)
        along = np.argsort(np.cos(angle) * rows + np.sin(angle) * cols, kind="stable")[: int(np.ceil(left))]
        taken[rows[along], cols[along]] = True
        left -= sizes[k]
    return taken


def _without(drawn: Drawn, gone: np.ndarray) -> Drawn:
    from scipy.ndimage import binary_dilation, gaussian_filter

    near = binary_dilation(gone, iterations=2) & ~(drawn.mask & ~gone)
    keep = 1 - gaussian_filter(near.astype(np.float32), 0.7)
    keep[gone] = 0
    return replace(drawn, contrast=drawn.contrast * keep, mask=drawn.mask & ~gone)


def _erased(drawn: Drawn, scene: Scene, other: Anatomy, severity: float, rng) -> Drawn:
    return _without(drawn, _chosen(scene.anatomy.labels, 0.95 * severity, rng) & drawn.mask)


def _gaps(drawn: Drawn, scene: Scene, other: Anatomy, severity: float, rng) -> Drawn:
    """Short pieces of the vessels are missing everywhere: up to seven tenths of them."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(drawn.mask.shape), 5.0)
    inside = field[drawn.mask]
    if not len(inside):
        return drawn
    return _without(drawn, drawn.mask & (field < np.quantile(inside, 0.7 * severity)))


def _displaced(drawn: Drawn, scene: Scene, other: Anatomy, severity: float, rng) -> Drawn:
    """A smooth warp with a shift in it, 9 px in the mean at worst."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    shape = drawn.mask.shape
    field = np.stack([gaussian_filter(rng.standard_normal(shape), 24.0, mode="wrap") for _ in range(2)])
    field += 0.5 * field.std() * rng.standard_normal((2, 1, 1))
    field *= 9.0 * severity / max(float(np.hypot(*field).mean()), 1e-9)
    at = np.mgrid[: shape[0], : shape[1]] + field
    contrast = map_coordinates(drawn.contrast, at, order=1, mode="constant")
    mask = map_coordinates(drawn.mask.astype(np.float32), at, order=1, mode="constant") > 0.5
    return replace(drawn, contrast=contrast, mask=mask)


def _ghost(drawn: Drawn, scene: Scene, other: Anatomy, severity: float, rng) -> Drawn:
    """Vessels of another patient besides the true ones."""
    from scipy.ndimage import binary_dilation

    added = _chosen(other.labels, severity, rng)
    around = binary_dilation(added, iterations=2) & ~(other.mask & ~added)
    return replace(drawn, contrast=drawn.contrast + np.where(around, other.contrast, 0), mask=drawn.mask | added)


def _calibre(drawn: Drawn, scene: Scene, other: Anatomy, severity: float, rng) -> Drawn:
    """All vessels wider or narrower by a factor of up to 2.4, their depth with them."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter
    from skimage.morphology import skeletonize

    factor = float((1 + 1.4 * severity) ** rng.choice((-1, 1)))
    line = skeletonize(drawn.mask)
    if not line.any():
        return drawn
    radius = gaussian_filter(distance_transform_edt(drawn.mask), 0.5)
    distance, (rows, cols) = distance_transform_edt(~line, return_indices=True)
    wide = np.maximum(factor * radius[rows, cols], 0.3)
    mask = distance < wide
    profile = np.sqrt(np.clip(1 - (distance / np.maximum(wide, 0.5)) ** 2, 0, 1))
    remade = factor * drawn.contrast[rows, cols] * profile
    keep = np.where(drawn.mask & ~mask, 0.0, drawn.contrast)
    return replace(drawn, contrast=np.where(mask, remade, keep), mask=mask)


def _repainted(drawn: Drawn, scene: Scene, other: Anatomy, severity: float, rng) -> Drawn:
    """The background turns into another patient's."""
    return replace(drawn, contrast_free=(1 - severity) * drawn.contrast_free + severity * other.contrast_free)


def _swapped(drawn: Drawn, scene: Scene, other: Anatomy, severity: float, rng) -> Drawn:
    """The vessels fade into another patient's."""
    contrast = (1 - severity) * drawn.contrast + severity * other.contrast
    return replace(drawn, contrast=contrast, mask=drawn.mask | other.mask)


def _blur(drawn: Drawn, severity: float, rng) -> Drawn:
    from scipy.ndimage import gaussian_filter

    bare, clean, noise = (gaussian_filter(x, 3.5 * severity) for x in (drawn.bare, drawn.clean, drawn.noise))
    return replace(drawn, bare=bare, clean=clean, noise=noise)


def _noise(drawn: Drawn, severity: float, rng) -> Drawn:
    from scipy.ndimage import gaussian_filter

    grain = gaussian_filter(rng.standard_normal(drawn.mask.shape), 0.6)
    return replace(drawn, noise=drawn.noise + 0.15 * severity * grain / grain.std())


def _pattern(drawn: Drawn, severity: float, rng) -> Drawn:
    """The checkerboard that transposed convolutions leave."""
    period = float(rng.choice((4, 8)))
    rows, cols = np.indices(drawn.mask.shape)
    board = np.sin(2 * np.pi * rows / period) * np.sin(2 * np.pi * cols / period)
    return replace(drawn, noise=drawn.noise + 0.14 * severity * board)


LAYER_KINDS: dict[str, Callable] = {
    "contrast": _contrast, "erased": _erased, "displaced": _displaced, "ghost": _ghost, "calibre": _calibre,
    "repainted": _repainted, "gaps": _gaps, "swapped": _swapped,
}  # fmt: skip
IMAGE_KINDS: dict[str, Callable] = {"blur": _blur, "noise": _noise, "pattern": _pattern}
KINDS = (*LAYER_KINDS, *IMAGE_KINDS)
#: Kinds that no training sees: they say whether the judge copes with defects that nobody thought of.
HELD_OUT = ("gaps", "swapped", "pattern")
TRAINED = tuple(kind for kind in KINDS if kind not in HELD_OUT)
