# SPDX-License-Identifier: Apache-2.0
"""Losses of style harmonisation: CycleGAN, CUT, and vessels held in place by the frozen segmentor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from licag3d.errors import InputError
from licag3d.losses.casgan import _judge, to_fake, to_real
from licag3d.models.cyclegan import CycleGan, sampled_places


@dataclass(frozen=True)
class HarmonyWeights:
    """Weight of every term; zero leaves it out.

    ``cycle``, ``identity``: 10 and 5 as in CycleGAN. ``contrast``: 1 as in CUT, which also contrasts the identity.
    ``vessels``: ours.
    """

    gan: float = 1.0
    cycle: float = 10.0
    identity: float = 5.0
    contrast: float = 1.0
    vessels: float = 5.0


#: Temperature and places per layer of the contrastive loss (CUT: 0.07 and 256).
TEMPERATURE, PLACES = 0.07, 128


def harmony_loss(model: CycleGan, batch: dict, vessel_map, weights: HarmonyWeights) -> tuple[torch.Tensor, dict]:
    """Loss of generators and discriminators together, from one batch.

    Args:
        batch: ``x`` of the source and ``y`` of the target, ``(n, 1, h, w)`` in 0..1, of any patients.
        vessel_map: frames to soft vessel maps by the frozen segmentor; None without the term.

    Returns:
        The sum, and every term; ``spread`` is how much of the source's contrast is left in what is made.
    """
    x, y = batch["x"], batch["y"]
    made = model.forth(x)
    terms = {"gan": to_real(_judge(model.judge_target, made), "least-squares")}
    pairs = [(x, made)]
    judged = {"target": (model.judge_target, y, model.remembered("target", made) if model.training else made.detach())}
    if model.config.method == "cyclegan":
        other = model.back(y)
        terms["gan"] = terms["gan"] + to_real(_judge(model.judge_source, other), "least-squares")
        terms["cycle"] = (model.back(made) - x).abs().mean() + (model.forth(other) - y).abs().mean()
        terms["identity"] = (model.forth(y) - y).abs().mean() + (model.back(x) - x).abs().mean()
        pairs.append((y, other))
        shown = model.remembered("source", other) if model.training else other.detach()
        judged["source"] = (model.judge_source, x, shown)
    else:
        terms["contrast"] = contrastive_loss(model, x, made) + contrastive_loss(model, y, model.forth(y))
    if vessel_map is not None and weights.vessels:
        terms["vessels"] = sum(kept_vessels(vessel_map, before, after) for before, after in pairs)
    total = sum(getattr(weights, name) * value for name, value in terms.items())
    for name, (judge, real, fake) in judged.items():
        value = 0.5 * (to_real(judge(real), "least-squares") + to_fake(judge(fake), "least-squares"))
        terms[f"judge_{name}"] = value
        total = total + value
    numbers = {name: value.detach() for name, value in terms.items()}
    with torch.no_grad():
        numbers["spread"] = (made.float().std((1, 2, 3)) / x.float().std((1, 2, 3)).clamp_min(1e-3)).mean()
    return total, numbers


def kept_vessels(vessel_map, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the vessels after with those before, over what their own uncertainty costs (zero if equal), and
    one minus the soft overlap of both.
    """
    with torch.no_grad():
        wanted = vessel_map(before)
    found = vessel_map(after)
    with torch.autocast(found.device.type, enabled=False):
        wanted, found = wanted.float().clamp(1e-4, 1 - 1e-4), found.float().clamp(1e-4, 1 - 1e-4)
        extra = F.binary_cross_entropy(found, wanted) - F.binary_cross_entropy(wanted, wanted)
        overlap = (2 * (found * wanted).sum() + 1) / (found.square().sum() + wanted.square().sum() + 1)
    return extra + 1 - overlap


def contrastive_loss(model: CycleGan, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """PatchNCE (Park et al., ECCV 2020): a patch of the made frame must be told from others by its own place in the
    source, layer by layer of the generator's encoder.
    """
    total = before.new_zeros(())
    asked, given = model.forth.features(after), model.forth.features(before)
    for query, key, project in zip(asked, given, model.projections, strict=True):
        places = sampled_places(query.shape[-2:], PLACES).to(query.device)

        def vectors(features: torch.Tensor, project=project, places=places) -> torch.Tensor:
            return F.normalize(project(features.flatten(2)[:, :, places].transpose(1, 2)).float(), dim=-1)

        like = vectors(query) @ vectors(key).detach().transpose(1, 2) / TEMPERATURE
        right = torch.arange(len(places), device=query.device).expand(len(like), -1)
        total = total + F.cross_entropy(like.flatten(0, 1), right.reshape(-1))
    return total / len(asked)


class SpreadWatch:
    """Stops a training whose frames have gone flat, or whose discriminator has nothing left to learn from.

    Args:
        low: least contrast of made frames, as a share of the source's. patience: steps in a row.
    """

    def __init__(self, low: float = 0.1, patience: int = 100) -> None:
        self.low, self.patience, self.flat = low, patience, 0

    def look(self, spread: float, step: int) -> None:
        """Take note of a step.

        Raises:
            InputError: the made frames were flat for too long.
        """
        self.flat = self.flat + 1 if spread < self.low else 0
        if self.flat >= self.patience:
            raise InputError(
                f"training collapsed at step {step + 1}: the harmonised frames are flat ({100 * spread:.1f} % of the "
                f"source's contrast over {self.flat} steps); the best checkpoint so far is kept; lower --rate or raise "
                "--identity-weight"
            )
