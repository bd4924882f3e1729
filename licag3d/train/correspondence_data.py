# SPDX-License-Identifier: Apache-2.0
"""From stored pairs of views to samples of the correspondence network: cameras as a search leaves them, candidates,
and which of them are right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from licag3d.data.view_pairs import ViewPair, load_pair, pair_files
from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.inversion.chains import thinned
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair
from licag3d.inversion.matching import MatchSettings, both_candidates

#: A candidate is right where one true point shows within this of both its pixels, mm at the isocentre.
RIGHT_MM = 1.25
#: What a search leaves: root mean square distance of true points from their epipolar planes, mm, and what it may get
#: wrong without moving them more: angles in degrees, offsets in mm (one standard deviation).
PLANE_ERROR_MM, ANGLE_DEG, OFFSET_MM = 0.3, 1.0, 4.0


def searched_cameras(rng: np.random.Generator, pair: ViewPair, error_mm: float = PLANE_ERROR_MM):
    """True cameras with the errors that a camera search leaves: large where they do not show, small where they do.

    Six parameters (the second angle of the first view, angles and offset of the second) are drawn along the singular
    directions of the true points' distances from their epipolar planes, each so far that it adds its share to the
    error.
    """
    true = pair.true_cameras
    points = [curve[:: max(1, len(curve) // 150)] for curve in pair.curves_mm]
    pixels = [camera.project(p)[0] for camera, p in zip(true, points, strict=True)]
    spread = np.array([ANGLE_DEG] * 3 + [OFFSET_MM] * 3)

    def gaps_mm(unit: np.ndarray) -> np.ndarray:
        cameras = _moved(true, unit * spread)
        frame = epipolar_pair(*cameras)
        theta = [epipolar_angles(frame, c, p)[0] for c, p in zip(cameras, pixels, strict=True)]
        return (theta[0] - theta[1]) * 0.5 * (true[0].sod_mm + true[1].sod_mm)

    step = 0.05
    jacobian = np.stack([(gaps_mm(step * e) - gaps_mm(-step * e)) / (2 * step) for e in np.eye(6)], 1)
    _, size, directions = np.linalg.svd(jacobian / np.sqrt(len(jacobian)), full_matrices=False)
    target = error_mm * np.exp(0.5 * rng.standard_normal())
    each = np.minimum(1.0, target / np.sqrt(6) / np.maximum(size, 1e-9))
    return _moved(true, (directions.T @ (each * rng.standard_normal(6))) * spread)


def _moved(cameras: tuple[Camera, Camera], by: np.ndarray) -> tuple[Camera, Camera]:
    first, second = cameras
    offset = np.asarray(second.offset_lps_mm) + by[3:]
    return (
        replace(first, secondary_deg=first.secondary_deg + by[0]),
        replace(
            second,
            primary_deg=second.primary_deg + by[1],
            secondary_deg=second.secondary_deg + by[2],
            offset_lps_mm=tuple(offset),
        ),
    )


@dataclass(frozen=True)
class Labelled:
    """A sample with the truth, its pictures ``(2, 2, side, side)``, hand-made costs per mm (per view ``(N, K)``, inf
    where there is no candidate) and weights of the points in mm."""

    sample: object
    pictures: np.ndarray
    hand: tuple[np.ndarray, np.ndarray]
    weight_mm: tuple[np.ndarray, np.ndarray]


def labelled(
    pair: ViewPair,
    way: str,
    cameras: tuple[Camera, Camera],
    *,
    settings: MatchSettings | None = None,
    swap: bool = False,
    hand: bool = False,
) -> Labelled:
    """Candidates of every second point under the given cameras, and which are right under the true ones.

    The network itself sees every second of those points.

    Args:
        swap: the second view first. hand: also what the hand-made costs say.
    """
    import torch

    from licag3d.models.correspondence import pair_sample, pictures_of
    from licag3d.models.correspondence_cues import TREE_MM, middle_mm

    settings = settings or MatchSettings()
    order = (1, 0) if swap else (0, 1)
    chains = tuple(thinned(pair.chains[way][k])[0] for k in order)
    cameras = tuple(cameras[k] for k in order)
    candidates = both_candidates(cameras, chains, settings)
    points = tuple(thinned(chain) for chain in chains)
    sample = pair_sample(cameras, chains, candidates, settings.path, points)
    shown = [pair.true_cameras[k].project(pair.curves_mm[k])[0] * chains[order[k]].mm_per_pixel for k in (0, 1)]
    shown = [shown[k] for k in order]
    middle = middle_mm(cameras, chains)
    sample.right, sample.branch, sample.depth = [], [], []
    for k in (0, 1):
        own, other = chains[k], chains[1 - k]
        right = _right(own, other, candidates[k], np.concatenate([shown[k], shown[1 - k]], 1))
        sample.right.append(torch.from_numpy(right))
        branch, depth = _shown_at(pair, own, cameras[k], shown[k], order[k], middle)
        # Along the baseline the offset is a gauge: depths are those of the right candidates, not of the true cameras.
        off = (candidates[k].points_mm - middle) @ cameras[k].frame.beam - depth[:, None]
        off = off[right & np.isfinite(off)]
        depth = depth + (np.median(off) if len(off) else np.nan)
        sample.branch.append(torch.from_numpy(branch[points[k][1]]))
        sample.depth.append(torch.from_numpy((depth[points[k][1]] / TREE_MM).astype(np.float32)))
    costs = _hand_made(cameras, chains, candidates, settings) if hand else ()
    seen = pair.seen[way]
    pictures = np.stack([pictures_of(seen[k]) for k in order])
    return Labelled(sample, pictures, costs, tuple(c.weight_mm for c in chains))


def _right(own, other, candidates, shown: np.ndarray) -> np.ndarray:
    """``(N, K)`` bool; ``shown`` ``(M, 4)`` true points as this and the other view show them, mm."""
    from scipy.spatial import cKDTree

    real = np.isfinite(candidates.cost)
    right = np.zeros(real.shape, bool)
    if not real.any():
        return right
    rows, columns = np.nonzero(real)
    edge, share = candidates.edge[rows, columns], candidates.fraction[rows, columns, None]
    there = other.pixels[edge] * (1 - share) + other.pixels[np.minimum(edge + 1, len(other.pixels) - 1)] * share
    asked = np.concatenate([own.pixels[rows] * own.mm_per_pixel, there * other.mm_per_pixel], 1)
    right[rows, columns] = cKDTree(shown).query(asked, p=np.inf)[0] < RIGHT_MM
    return right


def _shown_at(pair: ViewPair, own, camera: Camera, shown: np.ndarray, view: int, middle: np.ndarray):
    """Branch and depth (mm beyond ``middle`` along the beam) of what every point shows; -1 and NaN where nothing is."""
    from scipy.spatial import cKDTree

    from licag3d.models.correspondence import BRANCHES

    branch, depth = np.full(len(own.pixels), -1), np.full(len(own.pixels), np.nan)
    if not len(own.pixels):
        return branch, depth
    gap, nearest = cKDTree(shown).query(own.pixels * own.mm_per_pixel)
    there = gap < RIGHT_MM
    names = [name.split(".")[0] for name in pair.names]
    number = np.array([BRANCHES.index(name) if name in BRANCHES else len(BRANCHES) - 1 for name in names])
    branch[there] = number[pair.branch[nearest[there]]]
    # Depth seen from the corrected camera: scale and offset along the beam are those of the search.
    true = pair.true_cameras[view]
    source = true.source_lps_mm
    beyond = (pair.curves_mm[view][nearest] - source) @ true.frame.beam
    depth[there] = beyond[there] - (middle - camera.source_lps_mm) @ camera.frame.beam
    return branch, depth


def _hand_made(cameras, chains, candidates, settings: MatchSettings) -> tuple[np.ndarray, np.ndarray]:
    from licag3d.inversion.contrast import contrast_mismatch, image_planes

    planes = [image_planes(camera, chain) for camera, chain in zip(cameras, chains, strict=True)]
    out = []
    for k in (0, 1):
        c = candidates[k]
        real = np.isfinite(c.cost)
        near = np.where(real, c.edge + (c.fraction > 0.5), 0)
        slope, bore = contrast_mismatch((planes[k], planes[1 - k]), near, (chains[k], chains[1 - k]))
        out.append(np.where(real, c.cost + settings.slope_price * slope + settings.bore_price * bore, np.inf))
    return tuple(out)


class PairStream:
    """Batches of labelled pairs from pools of files; batch ``n`` is a function of ``n``, the seed and the files used.

    Args:
        pools: folders of :mod:`licag3d.data.view_pairs` with the share of the batches that each gives.
    """

    def __init__(self, pools: list[tuple[Path, float]], seed: int) -> None:
        self.pools = [(Path(folder), share) for folder, share in pools]
        self.seed = seed
        self.files: list[list[Path]] = []
        self.refresh()
        self.used = [len(files) for files in self.files]

    def refresh(self) -> list[int]:
        """Look again which files there are; those known keep their numbers as long as seeds only grow."""
        from licag3d.phantom.splits import TRAINING

        self.files = [pair_files(folder) for folder, _ in self.pools]
        for files in self.files:
            strangers = [file for file in files if int(file.stem) not in TRAINING]
            if strangers:
                raise InputError(f"{strangers[0]}: this seed is not for training; make the pool anew")
        return [len(files) for files in self.files]

    def batch(self, step: int, size: int) -> dict:
        """``pictures`` ``(2 size, 2, side, side)`` and ``samples``."""
        items = [self.draw(step * size + n) for n in range(size)]
        return collate(items)

    def draw(self, number: int) -> Labelled:
        """One labelled pair: a pool by its share, a file, a way of tracing, an order of the views, camera errors."""
        rng = np.random.default_rng([self.seed, 17, number])
        for _ in range(20):
            share = np.array([share for _, share in self.pools])
            pool = rng.choice(len(self.pools), p=share / share.sum())
            files = self.files[pool][: self.used[pool]]
            pair = load_pair(files[rng.integers(len(files))])
            ways = list(pair.chains)
            way = ways[rng.integers(len(ways))]
            cameras = searched_cameras(rng, pair)
            if all(len(c.step_mm) > 40 for c in pair.chains[way]):
                return labelled(pair, way, cameras, swap=bool(rng.random() < 0.5))
        raise InputError(f"{self.pools[0][0]}: hardly any pair of this pool shows vessels in both views")


def collate(items: list[Labelled]) -> dict:
    """A batch of labelled pairs."""
    import torch

    pictures = torch.from_numpy(np.concatenate([item.pictures for item in items]))
    return {"pictures": pictures, "samples": Samples([item.sample for item in items])}


class Samples(list):
    """A list of samples that moves between devices as a tensor does."""

    def to(self, device) -> Samples:
        """The same on another device."""
        return Samples([sample.to(device) for sample in self])
