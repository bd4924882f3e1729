# SPDX-License-Identifier: Apache-2.0
"""Direct optimisation of voxels: gradient descent on the projections with total variation, no prior, no training."""

from __future__ import annotations

import torch

from benchmarks.baselines import Inputs, Result
from benchmarks.baselines.sirt_tv import misfit, sirt
from benchmarks.volumes import System, make_system, robust_peak, volume_tree

SOURCE = (
    "the voxel form of per-case fitting by a differentiable projector: Gopalakrishnan and Golland, DiffDRR, MICCAI "
    "CLIP 2022 (reconstruction example), loss as in NeCA (Wang et al., Bioengineering 2024): squares of the projections"
)
CORRECTS_OFFSET = False
DIFFERS = (
    "voxels of 1 mm over the box of both views, images halved, 30 steps of Adam from three SIRT steps; total "
    "variation and an L1 price added, without which two views leave nothing but streaks"
)
SPACING_MM = 1.0
STEPS, START_STEPS = 30, 3
LEARNING_RATE = 0.01  # 1/mm a step at first, down to a tenth
TV_PRICE, L1_PRICE = 0.02, 0.05
LEVEL = 0.25


def reconstruct(inputs: Inputs, *, steps: int = STEPS, level: float = LEVEL) -> Result:
    """Optimise, threshold, thin."""
    system = make_system(inputs, spacing_mm=SPACING_MM)
    values = optimise(system, steps)
    volume = system.volume(values)
    facts = {"misfit": misfit(system, values), "steps": steps}
    return Result(volume_tree(volume, level * robust_peak(volume)), facts=facts)


def optimise(system: System, steps: int) -> torch.Tensor:
    """Attenuation ``(D, H, W)`` in 1/mm after ``steps`` steps of Adam, never negative."""
    start, _ = sirt(system, START_STEPS)
    x = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1 ** (1 / steps))
    # The data term is a mean over vessel pixels, so that prices do not depend on how much of the image is empty.
    seen = max(sum(float((p > 0).sum()) for p in system.targets), 1.0)
    price = system.spacing_mm**2 / (seen * system.spacing_mm)
    for _ in range(steps):
        optimizer.zero_grad()
        images = system.project(x)
        data = sum(((q - p) ** 2).sum() for p, q in zip(system.targets, images, strict=True)) / seen
        (data + price * (TV_PRICE * _variation(x) + L1_PRICE * x.sum())).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(min=0)
    return x.detach()


def _variation(x: torch.Tensor) -> torch.Tensor:
    """Anisotropic total variation, sum over voxels of absolute forward differences."""
    return sum((x.narrow(a, 1, x.shape[a] - 1) - x.narrow(a, 0, x.shape[a] - 1)).abs().sum() for a in range(3))
