# SPDX-License-Identifier: Apache-2.0
"""From a vessel tree to an X-ray frame: attenuation, scatter, blur, quantum noise, display, collimator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.phantom import devices
from licag3d.phantom.thorax import Thorax, cloud, thorax_integral
from licag3d.phantom.tubes import Line, path_length_mm, tree_lines
from licag3d.structures import VesselTree


@dataclass(frozen=True)
class Exposure:
    """Physics of one acquisition, the same for all views of a case.

    Args:
        mu_per_mm: attenuation of the opacified blood above soft tissue. 300 mg iodine per ml has 0.39/mm at 50 keV and
            0.17/mm at 70 keV (NIST XCOM); injected contrast is diluted by half or more.
        quanta: detected quanta per pixel where the image has its median brightness.
        scatter: scattered over total detected intensity.
        focal_spot_mm: blur of the focus, at magnification M seen (M - 1) times as large on the detector.
        detector_blur_px: standard deviation of the detector's own blur, pixels.
    """

    mu_per_mm: float
    quanta: float
    scatter: float
    focal_spot_mm: float
    detector_blur_px: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Exposure:
        """Contrast, dose and sharpness of one patient."""
        return cls(
            mu_per_mm=float(rng.uniform(0.11, 0.2)),
            quanta=float(np.exp(rng.uniform(np.log(3.5e2), np.log(3e3)))),
            scatter=float(rng.uniform(0.2, 0.45)),
            focal_spot_mm=float(rng.uniform(0.4, 0.8)),
            detector_blur_px=float(rng.uniform(0.45, 0.8)),
        )

    def blur_px(self, camera: Camera) -> float:
        """Standard deviation of focus and detector blur together, pixels (a disc of diameter f has f/4)."""
        focus = self.focal_spot_mm * (camera.magnification - 1) / 4 / camera.spacing_col_mm
        return float(np.hypot(focus, self.detector_blur_px * camera.cols / 512))


@dataclass(frozen=True)
class Surroundings:
    """Everything in the beam that is not the tree."""

    thorax: Thorax
    catheter: Line
    wire: Line | None
    reflux: float  # contrast that runs back into the aortic root, line integral at its middle


def sample_surroundings(rng: np.random.Generator, tree: VesselTree, thorax: Thorax) -> Surroundings:
    """Devices and reflux of one patient."""
    catheter = devices.catheter_line(rng, tree)
    wire = devices.wire_line(rng, tree, catheter) if rng.random() < 0.12 else None
    return Surroundings(thorax, catheter, wire, float(rng.uniform(0.1, 0.35)) if rng.random() < 0.3 else 0.0)


@dataclass(frozen=True)
class Frame:
    """One rendered view, all ``(rows, cols)``: display ``image`` uint8 (vessels dark), ``measured`` float32 (minus the
    logarithm of the detected intensity, with everything in the beam), vessel ``line_integral`` float32, ``mask`` bool
    and ``devices`` bool (pixels whose ray meets a catheter, wire or other device).

    ``contrast_free_image`` and ``contrast_free_measured`` are the same moment with kappa times the contrast in vessels
    and catheter, with quantum noise of its own; None unless asked for.
    """

    image: np.ndarray
    measured: np.ndarray
    line_integral: np.ndarray
    mask: np.ndarray
    devices: np.ndarray
    contrast_free_image: np.ndarray | None = None
    contrast_free_measured: np.ndarray | None = None


def render_frame(
    tree: VesselTree,
    camera: Camera,
    exposure: Exposure,
    surroundings: Surroundings | None,
    seed: list[int],
    *,
    opacity: Mapping[int, np.ndarray] | None = None,
    kappa: float | None = None,
) -> Frame:
    """X-ray frame of a tree; without surroundings the background is uniform.

    The mask is every pixel whose ray through its centre meets opacified blood.

    Args:
        opacity: branch id to relative iodine concentration ``(n,)`` in 0..1 of each centreline sample; None is 1
            everywhere.
        kappa: share of the contrast left in the contrast-free frame, 0..1; None makes none.

    Raises:
        InputError: kappa out of range.
    """
    if kappa is not None and not 0 <= kappa <= 1:
        raise InputError(f"residual contrast kappa is {kappa}; give 0 (none) to 1 (all of it)")
    if opacity is None:
        path_mm = path_length_mm(tree_lines(tree), camera)
    else:
        from licag3d.phantom.filling import opacified_path_mm

        path_mm = opacified_path_mm(tree, opacity, camera)
    line_integral = (exposure.mu_per_mm * path_mm).astype(np.float32)
    blur = exposure.blur_px(camera)

    def stream(number: int) -> np.random.Generator:
        # One stream per effect: how many numbers one effect draws never moves another.
        return np.random.default_rng([*seed, number])

    contrasts = (1.0,) if kappa is None else (1.0, float(kappa))
    made = []
    if surroundings is None:
        for number, contrast in enumerate(contrasts):
            noisy = _detected(stream(number), np.exp(-contrast * line_integral), exposure, blur, scatter=0.0)
            made += [_to_bytes(185.0 * noisy), _minus_log(noisy)]
        return Frame(*made[:2], line_integral, path_mm > 0, np.zeros(path_mm.shape, bool), *made[2:])
    fixed, filled, hardware = _device_integral(stream(2), surroundings, tree, camera, exposure)
    iodine = line_integral + filled
    fixed = fixed + _background(stream(3), surroundings.thorax, camera)
    bright = None
    for number, contrast in enumerate(contrasts):
        primary = np.exp(-np.clip(fixed + contrast * iodine, -4, 9))
        # The exposure control, the window and the shutters are those of the moment: contrast does not move them.
        bright = np.median(primary) if bright is None else bright
        noisy = _detected(stream(number), primary / bright, exposure, blur, scatter=exposure.scatter)
        if number == 0:
            window = _window(noisy)
        grey = _display(stream(4), noisy, window)
        shutter = _collimator(stream(5), camera.rows, camera.cols)
        made += [_to_bytes(grey * shutter), _minus_log(noisy * shutter)]
    return Frame(*made[:2], line_integral, path_mm > 0, hardware, *made[2:])


def _background(rng: np.random.Generator, thorax: Thorax, camera: Camera) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    behind = thorax_integral(thorax, camera)
    total = behind - np.median(behind)
    total += rng.uniform(0.04, 0.08) * cloud(rng, camera.rows, camera.cols, rng.uniform(1.25, 1.6))
    # Grain of muscle and lung, a few pixels wide.
    grain = gaussian_filter(rng.standard_normal(total.shape).astype(np.float32), 2.2)
    total += rng.uniform(0.012, 0.028) * grain / grain.std()
    return total


def _device_integral(
    rng: np.random.Generator, surroundings: Surroundings, tree: VesselTree, camera: Camera, exposure: Exposure
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Line integral of what is fixed, of the contrast outside the tree, and the pixels that meet a device."""
    catheter = surroundings.catheter
    outer = path_length_mm([catheter], camera)
    lumen = path_length_mm([Line(catheter.points_lps_mm, 0.68 * catheter.radius_mm)], camera)
    # The wall is made radio-opaque; the lumen holds contrast that no blood has thinned yet.
    fixed, filled = 0.11 * (outer - lumen), 1.25 * exposure.mu_per_mm * lumen
    met = outer > 0
    if surroundings.wire is not None:
        wire = path_length_mm([surroundings.wire], camera)
        fixed, met = fixed + 1.6 * wire, met | (wire > 0)
    if surroundings.reflux > 0:
        ostium = tree.branches[0].points_lps_mm[0]
        back = catheter.points_lps_mm[25]
        (col, row), _ = camera.project(0.4 * ostium + 0.6 * back + rng.normal(0, 3, 3))
        width = rng.uniform(6, 11) / camera.mm_per_pixel
        y, x = np.ogrid[: camera.rows, : camera.cols]
        blob = np.exp(-((x - col) ** 2 + 0.7 * (y - row) ** 2) / (2 * width**2))
        filled = filled + surroundings.reflux * blob * (1 + 0.35 * cloud(rng, camera.rows, camera.cols, 1.4)).clip(0)
    return fixed.astype(np.float32), filled.astype(np.float32), met


def _detected(
    rng: np.random.Generator, primary: np.ndarray, exposure: Exposure, blur_px: float, scatter: float
) -> np.ndarray:
    """Detected intensity, median about 1: blur, scatter, Poisson noise, then the part of the blur that follows
    conversion.
    """
    from scipy.ndimage import gaussian_filter

    sharp = gaussian_filter(primary, 0.8 * blur_px)
    if scatter > 0:
        small = gaussian_filter(sharp[::8, ::8], sharp.shape[0] / 8 / 10, mode="nearest")
        veil = np.repeat(np.repeat(small, 8, 0), 8, 1)[: sharp.shape[0], : sharp.shape[1]]
        sharp = (1 - scatter) * sharp + scatter * gaussian_filter(veil, 8)
    counts = rng.poisson(exposure.quanta * sharp).astype(np.float32) / np.float32(exposure.quanta)
    return gaussian_filter(counts, 0.6 * blur_px)


def _window(intensity: np.ndarray) -> tuple[float, float]:
    """Log intensities that the display spreads from black to white: percentiles 0.3 and 99.7."""
    low, high = np.percentile(np.log(np.maximum(intensity, 1e-4))[8:-8, 8:-8], (0.3, 99.7))
    return float(low), float(high)


def _display(rng: np.random.Generator, intensity: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Grey values 0..255 by a monotone curve: logarithm, window, gamma and a soft shoulder."""
    value = np.log(np.maximum(intensity, 1e-4))
    low, high = window
    low, high = low - rng.uniform(0.2, 0.7), high + rng.uniform(0.1, 0.5)
    unit = np.clip((value - low) / max(high - low, 1.1), 0, 1)
    shoulder = rng.uniform(0.0, 0.6)
    curved = (1 - shoulder) * unit + shoulder * unit * unit * (3 - 2 * unit)
    return 255.0 * curved ** rng.uniform(0.85, 1.25)


def _collimator(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Share of light ``(rows, cols)`` left by the shutters: a dark border with a soft edge, on most frames."""
    if rng.random() < 0.2:
        return np.ones((rows, cols), np.float32)
    edge = rng.uniform(0.8, 2.5)

    def shutter(count: int) -> np.ndarray:
        near, far = rng.uniform(0.004, 0.035, 2) * count
        at = np.arange(count)
        return 1 / (1 + np.exp((near - at) / edge)) / (1 + np.exp((at - (count - 1 - far)) / edge))

    floor = rng.uniform(0.0, 0.08)
    return (floor + (1 - floor) * shutter(rows)[:, None] * shutter(cols)[None]).astype(np.float32)


def _minus_log(intensity: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(intensity, 1e-4)).astype(np.float32)


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
