# SPDX-License-Identifier: Apache-2.0
"""A supervised 3D U-Net from two back-projected masks to the vessel volume, trained on the phantom, DeepCA-style.

    python -m benchmarks.baselines.deepca_style train --out RUN [--minutes 25] [--resume]
    python -m benchmarks.baselines.deepca_style export --run RUN      calibrate on validation seeds, write weights, card

Training draws TRAINING seeds only, with the errors of the benchmark: an unknown offset of the second view and misread
angles. The volume wished for is the tree in the frame of the first view, so the network has to find out what the two
back-projections, which do not meet, have in common.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.baselines import Inputs, Result
from benchmarks.volumes import volume_tree
from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.phantom.queries import center_from_views
from licag3d.structures import VesselTree
from licag3d.vessels.volume import Volume

SOURCE = (
    "DeepCA: Wang, Banerjee, Grau, 3D coronary vessel reconstruction from two 2D non-simultaneous angiograms, WACV 2025"
)
CORRECTS_OFFSET = True
DIFFERS = (
    "96 cubed voxels of 1.1 mm, U-Net of 16 to 128 channels at half that resolution with one attention block at the "
    "bottom instead of the convolutional transformer, no adversarial part, Dice and cross-entropy instead of L1; both "
    "back-projections enter apart and unbinarised instead of summed; both arteries and offsets along three axes; "
    "trained for minutes on one CPU core"
)
GRID, VOXEL_MM = 96, 1.1
CHANNELS = (16, 32, 64, 128)
WEIGHTS, FOLDER = "deepca-style", Path(__file__).resolve().parent / "weights"


class ChannelNorm(nn.LayerNorm):
    """Normalises the channels of every voxel; free of statistics over a batch, which here is one case."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """Two convolutions with a residual path; the second starts at zero, so a deep net begins as a shallow one."""

    def __init__(self, given: int, wide: int):
        super().__init__()
        self.first = nn.Conv3d(given, wide, 3, padding=1)
        self.norm = ChannelNorm(wide)
        self.second = nn.Conv3d(wide, wide, 3, padding=1)
        self.skip = nn.Conv3d(given, wide, 1) if given != wide else nn.Identity()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.skip(x) + self.second(F.silu(self.norm(self.first(x)))))


class Attention(nn.Module):
    """Every place of the coarsest level looks at every other: correspondences lie far apart when a view is shifted."""

    def __init__(self, wide: int, places: int, heads: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(wide)
        self.position = nn.Parameter(0.02 * torch.randn(1, places, wide))
        self.mix, self.out = nn.Linear(wide, 3 * wide), nn.Linear(wide, wide)
        self.heads = heads
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2).transpose(1, 2)
        mixed = self.mix(self.norm(flat) + self.position).unflatten(2, (3, self.heads, -1))
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.out(seen).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """``(B, 2, n, n, n)`` back-projections to logits ``(B, n, n, n)``; n a multiple of 16.

    The first and last step fold 2 x 2 x 2 voxels into channels: a CPU is slow where channels are few and places many.
    """

    def __init__(self, channels: tuple[int, ...] = CHANNELS, grid: int = GRID):
        super().__init__()
        self.enter = nn.Conv3d(16, channels[0], 3, padding=1)
        self.down = nn.ModuleList(Block(channels[max(k - 1, 0)], wide) for k, wide in enumerate(channels))
        self.look = Attention(channels[-1], (grid // 2 ** len(channels)) ** 3)
        self.up = nn.ModuleList(Block(a + b, a) for a, b in zip(channels[:-1], channels[1:], strict=True))
        self.norm = ChannelNorm(channels[0])
        self.leave = nn.Conv3d(channels[0], 8, 3, padding=1)
        nn.init.constant_(self.leave.bias, -6.0)  # nearly everything is empty

    def to(self, *args, memory_format=None, **options) -> UNet:
        """As ``nn.Module.to``; channels last has another name for volumes than for the images of the training loop."""
        if memory_format is torch.channels_last:
            memory_format = torch.channels_last_3d
        return super().to(*args, **options, **({"memory_format": memory_format} if memory_format else {}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, given, n = x.shape[:3]
        x = x.view(batch, given, n // 2, 2, n // 2, 2, n // 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
        x = self.enter(x.contiguous(memory_format=torch.channels_last_3d))
        passed = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.avg_pool3d(x, 2))
            passed.append(x)
        x = self.look(x)
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat([passed[level], F.interpolate(x, scale_factor=2, mode="nearest")], 1))
        x = self.leave(self.norm(x)).view(batch, 2, 2, 2, n // 2, n // 2, n // 2)
        return x.permute(0, 4, 1, 5, 2, 6, 3).reshape(batch, n, n, n)


def origin_of(center_mm: np.ndarray, grid: int = GRID) -> tuple[float, float, float]:
    """Centre of voxel (0, 0, 0) of the grid about a point, LPS mm."""
    return tuple(float(x) for x in np.asarray(center_mm, np.float64) - VOXEL_MM * (grid - 1) / 2)


def back_projection(masks: list[torch.Tensor], cameras: list[Camera], center_mm, grid: int = GRID) -> torch.Tensor:
    """Share of the rays through each voxel that meet the mask, per view: ``(V, n, n, n)`` float32 in 0..1.

    One SIRT step from zero, A^T R p with the sums of columns divided out, in its voxel-driven form: rays cross the
    box alike, so the row sums R are one constant, and the mean over a voxel's shadow is one look-up in the mask that
    was averaged over that shadow.

    Args:
        masks: per view ``(rows, cols)`` float32, views may differ in size.
    """
    axis = torch.arange(grid, dtype=torch.float32) * VOXEL_MM
    volumes = []
    for mask, camera in zip(masks, cameras, strict=True):
        width = 2 * round(0.5 * (VOXEL_MM / camera.mm_per_pixel - 1)) + 1
        image = mask[None, None].float()
        if width > 1:
            image = F.avg_pool2d(image, width, 1, width // 2)
        frame, start = camera.frame, np.asarray(origin_of(center_mm, grid)) + np.asarray(camera.offset_lps_mm)

        def along(direction: np.ndarray, add_mm: float = 0.0, start=start) -> torch.Tensor:
            z, y, x = (axis * float(d) for d in direction[::-1])
            return z[:, None, None] + y[:, None] + (x + float(direction @ start) + add_mm)

        scale = camera.sid_mm / along(frame.beam, camera.sod_mm)
        col = along(frame.column) * scale / camera.spacing_col_mm + camera.principal_col
        row = along(frame.row) * scale / camera.spacing_row_mm + camera.principal_row
        place = torch.stack(((2 * col + 1) / camera.cols - 1, (2 * row + 1) / camera.rows - 1), -1)
        volumes.append(F.grid_sample(image, place.view(1, grid, -1, 2), align_corners=False).view(grid, grid, grid))
    return torch.stack(volumes)


def predict(model: nn.Module, given: torch.Tensor) -> torch.Tensor:
    """Soft occupancy ``(n, n, n)`` float32 of one case ``(2, n, n, n)``."""
    with torch.no_grad(), torch.autocast(given.device.type, dtype=torch.bfloat16):
        return model(given[None])[0].float().sigmoid()


def reconstruct(inputs: Inputs) -> Result:
    """Back-project, one pass of the network, threshold, thinning; radii by the line of the card.

    Raises:
        InputError: other than two views, or the weights are missing or damaged.
    """
    model, card = _loaded()
    volume = occupancy(model, inputs.masks, inputs.cameras)
    return Result(tree_of(volume, card["level"], card["radius_scale"], card["radius_shift_mm"]),
                  facts={"peak": float(volume.values.max())})  # fmt: skip


def occupancy(model: nn.Module, masks: Sequence[np.ndarray], cameras: Sequence[Camera]) -> Volume:
    """What the network makes of the masks of two views, in the frame of the first."""
    if len(masks) != 2:
        raise InputError(f"{len(masks)} views: this network takes two; give the reference and one more")
    center = center_from_views(cameras, masks)
    images = [torch.from_numpy(np.asarray(mask, np.float32)) for mask in masks]
    given = back_projection(images, list(cameras), center)
    return Volume(predict(model, given).numpy(), origin_of(center), VOXEL_MM)


def tree_of(volume: Volume, level: float, radius_scale: float = 1.0, radius_shift_mm: float = 0.0) -> VesselTree:
    """The common way from volume to tree; a level below a half widens the vessels, which the line takes back."""
    tree = volume_tree(volume, level)
    return VesselTree(tuple(
        replace(b, radius_mm=np.maximum(radius_scale * b.radius_mm + radius_shift_mm, 0.25)) for b in tree.branches
    ))  # fmt: skip


@functools.lru_cache(maxsize=1)
def _loaded() -> tuple[UNet, dict]:
    from licag3d import weights

    tensors, card = weights.load(WEIGHTS, FOLDER)
    model = UNet(tuple(card["channels"]), card["grid"])
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.to(memory_format=torch.channels_last_3d).eval(), card


def main(argv: list[str]) -> int:
    """``train`` or ``export``: benchmarks/baselines/deepca_training.py."""
    from benchmarks.baselines import deepca_training

    return deepca_training.main(argv)


if __name__ == "__main__":
    from licag3d.command import run

    run(main)
