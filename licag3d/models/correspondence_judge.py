# SPDX-License-Identifier: Apache-2.0
"""What the correspondence network says about the candidate places of an inversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from licag3d.errors import InputError

if TYPE_CHECKING:
    from licag3d.geometry import Camera
    from licag3d.inversion.candidates import Candidates
    from licag3d.inversion.chains import Chains
    from licag3d.models.correspondence import Correspondence
    from licag3d.ops.match import PathPrices
    from licag3d.structures import VesselEvidence

NAME = "correspondence"


@dataclass(frozen=True)
class Verdict:
    """Of one view: ``log_place`` ``(N, K)`` log-probability of every candidate (-inf where there is none) and
    ``log_none`` ``(N,)`` of none of them."""

    log_place: np.ndarray
    log_none: np.ndarray


@dataclass(frozen=True)
class Judge:
    """The network with the pictures of all views of an inversion; ``pictures`` ``(V, 2, side, side)`` float32."""

    model: Correspondence
    pictures: np.ndarray

    def of(self, first: int, second: int) -> PairJudge:
        """The judge of one pair of the views."""
        return PairJudge(self.model, self.pictures[[first, second]])


@dataclass(frozen=True)
class PairJudge:
    """The network with the pictures of two views."""

    model: Correspondence
    pictures: np.ndarray

    def ask(
        self,
        cameras: tuple[Camera, Camera],
        chains: tuple[Chains, Chains],
        candidates: tuple[Candidates, Candidates],
        prices: PathPrices,
    ) -> tuple[Verdict, Verdict]:
        """Verdicts on the candidates of either view.

        Args:
            candidates: those of :func:`licag3d.inversion.matching.both_candidates`, made with ``prices``.
        """
        import torch

        from licag3d.inversion.chains import thinned
        from licag3d.models.correspondence import log_probability, pair_sample

        points = []
        for chain in chains:  # as in training: a point of the network every 1.8 mm
            half, rows = thinned(chain)
            quarter, again = thinned(half)
            points.append((quarter, rows[again]))
        sample = pair_sample(cameras, chains, candidates, prices, tuple(points))
        device = next(self.model.parameters()).device
        pictures = torch.from_numpy(self.pictures).to(device, memory_format=torch.channels_last)
        with torch.inference_mode():
            said = self.model(pictures, [sample.to(device)])[0]
        out = []
        for k in (0, 1):
            value = log_probability(said[k]).cpu().double().numpy()
            out.append(Verdict(value[:, :-1], value[:, -1]))
        return tuple(out)


def correspondence_judge(
    evidence: Sequence[VesselEvidence], *, weights: str = NAME, device: str = "cpu"
) -> Judge | None:
    """A judge for the views of an inversion; None where no such weights are part of this installation.

    Args:
        evidence: of every view, as the centrelines were traced from.
        weights: embedded weights or a ``.safetensors`` file of ``licag3d.train``.

    Raises:
        InputError: weights that are damaged or of another version.
    """
    from licag3d import weights as embedded
    from licag3d.data.view_pairs import see
    from licag3d.models.correspondence import pictures_of

    if not weights.endswith(".safetensors") and not embedded.available(weights):
        return None
    model = load_correspondence(weights, str(device))
    seen = [see(np.asarray(item.probability), np.asarray(item.line_integral)) for item in evidence]
    return Judge(model, np.stack([pictures_of(view) for view in seen]))


@lru_cache(maxsize=2)
def load_correspondence(weights: str = NAME, device: str = "cpu") -> Correspondence:
    """The network with embedded weights, or those of a ``.safetensors`` file of ``licag3d.train``; in eval mode.

    Raises:
        InputError: missing, damaged or of another version.
    """
    from licag3d import weights as embedded
    from licag3d.models.correspondence import build
    from licag3d.train.checkpoints import load_into, load_weights

    if weights.endswith(".safetensors"):
        tensors, facts = load_weights(weights)
    else:
        tensors, facts = embedded.load_once(weights)
    if facts.get("model") != NAME:
        raise InputError(f"{weights}: weights of {facts.get('model')}, not of the correspondence network")
    model = build(facts.get("config"))
    load_into(
        model, {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}, weights
    )
    return model.eval().to(device)
