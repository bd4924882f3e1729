# SPDX-License-Identifier: Apache-2.0
"""Validation of a generator in training: held-out trees through the encoder, samples, and a sheet to look at."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from licag3d.geometry import Camera, Cameras
from licag3d.io.atomic import write_bytes
from licag3d.models.branch_table import ARTERIES, tree_of
from licag3d.models.generator_config import INSIDE_MU
from licag3d.phantom import splits
from licag3d.phantom.queries import TreeQueries, near_points
from licag3d.train.generator_batch import BatchMaker, path_mm
from licag3d.train.generator_data import pool_of
from licag3d.train.generator_step import Trainee
from licag3d.train.generator_vectors import VectorSet, as_logits, course_error_mm
from licag3d.vessels.distance import tree_cones

#: Held-out trees whose fields are made; vectors are checked on all.
FIELDS = 4
SAMPLES = 128
#: Edge of a picture on the sheet, px, and pictures in a row.
SHEET_PX, SHEET_COLUMNS = 192, 6


class Checks:
    """Called with the averaged model: numbers, and ``sheet-STEP.png`` in the run folder.

    Args:
        folder: of the run. trees: validation patients. maker: of the training (sizes, box). pool_folder: where the
            validation pool is kept.
    """

    def __init__(self, folder, disease: str, trees: int, maker: BatchMaker, pool_folder):
        self.folder, self.maker, self.calls = Path(folder), maker, 0
        name = f"validation-{disease}-{trees}.safetensors"
        self.pool = pool_of(Path(pool_folder) / name, trees, splits.VALIDATION, disease)
        self.data: VectorSet | None = None

    @torch.no_grad()
    def __call__(self, model: Trainee) -> dict[str, float]:
        # On the CPU whatever trains: these are few trees, and the points are made there.
        average, model = model, copy.deepcopy(model).cpu()
        g = model.generator
        if self.data is None:
            self.data = VectorSet(self.pool, g.structure.tables)
        numbers, dice = {}, {"drawn": [], "plus": [], "w": []}
        for index, artery in enumerate(ARTERIES):
            part = self._all(artery)
            z, _, _, delta = model.encode(artery, part, sample=False)
            styles = g.spread(g.map_code(z, part["label"]))[:, : g.config.structure]
            written = {"w": g.structure.vectors(styles, artery), "plus": g.structure.vectors(styles + delta, artery)}
            written["drawn"] = as_logits(g.structure.tables[artery], part["vector"])
            for key in ("w", "plus"):
                numbers[f"{artery}_{key}_mm"] = course_error_mm(g.structure, artery, written[key], part["vector"])
            for k in range(FIELDS // 2):
                w_plus = g.spread(g.map_code(z[k : k + 1], part["label"][k : k + 1])).clone()
                for key, vectors in written.items():
                    planes = g.planes(w_plus, vectors=[(artery, torch.zeros(1, dtype=torch.long), vectors[k : k + 1])])
                    dice[key].append(self._dice(g, planes, g.lumen_mu_per_mm(w_plus), int(part["number"][k])))
            # Averages for truncation, from the mapping as it is now.
            label = torch.zeros(1024, len(g.config.labels))
            label[:, index] = 1.0
            random = torch.Generator().manual_seed(7)
            z = torch.randn(1024, g.config.z_dim, generator=random)
            g.w_average[index] = g.map(z, label).mean(0)
            average.generator.w_average[index] = g.w_average[index].to(average.generator.w_average.device)
            chance = torch.rand(SAMPLES, generator=random)
            drawn = g.random_codes(z[:SAMPLES], label[:SAMPLES], chance)
            numbers |= self._samples(g, artery, drawn, part["vector"])
        numbers |= {f"dice_{key}": float(np.mean(values)) for key, values in dice.items()}
        numbers["score"] = numbers["dice_plus"] - 0.05 * (numbers["rca_odd"] + numbers["lca_odd"])
        self.calls += 1
        self._sheet(g)
        return numbers

    def _all(self, artery: str) -> dict:
        count = len(self.data.number[artery])
        label = torch.zeros(count, 3)
        label[:, ARTERIES.index(artery)] = 1.0
        label[:, 2] = self.data.co_dominant[artery]
        return {"vector": self.data.vector[artery], "known": self.data.known[artery], "label": label,
                "contrast": torch.ones(count), "number": self.data.number[artery]}  # fmt: skip

    def _dice(self, g, planes: torch.Tensor, lumen_mu: torch.Tensor, number: int) -> float:
        """Dice of the field at half contrast against the true tree, at points about the vessels and in the box.

        Points about the vessels are denser than the others; each counts as the volume that it stands for would demand
        in the shell round the wall, so this is stricter than the Dice of a voxel grid.
        """
        rng = np.random.default_rng([number, 5])
        tree = self.pool.tree(number)
        box = rng.uniform(-0.5, 0.5, (20000, 3)) * g.config.box_size_mm
        points = torch.from_numpy(np.concatenate([near_points(rng, tree, 20000, 2.0), box]).astype(np.float32))
        truth = TreeQueries.stack([tree_cones(tree)]).signed_distance_mm(points[None])[0] < 0
        found = g.attenuation(planes, points)[0] > 0.5 * lumen_mu[0]
        return float(2 * (found & truth).sum() / (found.sum() + truth.sum()).clamp_min(1))

    def _samples(self, g, artery: str, codes: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
        """Distances between samples and patients in simple numbers, in units of the patients' spread.

        ``odd`` is their mean: number of branches, length, extent, radius of the trunk, sharpest bends (90 % of points
        bend less).
        """
        table = g.structure.tables[artery]
        vectors = g.structure.vectors(g.spread(codes)[:, : g.config.structure], artery)
        ours = np.array([_facts(tree_of(_sure(table, row), table, np.zeros(3))) for row in vectors])
        theirs = np.array([_facts(tree_of(row.numpy(), table, np.zeros(3))) for row in truth])
        spread = theirs.std(0) + 1e-6
        off = np.abs(ours.mean(0) - theirs.mean(0)) / spread
        wide = np.abs(np.log((ours.std(0) + 1e-6) / spread))
        return {f"{artery}_odd": float(np.mean(off + wide)), f"{artery}_branches": float(ours[:, 0].mean()),
                f"{artery}_bend": float(ours[:, 4].mean())}  # fmt: skip

    def _sheet(self, g) -> None:
        """Samples of both arteries (rows 1 and 3) and patients (rows 2 and 4), line integrals from the front."""
        import imageio.v3 as imageio

        size = SHEET_PX
        columns = min(SHEET_COLUMNS, *(len(self.data.number[artery]) for artery in ARTERIES))
        spacing = g.config.box_size_mm * 1.35 / size
        camera = Camera(
            0, 0, sid_mm=1012.5, sod_mm=750, spacing_row_mm=spacing, spacing_col_mm=spacing, rows=size, cols=size
        )
        view = Cameras.stack([camera])
        random = torch.Generator().manual_seed(3)
        rows = []
        for index, artery in enumerate(ARTERIES):
            label = torch.full((columns,), index)
            z = torch.randn(columns, g.config.z_dim, generator=random)
            planes = g.planes(g.spread(g.random_codes(z, label, torch.rand(columns, generator=random))), label)
            rows.append(g.project(planes, view, samples=256)[:, 0].float())
            numbers = self.data.number[artery][:columns]
            rows.append(torch.cat([path_mm(self.pool.tree(int(k)), view) * INSIDE_MU for k in numbers]))
        sheet = torch.cat([torch.cat(list(row), 1) for row in rows], 0)
        grey = (255 * torch.exp(-2.5 * sheet.clamp_min(0))).round().to(torch.uint8).numpy()
        file = self.folder / f"sheet-{self.calls:04d}.png"
        write_bytes(file, imageio.imwrite("<bytes>", grey, extension=".png"))


def _sure(table, vector: torch.Tensor) -> np.ndarray:
    """A written vector with presence 0 or 1."""
    out = vector.float().numpy().copy()
    places = list(table.offsets[:-1])
    out[places] = out[places] > 0
    return out


def _facts(tree) -> list[float]:
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    bends = []
    for branch in tree.branches:
        step = np.diff(branch.points_lps_mm, axis=0)
        length = np.linalg.norm(step, axis=1) + 1e-9
        cosine = (step[1:] * step[:-1]).sum(1) / (length[1:] * length[:-1])
        bends.append(np.arccos(np.clip(cosine, -1, 1)) / (0.5 * (length[1:] + length[:-1])))
    extent = np.ptp(points, axis=0).max()
    bend = float(np.quantile(np.concatenate(bends), 0.9))
    return [len(tree.branches), tree.length_mm, float(extent), float(tree.branches[0].radius_mm[0]), bend]
