# SPDX-License-Identifier: Apache-2.0
"""What random codes should look like: the distribution of the codes of patients, per artery.

Two things make naive statistics wrong. A branch that a patient lacks has no course, and counting it as the mean course
makes the branches of samples too much alike. And a presence is no number: drawing its hidden deviate by itself loses
that branches come together (no posterolateral artery without a posterior descending one). Both are missing data of a
factor model ``x = L z + e``, with z normal: here they are drawn given everything that is known of the patient (data
augmentation, Tanner and Wong, J Am Stat Assoc 1987), the presences beyond their thresholds.

And patients of different dominance have different trees: one normal density of all has most of its trees in between.
Each kind gets a density of its own.
"""

from __future__ import annotations

import math

import torch

from licag3d.models.branch_table import ARTERIES, BranchTable
from licag3d.train.generator_vectors import PRESENCE, TreeEncoder, VectorSet, encoder_input

#: Variance that an entry has beyond the factors, in units of its spread squared.
_OWN = 0.02
#: The same of presences: with less the chain would hardly move from the deviates that it began with.
_OWN_PRESENCE = 0.15
_TURNS = 10
#: Right, left and balanced dominance.
KINDS = 3
#: What the wide spread of deltas adds in every direction, as a standard deviation.
_WIDER = 0.5
#: A branch that more than this share of a kind has belongs to the kind.
_SURE = 0.98


@torch.no_grad()
def completed(
    stage, data: VectorSet, artery: str, shift_mm: float, *, rows=slice(None), factors: int = 200, seed: int = 0
) -> torch.Tensor:
    """Vectors ``(T, size)`` in the units of the encoder, with what is unknown of each patient drawn.

    The presence of a branch whose parent is absent is unknown too: nobody can have it.

    Args:
        rows: patients of the artery, all by default.
    """
    random = torch.Generator().manual_seed(seed)
    table = stage.tables[artery]
    vector, known = data.vector[artery][rows].clone(), data.known[artery][rows].clone()
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


def kinds_of(artery: str, table: BranchTable, vector: torch.Tensor) -> torch.Tensor:
    """Dominance of the patients ``(T,)``, 0 right, 1 left, 2 co-dominant, from the branches of one artery alone.

    The right posterolateral branch means right dominance, a posterior descending one without it balance, neither left
    dominance; on the left a posterior descending branch means left dominance, a posterolateral one without it balance.
    """
    names = [slot.name for slot in table.slots]
    first, second = ("R-PLB", "R-PDA") if artery == "rca" else ("L-PDA", "L-PLB")
    has = [vector[:, table.offsets[names.index(name)]] > 0.5 for name in (first, second)]
    sure, otherwise = (0, 1) if artery == "rca" else (1, 0)
    kind = torch.where(has[1], 2, otherwise)
    return torch.where(has[0], sure, kind)


@torch.no_grad()
def fit_prior(generator, encoder: TreeEncoder, data: VectorSet, shift_mm: float) -> dict[str, float]:
    """Set what random codes are drawn from: mean and covariance of patients' codes, of each artery together (the map of
    its own before the mapping) and of each kind of its trees.

    Returns:
        By artery, how far the covariance was from the unit matrix (root mean square over eigenvalues).
    """
    out = {}
    mapping, config = generator.mapping, generator.config
    for index, artery in enumerate(ARTERIES):
        if len(data.number[artery]) < 2 * config.z_dim:
            continue  # too few patients to say how codes vary: random codes stay as they are
        if config.kinds:
            fit_kinds(generator, encoder, data, shift_mm, artery)
        codes = _encoded(encoder, completed(generator.structure, data, artery, shift_mm), artery)
        middle = codes.mean(0)
        root, values = _root((codes - middle).T @ (codes - middle) / len(codes))
        mapping.own[index] = root - torch.eye(len(root))
        mapping.own_shift[index] = middle
        if config.own_deltas:
            fit_deltas(generator, encoder, data, artery)
        out[artery] = float((values - 1).square().mean().sqrt())
    return out


@torch.no_grad()
def fit_kinds(generator, encoder: TreeEncoder, data: VectorSet, shift_mm: float, artery: str) -> None:
    """Set mean and covariance of the codes of each kind of trees of one artery (:meth:`Generator.random_codes`).

    Covariances are drawn towards that within the kinds together, which counts as ``z_dim`` patients: a rare kind has
    fewer patients than a code has numbers.

    Raises:
        ValueError: the generator has another number of kinds.
    """
    stage, size, index = generator.structure, generator.config.z_dim, ARTERIES.index(artery)
    if generator.config.kinds != KINDS:
        raise ValueError(f"the generator has {generator.config.kinds} kinds of trees, data {KINDS}")
    table = stage.tables[artery]
    places = list(table.offsets[:-1])
    kind = kinds_of(artery, table, data.vector[artery])
    limit = -getattr(stage, f"{artery}_mean")[places] / PRESENCE
    found = {}
    for k in range(KINDS):
        rows = (kind == k).nonzero()[:, 0]
        if len(rows) < 2:
            continue  # nobody to learn from: what is there stays, with a share of zero
        x = completed(stage, data, artery, shift_mm, rows=rows)
        # What the kind decides is no matter of chance: it goes a whole deviate beyond its threshold.
        often = data.vector[artery][rows][:, places].mean(0)
        x[:, places] = torch.where(often > _SURE, limit + 1, torch.where(often < 1 - _SURE, limit - 1, x[:, places]))
        found[k] = _encoded(encoder, x, artery)
    centred = torch.cat([codes - codes.mean(0) for codes in found.values()])
    pooled = centred.T @ centred / len(centred)
    for k in range(KINDS):
        generator.kind_share[index, k] = len(found[k]) / len(kind) if k in found else 0.0
        if k in found:
            codes = found[k] - found[k].mean(0)
            generator.kind_mean[index, k] = found[k].mean(0)
            generator.kind_root[index, k] = _root((codes.T @ codes + size * pooled) / (len(codes) + size))[0]


@torch.no_grad()
def fit_deltas(generator, encoder: TreeEncoder, data: VectorSet, artery: str) -> None:
    """Set mean and covariance of what each structure style adds to the code of a patient, and the wider covariance.

    They are far from alike in all directions: most are used by no patient, some go to several units.
    """
    index = ARTERIES.index(artery)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # presences are drawn beyond their thresholds
        x = encoder_input(generator.structure, artery, data.vector[artery], data.known[artery])
    delta = encoder(x, x.new_zeros(len(x), 1), artery)[2].double()
    generator.delta_mean[index] = delta.mean(0)
    for style in range(delta.shape[1]):
        values, vectors = torch.linalg.eigh(torch.cov(delta[:, style].T))
        values = values.clamp_min(0)
        generator.delta_root[index, style] = vectors * values.sqrt()
        generator.delta_root[2 + index, style] = vectors * (values + _WIDER**2).sqrt()


def _encoded(encoder: TreeEncoder, x: torch.Tensor, artery: str) -> torch.Tensor:
    contrast = (torch.rand(len(x), 1, generator=torch.Generator().manual_seed(1)) - 0.5) * 0.58
    return encoder(x, contrast, artery)[0]


def _root(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric square root, and the eigenvalues."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T, values
