# SPDX-License-Identifier: Apache-2.0
"""What the tree encoder says about which branch a place of a view shows, as a price of comparing it with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from licag3d.geometry import Camera
from licag3d.inversion.prior_evidence import Evidence
from licag3d.models.branch_table import table_of

#: Names less likely than this share of the likeliest one are all equally unlike: the encoder errs on one place in four.
_FLOOR = 0.05
#: A side branch (.a, .b) passes for its parent, its parent for it, and both for each other, at this share: the encoder
#: names one side branch in five rightly, and most others after their parent (docs/inversion.md).
_KIN = 0.35


def named_evidence(evidence: Evidence, cameras: Sequence[Camera], encoding) -> Evidence:
    """``evidence`` whose centrelines say how unlike each branch of ``encoding.artery`` they are (``Curve.unlike``).

    Args:
        cameras: of the centrelines. encoding: of :func:`licag3d.models.encode_views.encode_views` for the same views.
    """
    views = []
    for k, (curve, camera) in enumerate(zip(evidence.views, cameras, strict=True)):
        chance, _ = encoding.names_at(k, camera, curve.points.double().numpy() / camera.mm_per_pixel)
        views.append(replace(curve, unlike=torch.from_numpy(unlike(chance, encoding.artery).astype(np.float32))))
    return replace(evidence, views=tuple(views), artery=encoding.artery)


def unlike(chance: np.ndarray, artery: str) -> np.ndarray:
    """How unlike each branch ``(N, slots)`` places are, 0 for the likeliest to 1, from ``(N, slots + 1)`` probabilities
    of the branches and of none of them: minus the log of the ratio to the likeliest, cut at a twentieth."""
    slots = table_of(artery).slots
    kin = np.eye(len(slots))
    for k, slot in enumerate(slots):
        if "." not in slot.name:
            continue
        family = [m for m, other in enumerate(slots) if "." in other.name and other.parent == slot.parent and m != k]
        kin[[slot.parent, k, *family], [k, slot.parent, *[k] * len(family)]] = _KIN
    likely = np.clip(chance[:, :-1] @ kin, 0.0, 1.0) + chance[:, -1:] / len(kin)
    ratio = likely / np.maximum(likely.max(1, keepdims=True), 1e-3)
    return np.log(np.clip(ratio, _FLOOR, 1.0)) / np.log(_FLOOR)
