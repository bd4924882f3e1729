# SPDX-License-Identifier: Apache-2.0
"""A scalar field on an isotropic grid, and the only place where indices become millimetres."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from licag3d.errors import InputError

MAX_VOXELS = 600_000_000  # 2.4 GB of float32: beyond this the spacing is a mistake, not a wish


@dataclass(frozen=True)
class Volume:
    """A volume in world LPS mm.

    Args:
        values: ``(D, H, W)``, index order z, y, x; float32 attenuation in 1/mm, or uint8 labels.
        origin_mm: ``(3,)`` x, y, z: centre of voxel (0, 0, 0), LPS mm.
        spacing_mm: isotropic voxel size, mm.

    Example:
        >>> volume = Volume(np.zeros((2, 3, 4), np.float32), (10.0, 0.0, -5.0), 0.5)
        >>> volume.index_to_lps([0, 0, 1]).tolist()
        [10.5, 0.0, -5.0]
    """

    values: np.ndarray
    origin_mm: tuple[float, float, float]
    spacing_mm: float

    def __post_init__(self) -> None:
        if np.ndim(self.values) != 3:
            raise ValueError(f"a volume has 3 axes (z, y, x), this one has {np.ndim(self.values)}")
        origin = tuple(float(x) for x in self.origin_mm)
        if len(origin) != 3 or not all(math.isfinite(x) for x in origin):
            raise ValueError(f"origin_mm is {self.origin_mm}; expected three finite numbers x, y, z")
        spacing = float(self.spacing_mm)
        if not (math.isfinite(spacing) and spacing > 0):
            raise ValueError(f"spacing_mm is {self.spacing_mm}; expected a positive number")
        object.__setattr__(self, "origin_mm", origin)
        object.__setattr__(self, "spacing_mm", spacing)

    def index_to_lps(self, index_zyx) -> np.ndarray:
        """World points ``(..., 3)`` x, y, z in mm of (fractional) indices ``(..., 3)`` z, y, x."""
        return np.asarray(self.origin_mm) + self.spacing_mm * np.asarray(index_zyx, np.float64)[..., ::-1]

    def lps_to_index(self, points_lps_mm) -> np.ndarray:
        """Fractional indices ``(..., 3)`` z, y, x of world points ``(..., 3)`` in mm."""
        return ((np.asarray(points_lps_mm, np.float64) - np.asarray(self.origin_mm)) / self.spacing_mm)[..., ::-1]


def covering_grid(low_mm, high_mm, spacing_mm: float) -> tuple[tuple[float, float, float], tuple[int, int, int]]:
    """The smallest grid of a spacing that covers a box, centred on it.

    Args:
        low_mm, high_mm: ``(3,)`` corners x, y, z of the box, mm.

    Returns:
        ``origin_mm`` (x, y, z) and ``shape`` (z, y, x).

    Raises:
        InputError: the spacing is not a positive number or makes a grid of more than ``MAX_VOXELS``.
    """
    if not (math.isfinite(spacing_mm) and spacing_mm > 0):
        raise InputError(f"the spacing is {spacing_mm} mm; give a positive number such as 0.5")
    low, high = np.asarray(low_mm, np.float64), np.asarray(high_mm, np.float64)
    counts = [max(2, math.ceil(extent / spacing_mm) + 1) for extent in high - low]
    if math.prod(counts) > MAX_VOXELS:
        raise InputError(f"a grid of {spacing_mm} mm over {', '.join(f'{x:.0f}' for x in high - low)} mm would need "
                         f"{math.prod(counts):.2g} voxels (at most {MAX_VOXELS:.0e}); give a larger spacing")
    origin = (low + high) / 2 - spacing_mm * (np.asarray(counts) - 1) / 2
    return (float(origin[0]), float(origin[1]), float(origin[2])), (counts[2], counts[1], counts[0])
