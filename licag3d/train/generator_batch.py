# SPDX-License-Identifier: Apache-2.0
"""Batches of the generator's training: vectors, points of some fields, line-integral images with their cameras."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from licag3d.geometry import Camera, Cameras
from licag3d.models.branch_table import ARTERIES
from licag3d.models.discriminator import camera_label
from licag3d.models.generator_config import INSIDE_MU
from licag3d.phantom import views as view_choice
from licag3d.phantom.queries import TreeQueries, near_points
from licag3d.structures import Branch, VesselTree
from licag3d.train.generator_data import TreePool
from licag3d.train.generator_images import RealImages
from licag3d.train.generator_vectors import VectorSet
from licag3d.vessels.distance import tree_cones


@dataclass(frozen=True)
class BatchMaker:
    """Batches as a function of their number alone.

    Args:
        vectors: patients per artery. fields: of those, with points; images: of those, with images, per artery.
        near, far, line, calibre: points per field: about the vessels, anywhere in the box, on the centrelines, and
            about them at known multiples of the radius.
        shift_mm: standard deviation of the place of a tree in its box, per axis.
        angiograms: real images that take the place of every other phantom image (one view each).
        size: px of the images; samples: per ray. mu_per_mm: range of the attenuation of the lumen.
    """

    pool: TreePool
    data: VectorSet
    seed: int
    box_size_mm: float
    vectors: int = 64
    fields: int = 1
    images: int = 2
    near: int = 4096
    far: int = 1024
    line: int = 1024
    calibre: int = 1024
    shift_mm: float = 3.0
    size: int = 64
    views: int = 2
    samples: int = 160
    mu_per_mm: tuple[float, float] = (0.11, 0.2)
    angiograms: RealImages | None = None

    def __call__(self, number: int, *, fields: bool = True, images: bool = True, size: int | None = None) -> dict:
        """Batch ``number``, with or without the dear parts; ``size`` of the images where it is not the usual one."""
        rng = np.random.default_rng([self.seed, 90, number])
        batch: dict = {"field.count": self.fields}
        drawn = {}
        for artery in ARTERIES:
            part = self.data.draw(rng, artery, self.vectors, self.shift_mm)
            part["contrast"] = torch.from_numpy(rng.uniform(*self.mu_per_mm, self.vectors)).float() / INSIDE_MU
            drawn[artery] = part
            batch |= {f"{artery}.{key}": value for key, value in part.items()}
        if self.fields and fields:
            batch |= self._fields(rng, drawn)
        if self.images and images:
            batch |= self._images(rng, drawn, size or self.size)
        return batch

    def tree(self, part: dict, k: int) -> VesselTree:
        """The tree of entry k, where it lies in its box."""
        return moved(self.pool.tree(int(part["number"][k])), part["shift_mm"][k].numpy())

    def _fields(self, rng: np.random.Generator, drawn: dict) -> dict:
        trees = [self.tree(drawn[artery], k) for artery in ARTERIES for k in range(self.fields)]
        points, branch, over, first = [], [], [], 0
        for tree in trees:
            line, number = _on_lines(rng, tree, self.line)
            about, multiple = _about_lines(rng, tree, self.calibre)
            uniform = rng.uniform(-0.5, 0.5, (self.far, 3)) * self.box_size_mm
            points.append(np.concatenate([near_points(rng, tree, self.near, 2.0), uniform, line, about]))
            branch.append(number + first)
            over.append(multiple)
            first += len(tree.branches)
        points = torch.from_numpy(np.stack(points).astype(np.float32))
        near = self.near + self.far
        distance = TreeQueries.stack([tree_cones(tree) for tree in trees]).signed_distance_mm(points[:, :near])
        # Near points crowd about the vessels; the uniform ones stand for the rest of the box and keep it dark.
        weight = torch.ones(len(trees), near)
        weight[:, self.near :] = 2.0
        return {
            "field.points_mm": points,
            "field.distance_mm": distance,
            "field.weight": weight,
            "field.branch": torch.from_numpy(np.stack(branch)),
            "field.branches": first,
            "field.over_radius": torch.from_numpy(np.stack(over)).float(),
            "field.near": self.near,
            "field.far": self.far,
            "field.line": self.line,
        }

    def _images(self, rng: np.random.Generator, drawn: dict, size: int) -> dict:
        real, cameras, labels = [], [], []
        for artery in ARTERIES:
            part = drawn[artery]
            for k in range(self.vectors - self.images, self.vectors):
                if self.angiograms is not None and k % 2:
                    image, views = self.angiograms.draw(rng, artery, size)
                else:
                    views = Cameras.stack(any_cameras(rng, artery, self.views, size))
                    image = path_mm(self.tree(part, k), views) * float(part["contrast"][k]) * INSIDE_MU
                cameras.append(views)
                real.append(image)
                labels.append(part["label"][k])
        return {
            "image.real": torch.stack(real),
            "image.origin_mm": torch.stack([views.rays()[0] for views in cameras]).float(),
            "image.to_pixel_mm": torch.stack([views.rays()[1] for views in cameras]).float(),
            "image.camera": torch.stack([camera_label(views) for views in cameras]),
            "image.label": torch.stack(labels),
            "image.samples": self.samples,
        }


def any_cameras(rng: np.random.Generator, artery: str, views: int, size: int) -> list[Camera]:
    """Cameras of one acquisition, the middle of the box somewhere near the isocentre: what an image of a whole coronary
    tree needs, its field 110 to 150 mm wide at the isocentre.
    """
    geometry = view_choice.choose_geometry(rng)
    angles = view_choice.choose_angles(rng, artery, views, float(rng.uniform(30, 100)))
    offset = tuple(rng.uniform(-12, 12, 3))
    spacing = rng.uniform(110, 150) * geometry.sid_mm / geometry.sod_mm / size
    return [
        Camera(
            primary,
            secondary,
            sid_mm=geometry.sid_mm,
            sod_mm=geometry.sod_mm,
            spacing_row_mm=spacing,
            spacing_col_mm=spacing,
            rows=size,
            cols=size,
            offset_lps_mm=offset,
        )  # fmt: skip
        for primary, secondary in angles
    ]


def path_mm(tree: VesselTree, cameras: Cameras) -> torch.Tensor:
    """Path length through the vessels, ``(V, rows, cols)`` float32 in mm."""
    from licag3d.ops import project_tubes
    from licag3d.vessels.tree import flatten_tree

    flat = flatten_tree(tree)
    return project_tubes(
        torch.from_numpy(flat.points_lps_mm), torch.from_numpy(flat.radius_mm), torch.from_numpy(flat.segments), cameras
    ).float()


def moved(tree: VesselTree, shift_mm: np.ndarray) -> VesselTree:
    """The tree elsewhere."""
    return VesselTree(
        tuple(Branch(b.id, b.parent, b.points_lps_mm + shift_mm, b.radius_mm, b.name) for b in tree.branches)
    )


def _on_lines(rng: np.random.Generator, tree: VesselTree, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points on the centrelines, the same number for every branch within one, and the number of the branch."""
    number = np.arange(count) % len(tree.branches)
    points = np.empty((count, 3))
    for k, branch in enumerate(tree.branches):
        rows = np.flatnonzero(number == k)
        at = rng.uniform(0, len(branch.points_lps_mm) - 1, len(rows))
        points[rows] = _between(branch.points_lps_mm, at)
    return points, number


def _about_lines(rng: np.random.Generator, tree: VesselTree, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points beside the centrelines, and their distance from the axis in radii, 0 to 2.

    Ends and the neighbourhood of junctions are left out: there the distance from one axis says little.
    """
    chosen = rng.integers(len(tree.branches), size=count)
    points, over = np.empty((count, 3)), rng.uniform(0, 2, count)
    for k, branch in enumerate(tree.branches):
        rows = np.flatnonzero(chosen == k)
        last = len(branch.points_lps_mm) - 1
        at = rng.uniform(0.2 * last, 0.95 * last, len(rows))
        low = np.minimum(at.astype(int), last - 1)
        along = branch.points_lps_mm[low + 1] - branch.points_lps_mm[low]
        along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
        aside = rng.normal(size=(len(rows), 3))
        aside -= (aside * along).sum(1, keepdims=True) * along
        aside /= np.linalg.norm(aside, axis=1, keepdims=True) + 1e-9
        radius = _between(branch.radius_mm[:, None], at)
        points[rows] = _between(branch.points_lps_mm, at) + over[rows, None] * radius * aside
    return points, over


def _between(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    low = np.minimum(at.astype(int), len(values) - 2)
    share = (at - low)[:, None]
    return values[low] * (1 - share) + values[low + 1] * share
