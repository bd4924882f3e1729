# SPDX-License-Identifier: Apache-2.0
"""Evolutionary camera correction on the baked field: cameras under which the tree's projections meet the evidence.

The attenuation field of the current tree is baked once; candidates are projected by the hundred in one call of
``project_volume`` at a reduced size. Compared are pictures of where vessels are (path length, saturated), blurred from
coarse to fine, by their normalised correlation. Differential evolution over the offset of a view first, then CMA-ES
over offset, angles, SID and SOD within their reading errors, from several starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from licag3d.geometry import Camera, Cameras
from licag3d.inversion.camera_search import evolve
from licag3d.inversion.epipolar import epipolar_pair
from licag3d.ops import project_volume
from licag3d.structures import VesselEvidence, VesselTree
from licag3d.vessels.rasterize import tree_grid, tree_occupancy


@dataclass(frozen=True)
class EvolutionSettings:
    """Bounds and effort.

    Args:
        range_mm: of the offset, across and toward the baseline, about the camera as given.
        angle_sigma_deg, sid_sigma_mm, sod_sigma_mm: reading errors.
        size: rows and columns of the compared pictures. spacing_mm: voxels of the baked field.
        blur_mm: of the coarse and the fine comparison, mm at the isocentre.
        coarse: population and generations of the differential evolution. starts, population, generations: of CMA-ES.
        prior: what one standard deviation of reading error costs, as a share of correlation.
    """

    range_mm: float = 40.0
    angle_sigma_deg: float = 0.8
    sid_sigma_mm: float = 5.0
    sod_sigma_mm: float = 5.0
    size: int = 96
    spacing_mm: float = 0.8
    blur_mm: tuple[float, float] = (4.0, 1.0)
    coarse: tuple[int, int] = (32, 16)
    starts: int = 2
    population: int = 16
    generations: int = 25
    prior: float = 0.002


@dataclass(frozen=True)
class EvolvedCamera:
    """The corrected ``camera``; ``loss`` (1 - correlation at the fine scale) and ``loss_before``; ``history``: least
    loss after each generation; ``evaluations``: cameras projected."""

    camera: Camera
    loss: float
    loss_before: float
    history: tuple[float, ...]
    evaluations: int


def evolve_camera(
    tree: VesselTree,
    reference: Camera,
    camera: Camera,
    evidence: VesselEvidence,
    settings: EvolutionSettings | None = None,
    *,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> EvolvedCamera:
    """Correct one view against a tree.

    Args:
        tree: in the world of ``reference``, whose camera stays.
        camera: of the view to correct, as read. evidence: of that view, at the camera's size.

    The offset along the baseline is free here: a tree of known size fixes it (it is the gauge of a matched tree).
    """
    settings = settings or EvolutionSettings()
    grid = tree_grid(tree, settings.spacing_mm)
    # Where vessels are counts, not how thick they are: every ray through a lumen should weigh alike.
    volume = torch.from_numpy(tree_occupancy(tree, grid, supersample=2).values)
    small = camera.resized(settings.size, settings.size)
    targets = [_blurred(_shrunk(evidence, settings.size), small, blur) for blur in settings.blur_mm]
    frame = epipolar_pair(reference, camera)
    basis = np.stack([frame.across, frame.toward, np.cross(frame.across, frame.toward)])
    sigma = np.array([settings.angle_sigma_deg, settings.angle_sigma_deg, settings.sid_sigma_mm, settings.sod_sigma_mm])
    history: list[float] = []
    tried = [0]

    def build(x: np.ndarray) -> Camera:
        rest = np.zeros(4)
        rest[: len(x) - 3] = x[3:]
        moved = replace(
            small,
            primary_deg=float(np.clip(small.primary_deg + rest[0], -180, 180)),
            secondary_deg=float(np.clip(small.secondary_deg + rest[1], -90, 90)),
            sid_mm=small.sid_mm + rest[2],
            sod_mm=small.sod_mm + rest[3],
        )
        return moved.with_offset(np.asarray(small.offset_lps_mm) + x[:3] @ basis)

    def losses(population: np.ndarray, level: int) -> np.ndarray:
        tried[0] += len(population)
        cameras = Cameras.stack([build(x) for x in population])
        with torch.no_grad():
            paths = project_volume(volume, cameras, voxel_size_mm=grid.spacing_mm, origin_mm=grid.origin_mm)
            drawn = _blurred(1.0 - torch.exp(-paths), small, settings.blur_mm[level])
            target = targets[level]
            overlap = (drawn * target).sum((1, 2)) / (drawn.square().sum((1, 2)).sqrt() * target.norm() + 1e-6)
        loss = 1.0 - overlap.double().numpy()
        return loss + settings.prior * ((population[:, 3:] / sigma[: population.shape[1] - 3]) ** 2).sum(1)

    zero = np.zeros(3)
    before = float(losses(zero[None], 1)[0])
    limits = np.full((2, 3), settings.range_mm) * np.array([[-1.0], [1.0]])
    best, _ = evolve("de", lambda x: losses(x, 0), limits, zero, *settings.coarse, seed, history)
    if progress:
        progress(0.4, f"offset on the baked field: loss {history[-1]:.3f}")
    found = np.concatenate([best, np.zeros(4)])
    value = float(losses(found[None], 1)[0])
    scale = np.concatenate([np.full(3, 4.0), sigma])
    limits = np.concatenate([limits, np.stack([-3 * sigma, 3 * sigma])], 1)
    for start in range(settings.starts):
        point, loss = evolve("cmaes", lambda x: losses(x, 1), limits, found, settings.population, settings.generations,
                             seed + 1 + start, history, scale=scale * 0.5**start)  # fmt: skip
        if loss < value:
            found, value = point, loss
        if progress:
            progress(0.4 + 0.6 * (start + 1) / settings.starts, f"camera on the baked field: loss {value:.3f}")
    moved = build(found)
    corrected = replace(camera, primary_deg=moved.primary_deg, secondary_deg=moved.secondary_deg, sid_mm=moved.sid_mm,
                        sod_mm=moved.sod_mm).with_offset(moved.offset_lps_mm)  # fmt: skip
    return EvolvedCamera(corrected, value, before, tuple(history), tried[0])


def _shrunk(evidence: VesselEvidence, size: int) -> torch.Tensor:
    """``(1, size, size)`` mean probability of each cell, off the mask counted by half."""
    image = torch.from_numpy(np.where(evidence.mask, 1.0, 0.5 * evidence.probability).astype(np.float32))
    return torch.nn.functional.interpolate(image[None, None], size=(size, size), mode="area")[0]


def _blurred(images: torch.Tensor, camera: Camera, sigma_mm: float) -> torch.Tensor:
    """Images ``(n, rows, cols)`` under a Gaussian of that many mm at the isocentre, zero beyond the border.

    Views that are not square have pixels that are not, once they are made small: rows and columns have a sigma each.
    """
    out = images[:, None].float()
    for axis, spacing_mm in enumerate((camera.spacing_row_mm, camera.spacing_col_mm)):
        sigma = sigma_mm * camera.magnification / spacing_mm
        reach = max(1, int(np.ceil(3 * sigma)))
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float32) / sigma) ** 2)
        shape, pad = ((1, 1, -1, 1), (reach, 0)) if axis == 0 else ((1, 1, 1, -1), (0, reach))
        out = torch.nn.functional.conv2d(out, (kernel / kernel.sum()).view(shape), padding=pad)
    return out[:, 0]
