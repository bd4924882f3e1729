# SPDX-License-Identifier: Apache-2.0
"""Encoding and decoding of trees as vectors: what makes the generator's codes mean trees.

A pool patient's centrelines give the vector that the structure stage should write. An encoder brings it to z (a normal
density per patient) and to small deltas per style; the mapping network and the heads bring z back to the vector. Errors
are measured in mm on the courses, from the trunk to the tips, so that a wrong junction costs what it moves.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from licag3d.models.branch_stage import BranchStage
from licag3d.models.branch_table import ARTERIES, BranchTable, vector_of
from licag3d.models.synthesis import ScaledLinear
from licag3d.train.generator_data import TreePool

#: Logit that a sure presence has; further there is nothing to learn.
SURE = 4.0
#: Logit per standard deviation of the hidden normal deviate behind a presence.
PRESENCE = 8.0


class VectorSet:
    """The vectors of a pool: per artery ``vector`` and ``known`` ``(T, size)``, ``number`` ``(T,)`` in the pool."""

    def __init__(self, pool: TreePool, tables: dict[str, BranchTable]):
        from tqdm import tqdm

        rows: dict[str, list] = {artery: [] for artery in ARTERIES}
        for k in tqdm(range(len(pool)), disable=None, unit="tree", file=sys.stderr):
            artery = ARTERIES[int(pool.artery[k])]
            rows[artery].append((k, *vector_of(pool.tree(k), tables[artery], np.zeros(3))))
        self.number = {a: np.array([row[0] for row in rows[a]]) for a in ARTERIES}
        self.vector = {a: torch.tensor(np.stack([row[1] for row in rows[a]])) for a in ARTERIES}
        self.known = {a: torch.tensor(np.stack([row[2] for row in rows[a]])) for a in ARTERIES}
        self.co_dominant = {a: torch.tensor(pool.co_dominant[self.number[a]]).float() for a in ARTERIES}

    def draw(self, rng: np.random.Generator, artery: str, count: int, shift_mm: float) -> dict[str, torch.Tensor]:
        """Some patients of one artery, moved in the box by a normal deviate of ``shift_mm`` per axis."""
        index = torch.from_numpy(rng.integers(len(self.number[artery]), size=count))
        vector = self.vector[artery][index].clone()
        shift = torch.from_numpy(rng.normal(0, shift_mm, (count, 3)).clip(-3 * shift_mm, 3 * shift_mm)).float()
        vector[:, 1:4] += shift  # the place of the trunk, the first slot
        label = torch.zeros(count, 3)
        label[:, ARTERIES.index(artery)] = 1.0
        label[:, 2] = self.co_dominant[artery][index]
        return {
            "vector": vector,
            "known": self.known[artery][index],
            "label": label,
            "number": torch.from_numpy(self.number[artery][index.numpy()]),
            "shift_mm": shift,
        }


def set_statistics(stage: BranchStage, data: VectorSet, shift_mm: float) -> None:
    """Means and spreads of the heads from the training vectors; presence becomes the logit of its frequency."""
    for artery in ARTERIES:
        known = data.known[artery].float()
        count = known.sum(0).clamp_min(1)
        mean = (data.vector[artery] * known).sum(0) / count
        spread = (((data.vector[artery] - mean) ** 2 * known).sum(0) / count).sqrt()
        table = stage.tables[artery]
        spread[1:4] = (spread[1:4] ** 2 + shift_mm**2).sqrt()
        for k in range(len(table.slots)):
            first = table.offsets[k]
            # A hidden normal deviate says who has the branch; it is there above its threshold.
            share = mean[first].clamp(0.02, 0.98)
            mean[first], spread[first] = PRESENCE * torch.special.ndtri(share), PRESENCE
        getattr(stage, f"{artery}_mean").copy_(mean)
        getattr(stage, f"{artery}_spread").copy_(spread.clamp_min(1e-2))


class TreeEncoder(nn.Module):
    """Vector of a tree -> z (mean, log variance) and deltas of the structure styles.

    Args:
        sizes: length of the vector by artery. extra: further numbers per tree (contrast).
    """

    def __init__(
        self, sizes: dict[str, int], z_dim: int, w_dim: int, groups: int, *, hidden: int = 512, extra: int = 1
    ):
        super().__init__()
        # Inputs are many: unscaled weights would take steps that throw every code about.
        self.enter = nn.ModuleDict({a: ScaledLinear(size + extra, hidden) for a, size in sizes.items()})
        self.middle = nn.ModuleList(ScaledLinear(hidden, hidden) for _ in range(2))
        self.skip = nn.ModuleDict({a: ScaledLinear(size + extra, z_dim) for a, size in sizes.items()})
        self.z = ScaledLinear(hidden, 2 * z_dim, gain=0.1)
        self.delta = nn.ModuleDict(
            {a: ScaledLinear(hidden + size + extra, groups * w_dim, gain=0.1) for a, size in sizes.items()}
        )
        self.groups = groups
        with torch.no_grad():
            self.z.bias[z_dim:] = -5.0

    def forward(self, vector: torch.Tensor, extra: torch.Tensor, artery: str):
        """``(B, size)`` in units of the spread and ``(B, extra)`` to mean, log variance, deltas ``(B, groups, w)``."""
        x = torch.cat([vector, extra], 1)
        h = F.silu(self.enter[artery](x))
        for layer in self.middle:
            h = F.silu(layer(h))
        mean, log_variance = self.z(h).chunk(2, 1)
        delta = self.delta[artery](torch.cat([h, x], 1)).unflatten(1, (self.groups, -1))
        return mean + self.skip[artery](x), log_variance.clamp(-8, 2), delta


def encoder_input(stage: BranchStage, artery: str, vector: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Vectors with presence 0 or 1 in the units of the encoder; unknown entries are zero.

    A presence becomes a normal deviate drawn beyond its threshold, on the side that is true: a code of normal deviates
    then gives every branch as often as patients have it.
    """
    mean, spread = getattr(stage, f"{artery}_mean"), getattr(stage, f"{artery}_spread")
    places = list(stage.tables[artery].offsets[:-1])
    out = (vector - mean) / spread * known
    below = torch.special.ndtr(-mean[places] / PRESENCE)  # share of patients without the branch
    chance = torch.rand_like(out[:, places])
    there = vector[:, places]
    chance = there * (below + chance * (1 - below)) + (1 - there) * chance * below
    out[:, places] = torch.special.ndtri(chance.clamp(1e-3, 1 - 1e-3))
    return out


def as_logits(table: BranchTable, vector: torch.Tensor) -> torch.Tensor:
    """The vector with presence as a sure logit, as the structure stage writes it."""
    out = vector.clone()
    places = list(table.offsets[:-1])
    out[:, places] = SURE * (2 * out[:, places] - 1)
    return out


def vector_loss(stage: BranchStage, artery: str, found: torch.Tensor, truth: torch.Tensor, known: torch.Tensor):
    """Error of written vectors, float32, in mm where it is a length.

    A knot counts by the length of vessel that it moves: its own stretch, and for places and courses a half of what
    hangs on the branch.

    Args:
        found: ``(B, size)`` with logits. truth, known: as of ``VectorSet.draw``.

    Returns:
        The loss, and numbers: ``place_mm`` error of the first points along the parent (of the trunk: in the box),
        ``shape_mm`` of the knots, ``radius`` of the log radius, ``presence`` cross entropy.
    """
    index = _layout(stage, artery, str(found.device))
    there = truth[:, index.presence]
    presence = F.binary_cross_entropy_with_logits(found[:, index.presence], there)
    off = found - truth
    course = _length(off[:, index.course].unflatten(1, (-1, 3)))
    weight = there[:, index.course_slot] * index.course_weight
    shape = (weight * course).sum() / weight.sum()
    weight = there[:, index.radius_slot]
    radius = (weight * off[:, index.radius].abs()).sum() / weight.sum()
    weight = there[:, index.place_slot] * index.place_weight
    along = weight * _length((off[:, index.place] * index.place_mm)[..., None])
    trunk = _length(off[:, index.trunk])
    place = along.sum() / weight.sum() + trunk.mean()
    loss = place + 2 * shape + 2 * radius + presence
    numbers = {"place_mm": place, "shape_mm": shape, "radius": radius, "presence": presence}
    return loss, {key: value.detach() for key, value in numbers.items()}


@torch.no_grad()
def course_error_mm(stage: BranchStage, artery: str, found: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean distance of corresponding points of all branches that are there, from the trunk to the tips."""
    goal = stage.courses(as_logits(stage.tables[artery], truth), artery)
    ours = stage.courses(found, artery)
    there = truth[:, list(stage.tables[artery].offsets[:-1])]
    total = weight = 0.0
    for k, ((points, _, _), (right, _, _)) in enumerate(zip(ours, goal, strict=True)):
        total += float((there[:, k] * (points - right).norm(dim=2).sum(1)).sum())
        weight += float(there[:, k].sum() * points.shape[1])
    return total / weight


@dataclass(frozen=True)
class _Layout:
    """Where the entries of a vector are, and what they count."""

    presence: torch.Tensor
    trunk: torch.Tensor
    place: torch.Tensor
    place_slot: torch.Tensor
    place_mm: torch.Tensor
    place_weight: torch.Tensor
    course: torch.Tensor
    course_slot: torch.Tensor
    course_weight: torch.Tensor
    radius: torch.Tensor
    radius_slot: torch.Tensor


@lru_cache(maxsize=16)
def _layout_of(table: BranchTable, device: str) -> _Layout:
    slots = table.slots
    length = [2.5 * (slot.samples - 1) for slot in slots]
    moved = list(length)
    for k in reversed(range(len(slots))):
        if slots[k].parent >= 0:
            moved[slots[k].parent] += 0.5 * moved[k]
    parts = [table.parts(k) for k in range(len(slots))]
    rows = {name: [] for name in _Layout.__dataclass_fields__}
    for k, (presence, place, course, radius) in enumerate(parts):
        rows["presence"].append(presence)
        if slots[k].parent < 0:
            rows["trunk"] += range(place.start, place.stop)
        else:
            rows["place"].append(place.start)
            rows["place_slot"].append(k)
            rows["place_mm"].append(length[slots[k].parent])
            rows["place_weight"].append(moved[k])
        rows["course"] += range(course.start, course.stop)
        rows["course_slot"] += [k] * (slots[k].knots - 1)
        rows["course_weight"] += [moved[k] / slots[k].knots] * (slots[k].knots - 1)
        rows["radius"] += range(radius.start, radius.stop)
        rows["radius_slot"] += [k] * slots[k].knots
    return _Layout(**{name: torch.tensor(values, device=device) for name, values in rows.items()})


def _layout(stage: BranchStage, artery: str, device: str) -> _Layout:
    return _layout_of(stage.tables[artery], device)


@torch.no_grad()
def start_from_components(generator, encoder: TreeEncoder, data: VectorSet, shift_mm: float) -> None:
    """Begin with the best linear code: whitened principal components of the vectors of each artery are z, w begins as a
    copy of z, the heads as the components, and encoders read them off. Training then bends this where trees are not a
    normal density.
    """
    stage, z_dim = generator.structure, generator.config.z_dim
    if generator.config.w_dim != z_dim:
        raise ValueError(f"z_dim is {z_dim} and w_dim {generator.config.w_dim}; the linear start needs them equal")
    mapping = generator.mapping
    mapping.straight.weight.zero_()
    mapping.straight.weight[:, :z_dim] = torch.eye(z_dim) / mapping.straight.scale
    mapping.out.weight.zero_()
    random = torch.Generator().manual_seed(0)
    for artery in ARTERIES:
        vector = data.vector[artery].clone()
        vector[:, 1:4] += torch.randn(len(vector), 3, generator=random) * shift_mm
        x = encoder_input(stage, artery, vector, data.known[artery])
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        count = min(z_dim, len(s))
        size = (s[:count] / len(x) ** 0.5).clamp_min(1e-3)
        load = torch.zeros(x.shape[1], z_dim)
        load[:, :count] = v[:count].T * size
        for g, (low, high) in enumerate(zip(stage.cuts[artery][:-1], stage.cuts[artery][1:], strict=True)):
            stage.straight[g].weight[stage.rows(artery, g)] = load[low:high] / stage.straight[g].scale
    for layer in stage.last:
        layer.weight.zero_()
    encoder_from_heads(generator, encoder)


@torch.no_grad()
def encoder_from_heads(generator, encoder: TreeEncoder, *, damping: float = 1e-4) -> None:
    """Begin the encoder as what reads off, in the least-squares sense, what the generator writes.

    The generator is taken as linear about the code zero. What one code for all branches leaves over, each style takes
    up for its own. For a new generator this is its linear start, for a trained one a start that spares its heads.
    """
    stage, size = generator.structure, generator.config.z_dim
    step = 0.5
    codes = torch.cat([torch.zeros(1, size), step * torch.eye(size)])
    for index, artery in enumerate(ARTERIES):
        label = torch.zeros(len(codes), len(generator.config.labels))
        label[:, index] = 1.0
        mean, spread = getattr(stage, f"{artery}_mean"), getattr(stage, f"{artery}_spread")
        w = generator.map_code(codes, label)

        def written(styles, artery=artery, mean=mean, spread=spread):
            return (stage.vectors(styles, artery) - mean) / spread

        about = written(generator.spread(w)[:, : stage.groups])
        middle, slope = about[0], (about[1:] - about[0]).T / step
        read = _solve(slope, damping)
        skip = encoder.skip[artery]
        skip.weight.zero_()
        skip.weight[:, : len(middle)] = read / skip.scale
        skip.bias.copy_(-read @ middle)
        rest = torch.eye(len(middle)) - slope @ read
        left = middle - slope @ (read @ middle)
        delta = encoder.delta[artery]
        delta.weight.zero_()
        first = delta.weight.shape[1] - skip.weight.shape[1]
        for g, (low, high) in enumerate(zip(stage.cuts[artery][:-1], stage.cuts[artery][1:], strict=True)):
            styles = w[:1, None].repeat(w.shape[1] + 1, stage.groups, 1)
            styles[1:, g] += step * torch.eye(w.shape[1])
            moved = written(styles)[:, low:high]
            solve = _solve((moved[1:] - moved[0]).T / step, 10 * damping)
            rows = slice(g * w.shape[1], (g + 1) * w.shape[1])
            delta.weight[rows, first : first + len(middle)] = solve @ rest[low:high] / delta.scale
            delta.bias[rows] = -solve @ left[low:high]
    encoder.z.weight.zero_()


def _solve(matrix: torch.Tensor, damping: float) -> torch.Tensor:
    """Damped least-squares inverse."""
    return torch.linalg.solve(matrix.T @ matrix + damping * torch.eye(matrix.shape[1]), matrix.T)


def _length(x: torch.Tensor) -> torch.Tensor:
    """Length of vectors, with a gradient that does not jump at zero."""
    return (x.square().sum(-1) + 0.01).sqrt() - 0.1
