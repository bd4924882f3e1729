# SPDX-License-Identifier: Apache-2.0
"""What a user can choose about an inversion, and what the three qualities mean."""

from __future__ import annotations

from dataclasses import dataclass

from licag3d.errors import InputError
from licag3d.inversion.assembly import AssemblySettings
from licag3d.inversion.camera_search import SearchSettings
from licag3d.inversion.filling import FillSettings
from licag3d.inversion.matching import MatchSettings

QUALITIES = ("fast", "default", "best")


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
    """All settings of :func:`licag3d.inversion.pipeline.reconstruct`."""

    seed: int = 0
    device: str = "cpu"
    camera_correction: str = "evolution"
    evidence: str = "auto"
    search: SearchSettings = SearchSettings()
    match: MatchSettings = MatchSettings()
    fill: FillSettings = FillSettings()
    assembly: AssemblySettings = AssemblySettings()
    field: FieldSettings = FieldSettings()


def inversion_settings(
    *,
    quality: str = "default",
    seed: int = 0,
    device: str = "cpu",
    spacing_mm: float = 0.5,
    camera_correction: str = "evolution",
    evidence: str = "auto",
) -> InversionSettings:
    """Settings of a quality.

    Args:
        quality: ``fast`` (one start of the camera search, short refinement), ``default``, or ``best`` (eight starts,
            long refinement).
        spacing_mm: voxel size of the delivered volumes, 0.1 to 5 mm.
        camera_correction: ``evolution`` or ``none`` (cameras are taken as exact).
        evidence: ``learned``, ``classical`` or ``auto`` (:func:`licag3d.models.vessel_evidence.vessel_evidence`).

    Raises:
        InputError: a value out of range.
    """
    if quality not in QUALITIES:
        raise InputError(f"--quality {quality!r} is not known: give fast, default or best")
    if camera_correction not in ("evolution", "none"):
        raise InputError(f"--camera-correction {camera_correction!r} is not known: give evolution or none")
    if not 0.1 <= spacing_mm <= 5.0:
        raise InputError(f"--spacing {spacing_mm} mm is outside 0.1..5 mm")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed} is outside 0..{2**32 - 1}")
    starts, generations, iterations = {"fast": (1, 20, 10), "default": (3, 35, 25), "best": (8, 60, 80)}[quality]
    return InversionSettings(
        seed=seed,
        device=device,
        camera_correction=camera_correction,
        evidence=evidence,
        search=SearchSettings(starts=starts, generations=generations),
        field=FieldSettings(spacing_mm=spacing_mm, iterations=iterations),
    )
