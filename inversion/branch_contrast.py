# SPDX-License-Identifier: Apache-2.0
"""Courses of a vessel judged by the line integrals of all views, given the rest of the tree.

To a centreline it makes no difference whether one vessel or two lie on it. The contrast tells: where two vessels lie
over each other it is that of both. A course is worth what it takes off the misfit

    sum over pixels  log(1 + ((seen - path of the tree) / noise)^2)

and since a course that is half a millimetre off is worth little, all that are compared are first moved to where they
explain most (Adam on a few knots). Figures: docs/inversion.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from licag3d.geometry import Camera
from licag3d.inversion.adam import Adam
from licag3d.inversion.branch_shapes import Shapes
from licag3d.inversion.branch_work import Work
from licag3d.inversion.overlaps import Courses, OverlapSettings, knot_shares
from licag3d.inversion.tube_images import attenuation, near_pixels, pair_path_mm, pooled_view
from licag3d.structures import VesselEvidence, VesselTree
from licag3d.vessels.tree import arc_length_mm


@dataclass(frozen=True)
class ContrastSettings:
    """Lengths in mm unless named otherwise.

    Args:
        few: courses that are moved before they are compared. steps, rate_mm: of Adam.
        margin, margin_share: the cost must fall by this much, and by this share of what the branch explains as it is:
            the misfit of a long branch is less certain. prior: weight of |u|^2 / 2.
        hopeless: courses whose cost is higher than what is there by more than this are not moved.
        weight: of a pooled pixel. pixel_mm, blur_px, reach_mm, noise_mm, noise_share, reliable_mm: as in
            :class:`licag3d.inversion.overlaps.OverlapSettings`.
        knot_mm: distance of what moves a course. free_mm, start_mm: how far it may go (standard deviation), and its
            first point. bend_mm: how much the movement of neighbouring knots may differ in slope.
        calibre_sigma: deviation of the log radius. calibre_rate: step of it.
    """

    few: int = 8
    steps: int = 20
    rate_mm: float = 0.2
    margin: float = 4.0
    margin_share: float = 0.05
    prior: float = 0.2
    hopeless: float = 40.0
    weight: float = 0.5
    pixel_mm: float = 0.5
    blur_px: float = 0.8
    reach_mm: float = 1.6
    noise_mm: float = 0.5
    noise_share: float = 0.3
    reliable_mm: float = 0.4
    knot_mm: float = 5.0
    free_mm: float = 1.5
    start_mm: float = 0.5
    bend_mm: float = 1.0
    calibre_sigma: float = 0.15
    calibre_rate: float = 0.05


#: Vessels thinner than this are looked for about their axis all the same.
_LEAST_MM = 0.05


@dataclass
class _Image:
    """One view: the camera of pooled pixels, what is seen there as path in mm, its deviation (both flat), and the path
    through every vessel of the tree."""

    camera: Camera
    raw: np.ndarray
    seen: torch.Tensor
    noise: torch.Tensor
    paths: dict[int, torch.Tensor]


class Contrast:
    """The line integrals of all views and the vessels that explain them.

    Args:
        cameras, evidence: per view. vessels: of a tree, by number: points ``(n, 3)`` and radii ``(n,)`` in mm, 0 where
            they begin within the lumen of their parent.

    ``images`` is empty where fewer than two views tell their attenuation: then the contrast cannot judge.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        evidence: Sequence[VesselEvidence],
        vessels: dict[int, tuple[np.ndarray, np.ndarray]],
        settings: ContrastSettings | None = None,
    ) -> None:
        self.settings = settings or ContrastSettings()
        images = [
            self._image(*pooled_view(camera, item.line_integral, self.settings.pixel_mm), vessels)
            for camera, item in zip(cameras, evidence, strict=True)
        ]
        images = [image for image in images if image is not None]
        self.images: list[_Image] = images if len(images) > 1 else []
        for k, (points, radius) in vessels.items():
            self.draw(k, points, radius)

    def _image(self, camera: Camera, raw: np.ndarray, vessels: dict) -> _Image | None:
        """A view with its attenuation, None where no place of the tree tells it."""
        if not vessels:
            return None
        points, radius = (np.concatenate(part) for part in zip(*vessels.values(), strict=True))
        ends = np.cumsum([0, *(len(part) for part, _ in vessels.values())])
        spans = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        about = np.maximum(radius, _LEAST_MM)
        near = near_pixels(camera, raw, points, about, spans, reach_mm=self.settings.reach_mm)
        if near is None:
            return None
        path = torch.zeros(len(near.seen)).index_add(0, near.pixel, self._paths(near, points, radius))
        mu = attenuation(near, path, self.settings.reliable_mm)
        if mu is None:
            return None
        seen = torch.from_numpy(raw.reshape(-1) / mu)
        noise = self.settings.noise_mm + self.settings.noise_share * seen.clamp_min(0)
        return _Image(camera, raw, seen, noise, {})

    def _paths(self, near, points: np.ndarray, radius: np.ndarray) -> torch.Tensor:
        numbers = torch.from_numpy(points).float(), torch.from_numpy(radius).float()
        with torch.no_grad():
            return pair_path_mm(near, *numbers, self.settings.blur_px)

    def draw(self, k: int, points: np.ndarray, radius: np.ndarray) -> None:
        """Put vessel ``k`` of the tree where it is now."""
        for image in self.images:
            path = torch.zeros(len(image.seen))
            about = np.maximum(radius, _LEAST_MM)
            near = near_pixels(image.camera, image.raw, points, about, [slice(0, len(points))], reach_mm=1.0)
            if near is not None:
                path[near.where[near.pixel]] = self._paths(near, points, radius)
            image.paths[k] = path

    def rest(self, without: Collection[int] = ()) -> list[torch.Tensor]:
        """Per view, the path that no vessel but ``without`` explains: flat, mm."""
        return [
            image.seen - sum((path for j, path in image.paths.items() if j not in without), torch.zeros(()))
            for image in self.images
        ]

    def cost(self, points: np.ndarray, radius: np.ndarray, rest: Sequence[torch.Tensor], *, steps: int = 0):
        """Cost ``(C,)`` of courses ``(C, n, 3)`` with radii ``(C, n)``, negative where they explain what is left
        (``rest``), and the courses, after ``steps`` of descent whose price is part of the cost."""
        settings = self.settings
        count, samples, _ = points.shape
        share = torch.from_numpy(knot_shares(_mean_along(points), settings.knot_mm)).float()
        knots = torch.zeros(count, share.shape[1], 3, requires_grad=steps > 0)
        calibre = torch.zeros(count, share.shape[1], requires_grad=steps > 0)
        allowed = torch.full((share.shape[1], 1), settings.free_mm)
        allowed[0] = settings.start_mm
        still = torch.from_numpy(points).float()
        thick = torch.from_numpy(radius).float()
        spans = [slice(c * samples, (c + 1) * samples) for c in range(count)]
        flat, wide = points.reshape(-1, 3), np.maximum(thick.numpy().reshape(-1).astype(float), _LEAST_MM)
        views = []
        for image, left in zip(self.images, rest, strict=True):
            near = near_pixels(image.camera, image.raw, flat, wide, spans, reach_mm=settings.reach_mm)
            if near is not None:
                where = near.where[near.pixel]
                views.append((near, left[where], image.noise[where], near.pieces[:, 0] // samples))

        def price() -> tuple[torch.Tensor, torch.Tensor]:
            moved = still + torch.einsum("nk,ckx->cnx", share, knots)
            width = thick * torch.einsum("nk,ck->cn", share, calibre).exp()
            total = (knots / allowed).square().sum((1, 2)) + (calibre / settings.calibre_sigma).square().sum(1)
            slope = knots.diff(dim=1)
            total = total + (slope / (2 * settings.bend_mm)).square().sum((1, 2))
            total = total + (slope.diff(dim=1) / settings.bend_mm).square().sum((1, 2))
            for near, left, noise, course in views:
                path = pair_path_mm(near, moved.reshape(-1, 3), width.reshape(-1), settings.blur_px)
                change = torch.log1p(((left - path) / noise) ** 2) - torch.log1p((left / noise) ** 2)
                total = total.index_add(0, course, settings.weight * change)
            return total, moved

        adam = Adam([{"params": [knots], "lr": settings.rate_mm}, {"params": [calibre], "lr": settings.calibre_rate}])
        for step in range(steps):
            adam.param_groups[0]["lr"] = settings.rate_mm * min(1.0, 2 * (1 - step / steps))
            adam.zero_grad()
            price()[0].sum().backward()
            adam.step()
        with torch.no_grad():
            total, moved = price()
        return total.double().numpy(), moved.double().numpy()


def vessels_of(work: Work, keys: Collection[int] | None = None) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Branches of a tree under work as :class:`Contrast` takes them."""
    return {
        k: (work.points[k], outside(work, k, work.points[k][None], work.radius[k][None])[0])
        for k in (work.points if keys is None else keys)
    }


def outside(work: Work, k: int, points: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Radii ``(C, n)`` of courses ``(C, n, 3)`` of a branch, 0 where they begin within the lumen of its parent."""
    parent = work.slots[k].parent
    if parent not in work.points:
        return radius
    from scipy.spatial import cKDTree

    gap, nearest = cKDTree(work.points[parent]).query(points)
    inside = np.cumprod(gap < work.radius[parent][nearest], axis=1).astype(bool)
    return np.where(inside, 0.0, radius)


def best_course(
    contrast: Contrast, work: Work, k: int, u: np.ndarray, shapes: Shapes
) -> tuple[float, float, np.ndarray, np.ndarray] | None:
    """Cost before and after, points and radii of the best of shapes ``u`` ``(C, d)`` of a branch; None where none pays.

    Before is the cost of the branch as it is, moved as the others are, or of its absence. The price of its shape is
    that of the fit's, also where the centrelines have put it elsewhere since.
    """
    settings = contrast.settings
    rest = contrast.rest(work.subtree(k))

    def cost(points, radius, steps=0):
        return contrast.cost(points, outside(work, k, points, radius), rest, steps=steps)

    before = -np.log(1 - shapes.rate)
    if k in work.points:
        own = work.own(k, shapes)
        now, _ = cost(work.points[k][None], work.radius[k][None], settings.steps)
        before = now[0] + 0.5 * settings.prior * float(own @ own) - np.log(shapes.rate)
    points, radius = work.draw(k, shapes.numbers(u), spacing_mm=0.75)
    price = 0.5 * settings.prior * (u**2).sum(1) - np.log(shapes.rate)
    first = cost(points, radius)[0] + price
    few = np.argsort(first)[: settings.few]
    few = few[first[few] < before + settings.hopeless]
    if not len(few):
        return None
    after, moved = cost(points[few], radius[few], settings.steps)
    after = after + price[few]
    best = int(after.argmin())
    if not after[best] < before - settings.margin - settings.margin_share * max(0.0, -before):
        return None
    return float(before), float(after[best]), moved[best], radius[few[best]]


def borne_out(
    tree: VesselTree,
    cameras: Sequence[Camera],
    evidence: Sequence[VesselEvidence],
    settings: ContrastSettings | None = None,
) -> Callable[[np.ndarray, np.ndarray], bool]:
    """Whether the contrast that a tree leaves unexplained bears out one more vessel.

    Returns:
        A function of its points ``(n, 3)`` and radii ``(n,)``, always true where the contrast cannot judge. What it
        accepts is part of the tree from then on.
    """
    courses = Courses(tree, OverlapSettings())
    vessels = {k: (courses.points[span], courses.radius[span]) for k, span in enumerate(courses.spans)}
    contrast = Contrast(cameras, evidence, vessels, settings)

    def asked(points: np.ndarray, radius: np.ndarray) -> bool:
        if not contrast.images:
            return True
        along = arc_length_mm(points)
        at = np.linspace(0.0, along[-1], max(6, round(along[-1] / 0.75)))
        course = np.stack([np.interp(at, along, axis) for axis in points.T], 1)
        bore = np.interp(at, along, radius)
        cost, _ = contrast.cost(course[None], bore[None], contrast.rest(), steps=contrast.settings.steps)
        if cost[0] < 0:
            contrast.draw(len(contrast.images[0].paths), course, bore)
        return bool(cost[0] < 0)

    return asked


def _mean_along(points: np.ndarray) -> np.ndarray:
    """Arc length ``(n,)`` of courses ``(C, n, 3)``, their mean."""
    steps = np.linalg.norm(np.diff(points, axis=1), axis=2).mean(0)
    return np.concatenate([[0.0], np.cumsum(steps)])
