# SPDX-License-Identifier: Apache-2.0
"""Side branches looked for one by one, given the rest of the tree: what the descent of the codes cannot jump to.

For every side branch of the table whose parent is in the tree, courses are drawn from the generator's population given
the ancestors (:mod:`licag3d.inversion.branch_shapes`), the best are drawn to vessels that no other branch explains
(Gauss-Newton on the shape), and one takes the place of what is there, or of nothing, where the cost

    - sum over centreline points  w (max(e, e_others) - e_others)       per view, e = 1 / (1 + (d / s)^2)
    + drawn * sum over the branch  length (1 - e of the nearest centreline point)   per view
    + prior * |u|^2 / 2 - log(share of trees that have the branch)

falls clearly: what another branch explains is worth nothing twice. Branches are visited once, those of the main
vessels before theirs, long ones first (iterated conditional modes, Besag 1986); what hangs on a branch moves with it.
Then all are visited once more, and the contrast of all views judges (:mod:`licag3d.inversion.branch_contrast`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.inversion.branch_contrast import Contrast, ContrastSettings, best_course, vessels_of
from licag3d.inversion.branch_shapes import Shapes
from licag3d.inversion.branch_sights import (
    BranchSearchSettings,
    Sight,
    drawn_shapes,
    evidence_cost,
    explained_by_others,
)
from licag3d.inversion.branch_work import Work
from licag3d.inversion.prior_evidence import Curve
from licag3d.inversion.prior_fit import PriorFit
from licag3d.models.generator import Generator
from licag3d.structures import VesselEvidence, VesselTree


@dataclass(frozen=True)
class Change:
    """One branch put elsewhere: ``name``, whether it was ``there`` before, cost ``before`` (of absence, if it was not)
    and ``after``, and whether the ``contrast`` said so (or the centrelines)."""

    name: str
    there: bool
    before: float
    after: float
    contrast: bool = False


def search_branches(
    fit: PriorFit,
    tree: VesselTree,
    views: Sequence[Curve],
    sizes_mm: Sequence[tuple[float, float]],
    *,
    generator: Generator,
    settings: BranchSearchSettings | None = None,
    evidence: Sequence[VesselEvidence] = (),
    contrast: ContrastSettings | None = None,
) -> tuple[VesselTree, tuple[Change, ...]]:
    """A tree some of whose side branches run elsewhere, and what was changed.

    Args:
        fit: whose codes, placement and cameras hold. tree: of the fit, laid onto the views, named.
        views: centrelines per view as the fit compares them (``Evidence.views``), sizes_mm of the images.
        evidence: per view; with ``contrast`` all branches are visited once more and judged by the line integrals.
    """
    settings = settings or BranchSearchSettings()
    work = Work(tree, fit, generator, population=settings.population, seed=settings.seed)
    sights = [Sight(camera, curve, size) for camera, curve, size in zip(fit.cameras, views, sizes_mm, strict=True)]
    sights = [sight for sight in sights if len(sight.points)]
    if not sights:
        return work.tree(), ()
    explained = {k: _explained(work, k, sights, settings) for k in work.points}
    changes = _visit(work, sights, explained, settings, None)
    if contrast is not None and evidence:
        judge = Contrast(fit.cameras, evidence, vessels_of(work), contrast)
        if judge.images:
            changes += _visit(work, sights, explained, settings, judge)
    return work.tree(), tuple(changes)


def _explained(work: Work, k: int, sights, settings) -> list[np.ndarray]:
    return [sight.explained(work.points[k], work.radius[k], settings) for sight in sights]


def _visit(work: Work, sights, explained: dict, settings: BranchSearchSettings, judge: Contrast | None) -> list[Change]:
    """Every side branch once, by the centrelines or by a judge."""
    rng = np.random.default_rng(settings.seed)
    changes = []
    for k in work.order():
        if not work.can_have(k):
            continue
        others = explained_by_others(work, k, sights, explained)
        shapes = work.shapes(k)
        u = drawn_shapes(work, k, shapes, sights, others, rng, settings)
        if judge is None:
            found = _best(work, k, u, shapes, sights, others, settings)
        else:
            found = best_course(judge, work, k, u, shapes)
        if found is None:
            continue
        before, after, points, radius = found
        changes.append(Change(work.slots[k].name, k in work.points, before, after, judge is not None))
        work.put(k, points, radius)
        for j in work.subtree(k):
            explained[j] = _explained(work, j, sights, settings)
        if judge is not None:
            for j, vessel in vessels_of(work, work.subtree(k)).items():
                judge.draw(j, *vessel)
    return changes


def _best(work: Work, k: int, u: np.ndarray, shapes: Shapes, sights, others, settings: BranchSearchSettings):
    """Cost before and after, points and radii of the course that pays most; None where none pays."""
    before, said = -np.log(1 - shapes.rate), 0.0
    if k in work.points:
        own = work.own(k, shapes)
        said = float(evidence_cost(work.points[k][None], work.radius[k][None], sights, others, settings)[0])
        before = said + 0.5 * settings.prior * float(own @ own) - np.log(shapes.rate)
    points, radius = work.draw(k, shapes.numbers(u), spacing_mm=0.75)
    evidence = evidence_cost(points, radius, sights, others, settings)
    cost = evidence + 0.5 * settings.prior * (u**2).sum(1) - np.log(shapes.rate)
    best = int(cost.argmin())
    if cost[best] > before - settings.margin or evidence[best] > said - settings.evidence:
        return None
    return float(before), float(cost[best]), points[best], radius[best]
