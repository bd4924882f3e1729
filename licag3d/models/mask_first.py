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
#: faint contrast shows over many pixels only, and a training crop then holds most of a frame.
WORKING_MM = (0.38, 0.46)
#: Probability from which a vessel is drawn; the darkening sets in and is whole this much below and above it.
THRESHOLD, SOFT = 0.5, 0.1
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
        threshold: probability from which vessels were drawn; ``mask`` are the pixels above it.
        expected_dice: the Dice overlap that the probabilities themselves promise for the mask; NaN where it is empty.
    """

    angiogram: np.ndarray
    vessel: np.ndarray
    attenuation: np.ndarray
    uncertainty: np.ndarray
    threshold: float
    expected_dice: float

    @property
    def mask(self) -> np.ndarray:
        """Pixels ``(rows, cols)`` bool that were drawn as vessels."""
        return self.vessel > self.threshold


def gate(vessel, threshold: float = THRESHOLD):
    """Share of the darkening that is drawn at a probability: 0 to 1 from :data:`SOFT` below to as much above the
    threshold; arrays or tensors.

    Example:
        >>> gate(np.array([0.1, 0.5, 0.9]))
        array([0. , 0.5, 1. ])
    """
    t = ((vessel - threshold) / (2 * SOFT) + 0.5).clip(0, 1)
    return t * t * (3 - 2 * t)


def darken(x, attenuation):
    """``y = x exp(-a)`` (Beer and Lambert) for arrays or tensors in 0..1.

    Example:
        >>> float(darken(np.float64(0.5), np.float64(0.0)))
        0.5
    """
    exp = torch.exp if isinstance(attenuation, torch.Tensor) else np.exp
    return x * exp(-attenuation)


def expected_error(vessel, depth, spread, threshold: float = THRESHOLD):
    """Expected ``|a_true - a_drawn|`` of a pixel that is a vessel of depth ``depth +- spread`` with probability
    ``vessel`` and nothing otherwise, while ``gate(vessel, threshold) depth`` is drawn; arrays or tensors.
    """
    share = gate(vessel, threshold)
    return vessel * (spread + (1 - share) * depth) + (1 - vessel) * share * depth


def expected_dice(vessel: np.ndarray, threshold: float = THRESHOLD) -> float:
    """Dice of ``vessel > threshold`` with the truth, expected if each pixel is a vessel with its probability: twice the
    expected overlap over the expected sum of sizes (a ratio of means). NaN for an empty mask.

    Example:
        >>> round(expected_dice(np.array([0.9, 0.9, 0.0])), 3)
        0.947
    """
    mask = vessel > threshold
    if not mask.any():
        return float("nan")
    return float(2 * vessel[mask].sum(dtype=np.float64) / (mask.sum() + vessel.sum(dtype=np.float64)))


def best_threshold(vessel: np.ndarray) -> float:
    """The threshold of largest expected Dice: half of the Dice that can be had (Lipton et al., ECML 2014), so the less
    a frame says the lower it lies. Never above :data:`THRESHOLD`.
    """
    steps = np.arange(0.02, THRESHOLD + 0.001, 0.02)
    promised = np.nan_to_num([expected_dice(vessel, t) for t in steps])
    return float(steps[int(np.argmax(promised))]) if promised.any() else THRESHOLD


def synthesise(
    model: Segmentor,
    image: np.ndarray,
    valid: np.ndarray,
    mm_per_pixel: float,
    *,
    threshold: float | None = THRESHOLD,
    mirror: bool = True,
) -> Synthesis:
    """The angiogram of one contrast-free frame of any size.

    Args:
        model: of :func:`load_mask_first`.
        image: ``(rows, cols)`` in 0..1, vessels (were there contrast) dark. valid: bool, the X-ray field.
        mm_per_pixel: at the isocentre.
        threshold: probability from which a vessel is drawn; None takes the :func:`best_threshold` of the frame: a
            best guess that draws far more of what may not be there.
        mirror: mean of the frame's and of its mirror image's answers, in twice the time.

    Raises:
        InputError: the frame is too large at the working scale.
    """
    found = predict(model, image, valid, mm_per_pixel, WORKING_MM, mirror=mirror)
    level = best_threshold(found.vessel) if threshold is None else threshold
    # Half-drawn edges belong to vessels: where none is likely the frame stays as it is.
    drawn = bool((found.vessel > level).any())
    attenuation = drawn * gate(found.vessel, level) * found.line_integral * valid
    return Synthesis(
        angiogram=darken(image, attenuation).astype(np.float32),
        vessel=found.vessel,
        attenuation=attenuation.astype(np.float32),
        uncertainty=(expected_error(found.vessel, found.line_integral, found.spread, level) * valid).astype(np.float32),
        threshold=level,
        expected_dice=expected_dice(found.vessel, level),
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
