# SPDX-License-Identifier: Apache-2.0
"""Batches of the encoder's training: windows of phantom patients from standard angles, with the errors of the clinic.

Truth is known in every form: vectors of trees, W+ codes in closed form, where every point of every branch is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from licag3d.geometry import Camera, view_angle_deg
from licag3d.models.branch_table import ARTERIES, BranchTable
from licag3d.models.view_windows import camera_numbers
from licag3d.phantom import views as view_choice
from licag3d.train.encoder_pictures import LAYERS, Tubes, along_beam, as_evidence, draw, stray_tubes
from licag3d.train.generator_data import TreePool
from licag3d.train.generator_vectors import TreeEncoder, VectorSet, encoder_from_heads, encoder_input

if TYPE_CHECKING:
    from licag3d.train.encoder_pairs import PairWindows


class CodeReader:
    """W+ codes of vectors, in closed form: ``(w (B, w_dim), deltas (B, structure, w_dim))``."""

    def __init__(self, generator):
        sizes = {artery: table.size for artery, table in generator.structure.tables.items()}
        c = generator.config
        self.generator = generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoder = TreeEncoder(sizes, c.z_dim, c.w_dim, c.structure, hidden=8).requires_grad_(False)
        # Only the straight paths speak; the perceptron beside them is silent at its start.
        encoder_from_heads(generator, self.encoder)

    @torch.no_grad()
    def __call__(self, artery: str, vector: torch.Tensor, known: torch.Tensor):
        x = encoder_input(self.generator.structure, artery, vector, known)
        z, _, delta = self.encoder(x, x.new_zeros(len(x), 1), artery)
        label = torch.full((len(x),), ARTERIES.index(artery))
        return self.generator.map_code(z, label), delta


class TreePoints:
    """Points of the trees of a pool with their place in the table: ``slot`` (-1: no name of the table), ``share`` of
    the length of the branch, ``from_ostium_mm``; all ``(points,)``, in the order of ``pool.points``.
    """

    def __init__(self, pool: TreePool, tables: dict[str, BranchTable]):
        self.pool = pool
        points = pool.points
        self.slot = np.full(len(points), -1, np.int16)
        self.share = np.zeros(len(points), np.float32)
        self.from_ostium_mm = np.zeros(len(points), np.float32)
        self.last = np.zeros(len(points), bool)  # of its branch: no tube begins there
        first_branch, first_point = pool._first
        for number in range(len(pool)):
            rows = range(first_branch[number], first_branch[number + 1])
            names = tables[ARTERIES[int(pool.artery[number])]].number
            for row in rows:
                a, b = first_point[row], first_point[row + 1]
                parent = int(pool.branch_parent[row])
                up = None if parent < 0 else rows[parent]
                key = (pool.names[row], None if up is None else pool.names[up])
                self.slot[a:b] = names.get(key, -1)
                way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points[a:b, :3], axis=0), axis=1))])
                self.share[a:b] = way / max(way[-1], 1e-6)
                if up is not None:
                    c, d = first_point[up], first_point[up + 1]
                    at = int(np.argmin(((points[c:d, :3] - points[a, :3]) ** 2).sum(1)))
                    way = way + self.from_ostium_mm[c + at]
                self.from_ostium_mm[a:b] = way
                self.last[b - 1] = True

    def of(self, number: int) -> slice:
        """The points of a patient."""
        first_branch, first_point = self.pool._first
        return slice(first_point[first_branch[number]], first_point[first_branch[number + 1]])


@dataclass(frozen=True)
class ViewMaker:
    """Batches as a function of their number alone.

    Args:
        patients: per artery. views: of each patient; every ``more_every``-th batch has one more and fewer patients.
        size: px of a window; window_mm: its edge. offset_mm: largest table offset; angle_error_deg: spread of the
            reading error of an angle; move: share of patients whose views are of different moments.
        clean: no errors at all (for tests).
        pairs: rendered patients, of which a batch is made at random with chance ``pair_share`` instead.
    """

    points: TreePoints
    data: VectorSet
    reader: CodeReader
    seed: int
    patients: int = 6
    views: int = 2
    more_every: int = 4
    size: int = 256
    window_mm: float = 140.0
    offset_mm: float = 60.0
    angle_error_deg: float = 1.2
    move: float = 0.5
    clean: bool = False
    pairs: PairWindows | None = None
    pair_share: float = 0.5

    def __call__(self, number: int) -> dict:
        rng = np.random.default_rng([self.seed, 91, number])
        if self.pairs is not None and rng.random() < self.pair_share:
            return self.pairs.draw(rng, self.reader, self.patients)
        views, patients = self.views, self.patients
        if self.more_every and number % self.more_every == self.more_every - 1:
            views, patients = views + 1, max(1, patients * views // (views + 1))
        chosen = [
            (artery, int(k)) for artery in ARTERIES for k in rng.integers(len(self.data.number[artery]), size=patients)
        ]
        return self.batch(rng, chosen, views)

    def batch(self, rng: np.random.Generator, chosen: list[tuple[str, int]], views: int, separation=(25, 105)) -> dict:
        """Windows and truth of patients ``(artery, row in data)``, right ones first."""
        tubes, numbers, place, scale, dense = [], [], [], [], []
        drawn = 0
        for artery, row in chosen:
            number = int(self.data.number[artery][row])
            cameras = self._cameras(rng, artery, views, separation)
            moved = self._moved(rng, number, views)
            for (true, read), points in zip(cameras, moved, strict=True):
                part = self._view(rng, number, points, true, drawn)
                tubes += part["tubes"]
                numbers.append(camera_numbers([read], [part["point_mm"]])[0])
                place.append(part["place_mm"])
                scale.append(part["log_scale"])
                dense.append(part["dense"])
                drawn += 1
        step = self.window_mm / self.size
        path = draw(Tubes.joined(tubes), drawn, self.size)
        if self.clean:
            windows = torch.stack([(path / 0.5).clamp(0, 1), 2 * 0.155 * path], 1)
        else:
            windows = as_evidence(path, rng, step)
        b = len(chosen)
        batch = {
            "windows": windows.unflatten(0, (b, views)),
            "cameras": torch.from_numpy(np.stack(numbers)).unflatten(0, (b, views)),
            "place_mm": torch.from_numpy(np.stack(place).astype(np.float32)).unflatten(0, (b, views)),
            "log_scale": torch.tensor(scale, dtype=torch.float32).unflatten(0, (b, views)),
            "number": torch.tensor([int(self.data.number[artery][row]) for artery, row in chosen]),
            "artery": torch.tensor([ARTERIES.index(artery) for artery, _ in chosen]),
            "co_dominant": torch.tensor([float(self.data.co_dominant[artery][row]) for artery, row in chosen]),
            "name": torch.from_numpy(np.stack([name for name, _ in dense])).unflatten(0, (b, views)),
            "share": torch.from_numpy(np.stack([share for _, share in dense])).unflatten(0, (b, views)),
        }
        for artery in ARTERIES:
            rows = torch.tensor([row for name, row in chosen if name == artery], dtype=torch.long)
            batch |= with_codes(self.reader, artery, self.data.vector[artery][rows], self.data.known[artery][rows])
        return batch

    def _cameras(self, rng, artery: str, views: int, separation) -> list[tuple[Camera, Camera]]:
        """Cameras as they are, the tree at some offset, and as read."""
        table = view_choice.WORKING_VIEWS[artery]
        made: list[tuple[Camera, Camera]] = []
        geometry = view_choice.choose_geometry(rng)
        lead = rng.uniform(-20, 20, 3)
        while len(made) < views:
            for attempt in range(60):
                if rng.random() < 0.75:
                    a, b = np.asarray(table[rng.integers(len(table))]) + rng.uniform(-8, 8, 2)
                else:
                    a, b = rng.uniform(-65, 65), rng.uniform(-40, 40)
                offset = lead
                if made and not self.clean:
                    offset = lead + rng.uniform(0, self.offset_mm) * view_choice.random_direction(rng)
                true = Camera(
                    float(a), float(b), geometry.sid_mm, geometry.sod_mm, 0.3, 0.3, 512, 512, tuple(map(float, offset))
                )
                between = [view_angle_deg(true, other) for other, _ in made]
                if all(separation[0] <= angle <= separation[1] for angle in between) or attempt == 59:
                    break
            error = np.zeros(4) if self.clean else rng.normal(0, 1, 4)
            read = Camera(
                float(a + self.angle_error_deg * error[0]),
                float(b + self.angle_error_deg * error[1]),
                float(geometry.sid_mm + 10 * error[2]),
                float(geometry.sod_mm + 6 * error[3]),
                0.3,
                0.3,
                512,
                512,
            )
            made.append((true, read))
        return made

    def _moved(self, rng, number: int, views: int) -> list[np.ndarray]:
        """Points ``(N, 3)`` of the patient at the moment of every view, the first at rest."""
        points = self.points.pool.points[self.points.of(number), :3].astype(np.float64)
        out = [points]
        moving = not self.clean and rng.random() < self.move
        motion = None
        for _ in range(1, views):
            if not moving:
                out.append(points)
                continue
            from licag3d.phantom.motion import motion_of_tree, move_points

            motion = motion or motion_of_tree(self.points.pool.tree(number))
            phase = rng.uniform(0.55, 1.0) if rng.random() < 0.6 else rng.uniform(0, 1)
            out.append(move_points(points, float(phase), float(np.clip(rng.normal(0, 4), -12, 12)), motion))
        return out

    def _view(self, rng, number: int, points: np.ndarray, camera: Camera, picture: int) -> dict:
        rows = self.points.of(number)
        radius_mm = self.points.pool.points[rows, 3].astype(np.float64)
        slot, last = self.points.slot[rows], self.points.last[rows]
        step = self.window_mm / self.size
        # What the table and breathing move as a whole is part of the place.
        bulk = points.mean(0) - self.points.pool.points[rows, :3].mean(0)
        at, depth = camera.project(np.concatenate([points, bulk[None]]))
        at = (at - [camera.principal_col, camera.principal_row]) * (camera.spacing_col_mm / camera.magnification)
        depth, (at, middle), away = depth[:-1], (at[:-1], at[-1]), float(depth[-1])
        seen = self._contrast(rng, rows, radius_mm, slot)
        strong = seen > 0.3
        low, high = np.percentile(at[strong] if strong.sum() > 20 else at, (1, 99), axis=0)
        center = 0.5 * (low + high)
        if not self.clean:
            center = center + rng.normal(0, 6.0 if rng.random() < 0.3 else 2.5, 2)
        pixel = (at - center) / step + 0.5 * self.size
        grow = (camera.sod_mm / depth) / step
        long = np.linalg.norm(np.diff(points, axis=0), axis=1)
        flat = np.linalg.norm(np.diff(at, axis=0), axis=1) * depth[:-1] / camera.sod_mm
        pieces = ~last[:-1]
        weight = step * along_beam(long, flat) * 0.5 * (seen[:-1] + seen[1:])
        tubes = [
            Tubes(
                pixel[:-1][pieces].astype(np.float32),
                pixel[1:][pieces].astype(np.float32),
                (radius_mm * grow)[:-1][pieces].astype(np.float32),
                weight[pieces].astype(np.float32),
                np.full(int(pieces.sum()), picture),
                slot[:-1][pieces].clip(0) % LAYERS,
            )
        ]
        if not self.clean:
            stray = stray_tubes(rng, picture, pixel[0], self.size, step)
            if stray is not None:
                tubes.append(stray)
        return {
            "tubes": tubes,
            "place_mm": middle - center,
            "log_scale": float(np.log(camera.sod_mm / away)),
            "point_mm": center,
            "dense": dense_truth(pixel, radius_mm, slot, self.points.share[rows], seen > 0.15, self.size),
        }

    def _contrast(self, rng, rows: slice, radius_mm: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """How much of each point is seen, 0..1: filling, thin vessels missed, branches and pieces lost."""
        seen = np.ones(len(radius_mm))
        if self.clean:
            return seen
        way = self.points.from_ostium_mm[rows]
        if rng.random() < 0.3:
            front = rng.uniform(0.35, 1.1) * way.max()
            seen *= 1 / (1 + np.exp((way - front) / rng.uniform(4, 15)))
        if rng.random() < 0.7:
            limit = rng.uniform(0.15, 0.65)
            seen *= np.clip((radius_mm - limit) / 0.12 + 0.5, 0, 1)
        for k in np.unique(slot):
            on = np.flatnonzero(slot == k)
            if k > 2 and rng.random() < 0.07:
                seen[on] *= rng.uniform(0, 0.3)
            elif rng.random() < 0.15:
                first, length = rng.integers(len(on)), rng.integers(3, 20)
                seen[on[first : first + length]] *= rng.uniform(0, 0.6)
        return seen


def with_codes(reader: CodeReader, artery: str, vector: torch.Tensor, known: torch.Tensor) -> dict[str, torch.Tensor]:
    """Vectors of the patients of one artery as a batch holds them, and their codes where there are any patients."""
    found = {f"{artery}.vector": vector, f"{artery}.known": known}
    if len(vector):
        w, delta = reader(artery, vector, known)
        found |= {f"{artery}.w": w, f"{artery}.delta": delta}
    return found


def dense_truth(pixel, radius_mm, slot, share, seen, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Branch (or -1) and share of it at each cell of the dense maps of a window of ``size`` px; of several branches
    that of the widest vessel. Points ``(N, 2)`` (x, y) in px that are not ``seen`` (bool) are left out."""
    cells = size // 4
    name, along = np.full((cells, cells), -1, np.int64), np.zeros((cells, cells), np.float32)
    cell = np.floor(pixel / 4).astype(int)
    good = ((cell >= 0) & (cell < cells)).all(1) & (slot >= 0) & seen
    order = np.argsort(radius_mm[good], kind="stable")
    x, y = cell[good][order].T
    name[y, x] = slot[good][order]
    along[y, x] = share[good][order]
    return name, along
