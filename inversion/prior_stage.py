# SPDX-License-Identifier: Apache-2.0
"""The prior in an inversion, after the first matching: fit, match again with the fitted tree as a cost, lay the
tree onto the views, look for side branches that explain them better, and complete it with the matched curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.assembly import Curve
from licag3d.inversion.branch_contrast import ContrastSettings, borne_out
from licag3d.inversion.branch_search import search_branches
from licag3d.inversion.branch_sights import BranchSearchSettings
from licag3d.inversion.chains import Chains
from licag3d.inversion.completion import CompletionSettings, completed_curves
from licag3d.inversion.deformation import DeformationSettings, at_first_moment
from licag3d.inversion.prior_cost import PriorCostSettings, prior_cost
from licag3d.inversion.prior_evidence import WeakLines, gather
from licag3d.inversion.prior_fit import PriorFit, PriorSettings, fit_prior, with_tree
from licag3d.inversion.prior_tree import WIDE
from licag3d.inversion.snapping import Snapped, SnapSettings, shown_tree, snap_tree

if TYPE_CHECKING:
    from licag3d.inversion.several import Correspondence
    from licag3d.structures import VesselEvidence, VesselTree

#: The frames are looked at again with a tree in mind where its overall trust is at least this: a network that is shown
#: a tree where there is none might bear it out.
SURE_TO_LOOK = 0.9


@dataclass(frozen=True)
class PriorStageSettings:
    """Settings of the parts.

    Args:
        rounds: of matching with the prior as a cost (0: the first matching is kept).
        move_cameras: let the fit move all views but the first.
        second_look: see the frames again with the fitted tree in mind, by these weights (embedded name or file); None
            does not.
        branches: look for side branches one by one (several views only); None does not.
        contrast: judge them, and matched curves that the fit has not got, by the contrast too; None does not.
        deformation: undo what the heart moved between the views before the tree is laid onto them; None does not.
    """

    rounds: int = 1
    move_cameras: bool = True
    second_look: str | None = None
    fit: PriorSettings = field(default_factory=PriorSettings)
    cost: PriorCostSettings = field(default_factory=PriorCostSettings)
    snap: SnapSettings = field(default_factory=SnapSettings)
    completion: CompletionSettings = field(default_factory=CompletionSettings)
    branches: BranchSearchSettings | None = field(default_factory=BranchSearchSettings)
    contrast: ContrastSettings | None = field(default_factory=ContrastSettings)
    deformation: DeformationSettings | None = None


@dataclass(frozen=True)
class PriorStage:
    """``curves`` for ``assemble_tree``, ``cameras`` corrected with the tree, ``found``: the last matching (points and
    confidence in the gauge of these cameras), the ``fit``, the ``chains`` that both are of, ``doubtful``: the prior
    yields to what was matched, and ``warnings``."""

    curves: tuple[Curve, ...]
    cameras: tuple[Camera, ...]
    found: Correspondence
    fit: PriorFit
    chains: tuple[Chains, ...]
    doubtful: bool
    warnings: tuple[str, ...]


def prior_stage(
    found: Correspondence,
    chains: Sequence[Chains],
    *,
    generator,
    settings: PriorStageSettings | None = None,
    match: Callable[[Sequence[Chains], tuple[Camera, ...], tuple], Correspondence] | None = None,
    look_again: Callable[[VesselTree, tuple[Camera, ...]], tuple[Sequence[Chains], Sequence[WeakLines]]] | None = None,
    start=None,
    labels=None,
    encoding=None,
    lines: Sequence[WeakLines] | None = None,
    evidence: Sequence[VesselEvidence] = (),
    progress: Callable[[float, str], None] | None = None,
) -> PriorStage:
    """Fit the prior to a first correspondence and use it.

    Args:
        found: of ``match_all``, scale gauge fixed. chains: of all views.
        generator: of :func:`licag3d.models.generator.load_generator`, with a structure stage.
        match: called with centrelines, cameras and place costs, matches again without fixing the gauge anew; None keeps
            ``found``.
        look_again: called with the fitted tree and cameras, gives centrelines and faint lines seen with the tree in
            mind (:mod:`licag3d.inversion.second_look`), with which the fit goes on.
        start: an earlier ``PriorFit`` to go on from.
        encoding: of :func:`licag3d.models.encode_views.encode_views`, see :func:`fit_prior`.
        labels: ``(B, labels)`` of the arteries to try; default all.
        lines: per view, of :func:`licag3d.inversion.prior_evidence.weak_lines`: faint vessels guide the fit.
        evidence: per view; its line integrals judge side branches (``settings.contrast``).
        progress: called with the share done (0..1) and a line of text.
    """
    settings = settings or PriorStageSettings()
    tell = progress or (lambda *_: None)
    completion = settings.completion
    if len(found.cameras) == 1:
        completion = replace(completion, doubt=completion.doubt_alone)
    how = replace(settings.fit, move_cameras=settings.fit.move_cameras and settings.move_cameras)
    fit = fit_prior(
        found.cameras,
        chains,
        found.points_mm,
        found.confidence,
        generator=generator,
        settings=how,
        start=start,
        labels=labels,
        encoding=encoding,
        lines=lines,
        progress=lambda share, text: tell(0.5 * share, text),
    )
    if look_again is not None and fit.overall >= SURE_TO_LOOK:
        tell(0.5, "looking again with the tree in mind")
        trusted = fit.overall
        chains, lines = look_again(fit.tree, fit.cameras)
        # Matched without the prior: outside its family that is what holds the fit (docs/inversion.md).
        seen = _unmatched(found, chains) if match is None else match(chains, fit.cameras, ())
        fit = fit_prior(
            found.cameras, chains, seen.points_mm, seen.confidence, generator=generator, settings=how, start=fit,
            lines=lines, progress=lambda share, text: tell(0.5 + 0.2 * share, text),
        )  # fmt: skip
        found = replace(seen, scale_from=found.scale_from, assumptions=found.assumptions)
        # The second look is no witness for the tree that it was shown.
        fit = replace(fit, overall=min(fit.overall, trusted))
    # A prior that the views do not bear out changes nothing: not the matching, not the cameras, not the tree.
    doubtful = fit.overall < completion.doubt
    held = doubtful and len(found.cameras) > 1
    if held:
        fit = replace(fit, cameras=found.cameras)
    if match is not None and settings.rounds and len(found.cameras) > 1 and not held:
        # By the tree of the codes: one whose branches were put onto centrelines would only be told that it is right.
        tell(0.7, "matching with the prior")
        again = match(chains, fit.cameras, (prior_cost(fit, settings.cost),))
        found = replace(again, scale_from=found.scale_from, assumptions=found.assumptions)
    tell(0.9, "laying the tree onto the views")
    still = chains
    if settings.deformation is not None and len(found.cameras) > 1:
        still, _ = at_first_moment(fit.tree, fit.cameras, chains, settings.deformation, settings.snap)
    snapped = snap_tree(fit.tree, fit.cameras, still, settings.snap)
    if settings.branches is not None and not held and len(found.cameras) > 1:
        tell(0.93, "looking for side branches")
        fit, snapped = _searched(fit, snapped, still, found, generator, settings, lines, evidence)
    # One view gives no depth: its flat curves would only contradict the prior's, but are all there is where it yields.
    flat = len(found.cameras) == 1 and not doubtful
    matched = [] if flat else list(found.curves)
    judge = None
    if settings.contrast is not None and evidence and not held and len(found.cameras) > 1:
        judge = borne_out(snapped.tree, fit.cameras, evidence, settings.contrast)
    curves = completed_curves(snapped, fit.overall, matched, completion, judge)
    return PriorStage(
        tuple(curves),
        fit.cameras,
        replace(found, cameras=fit.cameras),
        fit,
        tuple(chains),
        doubtful,
        _warnings(fit, len(chains), doubtful),
    )


def _unmatched(found: Correspondence, chains: Sequence[Chains]) -> Correspondence:
    """The correspondence for other centrelines, of which nothing is matched yet."""
    count = [len(chain.pixels) for chain in chains]
    return replace(
        found, points_mm=tuple(np.full((n, 3), np.nan) for n in count), confidence=tuple(np.zeros(n) for n in count)
    )


def _searched(
    fit: PriorFit, snapped: Snapped, chains, found, generator, settings: PriorStageSettings, lines, evidence
):
    """The fit and the tree laid onto the views after the search of side branches."""
    seen = gather(
        fit.cameras, chains, found.points_mm, found.confidence, settings.branches.spacing_mm, lines
    )  # fmt: skip
    tree, changes = search_branches(
        fit, snapped.tree, seen.views, seen.sizes_mm, generator=generator, settings=settings.branches,
        evidence=evidence, contrast=settings.contrast,
    )  # fmt: skip
    if not changes:
        return fit, snapped
    # New branches lie on the views already, and the rest must not be laid onto them twice: it would be moved again.
    return with_tree(fit, tree, seen.views), shown_tree(tree, fit.cameras, chains, settings.snap)


def _warnings(fit: PriorFit, views: int, doubtful: bool) -> tuple[str, ...]:
    said = []
    if views == 1 and not doubtful:
        said.append("Depth comes from the prior alone: one view does not show it.")
    if doubtful:
        said.append(
            f"The views do not look like the coronary trees that the prior knows (it explains "
            f"{100 * min(fit.explained):.0f} % of the centreline, trust {fit.overall:.2f}): it yields to what was "
            "matched."
        )
    elif fit.margin < 0.15:
        said.append("Right and left artery fit nearly alike: branch names are doubtful.")
    if views > 1 and not doubtful and int(fit.codes.spread) == WIDE:
        said.append(
            "The tree seems to bend in ways that trees of the prior's training do not: expect more wrong branches and "
            "a less sure depth than for a common anatomy."
        )
    return tuple(said)
