# SPDX-License-Identifier: Apache-2.0
"""Double tuple loss: codes of two views of one patient agree, codes of different patients do not.

The published form is ``1 - cos`` of two codes of one patient and has no negatives: it is least where all codes are
equal, and on codes that hold the mean code it is near its minimum before anything was learnt. It is kept as ``cosine``.
The form to use is contrastive (InfoNCE: van den Oord et al., arXiv 1807.03748; symmetric as by Radford et al., ICML
2021): on ``w - w_average``, with the other patients of the batch as negatives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from licag3d.train.encoder_settings import TUPLE_FORMS as FORMS


def tuple_loss(
    first: torch.Tensor,
    second: torch.Tensor,
    group: torch.Tensor | None = None,
    *,
    form: str = "contrastive",
    temperature: float = 0.1,
    other: torch.Tensor | None = None,
) -> torch.Tensor:
    """Loss of codes ``(B, D)`` of a first and ``(B, D)`` of a second view of B patients.

    Args:
        group: ``(B,)`` int64: only patients of one group (artery) are told apart, for those of different arteries
            differ in what no code needs to hold. None is one group.
        form: one of :data:`FORMS`. temperature: of the contrast.
        other: ``(B, B)`` bool, True where two numbers are the same patient drawn twice, which is no negative.

    Returns:
        A scalar: 0 for perfect codes, ``log(B)`` for codes that are all equal (contrastive); 0 to 2 (cosine).

    Raises:
        ValueError: other shapes, or an unknown form.

    Example:
        >>> codes = torch.eye(4)
        >>> bool(tuple_loss(codes, codes) < 0.001), bool(tuple_loss(codes, codes.roll(1, 0)) > 5)
        (True, True)
        >>> float(tuple_loss(torch.ones(4, 3), torch.ones(4, 3), form="cosine"))
        0.0
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"codes need one shape (B, D); got {tuple(first.shape)} and {tuple(second.shape)}")
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; choose {', '.join(FORMS)}")
    if form == "none":
        return first.sum() * 0.0
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    if form == "cosine":
        return (1 - (first * second).sum(1)).mean().clamp_min(0)
    alike = first @ second.T / temperature
    barred = torch.zeros_like(alike, dtype=torch.bool)
    if group is not None:
        barred = barred | (group[:, None] != group[None])
    if other is not None:
        barred = barred | other
    barred = barred & ~torch.eye(len(first), dtype=torch.bool, device=first.device)
    alike = alike.masked_fill(barred, -1e4)
    right = torch.arange(len(first), device=first.device)
    return 0.5 * (F.cross_entropy(alike, right) + F.cross_entropy(alike.T, right))
