# SPDX-License-Identifier: Apache-2.0
"""The stages of an inversion: evidence, cameras, the tree (``tree_stages``), field. Plain functions over one state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.inversion import pictures, sanity, uncertainty
from licag3d.inversion.chains import Chains, chains_from_graph
from licag3d.inversion.consistency import contrast_of
from licag3d.inversion.narrowings import find_narrowings
from licag3d.inversion.rematching import rematch_ensemble
from licag3d.inversion.settings import InversionSettings
from licag3d.inversion.several import correct_cameras
from licag3d.inversion.state import StageStore, fingerprint, pack_cameras, unpack_cameras
from licag3d.inversion.tree_stages import FoundTree, find_tree, tree_pictures
from licag3d.report.result import Reconstruction, StageRecord
from licag3d.structures import VesselEvidence, VesselTree, View

Progress = Callable[[str, float, str], None]
#: Less centreline than this in a view is no vessel tree.
SHORTEST_VESSEL_MM = 15.0


@dataclass(frozen=True)
class Run:
    """What the stages share: inputs, settings, and where they tell how far they are."""

    views: tuple[View, ...]
    settings: InversionSettings
    progress: Progress
    store: StageStore


def reconstruct(
    views: Sequence[View],
    settings: InversionSettings | None = None,
    *,
    warnings: Sequence[str] = (),
    assumptions: Sequence[str] = (),
    progress: Progress | None = None,
    resume_folder=None,
    resume: bool = False,
    command: str = "",
) -> Reconstruction:
    """Reconstruct the vessel tree of one to eight views.

    Args:
        views: as :func:`licag3d.io.views.read_views` gives them; the first is the reference.
        settings: default :class:`InversionSettings`.
        warnings, assumptions: from reading, handed on to the result.
        progress: called with stage, share done (0..1) and a line of text.
        resume_folder: finished stages are kept in a hidden folder there; with ``resume`` they are taken up again when
            inputs and settings are the same.

    Raises:
        InputError: no vessel is found in a view, or nothing can be matched.
    """
    settings = settings or InversionSettings()
    run = Run(
        tuple(views),
        settings,
        progress or (lambda *_: None),
        StageStore(resume_folder, fingerprint(views, settings), resume=resume),
    )
    begin = time.perf_counter()
    evidence, chains, record_1 = _evidence_stage(run)
    cameras, facts, record_2 = _camera_stage(run, chains, evidence)
    contrast = [contrast_of(item) for item in evidence]
    given = tuple(view.camera for view in run.views)
    same = sanity.same_patient(evidence, given, settings.device)
    consistent = sanity.consistency(given, cameras, chains, contrast, settings, same)
    found = find_tree(run.views, evidence, chains, cameras, settings, run.progress)
    field, cameras, metrics, record_3 = _field_stage(run, found.tree, found.cameras, evidence, chains)
    tree, errors, record_4 = _vessel_stage(run, found, cameras)
    narrowed = find_narrowings(tree, cameras, run.views, evidence)
    sure, doubts = sanity.confidence(
        consistent,
        tree,
        views=len(run.views),
        matched_share=found.found.matched_share,
        agreed_share=found.found.agreed_share,
    )
    said = [*doubts, *warnings, *sanity.view_warnings(run.views, chains), *facts["warnings"], *found.warnings]
    return Reconstruction(
        views=run.views,
        cameras=cameras,
        tree=tree,
        attenuation=field,
        evidence=evidence,
        stages=(record_1, record_2, *found.records, record_3, record_4),
        metrics=metrics,
        warnings=tuple(dict.fromkeys(said)),
        assumptions=tuple(dict.fromkeys([*assumptions, *found.assumptions])),
        scale_from=found.found.scale_from,
        given_cameras=given,
        confidence=sure,
        error_note=errors.sentence,
        stenoses=narrowed.listed,
        judged_share=narrowed.judged_share,
        seed=settings.seed,
        device=settings.device,
        seconds=time.perf_counter() - begin,
        command=command,
    )


def _evidence_stage(run: Run) -> tuple[tuple[VesselEvidence, ...], tuple[Chains, ...], StageRecord]:
    from licag3d.models.centerline2d import trace_centerlines
    from licag3d.models.vessel_evidence import choose_method, vessel_evidence

    begin = time.perf_counter()
    names = ("probability", "line_integral", "confidence", "radius_px", "mask")
    method = choose_method(run.settings.evidence)
    stored = run.store.load("evidence")
    if stored and stored[1].get("method") != method:
        stored = None
    evidence, chains = [], []
    for k, view in enumerate(run.views):
        run.progress(
            "evidence",
            k / len(run.views),
            f"view {k + 1}: {'mask given' if view.mask is not None else 'finding vessels'}",
        )
        if stored:
            item = VesselEvidence(**{name: stored[0][f"{name}_{k}"] for name in names})
        else:
            item = vessel_evidence(view, method=method, device=run.settings.device)
        graph = trace_centerlines(item, view)
        chain = chains_from_graph(graph, view.camera)
        if chain.length_mm < SHORTEST_VESSEL_MM:
            what, advice = "shows", "choose a frame with contrast (#FRAME) or give --masks"
            if view.mask is not None:
                what, advice = "has a mask with", "check that the mask is of this frame and holds its vessels"
            raise InputError(
                f"view {k + 1} ({view.file}) {what} {chain.length_mm:.0f} mm of vessel centreline; at least "
                f"{SHORTEST_VESSEL_MM:.0f} mm are needed: {advice}"
            )
        evidence.append(item)
        chains.append(chain)
    if not stored:
        arrays = {f"{n}_{k}": getattr(e, n) for k, e in enumerate(evidence) for n in names}
        run.store.save("evidence", arrays, {"method": method})
    seconds = time.perf_counter() - begin
    length = [chain.length_mm for chain in chains]
    given = sum(view.mask is not None for view in run.views)
    said = "masks given" if given == len(run.views) else f"{method} evidence" + (", some masks given" if given else "")
    run.progress("evidence", 1.0, " + ".join(f"{x:.0f}" for x in length) + " mm of centreline")
    return (
        tuple(evidence),
        tuple(chains),
        StageRecord(
            "Vessel evidence",
            seconds,
            {"centreline_mm": length},
            {
                f"View {k + 1}": pictures.evidence_picture(v, e)
                for k, (v, e) in enumerate(zip(run.views, evidence, strict=True))
            },
            f"Vessels found in each view ({said}): " + ", ".join(f"{x:.0f} mm" for x in length) + " of centreline.",
        ),
    )


def _camera_stage(
    run: Run, chains: tuple[Chains, ...], evidence: tuple[VesselEvidence, ...]
) -> tuple[tuple[Camera, ...], dict, StageRecord]:
    begin = time.perf_counter()
    given = tuple(view.camera for view in run.views)
    if len(given) == 1 or run.settings.camera_correction == "none":
        note = (
            "Cameras taken as given." if len(given) > 1 else "One view: there is nothing to correct the camera against."
        )
        return given, {"warnings": []}, StageRecord("Camera correction", 0.0, {}, {}, note)
    stored = run.store.load("cameras")
    if stored:
        cameras, facts = unpack_cameras(stored[1]["cameras"]), stored[1]
    else:
        cameras, facts = correct_cameras(
            given,
            chains,
            run.settings,
            contrast=[contrast_of(item) for item in evidence],
            progress=lambda share, text: run.progress("cameras", share, text),
        )
        facts = {**facts, "cameras": pack_cameras(cameras), "seconds": time.perf_counter() - begin}
        run.store.save("cameras", {}, facts)
    run.progress("cameras", 1.0, facts["note"])
    return (
        cameras,
        facts,
        StageRecord(
            "Camera correction",
            facts["seconds"],
            {"matching_cost": facts["history"]},
            {"Best cost over the generations": pictures.curve_picture(facts["history"])},
            facts["note"],
        ),
    )


def _field_stage(
    run: Run,
    tree: VesselTree,
    cameras: tuple[Camera, ...],
    evidence: tuple[VesselEvidence, ...],
    chains: tuple[Chains, ...],
):
    from licag3d.inversion.field import refine_field
    from licag3d.inversion.quality import view_metrics

    begin = time.perf_counter()
    move = len(cameras) > 1 and run.settings.camera_correction != "none"
    result = refine_field(
        tree,
        cameras,
        evidence,
        run.settings.field,
        seed=run.settings.seed,
        device=run.settings.device,
        move_cameras=move,
        progress=lambda share, text: run.progress("field", share, text),
    )
    metrics, rendered = view_metrics(tree, result, evidence, chains)
    shown = {
        f"View {k + 1}": pictures.compare_picture(e.line_integral, image)
        for k, (e, image) in enumerate(zip(evidence, rendered, strict=True))
    }
    note = "The field is the lumen of the tree, not refined."
    if result.losses["data"]:
        both = "Field and offsets refined together" if move else "Field refined"
        note = f"{both}: share of the image not explained {result.losses['data'][-1]:.2f}."
    run.progress("field", 1.0, note)
    return (
        result.volume,
        result.cameras,
        metrics,
        StageRecord("Field refinement", time.perf_counter() - begin, result.losses, shown, note),
    )


def _vessel_stage(run: Run, found: FoundTree, cameras: tuple[Camera, ...]):
    """Expected errors along the branches, and the last picture."""
    begin = time.perf_counter()
    settings, tree = run.settings, found.tree
    held = replace(settings, camera_correction="none")  # the scale gauge is fixed already
    moved = ()
    if settings.members and found.fit is None and len(run.views) > 1:
        moved = rematch_ensemble(
            found.found,
            found.chains,
            settings.match,
            lambda cameras, chains, match: found.match(cameras, chains, replace(held, match=match)),
            settings.members,
            seed=settings.seed,
            progress=lambda share, text: run.progress("vessels", share, text),
        )
    errors = uncertainty.point_errors(
        tree,
        cameras,
        found.chains,
        found.found,
        moved,
        fit=found.fit,
        masks_given=all(view.mask is not None for view in run.views),
    )
    tree = uncertainty.with_errors(tree, errors)
    named = sum(bool(branch.name) for branch in tree.branches)
    note = f"{len(tree.branches)} branches, {named} of them named, {tree.length_mm:.0f} mm."
    run.progress("vessels", 1.0, note)
    shown = tree_pictures(run.views, cameras, tree)
    return tree, errors, StageRecord("Vessel tree", time.perf_counter() - begin, {}, shown, note)
