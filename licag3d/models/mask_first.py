# SPDX-License-Identifier: Apache-2.0
"""Mask-first synthesis: an angiogram from a contrast-free frame, by finding the vessels first.

A network of the segmentor's build looks at the contrast-free frame and says, per pixel, how likely a vessel lies there,
how much the contrast would darken it, and how far off that may be. The angiogram is then ``y = x exp(-a)`` with
``a >= 0`` where a vessel is likely and ``a = 0`` elsewhere: the background cannot be repainted and a vessel cannot get
brighter, whatever the network says. Predicting the mask first and drawing inside it follows VeCAS; the attenuation in
place of a generator is ours. What it may be trusted with: docs/synthesis.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from licag3d.errors import InputError
from licag3d.models.segmentor import Segmentor, build, config_from, predict

#: Frames are brought to a pixel size within these bounds (mm at the isocentre): coarser than for angiograms, because
#: faint contrast shows over many pixels only.
WORKING_MM = (0.26, 0.34)
#: The darkening sets in at the first probability and is whole at the second.
GATE = (0.4, 0.6)
#: Name of the embedded weights.
NAME = "synthesis"


@dataclass(frozen=True)
class Synthesis:
    """A synthesised angiogram, all ``(rows, cols)`` float32.

    Args:
        angiogram: ``x exp(-attenuation)``, 0..1, nowhere brighter than the frame it was made of.
        vessel: probability 0..1 that contrast would show a vessel here.
        attenuation: ``a``, not negative, in units of the display (that of a linear image is the line integral).
        uncertainty: expected absolute error of ``attenuation``: of a wrong decision and of a wrong depth together.
        expected_dice: the Dice overlap that the probabilities themselves promise for the mask at one half; NaN where
            the mask is empty.
    """

    angiogram: np.ndarray
    vessel: np.ndarray
    attenuation: np.ndarray
    uncertainty: np.ndarray
    expected_dice: float


def gate(vessel):
    """Share of the darkening that is drawn at a probability: 0 below :data:`GATE`, 1 above; arrays or tensors.

    Example:
        >>> gate(np.array([0.1, 0.5, 0.9]))
        array([0. , 0.5, 1. ])
    """
    t = ((vessel - GATE[0]) / (GATE[1] - GATE[0])).clip(0, 1)
    return t * t * (3 - 2 * t)


def darken(x, attenuation):
    """``y = x exp(-a)`` (Beer and Lambert) for arrays or tensors in 0..1.

    Example:
        >>> float(darken(np.float64(0.5), np.float64(0.0)))
        0.5
    """
    exp = torch.exp if isinstance(attenuation, torch.Tensor) else np.exp
    return x * exp(-attenuation)


def expected_error(vessel, depth, spread):
    """Expected ``|a_true - a_drawn|`` of a pixel that is a vessel of depth ``depth +- spread`` with probability
    ``vessel`` and nothing otherwise, while ``gate(vessel) depth`` is drawn; arrays or tensors.
    """
    share = gate(vessel)
    return vessel * (spread + (1 - share) * depth) + (1 - vessel) * share * depth


def expected_dice(vessel: np.ndarray) -> float:
    """Dice of ``vessel > 0.5`` with the truth, expected if each pixel is a vessel with its probability: twice the
    expected overlap over the expected sum of sizes (a ratio of means). NaN for an empty mask.

    Example:
        >>> round(expected_dice(np.array([0.9, 0.9, 0.0])), 3)
        0.947
    """
    mask = vessel > 0.5
    if not mask.any():
        return float("nan")
    return float(2 * vessel[mask].sum(dtype=np.float64) / (mask.sum() + vessel.sum(dtype=np.float64)))


def synthesise(
    model: Segmentor, image: np.ndarray, valid: np.ndarray, mm_per_pixel: float, *, mirror: bool = True
) -> Synthesis:
    """The angiogram of one contrast-free frame of any size.

    Args:
        model: of :func:`load_mask_first`.
        image: ``(rows, cols)`` in 0..1, vessels (were there contrast) dark. valid: bool, the X-ray field.
        mm_per_pixel: at the isocentre.
        mirror: mean of the frame's and of its mirror image's answers, in twice the time.

    Raises:
        InputError: the frame is too large at the working scale.
    """
    found = predict(model, image, valid, mm_per_pixel, WORKING_MM, mirror=mirror)
    attenuation = gate(found.vessel) * found.line_integral * valid
    return Synthesis(
        angiogram=darken(image, attenuation).astype(np.float32),
        vessel=found.vessel,
        attenuation=attenuation.astype(np.float32),
        uncertainty=(expected_error(found.vessel, found.line_integral, found.spread) * valid).astype(np.float32),
        expected_dice=expected_dice(found.vessel),
    )


def load_mask_first(name: str = NAME, device: str = "cpu") -> tuple[Segmentor, dict]:
    """The embedded synthesis network, or one of a file written by ``python -m licag3d.train mask-first``, in eval
    mode, and its card.

    Raises:
        InputError: missing, damaged, or weights of another model.
    """
    from licag3d.train.checkpoints import load_into, load_weights

    if str(name).endswith(".safetensors"):
        tensors, card = load_weights(name)
    else:
        from licag3d.weights import load

        tensors, card = load(name)
    if card.get("model") != "mask-first":
        raise InputError(f"{name}: weights of {card.get('model') or 'another model'}, not of mask-first synthesis")
    model = build(config_from(card.get("config", {}), str(name)))
    load_into(model, tensors, str(name))
    return model.to(device, memory_format=torch.channels_last).eval(), card
