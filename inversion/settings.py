# SPDX-License-Identifier: Apache-2.0
"""What a user can choose about an inversion, and what the three qualities mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from licag3d.errors import InputError
from licag3d.inversion.assembly import AssemblySettings
from licag3d.inversion.branch_sights import BranchSearchSettings
from licag3d.inversion.camera_search import SearchSettings
from licag3d.inversion.filling import FillSettings
from licag3d.inversion.matching import MatchSettings
from licag3d.inversion.overlaps import OverlapSettings
from licag3d.inversion.prior_fit import PriorSettings
from licag3d.inversion.prior_stage import PriorStageSettings
from licag3d.inversion.refinement import RefinementSettings
from licag3d.inversion.second_look import WEIGHTS as GUIDED

QUALITIES = ("fast", "default", "best")
ARTERIES = ("auto", "lca", "rca")
#: Stages that a user can leave out. (The camera search has a flag of its own.)
SKIPPABLE = ("prior", "refinement", "field")


@dataclass(frozen=True)
class FieldSettings:
    """The attenuation field and its joint refinement with the cameras.

    Args:
        spacing_mm: voxel size of the refined field; the delivered volume is the same field.
        iterations: of the joint refinement; 0 leaves the tubes as they are.
        reach_mm: the field may differ from zero within the vessel radius plus this of the tree.
        rays: pixels drawn per view and iteration, all of them near the vessels.
        sparsity, smoothness, anchor: weights of the penalties, relative to the data term.
        camera_rate_mm: step of the offsets per iteration, mm.
    """

    spacing_mm: float = 0.5
    iterations: int = 25
    reach_mm: float = 1.0
    rays: int = 40_000
    sparsity: float = 0.002
    smoothness: float = 0.02
    anchor: float = 0.05
    camera_rate_mm: float = 0.05


@dataclass(frozen=True)
class InversionSettings:
    """All settings of :func:`licag3d.inversion.pipeline.reconstruct`.

    Args:
        catheter_french: size of the catheter in the frames, French (1/3 mm), which then speaks on the scale.
        members: matchings with everything moved within its errors, for the expected error along the branches.
        judge: let the learned judge of matches speak; with the prior it is worth little (docs/inversion.md).
        prior: ``embedded``, ``none`` or a generator file. artery: ``auto`` (told by the fit of the prior), ``lca`` or
            ``rca``. skip: stages left out, of ``SKIPPABLE``.
    """

    seed: int = 0
    device: str = "cpu"
    camera_correction: str = "evolution"
    evidence: str = "auto"
    prior: str = "embedded"
    artery: str = "auto"
    skip: tuple[str, ...] = ()
    catheter_french: float | None = None
    members: int = 4
    judge: bool = True
    search: SearchSettings = SearchSettings()
    match: MatchSettings = MatchSettings()
    fill: FillSettings = FillSettings()
    assembly: AssemblySettings = AssemblySettings()
    prior_stage: PriorStageSettings = PriorStageSettings()
    refinement: RefinementSettings = RefinementSettings()
    field: FieldSettings = FieldSettings()


def inversion_settings(
    *,
    quality: str = "default",
    seed: int = 0,
    device: str = "cpu",
    spacing_mm: float = 0.5,
    camera_correction: str = "evolution",
    evidence: str = "auto",
    prior: str = "embedded",
    artery: str = "auto",
    skip: Sequence[str] = (),
    catheter_french: float | None = None,
    second_look: bool = False,
) -> InversionSettings:
    """Settings of a quality.

    Args:
        quality: ``fast`` (one start of the camera search, short refinement), ``default``, or ``best`` (eight starts,
            long refinement).
        spacing_mm: voxel size of the delivered volumes, 0.1 to 5 mm.
        camera_correction: ``evolution`` or ``none`` (cameras are taken as exact).
        evidence: ``learned``, ``classical`` or ``auto`` (:func:`licag3d.models.vessel_evidence.vessel_evidence`).
        prior, artery, skip, catheter_french: as in :class:`InversionSettings`.
        second_look: see the frames again with the fitted tree in mind (:mod:`licag3d.inversion.second_look`).

    Raises:
        InputError: a value out of range.
    """
    if quality not in QUALITIES:
        raise InputError(f"--quality {quality!r} is not known: give fast, default or best")
    if camera_correction not in ("evolution", "none"):
        raise InputError(f"--camera-correction {camera_correction!r} is not known: give evolution or none")
    if artery not in ARTERIES:
        raise InputError(f"--artery {artery!r} is not known: give auto, lca or rca")
    unknown = [name for name in skip if name not in SKIPPABLE]
    if unknown:
        raise InputError(f"--skip {unknown[0]!r} is not a stage that can be left out: give {', '.join(SKIPPABLE)}")
    if prior not in ("embedded", "none") and not (prior.endswith(".safetensors") and Path(prior).is_file()):
        raise InputError(
            f"--prior {prior}: give embedded, none, or a .safetensors file that python -m licag3d.train generator wrote"
        )
    if not 0.1 <= spacing_mm <= 5.0:
        raise InputError(f"--spacing {spacing_mm} mm is outside 0.1..5 mm")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed} is outside 0..{2**32 - 1}")
    if catheter_french is not None:
        from licag3d.inversion.catheter import check_french

        catheter_french = check_french(catheter_french)
    steps = {"fast": (40, 120), "default": (60, 200), "best": (100, 400)}[quality]
    starts, generations, iterations = {"fast": (1, 20, 10), "default": (3, 35, 25), "best": (8, 60, 80)}[quality]
    return InversionSettings(
        seed=seed,
        device=device,
        camera_correction=camera_correction,
        evidence=evidence,
        prior=prior,
        artery=artery,
        skip=tuple(skip),
        catheter_french=catheter_french,
        judge=quality != "fast" or prior == "none" or "prior" in skip,
        members={"fast": 0, "default": 4, "best": 10}[quality],
        search=SearchSettings(starts=starts, generations=generations),
        prior_stage=PriorStageSettings(
            fit=PriorSettings(
                trial_steps=steps[0],
                steps=steps[1],
                starts=6 if quality == "best" else 1,
                encoder=quality == "best",
                # The encoder and one more start take a second that the fast quality has not got.
                named_mm=0.0 if quality == "fast" else PriorSettings.named_mm,
            ),
            branches=None if quality == "fast" else BranchSearchSettings(),
            second_look=GUIDED if second_look else None,
        ),
        # Reading thin lumens from the frame takes two seconds (without it widths and contrasts alone tell stenoses),
        # and so does telling overlapping vessels apart.
        refinement=RefinementSettings(
            density=quality != "fast",
            overlaps=OverlapSettings(rounds=0 if quality == "fast" else OverlapSettings.rounds),
        ),
        field=FieldSettings(spacing_mm=spacing_mm, iterations=0 if "field" in skip else iterations),
    )
