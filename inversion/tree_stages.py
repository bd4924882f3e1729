# SPDX-License-Identifier: Apache-2.0
"""From corrected cameras and traced vessels to one tree: matching, the prior, refinement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.inversion import pictures
from licag3d.inversion.assembly import Assembly, assemble_tree
from licag3d.inversion.chains import Chains
from licag3d.inversion.lifting import lifted_curves
from licag3d.inversion.prior_fit import PriorFit
from licag3d.inversion.settings import InversionSettings
from licag3d.inversion.several import Correspondence, match_all
from licag3d.inversion.sights import sights_of
from licag3d.report.result import StageRecord
from licag3d.structures import VesselEvidence, VesselTree, View
from licag3d.vessels.tree import component_count

Progress = Callable[[str, float, str], None]
NOTHING_MATCHED = (
    "no vessel could be matched between the views: check that they show the same artery of one patient and that their "
    "angles are right"
)


#: A tree that the views deny throughout is worse than the one they agree on.
PRIOR_DENIED = "The views deny the tree that was completed by the prior: the tree of matching alone is delivered."
PRIOR_ASSUMED = (
    "Where the views leave the tree open it follows a prior learned from synthetic coronary trees; branch names come "
    "from it."
)
#: Where the views agree on less than this share of what they agree on without the learned judge, it does not know such
#: vessels (0.52 on tubes of a bench phantom; 0.92 or more on validation trees, 0.78 on trees outside the family).
LEAST_JUDGED = 0.7
JUDGE_OVERRULED = (
    "The learned judge of matches does not know vessels like these: they were matched by calibre, slope and contrast."
)


@dataclass(frozen=True)
class FoundTree:
    """A tree and what it came from.

    Args:
        tree: named where the prior bears it. cameras: with the gauge fixed, moved by the refinement.
        chains: centrelines of the views that ``found`` speaks of: those of the second look where there was one.
        found: what the views agree on. matched: the tree of matching alone. fit: of the prior, or None.
        match: how the views were matched, see :func:`matcher`.
        records: one per stage.
    """

    tree: VesselTree
    cameras: tuple[Camera, ...]
    chains: tuple[Chains, ...]
    found: Correspondence
    matched: Assembly
    fit: PriorFit | None
    match: Callable[..., Correspondence]
    records: tuple[StageRecord, ...]
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]


def find_tree(
    views: Sequence[View],
    evidence: Sequence[VesselEvidence],
    chains: Sequence[Chains],
    cameras: Sequence[Camera],
    settings: InversionSettings,
    progress: Progress | None = None,
) -> FoundTree:
    """Match the views, complete the tree by the prior, refine it against the images.

    Args:
        cameras: after the camera search; the scale gauge still open.
        settings: ``prior`` ``none`` leaves the tree to matching alone; stages named in ``skip`` are left out.

    Raises:
        InputError: nothing can be matched, or the prior cannot be read.
    """
    progress = progress or (lambda *_: None)
    match = matcher(views, evidence, settings)
    found, record = _match(views, chains, cameras, settings, match, progress)
    records = [record]
    warnings, assumptions = list(found.warnings), list(found.assumptions)
    matched = assemble_tree(list(found.curves), settings.assembly, sights_of(found.cameras, views, evidence))
    if not matched.tree.branches:
        raise InputError(NOTHING_MATCHED)
    tree, fit, last = matched.tree, None, matched
    if settings.prior != "none" and "prior" not in settings.skip:
        staged, seen, completed, assembly, record = _complete(views, evidence, chains, found, settings, match, progress)
        records.append(record)
        if not completed.branches:
            warnings.append(PRIOR_DENIED)
        else:
            found, fit, tree, last = staged.found, staged.fit, completed, assembly
            evidence, chains = seen, staged.chains
            if len(views) == 1 and not staged.doubtful:
                warnings, assumptions = [], []  # those of a flat tree
            warnings += [*found.warnings * (len(views) > 1), *staged.warnings]
            if not staged.doubtful:
                assumptions.append(PRIOR_ASSUMED)
    cameras = found.cameras
    if "refinement" not in settings.skip:
        tree, cameras, record = _refine(views, evidence, tree, cameras, settings, progress)
        records.append(record)
    warnings += assembly_warnings(last)
    return FoundTree(
        tree, cameras, tuple(chains), found, matched, fit, match, tuple(records), tuple(warnings), tuple(assumptions)
    )


def matcher(
    views: Sequence[View], evidence: Sequence[VesselEvidence], settings: InversionSettings
) -> Callable[..., Correspondence]:
    """``match_all`` for these views, with what the images say beyond centrelines: ``(cameras, chains, settings, *,
    place_costs=(), fix_scale=False)``. With ``fix_scale`` a catheter of known size may speak on the scale."""
    from licag3d.models.correspondence_judge import correspondence_judge

    use = settings.judge and len(views) > 1
    judge = correspondence_judge(tuple(evidence), device=settings.device) if use else None

    def match(cameras, chains, settings, *, place_costs=(), fix_scale=False) -> Correspondence:
        nonlocal judge
        ruler = _ruler(views, evidence, settings) if fix_scale and len(views) > 1 else None
        found = match_all(cameras, chains, settings, place_costs=place_costs, judge=judge, ruler=ruler)
        if fix_scale and judge is not None:
            plain = match_all(cameras, chains, settings, place_costs=place_costs, ruler=ruler)
            if found.agreed_share < LEAST_JUDGED * plain.agreed_share:
                judge = None
                return replace(plain, warnings=(*plain.warnings, JUDGE_OVERRULED))
        return found

    return match


def _ruler(views, evidence, settings: InversionSettings):
    if settings.catheter_french is None:
        return None
    from licag3d.inversion.catheter import catheter_scale, find_catheter

    french = settings.catheter_french
    catheters = [find_catheter(v, e, french, device=settings.device) for v, e in zip(views, evidence, strict=True)]
    return lambda cameras, points: catheter_scale(catheters, cameras, points, french)


def _match(views, chains, cameras, settings, match, progress) -> tuple[Correspondence, StageRecord]:
    begin = time.perf_counter()
    progress("matching", 0.0, "choosing paths")
    found = match(cameras, chains, settings, fix_scale=True)
    note = f"{100 * found.matched_share:.0f} % of the centreline matched, {100 * found.agreed_share:.0f} % agreed on."
    progress("matching", 1.0, note)
    seconds = time.perf_counter() - begin
    shown = match_pictures(views, chains, found)
    return found, StageRecord("Centreline matching", seconds, {"matching_cost": [found.cost]}, shown, note)


def match_pictures(views, chains, found: Correspondence) -> dict:
    """Per view what is matched, and how surely."""
    return {
        f"View {k + 1}": pictures.match_picture(view, chain.pixels, points, sure)
        for k, (view, chain, points, sure) in enumerate(
            zip(views, chains, found.points_mm, found.confidence, strict=True)
        )
    }


def _complete(views, evidence, chains, found, settings, match, progress):
    from licag3d.inversion.completion import name_branches
    from licag3d.inversion.prior_evidence import weak_lines
    from licag3d.inversion.prior_stage import prior_stage
    from licag3d.inversion.second_look import look_again
    from licag3d.models.generator import labels_of, load_generator

    begin = time.perf_counter()
    generator, _ = load_generator("generator" if settings.prior == "embedded" else settings.prior)
    if generator.structure is None:
        raise InputError(f"--prior {Path(settings.prior).name}: this generator writes no branches (structure 0)")
    labels = None
    if settings.artery != "auto":
        labels = labels_of([settings.artery] * 2, [False, True], len(generator.config.labels))
    # The scale gauge is fixed by the first matching.
    held = replace(settings, camera_correction="none")
    seen = evidence

    def again(tree, cameras):
        nonlocal seen
        seen, lines = look_again(
            views, evidence, chains, tree, cameras, weights=settings.prior_stage.second_look, device=settings.device
        )
        return lines, [weak_lines(item, view) for item, view in zip(seen, views, strict=True)]

    looks = _looks_again(views, settings)
    staged = prior_stage(
        found,
        chains,
        generator=generator,
        settings=replace(settings.prior_stage, move_cameras=settings.camera_correction != "none"),
        match=lambda lines, cameras, costs: match(cameras, lines, held, place_costs=costs),
        look_again=again if looks else None,
        lines=[weak_lines(e, v) for e, v in zip(evidence, views, strict=True)],
        labels=labels,
        encoding=_encoding(evidence, found.cameras, settings),
        evidence=evidence,
        progress=lambda share, text: progress("prior", share, text),
    )
    sights = sights_of(staged.cameras, views, seen)
    curves, joining = list(staged.curves), settings.assembly
    if len(views) == 1 and not staged.doubtful:
        curves += lifted_curves(staged.chains[0], staged.cameras[0], curves)
        # In one view anything that is dark all the way looks like a bridge.
        joining = replace(joining, join=replace(joining.join, longest_mm=joining.bridge_mm))
    assembly = assemble_tree(curves, joining, sights)
    tree = assembly.tree if staged.doubtful else name_branches(assembly.tree, staged.fit)
    explained = " and ".join(f"{100 * value:.0f}" for value in staged.fit.explained)
    artery = {"rca": "Right", "lca": "Left"}[staged.fit.artery]
    note = f"{artery} artery; its tree explains {explained} % of the centrelines, trust {staged.fit.overall:.2f}."
    progress("prior", 1.0, note)
    shown = tree_pictures(views, staged.cameras, tree)
    seconds = time.perf_counter() - begin
    return staged, seen, tree, assembly, StageRecord("Prior of the tree", seconds, {}, shown, note)


def _looks_again(views: Sequence[View], settings: InversionSettings) -> bool:
    """Whether there is a second look: with several views, not all of them masks, and where learning saw the first."""
    from licag3d import weights
    from licag3d.models.vessel_evidence import choose_method

    name = settings.prior_stage.second_look
    if name is None or len(views) < 2 or all(view.mask is not None for view in views):
        return False
    known = name.endswith(".safetensors") or weights.available(name)
    return known and choose_method(settings.evidence) == "learned"


def _encoding(evidence, cameras, settings: InversionSettings):
    from licag3d import weights
    from licag3d.models.encoder import MOST_VIEWS, load_tree_encoder

    fit = settings.prior_stage.fit
    wanted = (fit.encoder or fit.named_mm > 0) and len(evidence) <= MOST_VIEWS
    # The encoder writes codes of the embedded generator; to another one they mean nothing.
    if not wanted or settings.prior != "embedded" or not weights.available("tree_encoder"):
        return None
    from licag3d.models.encode_views import encode_views

    return encode_views(list(evidence), list(cameras), encoder=load_tree_encoder(device=settings.device))


def _refine(views, evidence, tree, cameras, settings, progress):
    from licag3d.inversion.overlaps import clear_overlaps
    from licag3d.inversion.refinement import refine_tree

    begin = time.perf_counter()
    cleared = clear_overlaps(tree, cameras, evidence, settings.refinement.overlaps)
    refined = refine_tree(
        cleared.tree,
        cameras,
        views,
        evidence,
        settings.refinement,
        progress=lambda share, text: progress("refinement", share, text),
        move_cameras=len(cameras) > 1 and settings.camera_correction != "none",
    )
    note = "Centrelines and radii refined against the profiles across every vessel."
    if cleared.facts.get("moved_mm"):
        share = 100 * cleared.facts["contested_share"]
        note = f"Vessels over or beside each other ({share:.0f} % of the tree) told apart by their contrast. {note}"
    progress("refinement", 1.0, note)
    shown = tree_pictures(views, refined.cameras, refined.tree)
    rounds = refined.facts.get("centre_px", [])
    losses = {f"middle_px_view_{k + 1}": [row[k] for row in rounds] for k in range(len(views)) if rounds}
    return (
        refined.tree,
        refined.cameras,
        StageRecord("Vessel refinement", time.perf_counter() - begin, losses, shown, note),
    )


def tree_pictures(views: Sequence[View], cameras: Sequence[Camera], tree: VesselTree) -> dict:
    """The reprojected tree over every view."""
    return {
        f"View {k}": pictures.tree_picture(view, camera, tree)
        for k, (view, camera) in enumerate(zip(views, cameras, strict=True), 1)
    }


def assembly_warnings(assembly: Assembly) -> list[str]:
    """What was bridged and what was left out, for people."""
    warnings = []
    long = [bridge.gap_mm for bridge in assembly.bridges if bridge.gap_mm > 3.0]
    if long:
        warnings.append(
            f"{len(long)} gap(s) of {min(long):.0f} to {max(long):.0f} mm between pieces of the tree were bridged by "
            "straight lines."
        )
    if assembly.strays_mm:
        listed = ", ".join(f"{length:.0f}" for length in assembly.strays_mm)
        warnings.append(
            f"{len(assembly.strays_mm)} piece(s) apart from the tree, short or doubtful, were left out (lengths in mm: "
            f"{listed})."
        )
    pieces = component_count(assembly.tree)
    if pieces > 1:
        warnings.append(
            f"The tree is in {pieces} pieces: no vessel is seen between them in every view, so that nothing was drawn."
        )
    return warnings
