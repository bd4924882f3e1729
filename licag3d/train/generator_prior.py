# SPDX-License-Identifier: Apache-2.0
"""What random codes should look like: the distribution of the codes of patients, per artery.

Two things make naive statistics wrong. A branch that a patient lacks has no course, and counting it as the mean course
makes the branches of samples too much alike. And a presence is no number: drawing its hidden deviate by itself loses
that branches come together (no posterolateral artery without a posterior descending one). Both are missing data of a
factor model ``x = L z + e``, with z normal: here they are drawn given everything that is known of the patient (data
augmentation, Tanner and Wong, J Am Stat Assoc 1987), the presences beyond their thresholds.
"""

from __future__ import annotations

import math

import torch

from licag3d.models.branch_table import ARTERIES
from licag3d.train.generator_vectors import PRESENCE, TreeEncoder, VectorSet, encoder_input

#: Variance that an entry has beyond the factors, in units of its spread squared.
_OWN = 0.02
#: The same of presences: with less the chain would hardly move from the deviates that it began with.
_OWN_PRESENCE = 0.15
_TURNS = 10


@torch.no_grad()
def completed(
    stage, data: VectorSet, artery: str, shift_mm: float, *, factors: int = 200, seed: int = 0
) -> torch.Tensor:
    """Vectors ``(T, size)`` in the units of the encoder, with what is unknown of each patient drawn.

    The presence of a branch whose parent is absent is unknown too: nobody can have it.
    """
    random = torch.Generator().manual_seed(seed)
    table = stage.tables[artery]
    vector, known = data.vector[artery].clone(), data.known[artery].clone()
    vector[:, 1:4] += torch.randn(len(vector), 3, generator=random) * shift_mm
    x = encoder_input(stage, artery, vector, known)
    places = list(table.offsets[:-1])
    there = vector[:, places] > 0.5
    sure = known.clone()
    for k, slot in enumerate(table.slots):
        if slot.parent >= 0:
            sure[:, places[k]] = there[:, slot.parent]
    limit = -getattr(stage, f"{artery}_mean")[places] / PRESENCE
    own = torch.full((table.size,), _OWN)
    own[places] = _OWN_PRESENCE
    branches = [slice(table.offsets[k], table.offsets[k + 1]) for k in range(len(table.slots))]
    for _ in range(_TURNS):
        _, s, v = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        count = min(factors, len(s))
        load = v[:count].T * (s[:count] / math.sqrt(len(x)))
        middle = x.mean(0)
        middle[places] = 0.0
        # Rows differ in which branches they know, so the normal equations are sums over branches.
        weighted = load / own[:, None]
        grams = torch.stack([load[part].T @ weighted[part] for part in branches])
        marks = load[places].unsqueeze(2) * weighted[places].unsqueeze(1)
        for first in range(0, len(x), 256):
            rows = slice(first, first + 256)
            whole, half = there[rows].float(), (sure[rows][:, places] & ~there[rows]).float()
            matrix = torch.einsum("bk,kij->bij", whole, grams) + torch.einsum("bk,kij->bij", half, marks)
            root = torch.linalg.cholesky(matrix + torch.eye(count))
            right = ((x[rows] - middle) * sure[rows]) @ weighted
            z = torch.cholesky_solve(right[..., None], root)[..., 0]
            noise = torch.randn(len(z), count, 1, generator=random)
            z = z + torch.linalg.solve_triangular(root.transpose(1, 2), noise, upper=True)[..., 0]
            drawn = middle + z @ load.T + own.sqrt() * torch.randn(x[rows].shape, generator=random)
            # Presences: beyond the threshold where known, by the distribution function and its inverse.
            mean = (z @ load.T)[:, places]
            below = torch.special.ndtr((limit - mean) / math.sqrt(_OWN_PRESENCE))
            low = torch.where(there[rows], below, torch.zeros_like(below))
            high = torch.where(there[rows], torch.ones_like(below), below)
            free = ~sure[rows][:, places]
            low, high = low.masked_fill(free, 0.0), high.masked_fill(free, 1.0)
            chance = low + (high - low) * torch.rand(low.shape, generator=random)
            deviate = mean + math.sqrt(_OWN_PRESENCE) * torch.special.ndtri(chance.clamp(1e-6, 1 - 1e-6))
            # Far in a tail the inverse gives out; the threshold itself is the nearest place.
            deviate = torch.where(there[rows], deviate.maximum(limit), deviate)
            deviate = torch.where(~there[rows] & ~free, deviate.minimum(limit), deviate)
            drawn[:, places] = deviate
            keep = sure[rows].clone()
            keep[:, places] = False
            x[rows] = torch.where(keep, x[rows], drawn)
    return x


@torch.no_grad()
def fit_prior(generator, encoder: TreeEncoder, data: VectorSet, shift_mm: float) -> dict[str, float]:
    """Set the mapping's own map of each artery so that random codes have the mean and covariance of patients' codes.

    Returns:
        By artery, how far the covariance was from the unit matrix (root mean square over eigenvalues).
    """
    out = {}
    mapping = generator.mapping
    for index, artery in enumerate(ARTERIES):
        if len(data.number[artery]) < 2 * generator.config.z_dim:
            continue  # too few patients to say how codes vary: random codes stay as they are
        x = completed(generator.structure, data, artery, shift_mm)
        contrast = (torch.rand(len(x), 1, generator=torch.Generator().manual_seed(1)) - 0.5) * 0.58
        codes = encoder(x, contrast, artery)[0]
        middle = codes.mean(0)
        values, vectors = torch.linalg.eigh((codes - middle).T @ (codes - middle) / len(codes))
        root = vectors * values.clamp_min(0).sqrt() @ vectors.T
        mapping.own[index] = root - torch.eye(len(root))
        mapping.own_shift[index] = middle
        out[artery] = float((values - 1).square().mean().sqrt())
    return out
