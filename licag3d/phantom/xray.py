# SPDX-License-Identifier: Apache-2.0
"""From a vessel tree to an X-ray frame: attenuation, scatter, blur, quantum noise, display, collimator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    logarithm of the detected intensity, with everything in the beam), vessel ``line_integral`` float32 and ``mask``
    bool."""

    image: np.ndarray
    measured: np.ndarray
    line_integral: np.ndarray
    mask: np.ndarray


def render_frame(
    tree: VesselTree, camera: Camera, exposure: Exposure, surroundings: Surroundings | None, seed: list[int]
) -> Frame:
    """X-ray frame of a tree; without surroundings the background is uniform.

    The mask is every pixel whose ray through its centre meets a vessel.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    path_mm = path_length_mm(tree_lines(tree), camera)
    line_integral = (exposure.mu_per_mm * path_mm).astype(np.float32)
    blur = exposure.blur_px(camera)
    if surroundings is None:
        noisy = _detected(rng, np.exp(-line_integral), exposure, blur, scatter=0.0)
        return Frame(_to_bytes(185.0 * noisy), _minus_log(noisy), line_integral, path_mm > 0)
    total = line_integral + _device_integral(rng, surroundings, tree, camera, exposure)
    behind = thorax_integral(surroundings.thorax, camera)
    total += behind - np.median(behind)
    total += rng.uniform(0.04, 0.08) * cloud(rng, camera.rows, camera.cols, rng.uniform(1.25, 1.6))
    # Grain of muscle and lung, a few pixels wide.
    grain = gaussian_filter(rng.standard_normal(total.shape).astype(np.float32), 2.2)
    total += rng.uniform(0.012, 0.028) * grain / grain.std()
    primary = np.exp(-np.clip(total, -4, 9))
    noisy = _detected(rng, primary / np.median(primary), exposure, blur, scatter=exposure.scatter)
    grey = _display(rng, noisy)
    shutter = _collimator(rng, camera.rows, camera.cols)
    return Frame(_to_bytes(grey * shutter), _minus_log(noisy * shutter), line_integral, path_mm > 0)


def _device_integral(
    rng: np.random.Generator, surroundings: Surroundings, tree: VesselTree, camera: Camera, exposure: Exposure
) -> np.ndarray:
    catheter = surroundings.catheter
    outer = path_length_mm([catheter], camera)
    lumen = path_length_mm([Line(catheter.points_lps_mm, 0.68 * catheter.radius_mm)], camera)
    # The wall is made radio-opaque; the lumen holds contrast that no blood has thinned yet.
    total = 0.11 * (outer - lumen) + 1.25 * exposure.mu_per_mm * lumen
    if surroundings.wire is not None:
        total += 1.6 * path_length_mm([surroundings.wire], camera)
    if surroundings.reflux > 0:
        ostium = tree.branches[0].points_lps_mm[0]
        back = catheter.points_lps_mm[25]
        (col, row), _ = camera.project(0.4 * ostium + 0.6 * back + rng.normal(0, 3, 3))
        width = rng.uniform(6, 11) / camera.mm_per_pixel
        y, x = np.ogrid[: camera.rows, : camera.cols]
        blob = np.exp(-((x - col) ** 2 + 0.7 * (y - row) ** 2) / (2 * width**2))
        total += surroundings.reflux * blob * (1 + 0.35 * cloud(rng, camera.rows, camera.cols, 1.4)).clip(0)
    return total.astype(np.float32)


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


def _display(rng: np.random.Generator, intensity: np.ndarray) -> np.ndarray:
    """Grey values 0..255 by a monotone curve: logarithm, window by percentiles, gamma and a soft shoulder."""
    value = np.log(np.maximum(intensity, 1e-4))
    low, high = np.percentile(value[8:-8, 8:-8], (0.3, 99.7))
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
