# SPDX-License-Identifier: Apache-2.0
"""The seven losses of CAS-GAN, two more against its known failures, and the watch over its attention.

Huang et al., IEEE SSCI 2025. The terms are the paper's; norms, weights and the form of the adversarial terms are not
published: see :data:`SOURCES`, which goes into the configuration of every run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from licag3d.errors import InputError
from licag3d.models.casgan import CasGan, Drawn


@dataclass(frozen=True)
class CasganWeights:
    """Weight of every term; zero leaves it out."""

    gan_angiogram: float = 1.0
    gan_background: float = 1.0
    gan_semantic: float = 0.5
    cycle_image: float = 10.0
    cycle_latent: float = 1.0
    reconstruction: float = 5.0
    prediction: float = 1.0
    area: float = 1.0
    supervised: float = 10.0


#: Where each weight comes from.
SOURCES = {
    "gan_angiogram": "not published; ours: 1, least squares (Mao et al., ICCV 2017); the log form is an option",
    "gan_background": "not published; ours: 1",
    "gan_semantic": "not published; ours: 0.5 (the paper prints the log form)",
    "cycle_image": "not published; ours: 10, L1, as in CycleGAN (Zhu et al., ICCV 2017)",
    "cycle_latent": "not published; ours: 1, L1, background and vessel code",
    "reconstruction": "not published; ours: 5, L1, x from its background code and y from both of its codes",
    "prediction": "L1 as published; weight not published, ours: 1; no gradient into the vessel code, ours",
    "area": "ours: keeps the mean attention within the shares of a frame that vessels take",
    "supervised": "ours, paired training only: L1 to the angiogram and cross entropy of the attention",
}
#: Share of a frame that vessels take, at least and at most (phantom frames, 5th and 95th percentile, widened).
AREA = (0.01, 0.2)


def to_real(judgement: torch.Tensor, form: str) -> torch.Tensor:
    """Loss of a judgement that should say "real": least squares, or minus log of its probability."""
    if form == "log":
        return F.softplus(-judgement).mean()
    return (judgement - 1).square().mean()


def to_fake(judgement: torch.Tensor, form: str) -> torch.Tensor:
    """Loss of a judgement that should say "fake"."""
    if form == "log":
        return F.softplus(judgement).mean()
    return judgement.square().mean()


def area_loss(attention: torch.Tensor) -> torch.Tensor:
    """How far the mean attention of each frame lies outside :data:`AREA`; zero inside."""
    share = attention.mean((1, 2, 3))
    low, high = AREA
    return (F.relu(low - share) / low + F.relu(share - high) / high).mean()


def _judge(discriminator: torch.nn.Module, picture: torch.Tensor) -> torch.Tensor:
    """A judgement whose gradient reaches the picture but not the discriminator."""
    held = {name: value.detach() for name, value in discriminator.named_parameters()}
    return torch.func.functional_call(discriminator, held, (picture,))


def casgan_loss(
    model: CasGan,
    batch: dict,
    vessel_map,
    weights: CasganWeights,
    *,
    form: str = "least-squares",
    paired: bool = False,
) -> tuple[torch.Tensor, dict, Drawn]:
    """Loss of generators and discriminators together, from one batch.

    Args:
        batch: ``x`` and ``y`` ``(n, 1, h, w)`` in 0..1; for ``paired`` also ``vessel``, ``weight`` and ``valid``.
        vessel_map: frames to soft vessel maps by the frozen segmentor; None without ``vsgl``.
        form: of the adversarial terms, ``least-squares`` or ``log``.
        paired: y shows the patient and moment of x: compare with it.

    Returns:
        The sum, every term, and what was drawn for x.
    """
    x, y = batch["x"], batch["y"]
    drl = model.config.drl
    # Forward cycle: x gets vessels, then loses them again.
    x_back = model.background_encoder(x)
    x_vessel = model.vessel_code(x_back)
    made = model.draw(x, x_back, x_vessel)
    again_back = model.background_encoder(made.image)
    x_again = model.background_generator(again_back).sigmoid()
    # Backward cycle: y loses its vessels, then gets them again.
    y_back = model.background_encoder(y)
    bare = model.background_generator(y_back).sigmoid()
    bare_back = model.background_encoder(bare)
    y_vessel = model.vessel_encoder(y) if drl else y_back
    guess = model.vessel_code(y_back)
    y_again = model.draw(bare, bare_back, model.vessel_code(bare_back))
    y_rebuilt = model.draw(bare, y_back, y_vessel)
    terms = {
        "gan_angiogram": to_real(_judge(model.angiogram_discriminator, made.image), form),
        "gan_background": to_real(_judge(model.background_discriminator, bare), form),
        "cycle_image": (x_again - x).abs().mean() + (y_again.image - y).abs().mean(),
        "reconstruction": (model.background_generator(x_back).sigmoid() - x).abs().mean()
        + (y_rebuilt.image - y).abs().mean(),
    }
    if drl:
        terms["prediction"] = (guess - y_vessel.detach()).abs().mean()
        terms["cycle_latent"] = (
            (again_back - x_back.detach()).abs().mean()
            + (bare_back - y_back.detach()).abs().mean()
            + (model.vessel_encoder(made.image) - x_vessel).abs().mean()
        )
    real_map = made_map = None
    if model.config.vsgl:
        made_map = vessel_map(made.image)
        with torch.no_grad():
            real_map = vessel_map(y)
        terms["gan_semantic"] = to_real(_judge(model.semantic_discriminator, made_map), form)
    if made.attention is not None:
        terms["area"] = area_loss(made.attention)
    if paired:
        terms["supervised"] = _supervised(made, batch)
    total = sum(getattr(weights, name) * value for name, value in terms.items())
    judged = {
        "angiogram": (model.angiogram_discriminator, y, made.image),
        "background": (model.background_discriminator, x, bare),
    }
    if made_map is not None:
        judged["semantic"] = (model.semantic_discriminator, real_map, made_map)
    for name, (judge, real, fake) in judged.items():
        value = 0.5 * (to_real(judge(real), form) + to_fake(judge(fake.detach()), form))
        terms[f"judge_{name}"] = value
        total = total + value
    numbers = {name: value.detach() for name, value in terms.items()}
    if made.attention is not None:
        numbers["attention"] = made.attention.detach().mean()
    return total, numbers, made


def _supervised(made: Drawn, batch: dict) -> torch.Tensor:
    """L1 to the angiogram where the frame is valid, and cross entropy of the attention with the vessels."""
    valid = batch["valid"]
    loss = ((made.image - batch["y"]).abs() * valid).sum() / valid.sum().clamp_min(1)
    if made.attention is not None:
        with torch.autocast(valid.device.type, enabled=False):
            attention = made.attention.float().clamp(1e-4, 1 - 1e-4)
            entropy = F.binary_cross_entropy(attention, batch["vessel"], batch["weight"])
        loss = loss + entropy
    return loss


class AttentionWatch:
    """Stops a training whose attention has died or has flooded the frame.

    Both are end states: with attention 0 nothing is drawn and nothing is learnt; with 1 the frame is repainted.

    Args:
        low, high: mean attention outside of which a step counts. patience: steps in a row.
    """

    def __init__(self, low: float = 5e-4, high: float = 0.9, patience: int = 200) -> None:
        self.low, self.high, self.patience = low, high, patience
        self.dead = self.flooded = 0

    def look(self, attention: float, step: int) -> None:
        """Take note of a step's mean attention.

        Raises:
            InputError: it was out of bounds for too long; the message says which.
        """
        self.dead = self.dead + 1 if attention < self.low else 0
        self.flooded = self.flooded + 1 if attention > self.high else 0
        for count, what, cure in (
            (self.dead, "zero", "raise the area weight or lower the rate"),
            (self.flooded, "one", "raise the area weight, or use --composition attenuate"),
        ):
            if count >= self.patience:
                raise InputError(
                    f"training collapsed at step {step + 1}: the attention is {what} everywhere (mean {attention:.4f} "
                    f"over {count} steps); the best checkpoint so far is kept; {cure}"
                )
