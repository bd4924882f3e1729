# SPDX-License-Identifier: Apache-2.0
"""How well can a tri-plane field hold a vessel tree at all? The ceiling of the generator and of every inversion.

    python tools/capacity_gauge.py --json benchmarks/results/capacity.json --cells all

Free tri-planes and their decoder are fitted by Adam (Kingma and Ba 2015) to held-out phantom trees with full 3D
supervision: the share of each 0.5 mm voxel that is lumen. What is then missing is missing for want of capacity, not of
views or of training. A cell of the table is one choice of resolution, channels, hidden units, how the planes are
combined (mean as in EG3D, or product as in K-Planes, Fridovich-Keil et al. CVPR 2023) and of depth slices per plane
(tri-grid of PanoHead, An et al. CVPR 2023). Finished cells in the JSON file are kept: a later run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from licag3d.io.atomic import write_text
from licag3d.metrics.centerline import centerline_metrics, harmonic, tree_points
from licag3d.models.tree_from_field import bake_function, tree_from_field
from licag3d.ops import query_triplane
from licag3d.ops.triplane_decoder import TriplaneDecoder
from licag3d.phantom import splits
from licag3d.phantom.anatomy import sample_tree
from licag3d.structures import VesselTree
from licag3d.vessels.rasterize import tree_occupancy
from licag3d.vessels.volume import Volume

SPACING_MM = 0.5
#: Held-out trees: (validation seed, artery).
TREES = tuple((splits.VALIDATION[900 + k], artery) for k, artery in enumerate(("rca", "lca", "rca", "lca")))


@dataclass(frozen=True)
class Cell:
    """One choice of the table; ``points`` per step, half of them within six voxels of the vessels."""

    resolution: int = 128
    channels: int = 32
    hidden: int = 64
    combine: str = "mean"
    slices: int = 1
    box_mm: float = 140.0
    steps: int = 600
    points: int = 16384

    @property
    def name(self) -> str:
        parts = [f"R{self.resolution}", f"C{self.channels}", f"H{self.hidden}", self.combine]
        parts += [f"D{self.slices}", f"{self.box_mm:g}mm", f"{self.steps}steps"]
        return "-".join(parts)

    @property
    def plane_numbers(self) -> int:
        """Numbers that a generator must emit per tree."""
        return 3 * self.channels * self.slices * self.resolution**2


@dataclass(frozen=True)
class Target:
    """A held-out tree about the origin: tree, and the lumen share of every voxel of its box, ``(n, n, n)`` z, y, x."""

    tree: VesselTree
    share: np.ndarray
    near: np.ndarray
    box_mm: float

    @classmethod
    def of(cls, seed: int, artery: str, box_mm: float) -> Target:
        from scipy.ndimage import binary_dilation

        tree = centred(sample_tree(seed, artery))
        share = tree_occupancy(tree, box_grid(box_mm)).values
        near = binary_dilation(share > 0, iterations=6)
        return cls(tree, share, np.flatnonzero(near.ravel()), box_mm)


def centred(tree: VesselTree) -> VesselTree:
    """The middle of the bounding box at the origin, as ``PhantomStream`` has it with ``box_center="tree"``."""
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    middle = 0.5 * (points.min(0) + points.max(0))
    return VesselTree(tuple(replace(b, points_lps_mm=b.points_lps_mm - middle) for b in tree.branches))


def box_grid(box_mm: float, spacing_mm: float = SPACING_MM) -> Volume:
    """Voxels that fill a cubic box about the origin."""
    count = round(box_mm / spacing_mm)
    first = -0.5 * spacing_mm * (count - 1)
    return Volume(np.zeros((count, count, count), np.uint8), (first, first, first), spacing_mm)


class FreeField:
    """Planes ``(3, C, D, R, R)`` (XY, XZ, YZ; D slices along the normal) and decoder weights, all free."""

    def __init__(self, cell: Cell, seed: int = 0) -> None:
        self.cell = cell
        rng = torch.Generator().manual_seed(seed)
        shape = (3, cell.channels, cell.slices, cell.resolution, cell.resolution)
        noise = 0.1 * torch.randn(shape, generator=rng)
        # A product of numbers about 0 has no gradient.
        self.planes = (noise + (1.0 if cell.combine == "product" else 0.0)).requires_grad_()
        weights = TriplaneDecoder.random(cell.channels, cell.hidden, seed=seed)
        self.decoder = replace(weights, bias_2=torch.full((1,), -2.0)).requires_grad_()

    def at(self, points_mm: torch.Tensor) -> torch.Tensor:
        """Lumen share ``(N,)`` (not bounded above) at points ``(N, 3)``."""
        if self.cell.combine == "mean" and self.cell.slices == 1:
            return query_triplane(
                self.planes[:, :, 0], self.decoder, points_mm, box_center_mm=(0, 0, 0), box_size_mm=self.cell.box_mm
            )
        unit = points_mm * (2 / self.cell.box_mm)
        x, y, z = unit.unbind(-1)
        # grid_sample takes (column, row, depth).
        grid = torch.stack([torch.stack(axes, -1) for axes in ((x, y, z), (x, z, y), (y, z, x))])
        sampled = F.grid_sample(
            self.planes, grid[:, None, None], mode="bilinear", padding_mode="border", align_corners=False
        )[:, :, 0, 0]
        xy, xz, yz = sampled
        features = (xy + xz + yz) / 3 if self.cell.combine == "mean" else xy * xz * yz
        d = self.decoder
        return F.softplus(d.weight_2 @ F.softplus(d.weight_1 @ features + d.bias_1[:, None]) + d.output_bias())[0]

    @torch.no_grad()
    def baked(self) -> np.ndarray:
        """The share at the voxels of the box, ``(n, n, n)`` z, y, x; exactly 0 away from everything above a tenth."""

        def field(points_mm: np.ndarray) -> np.ndarray:
            parts = torch.from_numpy(points_mm).split(1 << 16)
            return torch.cat([self.at(part) for part in parts]).numpy()

        return bake_function(field, box_size_mm=self.cell.box_mm, spacing_mm=SPACING_MM, skip_below=0.1).values


def supervision(value: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the share plus soft Dice."""
    bounded = value.clamp(max=1)
    dice = 1 - (2 * (bounded * share).sum() + 1) / (bounded.square().sum() + share.square().sum() + 1)
    return (value - share).square().mean() + 0.5 * dice


def fit(cell: Cell, target: Target, *, seed: int = 0, plane_rate: float = 0.05) -> tuple[FreeField, list[float]]:
    """Adam with a cosine rate from ``plane_rate`` down; the decoder learns at a fifth of it.

    Planes that grow from coarse to fine were tried and lose thin vessels: a coarse stage pushes them below the reach of
    the last softplus's gradient.
    """
    field = FreeField(cell, seed)
    weights = list(field.decoder.tensors().values())
    optimiser = torch.optim.Adam(
        [{"params": [field.planes], "lr": plane_rate}, {"params": weights, "lr": plane_rate / 5}],
        betas=(0.9, 0.99),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [plane_rate, plane_rate / 5], cell.steps, pct_start=0.05, cycle_momentum=False
    )
    rng = np.random.default_rng(seed)
    count, flat = target.share.shape[0], target.share.ravel()
    losses = []
    for _ in range(cell.steps):
        near = target.near[rng.integers(len(target.near), size=cell.points // 2)]
        chosen = np.concatenate([near, rng.integers(flat.size, size=cell.points - len(near))])
        index = np.stack([chosen % count, chosen // count % count, chosen // count**2], -1)
        place = torch.from_numpy(((index + 0.5) * SPACING_MM - target.box_mm / 2).astype(np.float32))
        loss = supervision(field.at(place), torch.from_numpy(flat[chosen]))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return field, losses


def scores(value: np.ndarray, target: Target, *, level: float = 0.5) -> dict[str, float]:
    """Figures of a lumen share ``(n, n, n)`` against the truth, at the 0.5 mm grid.

    ``cldice`` (Shit et al., CVPR 2021) on voxel masks, with skeletons counted by length: the true centreline itself,
    and the thinned one of the field. ``chamfer_mm``, ``radius_mae_mm``, ``centerline_f1_1mm``: as in docs/metrics.md.
    ``ghost_mm3``: volume above the level more than four voxels (along faces) off the true lumen. ``pieces``: of at
    least 4 mm3.
    """
    from scipy import ndimage

    mask, truth = value > level, target.share >= 0.5
    both = int((mask & truth).sum())
    found = {"dice": 2 * both / max(int(mask.sum()) + int(truth.sum()), 1)}
    found["ghost_mm3"] = float((mask & ~ndimage.binary_dilation(truth, iterations=4)).sum() * SPACING_MM**3)
    found["share_rmse"] = float(np.sqrt(np.mean((value - target.share).ravel()[target.near] ** 2)))
    if not mask.any():
        return found | dict.fromkeys(("cldice", "pieces", "largest_share"), 0.0)
    grid = box_grid(target.box_mm)
    found_tree = tree_from_field(Volume(value, grid.origin_mm, SPACING_MM), level_per_mm=level)
    pred, true = tree_points(found_tree.tree), tree_points(target.tree)

    def inside(where: np.ndarray, points_mm: np.ndarray) -> float:
        index = np.clip(np.rint(grid.lps_to_index(points_mm)).astype(int), 0, len(where) - 1)
        return float(where[tuple(index.T)].mean()) if len(index) else 0.0

    precision, sensitivity = inside(truth, pred.points_lps_mm), inside(mask, true.points_lps_mm)
    near = centerline_metrics(pred, true)
    found |= {"cldice": harmonic(precision, sensitivity), "cl_precision": precision, "cl_sensitivity": sensitivity}
    found |= {key: near[key] for key in ("chamfer_mm", "radius_mae_mm", "radius_bias_mm", "centerline_f1_1mm")}
    return found | {"pieces": float(found_tree.pieces), "largest_share": found_tree.largest_share}


def cells(which: str) -> list[Cell]:
    """The table: one thing changed at a time about 128 x 32 x 64, and what the answers then asked for."""
    base = Cell()
    first = [base, replace(base, combine="product"), replace(base, slices=2), replace(base, resolution=256)]
    first += [replace(base, channels=8), replace(base, resolution=192, channels=16, box_mm=112.0)]
    first += [replace(base, hidden=32), replace(base, box_mm=112.0)]
    if which == "first":
        return first
    sizes = [replace(base, resolution=r, channels=c) for r in (128, 256, 96, 192) for c in (16, 8, 32)]
    kinds = [replace(base, slices=4), replace(base, resolution=256, channels=8, combine="product")]
    longer = [replace(base, steps=1500), replace(base, resolution=256, steps=1500)]
    return first + [cell for cell in sizes + kinds + longer if cell not in first]


def mean_rows(rows: list[dict]) -> dict[str, float]:
    """Means over the trees of a cell."""
    return {key: float(np.nanmean([row[key] for row in rows])) for key in rows[0]}


def run_cell(cell: Cell, targets: dict[tuple[int, str], Target]) -> dict:
    """Fit and score every tree."""
    rows = []
    for (seed, artery), target in targets.items():
        began = time.perf_counter()
        field, losses = fit(cell, target)
        seconds = time.perf_counter() - began
        row = scores(field.baked(), target) | {"loss": float(np.mean(losses[-20:])), "fit_s": seconds}
        rows.append({"seed": seed, "artery": artery} | row)
    figures = mean_rows([{k: v for k, v in row.items() if k not in ("seed", "artery")} for row in rows])
    return {"cell": asdict(cell), "plane_numbers": cell.plane_numbers, "mean": figures, "trees": rows}


def main(argv: list[str] | None = None) -> int:
    """Fill the table; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="results; finished cells are kept")
    parser.add_argument("--cells", default="all", help="first, all, or one as 'resolution=192,channels=16'")
    parser.add_argument("--trees", type=int, default=1, help="held-out trees per cell, 1 to 4 (rca and lca in turn)")
    arguments = parser.parse_args(argv)
    wanted = cells(arguments.cells) if arguments.cells in ("first", "all") else [cell_of(arguments.cells)]
    table = json.loads(arguments.json.read_text("utf-8")) if arguments.json.exists() else {"free": {}}
    cache: dict[float, dict] = {}
    for cell in wanted:
        name = f"{cell.name}-{arguments.trees}trees"
        if name in table["free"]:
            continue
        if cell.box_mm not in cache:
            cache[cell.box_mm] = {key: Target.of(*key, cell.box_mm) for key in TREES[: arguments.trees]}
        table["free"][name] = run_cell(cell, cache[cell.box_mm])
        write_text(arguments.json, json.dumps(table, indent=1) + "\n")
        shown = {k: round(v, 3) for k, v in table["free"][name]["mean"].items()}
        print(name, shown, flush=True)
    return 0


def cell_of(text: str) -> Cell:
    """``resolution=192,combine=product`` on top of the base cell."""
    kinds = {name: type(value) for name, value in asdict(Cell()).items()}
    pairs = (part.split("=", 1) for part in text.split(","))
    return Cell(**{name: kinds[name](value) for name, value in pairs})


if __name__ == "__main__":
    sys.exit(main())
