# SPDX-License-Identifier: Apache-2.0
"""What surrounds the vessels: body, lungs, heart, domes of the diaphragm, spine, ribs, lung vessels, as line integrals.

Organs are ellipsoids and elliptic cylinders in the world, so every view of a case sees the same thorax from its own
side. A convex organ meets a ray in one interval; the lungs are what is left of theirs after heart, liver, spine and
great vessels. Attenuation of soft tissue about 0.02/mm, lung a quarter of it, spongy bone 0.035 to 0.05/mm, cortical
bone 0.07/mm at 57 keV (``spectrum.py``); the differences are halved, as scatter and beam hardening do. Bone shows by
its cortex: rims of the end plates, rings of the pedicles and edges of the ribs are thin shells or tubes around little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.phantom.heart import Heart
from licag3d.phantom.tubes import Line, path_length_mm

SOFT_TISSUE_PER_MM, LUNG_BELOW_TISSUE_PER_MM = 0.0095, 0.0065
SPINE_ABOVE_TISSUE_PER_MM, RIB_MARROW_PER_MM, LUNG_VESSEL_PER_MM = 0.0095, 0.001, 0.013
CORTEX_PER_MM, RIB_CORTEX_PER_MM, PROCESS_PER_MM = 0.03, 0.014, 0.007
_WAIST = 0.87  # of a vertebra, narrowest over widest width


@dataclass(frozen=True)
class Organ:
    """A convex quadric ``|(x - centre) @ shape| <= 1``; a zero column makes a cylinder."""

    centre: np.ndarray
    shape: np.ndarray

    def interval(self, source: np.ndarray, ray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where unit rays ``(..., 3)`` enter and leave, mm from the source; leave < enter where they miss."""
        o = (source - self.centre) @ self.shape
        d = ray @ self.shape.astype(ray.dtype)
        a, b = (d * d).sum(-1), d @ o.astype(ray.dtype)
        root = b * b - a * ray.dtype.type(o @ o - 1)
        hit = (root > 0) & (a > 1e-12)
        root = np.sqrt(np.where(hit, root, 0))
        a = np.where(a > 1e-12, a, 1)
        return np.where(hit, (-b - root) / a, 1e6), np.where(hit, (-b + root) / a, -1e6)


@dataclass(frozen=True)
class Thorax:
    """One patient's chest, LPS mm in the world of the case."""

    body: Organ
    lungs: tuple[Organ, Organ]
    solid: tuple[Organ, ...]  # what displaces lung: heart, great vessels, domes, spine
    spine: tuple[Organ, Organ]  # vertebral bodies at their widest and at their waist
    disc_phase_mm: float
    disc_pitch_mm: float
    rims: tuple[Line, ...]  # cortex of end plates and pedicles
    processes: tuple[Line, ...]
    ribs: tuple[Line, ...]
    lung_vessels: tuple[Line, ...]


def sample_thorax(rng: np.random.Generator, heart: Heart, centre_mm: np.ndarray) -> Thorax:
    """A thorax around a heart whose atrioventricular ring has its centre at ``centre_mm``."""

    def ellipsoid(centre, half_axes, spread_mm=6.0) -> Organ:
        half = np.asarray(half_axes, float) * rng.uniform(0.93, 1.07, 3)
        return Organ(centre_mm + centre + rng.normal(0, spread_mm, 3), np.diag(1 / half))

    def column(centre, half_axes, spread_mm=4.0) -> Organ:
        half = np.asarray(half_axes, float) * rng.uniform(0.93, 1.07, 2)
        at = centre_mm + np.array((*centre, 0.0)) + np.array((*rng.normal(0, spread_mm, 2), 0.0))
        return Organ(at, np.diag((1 / half[0], 1 / half[1], 0.0)))

    middle = -38.0 + rng.normal(0, 6)  # the midline lies to the right of the heart
    wall = np.array((180.0, 126.0)) * rng.uniform(0.94, 1.12)
    body = Organ(centre_mm + (middle, 22, 0), np.diag((1 / wall[0], 1 / wall[1], 0.0)))
    axes = np.stack((heart.apex, heart.up, heart.right), axis=1)
    plus = np.array((heart.apical_mm, heart.up_mm, heart.right_mm))
    minus = np.array((heart.basal_mm, heart.down_mm, heart.left_mm))
    heart_organ = Organ(centre_mm + axes @ ((plus - minus) / 2), axes / ((plus + minus) / 2 * rng.uniform(1.04, 1.12)))
    spine_y = 88 + rng.normal(0, 5)
    breath = rng.uniform(-12, 14)  # inspiration moves the domes
    domes = (
        ellipsoid((middle - 62, 18, -152 + breath), (92, 96, 98)),
        ellipsoid((middle + 88, 20, -160 + breath), (88, 92, 96)),
    )
    width, depth = np.array((17.5, 15.5)) * rng.uniform(0.9, 1.1)
    at = centre_mm * (1, 1, 0) + (middle, spine_y, 0)
    spine = tuple(Organ(at, np.diag((1 / (width * share), 1 / (depth * share), 0.0))) for share in (1.0, _WAIST))
    pitch = float(rng.uniform(25, 30))
    phase = float(rng.uniform(0, pitch))
    great = ellipsoid((middle + 12, 8, 62), (34, 30, 60))
    mediastinum = column((middle + 8, spine_y - 14), (25, 27))
    aorta = column((middle + 25, spine_y - 12), (12, 12), 2.0)
    lungs = (ellipsoid((middle - 78, 24, 22), (64, 84, 128)), ellipsoid((middle + 84, 28, 22), (62, 84, 124)))
    rims, processes = _vertebrae(rng, at, width, depth, pitch, phase, centre_mm[2])
    return Thorax(
        body,
        lungs,
        (heart_organ, great, *domes, mediastinum, aorta),
        spine,
        phase,
        pitch,
        rims,
        processes,
        tuple(_ribs(rng, centre_mm + (middle, 22, 0), wall - 14)),
        tuple(_lung_vessels(rng, centre_mm, middle)),
    )


@dataclass(frozen=True)
class Layers:
    """Line integrals of the chest ``(rows, cols)`` float32, no unit: all of it, and the parts that carry a texture of
    their own, bone and air (positive where lung is), in mm of path.
    """

    total: np.ndarray
    bone_mm: np.ndarray
    lung_mm: np.ndarray


def thorax_integral(thorax: Thorax, camera: Camera, *, reduce: int = 2) -> np.ndarray:
    """Line integral of the chest ``(rows, cols)`` float32, no unit; organs are computed at a ``reduce``-th of the
    resolution.
    """
    return thorax_layers(thorax, camera, reduce=reduce).total


def thorax_layers(thorax: Thorax, camera: Camera, *, reduce: int = 2, rng: np.random.Generator | None = None) -> Layers:
    """The chest with its bone and its lung apart, see :class:`Layers` and :func:`thorax_integral`.

    With ``rng`` the outlines of the soft organs waver by a few millimetres, as no ellipsoid does.
    """
    from scipy.ndimage import gaussian_filter, zoom

    small = camera.resized(max(camera.rows // reduce, 16), max(camera.cols // reduce, 16))
    row, col = np.mgrid[: small.rows, : small.cols]
    source, ray = small.rays(col, row)
    ray = (ray / np.linalg.norm(ray, axis=-1, keepdims=True)).astype(np.float32)
    total = SOFT_TISSUE_PER_MM * _length(thorax.body.interval(source, ray))
    inner = [organ.interval(source, ray) for organ in thorax.solid]
    lung_mm = sum(_length_outside(lung.interval(source, ray), inner) for lung in thorax.lungs)
    if rng is not None:
        lung_mm = _wavering(rng, lung_mm, 2.5 / small.mm_per_pixel)
    total -= LUNG_BELOW_TISSUE_PER_MM * lung_mm
    bone_mm = _bodies_mm(thorax, source, ray)
    total += SPINE_ABOVE_TISSUE_PER_MM * bone_mm
    total += PROCESS_PER_MM * path_length_mm(thorax.processes, small)
    outer = path_length_mm(thorax.ribs, small)
    marrow = path_length_mm([Line(rib.points_lps_mm, 0.88 * rib.radius_mm) for rib in thorax.ribs], small)
    total += RIB_CORTEX_PER_MM * np.maximum(outer - marrow, 0) + RIB_MARROW_PER_MM * marrow
    total += LUNG_VESSEL_PER_MM * np.minimum(path_length_mm(thorax.lung_vessels, small), 8.0)
    # Heart beat and breathing blur what is not in plane.
    total = gaussian_filter(total, 0.8) + CORTEX_PER_MM * path_length_mm(thorax.rims, small)
    bone_mm = bone_mm + 0.3 * outer

    def full(image: np.ndarray) -> np.ndarray:
        factor = (camera.rows / small.rows, camera.cols / small.cols)
        return zoom(image.astype(np.float32), factor, order=1, grid_mode=True, mode="nearest")

    return Layers(full(total), full(bone_mm), full(lung_mm))


def _wavering(rng: np.random.Generator, image: np.ndarray, size_px: float) -> np.ndarray:
    """The image with every point moved by a smooth random field of standard deviation ``size_px`` per axis."""
    from scipy.ndimage import map_coordinates

    rows, cols = image.shape
    row, col = np.mgrid[:rows, :cols].astype(np.float32)
    fields = (size_px * cloud(rng, rows, cols, 2.6) for _ in range(2))
    return map_coordinates(image, [row + next(fields), col + next(fields)], order=1, mode="nearest")


def _bodies_mm(thorax: Thorax, source: np.ndarray, ray: np.ndarray) -> np.ndarray:
    """Path through the vertebral bodies ``(rows, cols)``, discs counted as a third of bone, end plates as more."""
    wide, narrow = (_length(organ.interval(source, ray)) for organ in thorax.spine)
    hit = wide > 0
    if not hit.any():
        return np.zeros_like(wide)
    enter, leave = (side[hit] for side in thorax.spine[0].interval(source, ray))
    pitch, weight, waist = thorax.disc_pitch_mm, 0.0, 0.0
    shares = (np.arange(6) + 0.5) / 6
    for share in shares:  # along the ray, so that oblique views smear discs as they should
        z = source[2] + (enter + share * (leave - enter)) * ray[..., 2][hit] + thorax.disc_phase_mm
        along = np.abs(z / pitch - np.rint(z / pitch)) * pitch  # from the middle of a disc
        disc, plate = 1 / (1 + np.exp((along - 3.0) / 0.5)), np.exp(-(((along - 3.8) / 0.8) ** 2))
        weight += (1 - 0.65 * disc + 0.7 * plate) / len(shares)
        waist += np.clip((along - 4) / (0.5 * pitch - 4), 0, 1) / len(shares)
    waist = waist * waist * (3 - 2 * waist)
    total = np.zeros_like(wide)
    total[hit] = weight * ((1 - waist) * wide[hit] + waist * narrow[hit])
    # The cortex of the sides: where the ray is tangent to the body.
    return total + 0.8 * np.where(hit, np.clip(wide - total, 0, 6), 0)


def _vertebrae(
    rng: np.random.Generator, at: np.ndarray, width: float, depth: float, pitch: float, phase: float, middle_z: float
) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    """Rims of end plates and pedicles, and the processes, of the vertebrae within 170 mm of the heart."""
    rims, processes = [], []
    circle = np.linspace(0, 2 * np.pi, 29)
    for number in range(int((middle_z - 170 + phase) / pitch), int((middle_z + 170 + phase) / pitch) + 1):
        z = pitch * number - phase  # middle of the disc under the body
        for edge in (3.8, pitch - 3.8):
            wobble = 1 + 0.02 * np.sin(2 * circle + rng.uniform(0, 6))
            ring = np.stack((width * np.sin(circle) * wobble, depth * np.cos(circle), np.zeros(29)), axis=1)
            ring[:, 2] = rng.normal(0, 0.3) + 0.8 * np.sin(circle + rng.uniform(0, 6))
            rims.append(Line(at + (0, 0, z + edge) + ring, np.full(29, rng.uniform(0.55, 0.95))))
        for side in (-1.0, 1.0):
            pedicle = np.array((side * 0.62 * width, depth - 1, z + 0.66 * pitch)) + rng.normal(0, 0.5, 3)
            ring = np.stack((3.4 * np.sin(circle), 0.8 * np.sin(circle + 1), 5.6 * np.cos(circle)), axis=1)
            rims.append(Line(at + pedicle + ring, np.full(29, rng.uniform(0.7, 1.1))))
            ends = np.array(((side * 10, depth + 8, z + 0.55 * pitch), (side * 31, depth + 17, z + 0.62 * pitch)))
            processes.append(Line(at + ends + rng.normal(0, 1, (2, 3)), np.array((4.2, 3.2))))
            facet = np.array(((side * 12, depth + 10, z + 0.3 * pitch), (side * 13, depth + 13, z - 0.1 * pitch)))
            processes.append(Line(at + facet + rng.normal(0, 0.7, (2, 3)), np.array((4.0, 4.5))))
        spinous = np.array(((0, depth + 12, z + 0.35 * pitch), (0, depth + 34, z - 0.45 * pitch)))
        processes.append(Line(at + spinous + rng.normal(0, 1, (2, 3)), np.array((4.5, 3.4))))
    return tuple(rims), tuple(processes)


def texture(rng: np.random.Generator, layers: Layers) -> np.ndarray:
    """What no organ explains ``(rows, cols)`` float32, no unit: clouds of muscle and fat (1/f), fine strands,
    trabeculae where there is bone and mottle where there is lung.
    """
    rows, cols = layers.total.shape
    total = rng.uniform(0.025, 0.06) * cloud(rng, rows, cols, rng.uniform(1.25, 1.6))
    scale = cols / 512

    def band(fine_px: tuple[float, float], coarse: float) -> np.ndarray:
        """Noise between two widths: what a Gaussian lets pass less what one ``coarse`` times as wide does."""
        fy, fx = _frequencies(rows, cols)
        power = 2 * (np.pi * scale) ** 2 * ((fine_px[0] * fy) ** 2 + (fine_px[1] * fx) ** 2)
        return _noise(rng, rows, cols, np.exp(-power) - np.exp(-power * coarse**2))

    # Strands: the crests of a smooth field, drawn out in one direction of the image, as fascia and vessels of the lung
    # are; twice, at two widths.
    air = layers.lung_mm / 100
    strands = np.exp(rng.uniform(np.log(0.010), np.log(0.028)))
    for width in (1.3, 2.8, 6.0):
        field = band((width, width * rng.uniform(1.0, 1.8))[:: rng.choice((-1, 1))], 4.0)
        crest = np.exp(-np.abs(field) * 2.2)
        total += strands * rng.uniform(0.6, 1.4) * (0.7 + 0.6 * air) * (crest - crest.mean()) / crest.std()
    total += rng.uniform(0.006, 0.016) * band((1.8, 1.8), 3.0)
    total += rng.uniform(0.0002, 0.0006) * layers.bone_mm * band((1.6, 0.9), 3.0)
    return total + rng.uniform(0.006, 0.016) * air * band((3.0, 3.0), 3.5)


def cloud(rng: np.random.Generator, rows: int, cols: int, exponent: float) -> np.ndarray:
    """Noise ``(rows, cols)`` of unit variance with amplitude spectrum 1/f^exponent: soft tissue that no organ
    explains.
    """
    fy, fx = _frequencies(rows, cols)
    frequency = np.sqrt(fy**2 + fx**2)
    frequency[0, 0] = 1.0
    gain = np.maximum(frequency, 2 / rows) ** np.float32(-exponent)
    gain[0, 0] = 0
    return _noise(rng, rows, cols, gain)


def _frequencies(rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    return np.fft.fftfreq(rows).astype(np.float32)[:, None], np.fft.rfftfreq(cols).astype(np.float32)[None]


def _noise(rng: np.random.Generator, rows: int, cols: int, gain: np.ndarray) -> np.ndarray:
    """White noise through a filter ``gain`` over :func:`_frequencies`; unit variance, float32."""
    from scipy.fft import irfft2, rfft2

    white = rng.standard_normal((rows, cols), dtype=np.float32)
    field = irfft2(rfft2(white) * gain.astype(np.float32), (rows, cols))
    return (field / field.std()).astype(np.float32)


def _length(interval: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return np.maximum(interval[1] - interval[0], 0)


def _length_outside(outer: tuple[np.ndarray, np.ndarray], inner: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Length of one interval per ray that no other interval covers: a sweep over the others in order of entry."""
    enter = np.stack([np.maximum(one[0], outer[0]) for one in inner])
    leave = np.stack([np.minimum(one[1], outer[1]) for one in inner])
    order = np.argsort(enter, axis=0)
    enter, leave = np.take_along_axis(enter, order, 0), np.take_along_axis(leave, order, 0)
    covered, reached = np.zeros_like(outer[0]), outer[0].copy()
    for a, b in zip(enter, leave, strict=True):
        covered += np.maximum(b - np.maximum(a, reached), 0)
        reached = np.maximum(reached, b)
    return np.maximum(_length(outer) - covered, 0)


def _ribs(rng: np.random.Generator, centre: np.ndarray, half_axes: np.ndarray):
    pitch, first = rng.uniform(24, 29), rng.uniform(95, 120)
    slope, radius = rng.uniform(40, 65), rng.uniform(4.4, 6.0)
    for number in range(9):
        for side in (-1.0, 1.0):
            # From the spine (turn 0, at the back) round the side to the front, falling on the way.
            turn = np.linspace(0.12, 2.45, 36)
            points = np.stack(
                (
                    side * half_axes[0] * np.sin(turn),
                    half_axes[1] * np.cos(turn),
                    first
                    - pitch * number
                    - slope * np.clip(turn / 2.0, 0, 1) ** 1.2
                    + 3 * np.sin(2 * turn + rng.uniform(0, 6)),
                ),
                axis=1,
            )
            # Towards the front bone gives way to cartilage, which hardly shows.
            taper = np.clip((2.45 - turn) / 0.7, 0.25, 1) ** 0.7
            yield Line(centre + points, taper * radius * (1 + 0.12 * np.sin(3 * turn + rng.uniform(0, 6))))


def _lung_vessels(rng: np.random.Generator, centre: np.ndarray, middle: float):
    for side in (-1.0, 1.0):
        hilum = centre + (middle + side * 38, 32, 18)
        for _ in range(26):
            direction = np.array((side * rng.uniform(0.2, 1.0), rng.normal(0, 0.6), rng.normal(-0.2, 0.8)))
            # Vessels leave the hilum over some centimetres, not in one point.
            start = hilum + rng.normal(0, (8, 10, 16)) + rng.uniform(0, 25) * _unit(direction)
            trunk = _twig(rng, start, direction, rng.uniform(60, 110), rng.uniform(1.6, 3.0))
            yield trunk
            for _ in range(3):
                at = rng.integers(5, len(trunk.points_lps_mm) - 3)
                tangent = trunk.points_lps_mm[at + 1] - trunk.points_lps_mm[at]
                tangent = tangent / np.linalg.norm(tangent) + rng.normal(0, 0.5, 3)
                yield _twig(rng, trunk.points_lps_mm[at], tangent, rng.uniform(20, 50), 0.7 * trunk.radius_mm[at])


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _twig(rng: np.random.Generator, start: np.ndarray, direction: np.ndarray, length: float, radius: float) -> Line:
    count = 16
    steps = direction / np.linalg.norm(direction) + np.cumsum(rng.normal(0, 0.12, (count - 1, 3)), axis=0)
    steps *= length / (count - 1) / np.linalg.norm(steps, axis=1, keepdims=True)
    return Line(
        np.concatenate((start[None], start + np.cumsum(steps, axis=0))), np.linspace(radius, 0.25 * radius, count)
    )
