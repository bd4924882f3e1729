# SPDX-License-Identifier: Apache-2.0
"""What surrounds the vessels: body, lungs, heart, domes of the diaphragm, spine, ribs, lung vessels, as line integrals.

Organs are ellipsoids and elliptic cylinders in the world, so every view of a case sees the same thorax from its own
side. A convex organ meets a ray in one interval; the lungs are what is left of theirs after heart, liver, spine and
great vessels. Attenuation of soft tissue about 0.02/mm, lung a quarter of it, bone 0.035 to 0.05/mm at diagnostic
energies (NIST XCOM); the differences are halved, as scatter and beam hardening do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.phantom.heart import Heart
from licag3d.phantom.tubes import Line, path_length_mm

SOFT_TISSUE_PER_MM, LUNG_BELOW_TISSUE_PER_MM = 0.0095, 0.0065
SPINE_ABOVE_TISSUE_PER_MM, RIB_MARROW_PER_MM, RIB_CORTEX_PER_MM, LUNG_VESSEL_PER_MM = 0.010, 0.002, 0.012, 0.011
_DISC_PITCH_MM = 30.0


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
    spine: tuple[Organ, Organ]
    disc_phase_mm: float
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
    wall = np.array((160.0, 108.0)) * rng.uniform(0.92, 1.1)
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
    spine = (column((middle, spine_y), (17, 16), 0.5), column((middle, spine_y + 26), (9, 18), 0.5))
    great = ellipsoid((middle + 12, 8, 62), (34, 30, 60))
    mediastinum = column((middle + 8, spine_y - 14), (30, 34))
    lungs = (ellipsoid((middle - 78, 24, 22), (64, 84, 128)), ellipsoid((middle + 84, 28, 22), (62, 84, 124)))
    return Thorax(
        body,
        lungs,
        (heart_organ, great, *domes, mediastinum),
        spine,
        float(rng.uniform(0, _DISC_PITCH_MM)),
        tuple(_ribs(rng, centre_mm + (middle, 22, 0), wall - 14)),
        tuple(_lung_vessels(rng, centre_mm, middle)),
    )


def thorax_integral(thorax: Thorax, camera: Camera, *, reduce: int = 2) -> np.ndarray:
    """Line integral of the chest ``(rows, cols)`` float32, no unit; organs are computed at a ``reduce``-th of the
    resolution.
    """
    from scipy.ndimage import gaussian_filter, zoom

    small = camera.resized(max(camera.rows // reduce, 16), max(camera.cols // reduce, 16))
    row, col = np.mgrid[: small.rows, : small.cols]
    source, ray = small.rays(col, row)
    ray = (ray / np.linalg.norm(ray, axis=-1, keepdims=True)).astype(np.float32)
    total = SOFT_TISSUE_PER_MM * _length(thorax.body.interval(source, ray))
    inner = [organ.interval(source, ray) for organ in thorax.solid]
    for lung in thorax.lungs:
        total -= LUNG_BELOW_TISSUE_PER_MM * _length_outside(lung.interval(source, ray), inner)
    for number, organ in enumerate(thorax.spine):
        enter, leave = organ.interval(source, ray)
        length = np.maximum(leave - enter, 0)
        z = source[2] + 0.5 * (enter + leave) * ray[..., 2] + thorax.disc_phase_mm
        along = np.abs(z / _DISC_PITCH_MM - np.rint(z / _DISC_PITCH_MM)) * _DISC_PITCH_MM  # from the middle of a disc
        disc, plate = 1 / (1 + np.exp((along - 3.5) / 0.6)), np.exp(-(((along - 5.0) / 1.3) ** 2))
        total += (
            SPINE_ABOVE_TISSUE_PER_MM
            * length
            * np.where(length > 0, 1 - 0.5 * disc + 0.25 * plate, 0)
            * (1 - 0.4 * number)
        )
    outer = path_length_mm(thorax.ribs, small)
    marrow = path_length_mm([Line(rib.points_lps_mm, 0.72 * rib.radius_mm) for rib in thorax.ribs], small)
    total += RIB_CORTEX_PER_MM * np.maximum(outer - marrow, 0) + RIB_MARROW_PER_MM * marrow
    total += LUNG_VESSEL_PER_MM * np.minimum(path_length_mm(thorax.lung_vessels, small), 8.0)
    # Heart beat and breathing blur what is not in plane; a millimetre is typical.
    total = gaussian_filter(total, 1.0).astype(np.float32)
    return zoom(total, (camera.rows / small.rows, camera.cols / small.cols), order=1, grid_mode=True, mode="nearest")


def cloud(rng: np.random.Generator, rows: int, cols: int, exponent: float) -> np.ndarray:
    """Noise ``(rows, cols)`` of unit variance with amplitude spectrum 1/f^exponent: soft tissue that no organ
    explains.
    """
    fy, fx = np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(cols)[None]
    frequency = np.sqrt(fy**2 + fx**2)
    frequency[0, 0] = 1.0
    spectrum = (
        np.fft.rfft2(rng.standard_normal((rows, cols)).astype(np.float32))
        * np.maximum(frequency, 2 / rows) ** -exponent
    )
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (rows, cols))
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
    slope, radius = rng.uniform(40, 65), rng.uniform(4.2, 5.4)
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
            yield Line(centre + points, radius * (1 + 0.12 * np.sin(3 * turn + rng.uniform(0, 6))))


def _lung_vessels(rng: np.random.Generator, centre: np.ndarray, middle: float):
    for side in (-1.0, 1.0):
        hilum = centre + (middle + side * 38, 32, 18)
        for _ in range(26):
            direction = np.array((side * rng.uniform(0.2, 1.0), rng.normal(0, 0.6), rng.normal(-0.2, 0.8)))
            trunk = _twig(rng, hilum, direction, rng.uniform(60, 110), rng.uniform(1.6, 3.0))
            yield trunk
            for _ in range(3):
                at = rng.integers(5, len(trunk.points_lps_mm) - 3)
                tangent = trunk.points_lps_mm[at + 1] - trunk.points_lps_mm[at]
                tangent = tangent / np.linalg.norm(tangent) + rng.normal(0, 0.5, 3)
                yield _twig(rng, trunk.points_lps_mm[at], tangent, rng.uniform(20, 50), 0.7 * trunk.radius_mm[at])


def _twig(rng: np.random.Generator, start: np.ndarray, direction: np.ndarray, length: float, radius: float) -> Line:
    count = 16
    steps = direction / np.linalg.norm(direction) + np.cumsum(rng.normal(0, 0.12, (count - 1, 3)), axis=0)
    steps *= length / (count - 1) / np.linalg.norm(steps, axis=1, keepdims=True)
    return Line(
        np.concatenate((start[None], start + np.cumsum(steps, axis=0))), np.linspace(radius, 0.25 * radius, count)
    )
