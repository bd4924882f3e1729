# SPDX-License-Identifier: Apache-2.0
"""The stenoses that an inversion lists against those that the patient has, and which of these could be seen at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from licag3d.structures import VesselTree
from licag3d.vessels.stenosis import Stenosis
from licag3d.vessels.tree import arc_length_mm, resample_branch

#: A listed narrowing is that of the patient if its mark in the frame lies this near to the true stretch there, mm at
#: the isocentre, and the true one narrows the vessel by at least so many percent.
MARK_MM, TRUE_PERCENT = 2.0, 35.0
#: A lesion is judged within this of its narrowest place, mm. It is hidden in a view where the vessel meets the ray at a
#: smaller sine, where it lies nearer to the edge of the frame (px), where a catheter covers more than this share of it,
#: and where over half of it other vessels cover, in the middle half of the healthy lumen, half of what it takes away.
CORE_MM, LEAST_SINE, EDGE_PX, DEVICE_SHARE = 2.0, 0.5, 8.0, 0.6


@dataclass(frozen=True)
class TrueStenosis:
    """A stenosis of the patient; ``place_px`` ``(views, 2)`` and ``stretch_px`` per view ``(n, 2)`` in the frames,
    ``hidden`` per view why it cannot be seen there, or nothing."""

    branch: str
    kind: str
    percent: float
    minimal_mm: float
    reference_mm: float
    place_lps_mm: np.ndarray
    place_px: np.ndarray
    stretch_px: tuple[np.ndarray, ...]
    hidden: tuple[str, ...]

    @property
    def visible(self) -> bool:
        """Whether any view shows it."""
        return not all(self.hidden)


def true_stenoses(case) -> list[TrueStenosis]:
    """Stenoses and diffuse narrowings of a :class:`licag3d.phantom.simulate_case.Case` from :data:`TRUE_PERCENT` on."""
    found, cache = [], {}
    for lesion in case.lesions:
        if lesion.kind not in ("stenosis", "diffuse") or lesion.percent_diameter < TRUE_PERCENT:
            continue
        branch = resample_branch(next(b for b in case.tree.branches if b.id == lesion.branch_id), 0.25)
        points, arc = branch.points_lps_mm, arc_length_mm(branch.points_lps_mm)
        at = int(np.abs(arc - lesion.at_mm).argmin())
        core = np.abs(arc - arc[at]) <= CORE_MM
        inside = (arc >= lesion.start_mm) & (arc <= lesion.start_mm + lesion.length_mm)
        hidden, places, stretches = [], [], []
        for k, view in enumerate(case.views):
            pixels = view.true_camera.project(points)[0]
            places.append(pixels[at])
            stretches.append(pixels[inside])
            hidden.append(_hidden(case, k, branch, core, lesion, cache))
        minimal = 2 * float(np.asarray(branch.radius_mm)[np.abs(arc - arc[at]) <= 1.0].min())
        found.append(
            TrueStenosis(
                lesion.branch,
                lesion.kind,
                float(lesion.percent_diameter),
                minimal,
                float(lesion.reference_diameter_mm),
                points[at],
                np.array(places),
                tuple(stretches),
                tuple(hidden),
            )
        )
    return found


def _hidden(case, k: int, branch, core: np.ndarray, lesion, cache: dict) -> str:
    from scipy import ndimage

    from licag3d.inversion.refinement_profiles import view_points
    from licag3d.metrics.images import path_mm

    view, points = case.views[k], branch.points_lps_mm
    tangent = np.gradient(points, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    camera = view.true_camera
    seen = view_points(camera, points, tangent)
    pixels = seen.pixels[core]
    if np.median(seen.sine[core]) < LEAST_SINE:
        return "foreshortened"
    if (pixels < EDGE_PX).any() or (pixels > (camera.cols - 1 - EDGE_PX, camera.rows - 1 - EDGE_PX)).any():
        return "outside"
    if view.devices is not None:
        around = pixels[:, None] + np.array([(a, b) for a in (-3, 0, 3) for b in (-3, 0, 3)])
        col, row = np.rint(around).astype(int).reshape(-1, 2).T
        if view.devices[row, col].mean() > DEVICE_SHARE:
            return "catheter"
    if k not in cache:
        cache[k] = path_mm(case.tree, camera)
    if (k, branch.id) not in cache:
        alone = [b for b in case.tree.branches if b.id == branch.id]
        own = path_mm(VesselTree(tuple(replace(b, parent=None) for b in alone)), camera)
        cache[k, branch.id] = np.maximum(cache[k] - own, 0.0)
    half = 0.5 * lesion.reference_diameter_mm * seen.px_per_mm[core]
    across = (np.linspace(-0.5, 0.5, 5) * half[:, None])[..., None] * seen.normal[core][:, None]
    at = pixels[:, None] + across
    other = ndimage.map_coordinates(cache[k, branch.id], [at[..., 1], at[..., 0]], order=1, mode="constant").mean(1)
    taken = lesion.reference_diameter_mm - lesion.minimal_diameter_mm
    return "covered" if (other > 0.5 * taken).mean() > 0.5 else ""


def same(lesion: Stenosis, true: Sequence[TrueStenosis], cameras) -> TrueStenosis | None:
    """The true narrowing whose stretch the mark of a listed one lies on, in the view that shows it best."""
    sight = lesion.best_sight
    scale = cameras[sight.view].mm_per_pixel
    best = None
    for one in true:
        stretch = one.stretch_px[sight.view] if one.kind == "stenosis" else one.place_px[sight.view][None]
        away = float(np.linalg.norm(stretch - sight.pixel, axis=1).min()) * scale
        order = (one.kind != "stenosis", away)
        if away <= MARK_MM and (best is None or order < best[0]):
            best = (order, one)
    return None if best is None else best[1]


def scores(listed: Sequence[Stenosis], true: Sequence[TrueStenosis], cameras, to_truth) -> dict:
    """What of the patient's stenoses is listed, and what is listed beside them.

    Args:
        to_truth: function ``(n, 3) -> (n, 3)`` from the reconstruction to the truth.

    Returns:
        ``true``: per stenosis from 50 % its percent, whether any view shows it, whether it is listed; ``found``: per
        listed true one percent listed and true, minimal and reference diameter listed and true, mm, whether either
        interval holds the truth, distance in space, mm, and the number of views; ``false``: the percents of the others.
    """
    pairs = [(lesion, same(lesion, true, cameras)) for lesion in listed]
    marked = [id(one) for _, one in pairs if one is not None]
    found = []
    for lesion, one in pairs:
        if one is None:
            continue
        away = float(np.linalg.norm(to_truth(np.array([lesion.position_lps_mm]))[0] - one.place_lps_mm))
        low, high = lesion.minimal_90_mm
        least, most = lesion.percent_90
        found.append(
            [
                lesion.percent_diameter,
                one.percent,
                lesion.minimal_diameter_mm,
                one.minimal_mm,
                lesion.reference_diameter_mm,
                one.reference_mm,
                float(low <= one.minimal_mm <= high),
                float(least <= one.percent <= most),
                away,
                sum(sight.percent is not None for sight in lesion.sights),
            ]
        )
    return {
        "true": [
            [one.percent, one.visible, id(one) in marked]
            for one in true
            if one.kind == "stenosis" and one.percent >= 50
        ],
        "found": found,
        "false": [lesion.percent_diameter for lesion, one in pairs if one is None],
    }


def summary(rows: Sequence[dict]) -> dict:
    """Over cases: sensitivity for visible and hidden stenoses, false listings per tree, errors, coverage."""
    true = np.array([row for one in rows for row in one["true"]], float).reshape(-1, 3)
    found = np.array([row for one in rows for row in one["found"]], float).reshape(-1, 10)
    false = sum(len(one["false"]) for one in rows)
    made: dict = {"trees": len(rows), "false": false, "false_per_tree": false / max(len(rows), 1)}
    made["trees_without_false"] = sum(not one["false"] for one in rows)
    for least in (50, 70):
        for name, seen in (("visible", 1.0), ("hidden", 0.0)):
            own = true[(true[:, 0] >= least) & (true[:, 1] == seen)]
            made[f"{name}_{least}"] = {"listed": int(own[:, 2].sum()), "of": len(own)}
    severe = found[found[:, 1] >= 70]
    made["severe_listed_as_severe"] = {"listed": int((severe[:, 0] >= 70).sum()), "of": len(severe)}
    for name, column in (("percent", 0), ("minimal_mm", 2), ("reference_mm", 4)):
        error = found[:, column] - found[:, column + 1]
        made[name] = None if not len(error) else {
            "bias": float(error.mean()), "sd": float(error.std()),
            "median_absolute": float(np.median(np.abs(error)))}  # fmt: skip
    for name, column in (("minimal_within_90", 6), ("percent_within_90", 7)):
        made[name] = float(found[:, column].mean()) if len(found) else None
    made["found"] = len(found)
    made["within_4_mm_in_space"] = float((found[:, 8] <= 4).mean()) if len(found) else None
    return made
