# SPDX-License-Identifier: Apache-2.0
"""Training batches of phantom patients without files: line-integral images and 3D queries, on the device.

Two halves. :func:`draw_case` makes every random decision of one patient on the CPU with numpy (tree, cameras, contrast,
query points); it depends on nothing but the seed and the settings, so worker processes may run it and the same patient
comes out alone, in any batch and on any device. :func:`make_batch` does the heavy arithmetic where the training runs:
line integrals through ``licag3d.ops.project_tubes`` (exact, float64 inside) and signed distances by
:mod:`licag3d.phantom.queries`.

    stream = PhantomStream(BatchSettings(rows=128, cols=128), batch=8, device="cuda", workers=4)
    for batch in stream.batches(first=step):      # step: where an interrupted training goes on
        loss = model(batch.line_integrals, batch.points_mm, ...)

With workers the usual rule of Python holds: the script needs its ``if __name__ == "__main__":``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from licag3d.errors import InputError
from licag3d.geometry import Camera, Cameras
from licag3d.phantom import splits
from licag3d.phantom import views as view_choice
from licag3d.phantom.anatomy import sample_tree
from licag3d.phantom.queries import TreeQueries, center_from_views, near_points
from licag3d.structures import VesselTree
from licag3d.vessels.distance import tree_cones

if TYPE_CHECKING:
    from concurrent.futures import Executor

#: Index of an artery in ``PhantomBatch.artery``.
ARTERIES = ("rca", "lca")
#: Where the box of 3D queries lies: round the isocentre, round the tree, or where a user's views put it.
BOX_CENTERS = ("isocentre", "tree", "views")


@dataclass(frozen=True)
class BatchSettings:
    """What a batch holds. Ranges ``(low, high)`` are drawn uniformly per patient.

    Args:
        artery: ``rca``, ``lca`` or ``both`` (one of the two by the seed).
        disease: as for ``sample_tree``: ``none`` or ``random``.
        views: 1 to 4 views of ``rows x cols`` pixels; each after the first lies ``separation_deg`` from it.
        supersample: rays per pixel and axis; the mean of their line integrals is what a coarse pixel measures.
        offset_mm: length of the unknown offset of every view but the first.
        angle_error_deg: reading error of the angles that a user has.
        isocentre_distance_mm: the middle of the tree lies within this distance of the isocentre along each axis.
        lumen_mu_per_mm: attenuation of the opacified blood above tissue, 1/mm.
        points: 3D queries per patient; ``near_share`` of them lie about the vessels, the others anywhere in the box.
        near_mm: standard deviation of the distance of near points from the wall region, mm. Half of the near points
            follow the local radius instead, so that the lumen of thin vessels is hit as often as that of wide ones.
        box_size_mm: edge of the cubic box of queries. box_center: one of ``BOX_CENTERS``; ``views`` is the point
            nearest to the rays through the middle of the vessels in each view, with the cameras a user has.
        edge_mm: width of the step of ``mu_per_mm`` at the wall: 0 is the exact indicator; a voxel size gives values as
            a voxel of that size averages them (to first order).
    """

    artery: str = "both"
    disease: str = "random"
    views: int = 2
    rows: int = 128
    cols: int = 128
    supersample: int = 1
    separation_deg: tuple[float, float] = (30.0, 100.0)
    offset_mm: tuple[float, float] = (0.0, 8.0)
    angle_error_deg: tuple[float, float] = (0.0, 2.0)
    isocentre_distance_mm: float = 20.0
    lumen_mu_per_mm: tuple[float, float] = (0.11, 0.2)
    points: int = 8192
    near_share: float = 0.5
    near_mm: float = 2.0
    box_size_mm: float = 140.0
    box_center: str = "tree"
    edge_mm: float = 0.0

    def __post_init__(self) -> None:
        if self.artery not in (*ARTERIES, "both"):
            raise InputError(f"artery is '{self.artery}'; choose rca, lca or both")
        if self.box_center not in BOX_CENTERS:
            raise InputError(f"box_center is '{self.box_center}'; choose {', '.join(BOX_CENTERS)}")
        for name, low, high in (
            ("views", 1, 4),
            ("rows", 32, 2048),
            ("cols", 32, 2048),
            ("supersample", 1, 8),
            ("points", 0, 1 << 24),
            ("near_share", 0, 1),
            ("near_mm", 0, 50),
            ("edge_mm", 0, 10),
            ("isocentre_distance_mm", 0, 80),
            ("box_size_mm", 10, 400),
        ):
            if not low <= getattr(self, name) <= high:  # also catches NaN
                raise InputError(f"{name} is {getattr(self, name)}; give {low} to {high}")
        for name, low, high in (
            ("separation_deg", 20, 110),
            ("offset_mm", 0, 80),
            ("angle_error_deg", 0, 10),
            ("lumen_mu_per_mm", 1e-3, 2),
        ):
            first, last = getattr(self, name)
            if not low <= first <= last <= high:
                raise InputError(f"{name} is {first}, {last}; give two rising numbers from {low} to {high}")


@dataclass(frozen=True)
class CaseDraw:
    """Every random decision of one patient; small enough to cross a process boundary.

    ``unit_points`` ``(uniform, 3)`` float32 in -0.5..0.5 of the box; ``near_points_mm`` ``(near, 3)`` float32, world
    LPS mm. The box may depend on the images, so uniform points get their place in the batch only.
    """

    seed: int
    artery: str
    tree: VesselTree
    true_cameras: tuple[Camera, ...]
    user_cameras: tuple[Camera, ...]
    lumen_mu_per_mm: float
    unit_points: np.ndarray
    near_points_mm: np.ndarray


@dataclass(frozen=True)
class PhantomBatch:
    """B patients, V views, N queries. Tensors lie on one device; trees and cameras are plain Python.

    Args:
        seeds: B seeds. trees: B trees, world LPS mm, origin at the isocentre of the first view.
        true_cameras, user_cameras: B tuples of V cameras: as they are, and as a user has them (offset zero, angles
            with reading error).
        artery: ``(B,)`` int64, index in ``ARTERIES``.
        lumen_mu_per_mm: ``(B,)`` float32.
        line_integrals: ``(B, V, H, W)`` float32, no unit.
        points_mm: ``(B, N, 3)`` float32, world LPS mm; the first ``near`` of them about the vessels.
        signed_distance_mm: ``(B, N)`` float32 to the wall of the union of all tubes, negative inside.
        mu_per_mm: ``(B, N)`` float32: the attenuation there, ``lumen_mu_per_mm`` inside.
        box_center_mm: ``(B, 3)`` float32; the box has the edge ``box_size_mm``. Points outside it were left out.
        near: number of near points.
    """

    seeds: tuple[int, ...]
    trees: tuple[VesselTree, ...]
    true_cameras: tuple[tuple[Camera, ...], ...]
    user_cameras: tuple[tuple[Camera, ...], ...]
    artery: torch.Tensor
    lumen_mu_per_mm: torch.Tensor
    line_integrals: torch.Tensor
    points_mm: torch.Tensor
    signed_distance_mm: torch.Tensor
    mu_per_mm: torch.Tensor
    box_center_mm: torch.Tensor
    box_size_mm: float
    near: int
    queries: TreeQueries

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def masks(self) -> torch.Tensor:
        """``(B, V, H, W)`` bool: pixels whose rays meet a vessel."""
        return self.line_integrals > 0

    @property
    def unit_points(self) -> torch.Tensor:
        """``(B, N, 3)``: the points in box coordinates, -1..1 along x, y, z."""
        return (self.points_mm - self.box_center_mm[:, None]) * (2 / self.box_size_mm)

    def cameras(self, case: int, *, true: bool = True, dtype: torch.dtype = torch.float64) -> Cameras:
        """The views of one patient as batched cameras on the device of the batch."""
        chosen = self.true_cameras if true else self.user_cameras
        return Cameras.stack(chosen[case], dtype=dtype, device=self.line_integrals.device)

    def all_cameras(self, *, true: bool = True, dtype: torch.dtype = torch.float64) -> Cameras:
        """All ``B * V`` views in one batch of cameras, patient by patient."""
        chosen = self.true_cameras if true else self.user_cameras
        return Cameras.stack(
            [camera for case in chosen for camera in case], dtype=dtype, device=self.line_integrals.device
        )


def draw_case(seed: int, settings: BatchSettings) -> CaseDraw:
    """Tree, cameras, contrast and query points of one patient; the same for the same seed and settings.

    Raises:
        InputError: a negative seed, or one of the benchmark's, which no training may see.
    """
    if seed in splits.BENCHMARK:
        raise InputError(f"seed {seed} belongs to the benchmark; draw training patients from splits.training_seed")
    if seed < 0:
        raise InputError(f"seed is {seed}; give a number of at least 0")
    rng = np.random.default_rng([int(seed), 70])
    artery = settings.artery if settings.artery != "both" else ARTERIES[int(rng.integers(2))]
    # The argument is handed on only where it says something, so that healthy trees need no knowledge of disease.
    options = {} if settings.disease == "none" else {"disease": settings.disease}
    tree = _centred(sample_tree(seed, artery, **options), rng.uniform(-1, 1, 3) * settings.isocentre_distance_mm)
    geometry = view_choice.choose_geometry(rng)
    angles = view_choice.choose_angles(rng, artery, settings.views, float(rng.uniform(*settings.separation_deg)))
    length_mm = rng.uniform(*settings.offset_mm)
    offsets = [np.zeros(3)] + [length_mm * view_choice.random_direction(rng) for _ in angles[1:]]
    size = (settings.rows, settings.cols)
    true = [view_choice.make_camera(a, geometry, *size, o) for a, o in zip(angles, offsets, strict=True)]
    centerline = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    spacing = view_choice.fit_spacing(true, centerline)
    true = [view_choice.with_spacing(camera, spacing) for camera in true]
    error_deg = rng.uniform(*settings.angle_error_deg)
    user = [view_choice.as_read(camera, rng, error_deg) for camera in true]
    near = round(settings.near_share * settings.points)
    return CaseDraw(
        int(seed),
        artery,
        tree,
        tuple(true),
        tuple(user),
        float(rng.uniform(*settings.lumen_mu_per_mm)),
        rng.uniform(-0.5, 0.5, (settings.points - near, 3)).astype(np.float32),
        near_points(rng, tree, near, settings.near_mm),
    )


def make_batch(
    seeds: Sequence[int],
    settings: BatchSettings,
    *,
    device: torch.device | str = "cpu",
    executor: Executor | None = None,
) -> PhantomBatch:
    """A batch of the given patients.

    Args:
        seeds: at least one. executor: draws the patients in parallel (a process pool); None draws them here.

    Raises:
        InputError: no seed, or as :func:`draw_case`.

    Example:
        >>> batch = make_batch([7, 8], BatchSettings(rows=32, cols=32, points=100, disease="none"))
        >>> batch.line_integrals.shape, batch.points_mm.shape
        (torch.Size([2, 2, 32, 32]), torch.Size([2, 100, 3]))
    """
    if len(seeds) == 0:
        raise InputError("a batch needs at least one seed")
    run = map if executor is None else executor.map
    return render_batch(list(run(draw_case, seeds, [settings] * len(seeds))), settings, device=device)


@torch.no_grad()
def line_integrals(draws: Sequence[CaseDraw], supersample: int, device: torch.device | str) -> torch.Tensor:
    """``(B, V, H, W)`` float32, no unit, of the true cameras."""
    path_mm = torch.stack([_path_length_mm(draw, supersample, torch.device(device)) for draw in draws])
    mu = torch.tensor([draw.lumen_mu_per_mm for draw in draws], dtype=torch.float32, device=path_mm.device)
    return path_mm * mu[:, None, None, None]


@torch.no_grad()
def render_batch(
    draws: Sequence[CaseDraw], settings: BatchSettings, *, device: torch.device | str = "cpu"
) -> PhantomBatch:
    """The arithmetic of a batch, on the device: images, boxes, queries."""
    device = torch.device(device)
    mu = torch.tensor([draw.lumen_mu_per_mm for draw in draws], dtype=torch.float32, device=device)
    images = line_integrals(draws, settings.supersample, device)
    centers = np.stack(
        [_box_center(draw, image, settings.box_center) for draw, image in zip(draws, images, strict=True)]
    )
    points = np.stack(
        [_placed_points(draw, center, settings.box_size_mm) for draw, center in zip(draws, centers, strict=True)]
    )
    points = torch.from_numpy(points).to(device)
    queries = TreeQueries.stack([tree_cones(draw.tree) for draw in draws], device=device)
    distance = queries.signed_distance_mm(points)
    inside = (distance <= 0).float() if settings.edge_mm == 0 else (0.5 - distance / settings.edge_mm).clamp(0, 1)
    return PhantomBatch(
        seeds=tuple(draw.seed for draw in draws),
        trees=tuple(draw.tree for draw in draws),
        true_cameras=tuple(draw.true_cameras for draw in draws),
        user_cameras=tuple(draw.user_cameras for draw in draws),
        artery=torch.tensor([ARTERIES.index(draw.artery) for draw in draws], device=device),
        lumen_mu_per_mm=mu,
        line_integrals=images,
        points_mm=points,
        signed_distance_mm=distance,
        mu_per_mm=inside * mu[:, None],
        box_center_mm=torch.from_numpy(centers.astype(np.float32)).to(device),
        box_size_mm=float(settings.box_size_mm),
        near=len(draws[0].near_points_mm),
        queries=queries,
    )


@dataclass(frozen=True)
class PhantomStream:
    """An endless, resumable stream of training batches: batch k holds the training patients k B to (k + 1) B - 1.

    Args:
        batch: patients per batch, B. workers: processes that draw patients ahead; 0 draws them in this process.
        ahead: batches drawn ahead of the training by the workers.
    """

    settings: BatchSettings
    batch: int = 8
    device: torch.device | str = "cpu"
    workers: int = 0
    ahead: int = 3

    def __post_init__(self) -> None:
        for name, low in (("batch", 1), ("workers", 0), ("ahead", 1)):
            if getattr(self, name) < low:
                raise InputError(f"{name} is {getattr(self, name)}; give at least {low}")

    def seeds(self, step: int) -> list[int]:
        """The seeds of batch ``step``; raises InputError beyond the training range."""
        return [splits.training_seed(number) for number in range(step * self.batch, (step + 1) * self.batch)]

    def batches(self, first: int = 0) -> Iterator[PhantomBatch]:
        """Batches ``first``, ``first + 1``, ... ; leaving the loop (or closing the iterator) ends the workers."""
        if self.workers == 0:
            step = first
            while True:
                yield make_batch(self.seeds(step), self.settings, device=self.device)
                step += 1
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        # "spawn": a forked child would inherit threads and a CUDA context that it cannot use.
        with ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), _one_thread) as pool:
            waiting: deque = deque()
            step = first
            try:
                while True:
                    while len(waiting) < self.ahead:
                        waiting.append([pool.submit(draw_case, seed, self.settings) for seed in self.seeds(step)])
                        step += 1
                    draws = [future.result() for future in waiting.popleft()]
                    yield render_batch(draws, self.settings, device=self.device)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _centred(tree: VesselTree, centre_mm: np.ndarray) -> VesselTree:
    """The tree with the middle of its bounding box at ``centre_mm``, as in ``simulate_case``."""
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    move = centre_mm - 0.5 * (points.min(0) + points.max(0))
    return VesselTree(tuple(replace(branch, points_lps_mm=branch.points_lps_mm + move) for branch in tree.branches))


def _placed_points(draw: CaseDraw, center_mm: np.ndarray, size_mm: float) -> np.ndarray:
    """All query points ``(N, 3)`` float32, near ones first; near ones outside the box give way to uniform ones."""
    near = draw.near_points_mm.copy()
    outside = np.any(np.abs(near - center_mm) > size_mm / 2, axis=1)
    if outside.any():
        rng = np.random.default_rng([draw.seed, 71])
        near[outside] = center_mm + rng.uniform(-0.5, 0.5, (int(outside.sum()), 3)) * size_mm
    return np.concatenate([near, center_mm + draw.unit_points * size_mm]).astype(np.float32)


def _path_length_mm(draw: CaseDraw, supersample: int, device: torch.device) -> torch.Tensor:
    """Path length ``(V, H, W)`` float32, mm, of one patient."""
    from licag3d.ops import project_tubes
    from licag3d.vessels.tree import flatten_tree

    flat = flatten_tree(draw.tree)
    cameras = draw.true_cameras
    if supersample > 1:
        cameras = [camera.resized(camera.rows * supersample, camera.cols * supersample) for camera in cameras]
    path = project_tubes(
        torch.from_numpy(flat.points_lps_mm).to(device),
        torch.from_numpy(flat.radius_mm).to(device),
        torch.from_numpy(flat.segments).to(device),
        Cameras.stack(cameras, device=device),
    )
    return path if supersample == 1 else torch.nn.functional.avg_pool2d(path[None], supersample)[0]


def _box_center(draw: CaseDraw, images: torch.Tensor, rule: str) -> np.ndarray:
    """Centre ``(3,)`` of the box, world LPS mm."""
    if rule == "isocentre":
        return np.zeros(3)
    if rule == "tree":
        points = np.concatenate([branch.points_lps_mm for branch in draw.tree.branches])
        return 0.5 * (points.min(0) + points.max(0))
    return center_from_views(draw.user_cameras, [image.cpu().numpy() > 0 for image in images])
