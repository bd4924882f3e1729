# SPDX-License-Identifier: Apache-2.0
"""From a vessel tree to an X-ray frame: attenuation, noise, display."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.phantom.tubes_numpy import project_tree_numpy
from licag3d.structures import VesselTree


@dataclass(frozen=True)
class Exposure:
    """Physics of one acquisition: attenuation of the opacified blood, quanta per pixel, blur, display."""

    mu_per_mm: float
    quanta: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Exposure:
        """Contrast and dose of one patient."""
        return cls(mu_per_mm=float(rng.uniform(0.16, 0.28)), quanta=float(rng.uniform(4e3, 1.5e4)))


def render_frame(tree: VesselTree, camera: Camera, exposure: Exposure, background: str, seed: list[int]
                 ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image uint8, line integral float32 and mask bool, each ``(rows, cols)``."""
    rng = np.random.default_rng(seed)
    path_mm = project_tree_numpy(tree, camera)
    line_integral = (exposure.mu_per_mm * path_mm).astype(np.float32)
    counts = rng.poisson(exposure.quanta * np.exp(-line_integral)) / exposure.quanta
    image = np.clip(np.rint(190 * counts), 0, 255).astype(np.uint8)
    return image, line_integral, path_mm > 0
