# SPDX-License-Identifier: Apache-2.0
"""Samples of the generator: from a seed to a field on voxels, with what a picture or a statistic of it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera, Cameras
from licag3d.models.tree_from_field import bake
from licag3d.vessels.volume import Volume

if TYPE_CHECKING:
    import torch

    from licag3d.models.generator import Generator

#: (primary, secondary) in degrees, LAO and cranial positive: the nine views of a routine coronary angiography, as the
#: turntables of LICAG3D show them.
NINE_VIEWS = ((-30, 20), (0, 30), (30, 20), (-30, 0), (0, 0), (45, 0), (-30, -20), (0, -30), (40, -30))
#: The view of a single picture: LAO 30 for a right, RAO 20 caudal 20 for a left coronary tree.
FIRST_VIEW = {"rca": (30.0, 0.0), "lca": (-20.0, -20.0)}
#: Share of the level below which a field counts as empty where it is asked in two passes.
_EMPTY_SHARE = 0.1


@dataclass(frozen=True)
class Sample:
    """One generated tree: ``volume`` in 1/mm about the isocentre, ``level_per_mm`` the border of its lumen."""

    seed: int
    artery: str
    volume: Volume
    level_per_mm: float


def codes(
    generator: Generator, seeds: Sequence[int], artery: str, *, truncation: float = 1.0, co_dominant: bool = False
) -> torch.Tensor:
    """W+ codes ``(N, layers, w_dim)`` of seeds; a seed gives the same code alone and among others, on any device."""
    import torch

    from licag3d.models.generator import labels_of

    z = torch.stack([torch.randn(generator.config.z_dim, generator=torch.Generator().manual_seed(s)) for s in seeds])
    label = labels_of([artery] * len(seeds), [co_dominant] * len(seeds), labels=len(generator.config.labels))
    device = generator.w_average.device
    with torch.no_grad():
        return generator.spread(generator.map(z.to(device), label.to(device), truncation=truncation))


def sample_of(
    generator: Generator, w_plus: torch.Tensor, artery: str, *, seed: int = 0, spacing_mm: float = 0.5
) -> Sample:
    """The vessel field of one code ``(layers, w_dim)`` on voxels, about the isocentre.

    The field is asked in two passes (``bake_function``): it is exactly 0 away from everything above a tenth of the
    border of the lumen.

    Raises:
        InputError: the device ran out of memory, or the field is not finite.
    """
    import torch

    from licag3d.models.generator import labels_of

    try:
        with torch.no_grad():
            label = labels_of([artery], labels=len(generator.config.labels)).to(w_plus.device)
            planes = generator.planes(w_plus[None], label)[0]
            level = 0.5 * float(generator.lumen_mu_per_mm(w_plus[None])[0])
        if not (torch.isfinite(planes).all() and 0 < level < 10):
            raise InputError("the weights make a field that is not finite; they are broken, choose other ones")
        volume = bake(
            planes,
            generator.decoder(),
            box_size_mm=generator.config.box_size_mm,
            spacing_mm=spacing_mm,
            skip_below_per_mm=_EMPTY_SHARE * level,
        )
    except torch.cuda.OutOfMemoryError:
        raise InputError("the GPU ran out of memory; use --device cpu or a larger --spacing") from None
    return Sample(seed, artery, volume, level)


def draw(
    generator: Generator, seed: int, artery: str, *, truncation: float = 1.0, spacing_mm: float = 0.5, co_dominant=False
) -> Sample:
    """The sample of a seed."""
    w_plus = codes(generator, [seed], artery, truncation=truncation, co_dominant=co_dominant)[0]
    return sample_of(generator, w_plus, artery, seed=seed, spacing_mm=spacing_mm)


def cameras_at(angles_deg: Sequence[tuple[float, float]], size_px: int, *, field_mm: float = 120.0) -> list[Camera]:
    """C-arm cameras at the given (primary, secondary) angles that see ``field_mm`` at the isocentre.

    SID 1050 mm and SOD 765 mm, common ones.
    """
    sid, sod = 1050.0, 765.0
    spacing = field_mm / size_px * sid / sod
    return [Camera(p, s, sid, sod, spacing, spacing, size_px, size_px) for p, s in angles_deg]


def line_integrals(volume: Volume, cameras: Sequence[Camera]) -> np.ndarray:
    """Line integrals ``(V, rows, cols)`` float32 of a baked field: of the very voxels that are delivered."""
    import torch

    from licag3d.ops import project_volume

    with torch.no_grad():
        return project_volume(
            torch.from_numpy(volume.values),
            Cameras.stack(list(cameras)),
            voxel_size_mm=volume.spacing_mm,
            origin_mm=volume.origin_mm,
        ).numpy()
