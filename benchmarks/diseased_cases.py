# SPDX-License-Identifier: Apache-2.0
"""Phantom patients with stenoses as a user has them, and what an inversion or a disturbed truth makes of them."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

#: How far the perturbed tree wanders, how wrong its calibre is (log), over what lengths, and up to which length its
#: narrowings are wiped out.
PLACE_MM, WIDTH, WANDER_MM, WIPED_MM = 0.5, 0.2, 4.0, 30.0


def severe_disease(seed: int, artery: str, split: range):
    """The tree of one patient with the disease of another, who has at least two stenoses of 70 % in this artery."""
    from licag3d.phantom.anatomy import sample_tree
    from licag3d.phantom.disease import sample_disease

    healthy = sample_tree(seed, artery)
    best = None
    for k in range(60):
        other = split[(split.index(seed) + 2000 + 60 * (seed % 50) + k) % len(split)]
        tree, lesions = sample_disease(other, artery, healthy, extent="obstructive")
        severe = sum(x.kind == "stenosis" and x.percent_diameter >= 70 for x in lesions)
        occluded = any(x.kind == "occlusion" for x in lesions)
        if best is None or severe - 10 * occluded > best[0]:
            best = (severe - 10 * occluded, tree, lesions)
        if best[0] >= 2:
            break
    return best[1:]


def read_case(case, track: str):
    """Views and evidence as a user has them."""
    from licag3d.io.views import read_views
    from licag3d.models.vessel_evidence import vessel_evidence
    from licag3d.phantom.write_case import Content, write_case

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "case"
        write_case(place, case, Content(projections=False, mesh=False, labels=False))
        numbers = range(1, len(case.views) + 1)
        masks = [str(place / "truth" / f"view_{k}_mask.png") for k in numbers] if track == "masks" else None
        views, _ = read_views(
            [str(place / f"view_{k}.png") for k in numbers], cameras=place / "cameras.json", masks=masks
        )
    return views, [vessel_evidence(view) for view in views]


def found_tree(views, evidence, prior: str):
    """Tree and cameras of the inversion before the refinement."""
    from licag3d.inversion.chains import chains_from_graph
    from licag3d.inversion.consistency import contrast_of
    from licag3d.inversion.settings import inversion_settings
    from licag3d.inversion.several import correct_cameras
    from licag3d.inversion.tree_stages import find_tree
    from licag3d.models.centerline2d import trace_centerlines

    settings = inversion_settings(prior=prior, skip=("refinement",))
    chains = [chains_from_graph(trace_centerlines(e, v), v.camera) for e, v in zip(evidence, views, strict=True)]
    cameras, _ = correct_cameras(
        [view.camera for view in views], chains, settings, contrast=[contrast_of(item) for item in evidence]
    )
    found = find_tree(views, evidence, chains, cameras, settings)
    return found.tree, found.cameras


def perturbed(tree, seed: int):
    """The true tree, wandering, of wrong calibre and without its stenoses; branches still start on their parents."""
    from scipy.ndimage import gaussian_filter1d, median_filter

    from licag3d.structures import VesselTree
    from licag3d.vessels.tree import arc_length_mm, resample_tree

    rng = np.random.default_rng([seed, 77])
    even = resample_tree(tree, 0.5)
    made = []
    for branch in even.branches:
        count = len(branch.radius_mm)
        step = max(arc_length_mm(branch.points_lps_mm)[-1] / max(count - 1, 1), 0.1)
        sigma = WANDER_MM / step
        pad = int(4 * sigma) + 1
        waves = gaussian_filter1d(rng.standard_normal((count + 2 * pad, 4)), sigma, axis=0)[pad : pad + count]
        waves *= math.sqrt(2 * sigma * math.sqrt(math.pi))  # white noise smoothed has this over 1 as deviation
        wide = median_filter(branch.radius_mm, 2 * int(WIPED_MM / step / 2) + 1, mode="nearest")
        made.append(
            replace(
                branch,
                points_lps_mm=branch.points_lps_mm + PLACE_MM / math.sqrt(3) * waves[:, :3],
                radius_mm=wide * np.exp(WIDTH * waves[:, 3]),
            )
        )
    place = {branch.id: k for k, branch in enumerate(even.branches)}
    for k, branch in enumerate(made):
        if branch.parent is None:
            continue
        parent = even.branches[place[branch.parent]]
        nearest = int(((parent.points_lps_mm - even.branches[k].points_lps_mm[0]) ** 2).sum(1).argmin())
        points = branch.points_lps_mm.copy()
        points[0] = made[place[branch.parent]].points_lps_mm[nearest]
        made[k] = replace(branch, points_lps_mm=points)
    return VesselTree(tuple(made))
