# SPDX-License-Identifier: Apache-2.0
"""The fitted tree as one more cost of the places that matching may choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from licag3d.inversion.prior_fit import PriorFit
from licag3d.vessels.tree import resample_tree


@dataclass(frozen=True)
class PriorCostSettings:
    """``price`` per mm of centreline and per mm that a place lies off the fitted tree, beyond ``tolerance_mm``, up to
    ``cap_mm``; the whole is scaled by how far the evidence bears the prior out.

    A vessel that the prior has not got costs the cap wherever it is put, so the cap has to stay below the price of "no
    match".
    """

    price: float = 0.4
    tolerance_mm: float = 0.5
    cap_mm: float = 3.0


def prior_cost(fit: PriorFit, settings: PriorCostSettings | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """A function from points ``(M, 3)`` LPS mm to their cost per mm of centreline ``(M,)``.

    Where the nearest stretch of the tree is not borne out by the views, the distance to it says less: cost fades to the
    cap's share of what is trusted.
    """
    from scipy.spatial import cKDTree

    settings = settings or PriorCostSettings()
    fine = resample_tree(fit.tree, 0.5)
    points = np.concatenate([branch.points_lps_mm for branch in fine.branches])
    tree = cKDTree(points)

    def cost(points_mm: np.ndarray) -> np.ndarray:
        gap = tree.query(np.asarray(points_mm, float))[0]
        return fit.overall * settings.price * np.clip(gap - settings.tolerance_mm, 0.0, settings.cap_mm)

    return cost
