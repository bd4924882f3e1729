# SPDX-License-Identifier: Apache-2.0
"""Weights of the losses of the tree encoder (apart from the rest, so that ``--help`` needs no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from licag3d.errors import InputError

#: Forms of the tuple loss, see ``licag3d.losses.tuple``.
TUPLE_FORMS = ("contrastive", "cosine", "none")


@dataclass(frozen=True)
class EncoderStepSettings:
    """Weights of the losses; 0 leaves one out.

    Args:
        vector: courses, places, radii, presences against the truth, 3D, mm; guess: of the code before named places
            correct it, relative to that. code: W+ regression. latent: pull of the
            styles' deltas to W. tuple: see ``licag3d.losses.tuple``, in the form ``tuple_form``. place: of the centre
            in each view, per mm. label: artery and co-dominance. dense: branches by pixel. spread: of the expected
            errors. projection: line integral of the written tree at low resolution. vessel: soft clDice of it.
            perceptual: of it seen by the angiogram encoder. field: the field of the written tree at points, 3D.
        vessel_every, perceptual_every, field_every: steps between those with the dear parts.
        map_px: of the projections.
    """

    vector: float = 0.4
    guess: float = 0.5
    code: float = 0.3
    latent: float = 0.02
    tuple: float = 0.5
    tuple_form: str = "contrastive"
    place: float = 0.3
    label: float = 1.0
    dense: float = 2.0
    spread: float = 0.2
    projection: float = 1.0
    vessel: float = 0.5
    perceptual: float = 0.5
    field: float = 0.5
    vessel_every: int = 4
    perceptual_every: int = 16
    field_every: int = 16
    map_px: int = 64

    def __post_init__(self) -> None:
        if self.tuple_form not in TUPLE_FORMS:
            raise InputError(f"--tuple-form is '{self.tuple_form}'; choose {', '.join(TUPLE_FORMS)}")
