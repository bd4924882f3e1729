# SPDX-License-Identifier: Apache-2.0
"""Samples of the generator: from a seed to a field on voxels, with what a picture or a statistic of it needs.

A seed draws codes until the tree that the structure stage writes is one that could be: no two branches touch outside
their junctions, the rule by which the phantom grows its trees (:func:`licag3d.phantom.anatomy.overlapping_branches`).
How many codes that took is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera, Cameras
from licag3d.models.tree_from_field import bake
from licag3d.structures import VesselTree
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
#: Least radius of a vessel in the delivered field, in voxels: thinner ones would fall into crumbs on the grid.
LEAST_RADIUS_VOXELS = 0.6
#: Codes that a seed may draw; the last is taken as it is.
MOST_TRIES = 40
#: The field is delivered within this distance of the walls of the written vessels, mm.
_REACH_MM = 2.0
#: Room between vessels and the border of the box, mm.
_ROOM_MM = 3.0


@dataclass(frozen=True)
class Sample:
    """One generated tree.

    Args:
        volume: in 1/mm about the isocentre. level_per_mm: the border of its lumen.
        tries: codes that its seed drew until a tree had no touching branches.
        least_radius_mm: no vessel was drawn thinner.
    """

    seed: int
    artery: str
    volume: Volume
    level_per_mm: float
    tries: int = 1
    least_radius_mm: float = 0.0


def codes(
    generator: Generator, seeds: Sequence[int], artery: str, *, truncation: float = 1.0, co_dominant: bool = False
) -> torch.Tensor:
    """W+ codes ``(N, layers, w_dim)`` of seeds; a seed gives the same code alone and among others, on any device."""
    import torch

    options = {"truncation": truncation, "co_dominant": co_dominant}
    return torch.stack([drawn_code(generator, seed, artery, **options)[0] for seed in seeds])


def drawn_code(
    generator: Generator,
    seed: int,
    artery: str,
    *,
    truncation: float = 1.0,
    co_dominant: bool = False,
    most_tries: int = MOST_TRIES,
) -> tuple[torch.Tensor, int]:
    """The W+ code ``(layers, w_dim)`` of a seed, and how many codes the seed drew until no branches touched.

    Args:
        most_tries: 1 takes the first code, whatever it is.
    """
    import torch

    from licag3d.models.generator import labels_of
    from licag3d.phantom.anatomy import overlapping_branches

    device = generator.w_average.device
    label = labels_of([artery], [co_dominant], labels=len(generator.config.labels)).to(device)
    random = torch.Generator().manual_seed(seed)
    for number in range(1, most_tries + 1):
        z = torch.randn(1, generator.config.z_dim, generator=random)
        chance = torch.rand(1, generator=random)
        with torch.no_grad():
            w = generator.random_codes(z.to(device), label, chance.to(device), truncation=truncation)
            w_plus = generator.spread(w)[0]
        if number == most_tries or generator.structure is None:
            break
        if overlapping_branches(written_tree(generator, w_plus, artery)) is None:
            break
    return w_plus, number


def written_vector(generator: Generator, w_plus: torch.Tensor, artery: str) -> torch.Tensor:
    """What the structure stage writes for one code ``(layers, w_dim)``, as it is delivered: ``(1, size)``.

    A branch is there or not (the logit of its presence is a sure one), and a tree that reaches out of the box is moved
    back into it, as far as the box is wide enough.
    """
    import torch

    stage = generator.structure
    table = stage.tables[artery]
    with torch.no_grad():
        vector = stage.vectors(w_plus[None, : generator.config.structure], artery).clone()
        places = list(table.offsets[:-1])
        vector[:, places] = torch.where(vector[:, places] > 0, 4.0, -4.0)
        points = torch.cat([course[0] for course, _, gate in stage.courses(vector, artery) if gate[0, 0] > 0.5])
        low, high = points.amin(0), points.amax(0)
        room = 0.5 * generator.config.box_size_mm - _ROOM_MM
        move = (-room - low).clamp_min(0) - (high - room).clamp_min(0)
        # Where both ends reach out, the middle of the tree goes to that of the box.
        vector[:, 1:4] += torch.where(high - low > 2 * room, -0.5 * (low + high), move)
    return vector


def written_tree(generator: Generator, w_plus: torch.Tensor, artery: str) -> VesselTree:
    """That as centrelines with radii and names, mm from the middle of the box, sampled as the phantom samples trees."""
    from licag3d.models.branch_table import tree_of
    from licag3d.phantom.anatomy import SAMPLE_MM
    from licag3d.vessels.tree import resample_tree

    table = generator.structure.tables[artery]
    vector = written_vector(generator, w_plus, artery)[0].cpu().numpy().copy()
    vector[list(table.offsets[:-1])] = vector[list(table.offsets[:-1])] > 0
    return resample_tree(tree_of(vector, table, (0.0, 0.0, 0.0)), SAMPLE_MM)


def sample_of(
    generator: Generator, w_plus: torch.Tensor, artery: str, *, seed: int = 0, spacing_mm: float = 0.5, tries: int = 1
) -> Sample:
    """The vessel field of one code ``(layers, w_dim)`` on voxels, about the isocentre.

    Vessels are drawn with a radius of at least ``LEAST_RADIUS_VOXELS`` voxels: what a grid cannot hold is drawn as wide
    as it can, not in crumbs. The field is delivered within 2 mm of the written vessels, and exactly 0 elsewhere: a
    branch that winds through all three planes can leave a ghost where different parts of it meet. Without a structure
    stage the field is asked in two passes (``bake_function``) and is 0 away from everything above a tenth of the
    border of the lumen.

    Raises:
        InputError: the device ran out of memory, or the field is not finite.
    """
    import torch

    from licag3d.models.generator import labels_of

    least_mm = LEAST_RADIUS_VOXELS * spacing_mm if generator.structure is not None else 0.0
    try:
        with torch.no_grad():
            label = labels_of([artery], labels=len(generator.config.labels)).to(w_plus.device)
            vectors = near = None
            if generator.structure is not None:
                row = torch.zeros(1, dtype=torch.long, device=w_plus.device)
                vectors = [(artery, row, written_vector(generator, w_plus, artery))]
                near = written_tree(generator, w_plus, artery)
            planes = generator.planes(w_plus[None], label, vectors=vectors, least_radius_mm=least_mm)[0]
            level = 0.5 * float(generator.lumen_mu_per_mm(w_plus[None])[0])
        if not (torch.isfinite(planes).all() and 0 < level < 10):
            raise InputError("the weights make a field that is not finite; they are broken, choose other ones")
        volume = bake(
            planes,
            generator.decoder(),
            box_size_mm=generator.config.box_size_mm,
            spacing_mm=spacing_mm,
            skip_below_per_mm=_EMPTY_SHARE * level,
            near=near,
            reach_mm=_REACH_MM + least_mm,
        )
    except torch.cuda.OutOfMemoryError:
        raise InputError("the GPU ran out of memory; use --device cpu or a larger --spacing") from None
    return Sample(seed, artery, volume, level, tries, least_mm)


def draw(
    generator: Generator, seed: int, artery: str, *, truncation: float = 1.0, spacing_mm: float = 0.5, co_dominant=False
) -> Sample:
    """The sample of a seed."""
    w_plus, tries = drawn_code(generator, seed, artery, truncation=truncation, co_dominant=co_dominant)
    return sample_of(generator, w_plus, artery, seed=seed, spacing_mm=spacing_mm, tries=tries)


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
