# SPDX-License-Identifier: Apache-2.0
"""Losses of the rivals of synthesis that learn from pairs; those of CycleGAN and CUT are ``losses.cyclegan``."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from licag3d.losses.casgan import _judge, to_fake, to_real
from licag3d.losses.vessel import soft_dice_loss

#: Weight of the difference from the true angiogram (Isola et al., CVPR 2017).
DIFFERENCE = 100.0


def pix2pix_loss(model, batch: dict) -> tuple[torch.Tensor, dict]:
    """pix2pix (Isola et al., CVPR 2017) with least squares: ``L_GAN(x, G(x)) + 100 |y - G(x)|``.

    Args:
        batch: ``x``, ``y`` of the same patient and moment, ``valid``; ``(n, 1, h, w)``.

    Returns:
        The sum of generator and discriminator, and every term; ``spread`` as in ``losses.cyclegan``.
    """
    x, y, valid = batch["x"], batch["y"], batch["valid"]
    made = model.forth(x)
    gan = to_real(_judge(model.judge, torch.cat((x, made), 1)), "least-squares")
    difference = ((made - y).abs() * valid).sum() / valid.sum().clamp_min(1)
    real, fake = (model.judge(torch.cat((x, other), 1)) for other in (y, made.detach()))
    judged = 0.5 * (to_real(real, "least-squares") + to_fake(fake, "least-squares"))
    numbers = {"gan": gan, "difference": difference, "judge": judged}
    numbers = {name: value.detach() for name, value in numbers.items()}
    with torch.no_grad():
        numbers["spread"] = (made.float().std((1, 2, 3)) / x.float().std((1, 2, 3)).clamp_min(1e-3)).mean()
    return gan + DIFFERENCE * difference + judged, numbers


def constant_mask_loss(model, batch: dict) -> tuple[torch.Tensor, dict]:
    """Cross entropy and Dice of the vessels, and the distance of the constant from the true attenuation in them.

    Args:
        batch: ``x``, ``vessel``, ``weight``, ``attenuation`` and ``known`` of a paired sample.
    """
    vessel = model(batch["x"])
    with torch.autocast(vessel.device.type, enabled=False):
        vessel, truth, weight = vessel.float(), batch["vessel"], batch["weight"]
        entropy = F.binary_cross_entropy_with_logits(vessel, truth, weight)
        chance = vessel.sigmoid()
        dice = soft_dice_loss(chance, truth, weight)
        inside = truth * weight * batch["known"]
        depth = ((model.depth - batch["attenuation"]).abs() * inside).sum() / inside.sum().clamp_min(1)
    numbers = {"entropy": entropy, "dice": dice, "depth": depth, "attention": chance.mean()}
    return 4 * entropy + 0.5 * dice + depth, {name: value.detach() for name, value in numbers.items()}
