# SPDX-License-Identifier: Apache-2.0
"""SIRT and total variation with non-negativity: the standard answers of computed tomography to few views."""

from __future__ import annotations

import torch

from benchmarks.baselines import Inputs, Result
from benchmarks.volumes import System, make_system, robust_peak, volume_tree

SOURCE = (
    "SIRT: Gilbert, J Theor Biol 1972;36:105, weighted as Andersen and Kak, Ultrason Imaging 1984;6:81. TV: proximal "
    "gradient with momentum, Beck and Teboulle, IEEE TIP 2009;18:2419"
)
CORRECTS_OFFSET = False
DIFFERS = (
    "1 mm voxels over the box of both views, only those that every view shows as vessel, images halved; projector and "
    "exact transpose of this project, which benchmarks/crosscheck_rtk.py holds against itk-rtk; iterations, weight and "
    "threshold chosen on validation seeds"
)
SPACING_MM = 1.0
SIRT_ITERATIONS, TV_ITERATIONS = 20, 20
#: Weight of the total variation against the weighted squared misfit, in units of the attenuation wished for.
TV_WEIGHT = 1e-4
#: Threshold as a share of the attenuation of a well opacified place (benchmarks.volumes.robust_peak).
SIRT_LEVEL, TV_LEVEL = 0.2, 0.2


def reconstruct_sirt(inputs: Inputs, *, iterations: int = SIRT_ITERATIONS, level: float = SIRT_LEVEL) -> Result:
    """SIRT with x >= 0, threshold, thinning."""
    system = make_system(inputs, spacing_mm=SPACING_MM)
    values, misfit = sirt(system, iterations)
    volume = system.volume(values)
    return Result(volume_tree(volume, level * robust_peak(volume)), facts={"misfit": misfit})


def reconstruct_tv(
    inputs: Inputs, *, iterations: int = TV_ITERATIONS, weight: float = TV_WEIGHT, level: float = TV_LEVEL
) -> Result:
    """Least squares with total variation and x >= 0, threshold, thinning."""
    system = make_system(inputs, spacing_mm=SPACING_MM)
    values, misfit = tv_least_squares(system, iterations, weight)
    volume = system.volume(values)
    return Result(volume_tree(volume, level * robust_peak(volume)), facts={"misfit": misfit})


def weights(system: System, support: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Inverse row sums per view and inverse column sums of the system matrix on the support (0 where nothing meets)."""
    rows = system.project(support)
    columns = system.back([torch.ones_like(target) for target in system.targets])

    def inverse(x: torch.Tensor, floor: float) -> torch.Tensor:
        return torch.where(x > floor, 1 / x.clamp_min(floor), torch.zeros(()))

    # Rays that graze the support would count for far too much.
    return [inverse(x, 0.5 * system.spacing_mm) for x in rows], support * inverse(
        columns, 0.05 * float(columns.median())
    )


def sirt(system: System, iterations: int) -> tuple[torch.Tensor, float]:
    """Attenuation ``(D, H, W)`` in 1/mm and the relative misfit of the projections.

    x <- max(0, x + C A^T R (p - A x)) with R and C the inverse row and column sums of A on the support.
    """
    row, column = weights(system, system.support())
    x = torch.zeros(system.shape)
    for _ in range(iterations):
        residual = [p - q for p, q in zip(system.targets, system.project(x), strict=True)]
        x = (x + column * system.back([r * w for r, w in zip(residual, row, strict=True)])).clamp_min_(0)
    return x, misfit(system, x)


def tv_least_squares(system: System, iterations: int, weight: float) -> tuple[torch.Tensor, float]:
    """Proximal gradient with momentum on 1/2 ||R^(1/2)(A x - p)||^2 in the metric of C, plus TV, x >= 0.

    In the metric of SIRT the step 1 is admissible (Gregor and Benson, IEEE TMI 2008;27:918), so no step size is
    guessed; the TV step is taken with one weight for all voxels.
    """
    row, column = weights(system, system.support())
    x = torch.zeros(system.shape)
    y, momentum = x, 1.0
    dual = [torch.zeros(system.shape) for _ in range(3)]
    for _ in range(iterations):
        residual = [p - q for p, q in zip(system.targets, system.project(y), strict=True)]
        moved = y + column * system.back([r * w for r, w in zip(residual, row, strict=True)])
        new = tv_denoise(moved, weight, dual)
        following = 0.5 * (1 + (1 + 4 * momentum**2) ** 0.5)
        y = new + (momentum - 1) / following * (new - x)
        x, momentum = new, following
    return x, misfit(system, x)


def tv_denoise(image: torch.Tensor, weight: float, dual: list[torch.Tensor], rounds: int = 3) -> torch.Tensor:
    """argmin over x >= 0 of 1/2 ||x - image||^2 + weight * TV(x), isotropic, by a few projected gradient steps on the
    dual (Chambolle, J Math Imaging Vis 2004;20:89); ``dual`` (three fields, changed in place) carries the warm start.
    """
    for _ in range(rounds):
        x = (image - weight * _transposed_gradient(dual)).clamp_min_(0)
        step = 1 / (12 * weight)
        for axis in range(3):
            front = x.narrow(axis, 1, x.shape[axis] - 1) - x.narrow(axis, 0, x.shape[axis] - 1)
            dual[axis].narrow(axis, 0, x.shape[axis] - 1).add_(front, alpha=step)
        length = (dual[0] ** 2 + dual[1] ** 2 + dual[2] ** 2).sqrt_().clamp_min_(1)
        for field in dual:
            field.div_(length)
    return (image - weight * _transposed_gradient(dual)).clamp_min_(0)


def _transposed_gradient(dual: list[torch.Tensor]) -> torch.Tensor:
    """The transpose of the forward differences (zero beyond the last voxel), applied to three fields."""
    total = torch.zeros_like(dual[0])
    for axis, field in enumerate(dual):
        n = field.shape[axis]
        inner = field.narrow(axis, 0, n - 1)
        total.narrow(axis, 0, n - 1).sub_(inner)
        total.narrow(axis, 1, n - 1).add_(inner)
    return total


def misfit(system: System, x: torch.Tensor) -> float:
    """||A x - p|| / ||p|| over all views (1 for p = 0)."""
    off = sum(float(((q - p) ** 2).sum()) for p, q in zip(system.targets, system.project(x), strict=True))
    return (off / max(sum(float((p**2).sum()) for p in system.targets), 1e-12)) ** 0.5
