# SPDX-License-Identifier: Apache-2.0
"""From a vessel tree to an X-ray frame: attenuation, beam, scatter, blur, quantum noise, then the display."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.phantom import around_vessels, devices, display
from licag3d.phantom.around_vessels import Companions
from licag3d.phantom.devices import Device
from licag3d.phantom.spectrum import Beam
from licag3d.phantom.thorax import Thorax, texture, thorax_layers
from licag3d.phantom.tubes import Line, path_length_mm, tree_lines
from licag3d.structures import VesselTree

#: Iodine of the products in use, mg/ml (iopamidol, iodixanol, iohexol, iopromide).
IODINE_MG_ML = (300.0, 320.0, 350.0, 370.0)


@dataclass(frozen=True)
class Exposure:
    """Physics of one acquisition, the same for all views of a case.

    Args:
        mu_per_mm: attenuation of the opacified blood above soft tissue, in a thin layer. 300 mg iodine per ml has
            0.37/mm at 50 keV and 0.15/mm at 70 keV (``licag3d.phantom.spectrum``); injected contrast is diluted.
        quanta: detected quanta per pixel where the image has its median brightness.
        scatter: scattered over total detected intensity.
        focal_spot_mm: blur of the focus, at magnification M seen (M - 1) times as large on the detector.
        detector_blur_px: standard deviation of the detector's own blur, pixels of 512.
        dilution: iodine in the vessel over iodine in the syringe.
        beam: hardens the contrast of frames with surroundings; None is one energy.
    """

    mu_per_mm: float
    quanta: float
    scatter: float
    focal_spot_mm: float
    detector_blur_px: float
    dilution: float = 0.8
    beam: Beam | None = None

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Exposure:
        """Contrast, dose and sharpness of one patient: 300 to 370 mg/ml diluted to 35 to 62 % in the vessel, 70 to 92
        kV with 0.1 to 0.6 mm copper.
        """
        dilution = float(rng.uniform(0.35, 0.62))
        quanta = float(np.exp(rng.uniform(np.log(4e2), np.log(3.5e3))))
        scatter, focal_spot_mm = float(rng.uniform(0.35, 0.6)), float(rng.uniform(0.4, 0.8))
        blur_px = float(rng.uniform(0.5, 0.95))
        beam = Beam(float(rng.uniform(70, 92)), float(rng.choice((0.1, 0.2, 0.3, 0.6))), float(rng.uniform(170, 260)))
        mu_per_mm = beam.iodine_per_mm(dilution * float(rng.choice(IODINE_MG_ML)))
        return cls(mu_per_mm, quanta, scatter, focal_spot_mm, blur_px, dilution, beam)

    def blur_px(self, camera: Camera) -> float:
        """Standard deviation of focus and detector blur together, pixels (a disc of diameter f has f/4)."""
        focus = self.focal_spot_mm * (camera.magnification - 1) / 4 / camera.spacing_col_mm
        return float(np.hypot(focus, self.detector_blur_px * camera.cols / 512))


@dataclass(frozen=True)
class Surroundings:
    """Everything in the beam that is not the tree. What touches the vessels is stored against ``ostium_mm`` or branch
    ids and follows the tree that is rendered.

    Args:
        catheter: from its tip outwards; ``lumen_share`` inner over outer diameter (0.7 diagnostic, 0.88 guiding);
            ``lumen_contrast`` 0..1 of what the syringe holds.
        wire: the way of a guide wire through the branches (``devices.wire_branches``), or None.
        devices: everything else of metal or plastic. companions: what comes with the vessels.
    """

    thorax: Thorax
    ostium_mm: np.ndarray
    catheter: Line
    lumen_share: float
    lumen_contrast: float
    wire: tuple[tuple[int, float], ...] | None
    devices: tuple[Device, ...]
    companions: Companions

    def catheter_at(self, tree: VesselTree) -> Line:
        """The catheter with its tip at the ostium of ``tree``; further up it gives way less and less."""
        points = self.catheter.points_lps_mm
        move = tree.branches[0].points_lps_mm[0] - self.ostium_mm
        away = np.linalg.norm(points - points[0], axis=1)
        return Line(points + np.exp(-away / 40.0)[:, None] * move, self.catheter.radius_mm)


def sample_surroundings(rng: np.random.Generator, tree: VesselTree, thorax: Thorax) -> Surroundings:
    """Devices and habits of the contrast of one patient; each kind has its own random stream."""
    tube, wire, other, beside = rng.spawn(4)
    ostium = tree.branches[0].points_lps_mm[0]
    catheter = devices.catheter_line(tube, tree, thorax)
    return Surroundings(
        thorax=thorax,
        ostium_mm=ostium,
        catheter=catheter,
        lumen_share=float(tube.uniform(0.68, 0.88)),
        lumen_contrast=float(tube.uniform(0.45, 1.0)),
        wire=devices.wire_branches(wire, tree) if wire.random() < devices.SHARES["guide wire"] else None,
        devices=devices.sample_devices(other, thorax, ostium),
        companions=around_vessels.sample_companions(beside, tree, thorax.solid[0], catheter),
    )


@dataclass(frozen=True)
class Frame:
    """One rendered view, all ``(rows, cols)``: display ``image`` uint8 (uint16 from 9 bits on; vessels dark),
    ``measured`` float32 (minus the logarithm of the detected intensity, with everything in the beam), vessel
    ``line_integral`` float32, ``mask`` bool and ``devices`` bool (pixels whose ray meets a catheter, wire or other
    device).

    ``contrast_free_image`` and ``contrast_free_measured`` are the same moment with kappa times the contrast in vessels
    and catheter, with quantum noise of its own; None unless asked for. ``twigs`` bool are pixels of vessels below the
    resolution of the tree, which no truth holds: a training may leave them out of its loss.
    """

    image: np.ndarray
    measured: np.ndarray
    line_integral: np.ndarray
    mask: np.ndarray
    devices: np.ndarray
    contrast_free_image: np.ndarray | None = None
    contrast_free_measured: np.ndarray | None = None
    twigs: np.ndarray | None = None


def render_frame(
    tree: VesselTree,
    camera: Camera,
    exposure: Exposure,
    surroundings: Surroundings | None,
    seed: list[int],
    *,
    opacity: Mapping[int, np.ndarray] | None = None,
    kappa: float | None = None,
    bits: int = 8,
) -> Frame:
    """X-ray frame of a tree; without surroundings the background is uniform and the beam has one energy.

    The mask is every pixel whose ray through its centre meets opacified blood. The same arguments give the same bytes.

    Args:
        opacity: branch id to relative iodine concentration ``(n,)`` in 0..1 of each centreline sample; None is 1
            everywhere.
        kappa: share of the contrast left in the contrast-free frame, 0..1; None makes none.
        bits: of the display image, 8 to 16.

    Raises:
        InputError: kappa or bits out of range.
    """
    if kappa is not None and not 0 <= kappa <= 1:
        raise InputError(f"residual contrast kappa is {kappa}; give 0 (none) to 1 (all of it)")
    if not 8 <= bits <= 16:
        raise InputError(f"number of bits is {bits}; give 8 to 16")
    if opacity is None:
        path_mm = path_length_mm(tree_lines(tree), camera)
    else:
        from licag3d.phantom.filling import opacified_path_mm

        path_mm = opacified_path_mm(tree, opacity, camera)
    line_integral = (exposure.mu_per_mm * path_mm).astype(np.float32)
    blur = exposure.blur_px(camera)
    rows, cols = camera.rows, camera.cols

    def stream(number: int) -> np.random.Generator:
        # One stream per effect: how many numbers one effect draws never moves another.
        return np.random.default_rng([*seed, number])

    contrasts = (1.0,) if kappa is None else (1.0, float(kappa))
    made: list[np.ndarray] = []
    if surroundings is None:
        for number, contrast in enumerate(contrasts):
            noisy = _detected(stream(number), np.exp(-contrast * line_integral), exposure.quanta, blur, scatter=0.0)
            made += [display.stored(185.0 / 255.0 * noisy, bits), _minus_log(noisy)]
        return Frame(*made[:2], line_integral, path_mm > 0, np.zeros(path_mm.shape, bool), *(made[2:] or (None, None)))

    layers = thorax_layers(surroundings.thorax, camera, rng=stream(9))
    fixed = layers.total - np.median(layers.total) + texture(stream(3), layers)
    fixed += display.wedge_depth(stream(6), rows, cols)
    metal, lumen_mm, met = _hardware(surroundings, tree, camera)
    beside_mm, twigs_mm = around_vessels.contrast_beside_mm(
        surroundings.companions, tree, camera, path_mm, opacity, stream(2)
    )
    ostial = 1.0 if opacity is None else float(opacity[tree.branches[0].id][0])
    iodine = line_integral + exposure.mu_per_mm * (
        beside_mm + ostial * surroundings.lumen_contrast / exposure.dilution * lumen_mm
    )
    iodine += around_vessels.blush_integral(surroundings.companions, camera, path_mm, stream(7))
    iodine += ostial * around_vessels.reflux_integral(surroundings.companions, tree, camera, stream(8))
    fixed += metal
    settings = display.sample_display(stream(4))
    light = display.shutters(settings, rows, cols)
    bright = limits = None
    for number, contrast in enumerate(contrasts):
        seen = contrast * iodine
        seen = seen if exposure.beam is None else exposure.beam.hardened(seen)
        primary = np.exp(-np.clip(fixed + seen, -4, 9))
        # The exposure control, the window and the shutters are those of the moment: contrast does not move them.
        bright = np.median(primary) if bright is None else bright
        quanta = exposure.quanta * settings.quanta_gain()
        noisy = _detected(stream(number), primary / bright, quanta, blur, scatter=exposure.scatter)
        limits = display.window(noisy, settings) if limits is None else limits
        grey = display.shown(noisy, settings, limits, light, stream(5))
        made += [display.stored(grey, bits), _minus_log(noisy * light)]
    return Frame(*made[:2], line_integral, path_mm > 0, met, *(made[2:] or (None, None)), twigs=twigs_mm > 0)


def _hardware(
    surroundings: Surroundings, tree: VesselTree, camera: Camera
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Line integral of metal and plastic, path through the catheter's lumen in mm, and the pixels that meet either."""
    catheter = surroundings.catheter_at(tree)
    outer = path_length_mm([catheter], camera)
    inner = Line(catheter.points_lps_mm, surroundings.lumen_share * catheter.radius_mm)
    lumen = path_length_mm([inner], camera)
    total = devices.LOADED_PLASTIC * (outer - lumen)
    met = outer > 0
    others = list(surroundings.devices)
    if surroundings.wire is not None:
        others += devices.wire_devices(tree, catheter, surroundings.wire)
    for device in others:
        path = path_length_mm(device.lines, camera)
        total, met = total + device.per_mm * path, met | (path > 0)
    calcium = around_vessels.hanging_lines(surroundings.companions.calcium, tree)
    total = total + around_vessels.CALCIUM_PER_MM * path_length_mm(calcium, camera)
    return total.astype(np.float32), lumen, met


def _detected(
    rng: np.random.Generator, primary: np.ndarray, quanta: float, blur_px: float, scatter: float
) -> np.ndarray:
    """Detected intensity, median about 1: blur, scatter, Poisson noise, then the part of the blur that follows
    conversion.
    """
    from scipy.ndimage import gaussian_filter

    sharp = gaussian_filter(primary, 0.7 * blur_px)
    if scatter > 0:
        # Means of blocks, not every eighth pixel: a vessel on the grid of samples would be counted eightfold.
        padded = np.pad(sharp, [(0, -side % 8) for side in sharp.shape], mode="edge")
        blocks = padded.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8).mean((1, 3))
        small = gaussian_filter(blocks, sharp.shape[0] / 8 / 10, mode="nearest")
        veil = np.repeat(np.repeat(small, 8, 0), 8, 1)[: sharp.shape[0], : sharp.shape[1]]
        sharp = (1 - scatter) * sharp + scatter * gaussian_filter(veil, 8)
    counts = rng.poisson(quanta * sharp).astype(np.float32) / np.float32(quanta)
    return gaussian_filter(counts, 0.71 * blur_px)


def _minus_log(intensity: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(intensity, 1e-4)).astype(np.float32)
