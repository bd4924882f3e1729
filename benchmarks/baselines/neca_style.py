# SPDX-License-Identifier: Apache-2.0
"""An implicit attenuation field fitted to the projections of one case, NeCA-style: no training data, no prior."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.baselines import Inputs, Result
from benchmarks.baselines.sirt_tv import misfit
from benchmarks.volumes import System, make_system, robust_peak, volume_tree
from licag3d.structures import VesselTree

SOURCE = (
    "NeCA: Wang, Banerjee, Choudhury, Grau, Neural fields for coronary artery reconstruction from two projections, "
    "Bioengineering 2024; feature grids after Mueller et al., Instant-NGP, ACM TOG 2022"
)
CORRECTS_OFFSET = False
DIFFERS = (
    "8 levels of 2 features and an MLP of 2 x 32 instead of 16 levels and 8 x 256, grids stored sparsely instead of "
    "hashed, 120 steps at 1e-2 instead of 5000 at 1e-4, voxels of 0.8 mm, images halved; the field is evaluated only "
    "where the dilated masks of all views allow a vessel and is zero elsewhere; line integrals as estimated from the "
    "image instead of true path lengths"
)
SPACING_MM = 0.8
LEVELS, FEATURES, WIDTH = 8, 2, 32
#: Coarsest grid, mm; the finest has the spacing of the voxels.
COARSEST_MM = 16.0
STEPS, LEARNING_RATE = 120, 1e-2
#: How far beyond the masks the field may live, mm at the isocentre: room for what the views disagree about.
MARGIN_MM = 1.5
#: Threshold as a share of a well opacified place: the better of 0.15 and 0.35 on two validation cases.
LEVEL = 0.35


class _Gather(torch.autograd.Function):
    """``matrix @ table`` for a fixed sparse matrix; the transposed product is the gradient. Sparse products of torch
    and ``embedding_bag`` take 20 times as long backwards on a CPU."""

    @staticmethod
    def forward(ctx, table, matrix, transposed):
        ctx.transposed = transposed
        return torch.from_numpy(matrix @ table.detach().numpy())

    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(ctx.transposed @ grad.contiguous().numpy()), None, None


class Field(nn.Module):
    """Attenuation at a fixed set of points: trilinear features on grids of rising fineness, a small MLP, softplus.

    The points never change during a fit, so which grid nodes they lean on and how much is looked up once, and only the
    nodes that are used are stored: the content of a hash table without its collisions. CPU only.

    Args:
        points_mm: ``(N, 3)``. peak_per_mm: attenuation of about the size wished for; scales the output.
        start_per_mm: where the output starts.
    """

    def __init__(self, points_mm: np.ndarray, peak_per_mm: float, start_per_mm: float):
        super().__init__()
        from scipy.sparse import csr_matrix

        corners = np.array(list(itertools.product((0, 1), repeat=3)))
        tables, self.lookups = [], []
        for spacing_mm in np.geomspace(COARSEST_MM, SPACING_MM, LEVELS):
            place = (points_mm - points_mm.min(0)) / spacing_mm
            first = np.floor(place).astype(np.int64)
            share = (place - first)[:, None]
            node = first[:, None] + corners
            size = node.reshape(-1, 3).max(0) + 1
            dense = np.ravel_multi_index(tuple(np.moveaxis(node, -1, 0)), size).ravel()
            used = np.zeros(math.prod(size), bool)
            used[dense] = True
            index = (np.cumsum(used) - 1)[dense]
            weight = np.where(corners, share, 1 - share).prod(-1).astype(np.float32).ravel()
            matrix = csr_matrix((weight, index, np.arange(0, len(index) + 1, 8)), (len(points_mm), int(used.sum())))
            self.lookups.append((matrix, matrix.T.tocsr()))
            tables.append(nn.Parameter(torch.empty(matrix.shape[1], FEATURES).uniform_(-1e-2, 1e-2)))
        self.tables = nn.ParameterList(tables)
        self.mlp = nn.Sequential(nn.Linear(LEVELS * FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
                                 nn.Linear(WIDTH, 1))  # fmt: skip
        self.peak = peak_per_mm
        # The mean projection starts at that of the data; a strongly negative start would have no gradient.
        share = min(max(start_per_mm / peak_per_mm, 1e-3), 5.0)
        nn.init.constant_(self.mlp[-1].bias, math.log(math.expm1(share)))

    def forward(self) -> torch.Tensor:
        """Attenuation ``(N,)``, 1/mm, not negative."""
        features = [_Gather.apply(table, *lookup) for table, lookup in zip(self.tables, self.lookups, strict=True)]
        return self.peak * F.softplus(self.mlp(torch.cat(features, 1))[:, 0])


def reconstruct(inputs: Inputs, *, steps: int = STEPS, level: float = LEVEL) -> Result:
    """Fit, threshold, thin. An empty tree where no place is allowed by all views."""
    torch.manual_seed(inputs.seed)
    system = make_system(inputs, spacing_mm=SPACING_MM)
    allowed = allowed_voxels(inputs, system)
    if not allowed.any():
        return Result(VesselTree(), facts={"misfit": 1.0, "steps": 0})
    values = fit(system, allowed, steps)
    volume = system.volume(values)
    return Result(
        volume_tree(volume, level * robust_peak(volume)),
        facts={"misfit": misfit(system, values), "steps": steps, "points": float(allowed.sum())},
    )


def fit(system: System, allowed: np.ndarray, steps: int) -> torch.Tensor:
    """Attenuation ``(D, H, W)``, 1/mm, after ``steps`` of Adam on the squared misfit of all projections."""
    index = np.argwhere(allowed)
    points = np.asarray(system.origin_mm) + system.spacing_mm * index[:, ::-1]
    flat = torch.from_numpy(np.ravel_multi_index(tuple(index.T), system.shape))
    ones = torch.zeros(math.prod(system.shape))
    ones[flat] = 1.0
    depth_mm = sum(float(image.sum()) for image in system.project(ones.view(system.shape)))
    measured = sum(float(target.sum()) for target in system.targets)
    start = measured / max(depth_mm, 1e-6)
    # A vessel fills a few voxels of the depth that the masks allow.
    model = Field(points, peak_per_mm=10 * start, start_per_mm=start)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1 ** (1 / max(steps, 1)))
    scale = sum(float((target**2).sum()) for target in system.targets)
    values = torch.zeros(math.prod(system.shape))
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        x = values.index_copy(0, flat, model()).view(system.shape)
        loss = sum(((q - p) ** 2).sum() for p, q in zip(system.targets, system.project(x), strict=True)) / scale
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return values.index_copy(0, flat, model()).view(system.shape)


def allowed_voxels(inputs: Inputs, system: System) -> np.ndarray:
    """``(D, H, W)`` bool: voxel centres within ``MARGIN_MM`` of the mask in every view."""
    from scipy import ndimage

    index = np.indices(system.shape).reshape(3, -1).T
    for mask, camera in zip(inputs.masks, inputs.cameras, strict=True):
        points = np.asarray(system.origin_mm) + system.spacing_mm * index[:, ::-1]
        near = ndimage.distance_transform_edt(~np.asarray(mask, bool)) * camera.mm_per_pixel <= MARGIN_MM
        pixels, _ = camera.project(points)
        place = np.rint(pixels).astype(int)
        inside = np.all((place >= 0) & (place < (camera.cols, camera.rows)), axis=1)
        index, place = index[inside], place[inside]
        index = index[near[place[:, 1], place[:, 0]]]
    allowed = np.zeros(system.shape, bool)
    allowed[tuple(index.T)] = True
    return allowed
