# SPDX-License-Identifier: Apache-2.0
"""What comes with the vessels but is no part of the truth: twigs below the resolution of the tree, calcium in the
walls, uneven mixing of the contrast, blush of the heart muscle, contrast that runs back into the aorta.

Everything hangs on the tree by branch and sample, so that it moves with the vessels from phase to phase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.phantom.thorax import Organ, cloud
from licag3d.phantom.tubes import Line, path_length_mm
from licag3d.structures import VesselTree

#: Calcified plaque above soft tissue, 1/mm: cortical bone has +0.05/mm, plaque some two thirds of its density.
CALCIUM_PER_MM = 0.035
#: Shares of patients with calcium that fluoroscopy shows, and with visible layers in the contrast: our choice.
CALCIUM_SHARE, LAYER_SHARE, REFLUX_SHARE = 0.3, 0.4, 0.35


@dataclass(frozen=True)
class Hanging:
    """A tube relative to sample ``index`` of branch ``branch``: points ``(n, 3)`` mm from it, radius ``(n,)`` mm."""

    branch: int
    index: int
    points_mm: np.ndarray
    radius_mm: np.ndarray


@dataclass(frozen=True)
class Companions:
    """Habits of one patient's contrast, drawn once.

    Args:
        twigs, calcium: tubes that hang on the tree.
        layer: share of the contrast that has sunk to the lower side of the lumen, 0..1; ``layer_side`` ``(3,)`` unit
            vector to that side.
        mixing: relative standard deviation of the line integral along and across the vessels.
        blush: line integral of the stained muscle at its brightest.
        reflux: line integral of the contrast in the aortic root at its middle; ``reflux_mm`` ``(3,)`` from the ostium
            to it, ``reflux_width_mm`` standard deviation.
    """

    twigs: tuple[Hanging, ...]
    calcium: tuple[Hanging, ...]
    layer: float
    layer_side: np.ndarray
    mixing: float
    blush: float
    reflux: float
    reflux_mm: np.ndarray
    reflux_width_mm: float


def sample_companions(rng: np.random.Generator, tree: VesselTree, heart: Organ, catheter: Line) -> Companions:
    """What comes with the vessels of one patient; each part has its own random stream."""
    twigs, calcium, rest = rng.spawn(3)
    back = catheter.points_lps_mm[min(28, len(catheter.points_lps_mm) - 1)] - tree.branches[0].points_lps_mm[0]
    return Companions(
        twigs=tuple(_twigs(twigs, tree, heart)),
        calcium=tuple(_calcium(calcium, tree)) if calcium.random() < CALCIUM_SHARE else (),
        layer=float(rest.uniform(0.05, 0.3)) if rest.random() < LAYER_SHARE else 0.0,
        layer_side=_unit(np.array((0.0, 1.0, 0.0)) + rest.normal(0, 0.3, 3)),  # the patient lies on the back
        mixing=float(rest.uniform(0.02, 0.1)),
        blush=float(rest.uniform(0.0, 0.05)),
        reflux=float(rest.uniform(0.1, 0.6)) if rest.random() < REFLUX_SHARE else 0.0,
        reflux_mm=0.6 * back + rest.normal(0, 3, 3),
        reflux_width_mm=float(rest.uniform(5, 10)),
    )


def hanging_lines(hanging: Sequence[Hanging], tree: VesselTree) -> list[Line]:
    """The tubes where the tree carries them now."""
    by_id = {branch.id: branch.points_lps_mm for branch in tree.branches}
    return [
        Line(by_id[one.branch][min(one.index, len(by_id[one.branch]) - 1)] + one.points_mm, one.radius_mm)
        for one in hanging
        if one.branch in by_id
    ]


def contrast_beside_mm(
    companions: Companions,
    tree: VesselTree,
    camera: Camera,
    path_mm: np.ndarray,
    opacity: Mapping[int, np.ndarray] | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Path of undiluted contrast that the vessels show beside their even filling.

    Returns:
        ``(rows, cols)`` float32 mm to add to ``path_mm`` (may be negative where mixing left less), and the path of the
        twigs alone.
    """
    twigs = path_length_mm(hanging_lines(_reached(companions.twigs, opacity), tree), camera)
    extra = np.maximum(twigs - 0.5 * (path_mm > 0) * twigs, 0)
    share = np.zeros_like(path_mm)
    if companions.layer > 0:
        # A tube of 0.6 radii moved to the lower side by 0.35 of them holds 36 % of the lumen.
        moved = [
            Line(
                branch.points_lps_mm + 0.35 * branch.radius_mm[:, None] * companions.layer_side, 0.6 * branch.radius_mm
            )
            for branch in tree.branches
        ]
        low = np.minimum(path_length_mm(moved, camera), path_mm)
        share += companions.layer * (low / np.maximum(path_mm, 1e-3) / 0.5 - 1) * (path_mm > 0)
    grain = cloud(rng, camera.rows, camera.cols, 1.0)
    share += companions.mixing * grain
    return (extra + path_mm * np.clip(share, -0.5, 0.5)).astype(np.float32), twigs


def blush_integral(companions: Companions, camera: Camera, path_mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Line integral ``(rows, cols)`` of muscle stained by the contrast: a soft cloud round the small vessels."""
    from scipy.ndimage import gaussian_filter, zoom

    if companions.blush <= 0:
        return np.zeros_like(path_mm)
    step = max(camera.cols // 64, 1)
    small = (path_mm > 0)[::step, ::step].astype(np.float32)
    soft = gaussian_filter(small, 9.0 / camera.mm_per_pixel / step)
    soft = soft / max(float(soft.max()), 1e-6) * (1 + 0.3 * cloud(rng, *soft.shape, 1.2)).clip(0)
    factor = (camera.rows / soft.shape[0], camera.cols / soft.shape[1])
    return companions.blush * zoom(soft, factor, order=1, grid_mode=True, mode="nearest").clip(0)


def reflux_integral(companions: Companions, tree: VesselTree, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Line integral ``(rows, cols)`` of the contrast that runs back into the aortic root: an uneven cloud."""
    if companions.reflux <= 0:
        return np.zeros((camera.rows, camera.cols), np.float32)
    (col, row), _ = camera.project(tree.branches[0].points_lps_mm[0] + companions.reflux_mm)
    width = companions.reflux_width_mm / camera.mm_per_pixel
    y, x = np.ogrid[: camera.rows, : camera.cols]
    turn = rng.uniform(0, np.pi)
    along = (x - col) * np.cos(turn) + (y - row) * np.sin(turn)
    across = (y - row) * np.cos(turn) - (x - col) * np.sin(turn)
    distance = (along**2 + 2.0 * across**2) / width**2
    field = cloud(rng, camera.rows, camera.cols, 1.5)
    blob = np.clip(1.15 - distance / 3 + 0.25 * field, 0, 1)
    return (companions.reflux * blob * blob * (3 - 2 * blob)).astype(np.float32)


def _reached(twigs: Sequence[Hanging], opacity: Mapping[int, np.ndarray] | None) -> list[Hanging]:
    """Twigs whose vessel holds at least a third of full contrast where they leave it."""
    if opacity is None:
        return list(twigs)
    return [one for one in twigs if opacity[one.branch][min(one.index, len(opacity[one.branch]) - 1)] > 0.33]


def _twigs(rng: np.random.Generator, tree: VesselTree, heart: Organ):
    """Branches of 0.1 to 0.3 mm radius: side twigs of every vessel and the brush at its end, winding along the heart
    or into its muscle. None is outlined by an annotator, and none is in the truth.
    """
    density = rng.uniform(0.06, 0.2)  # per mm of vessel: our choice, from counting on real frames
    tortuous = rng.uniform(0.5, 1.4)
    if np.mean([branch.radius_mm.max() < 0.36 for branch in tree.branches]) > 0.3:
        density *= 0.3  # the tree brings its own
    for branch in tree.branches:
        points = branch.points_lps_mm
        count = len(points)
        if count < 12:
            continue
        step = float(np.linalg.norm(points[1] - points[0]))
        starts = list(rng.integers(4, count - 2, rng.poisson(density * step * count)))
        starts += [count - 1] * int(rng.integers(2, 5))
        for index in starts:
            index = int(index)
            tangent = _unit(points[min(index + 2, count - 1)] - points[max(index - 2, 0)])
            normal = _unit(heart.shape @ ((points[index] - heart.centre) @ heart.shape))
            side = _unit(np.cross(normal, tangent)) * rng.choice((-1.0, 1.0))
            dive = -abs(rng.normal(0, 0.4))
            if index == count - 1:
                way = tangent + rng.normal(0, 0.5) * side
            else:
                way = rng.uniform(0.2, 0.9) * tangent + rng.uniform(0.5, 1.0) * side + dive * normal
            radius = min(rng.uniform(0.15, 0.38), 0.6 * float(branch.radius_mm[index]))
            twig = _winding(rng, way, normal, rng.uniform(9, 34), tortuous)
            yield Hanging(branch.id, index, twig, np.linspace(radius, 0.09, len(twig)))
            for _ in range(int(rng.integers(0, 3))):
                at = int(rng.integers(3, len(twig) - 2))
                fork = _unit(twig[at + 1] - twig[at]) + rng.normal(0, 0.7, 3)
                small = twig[at] + _winding(rng, fork, normal, rng.uniform(5, 16), tortuous)
                yield Hanging(branch.id, index, small, np.linspace(0.65 * radius, 0.08, len(small)))


def _winding(rng: np.random.Generator, way: np.ndarray, normal: np.ndarray, length: float, tortuous: float):
    """A winding line ``(n, 3)`` from the origin; it wanders more along the surface than across it."""
    count = max(int(length / 1.2), 8)
    turns = np.cumsum(rng.normal(0, 0.16 * tortuous, (count, 3)), axis=0) + rng.normal(0, 0.18 * tortuous, (count, 3))
    turns -= 0.6 * (turns @ normal)[:, None] * normal
    steps = _unit(way) + turns
    steps *= length / count / np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-6)
    return np.concatenate((np.zeros((1, 3)), np.cumsum(steps, axis=0)))


def _calcium(rng: np.random.Generator, tree: VesselTree):
    """Plaques in one side of the wall of the large vessels, mostly near their origin."""
    large = [branch for branch in tree.branches if branch.radius_mm.max() > 1.1 and len(branch.points_lps_mm) > 40]
    for _ in range(int(rng.integers(1, 8))):
        branch = large[int(rng.integers(len(large)))] if large else tree.branches[0]
        points, radius = branch.points_lps_mm, branch.radius_mm
        index = int(rng.beta(1.2, 2.2) * (len(points) - 14))
        stop = min(index + int(rng.integers(4, 26)), len(points) - 1)
        tangent = _unit(points[stop] - points[index])
        side = _unit(np.cross(tangent, rng.normal(size=3)))
        part = points[index : stop + 1] + 0.95 * radius[index : stop + 1, None] * side
        part = part + rng.normal(0, 0.12, part.shape)
        yield Hanging(branch.id, index, part - points[index], rng.uniform(0.25, 0.8) * rng.uniform(0.6, 1, len(part)))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
