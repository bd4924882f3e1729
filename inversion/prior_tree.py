# SPDX-License-Identifier: Apache-2.0
"""The generator's tree as segments in space: from codes and a placement to points that can be compared with views.

A start of a fit is a code z (normal deviates), one delta per structure style (W+ = w(z) + delta), and a placement

    X = center + exp(log_scale) R(turn) x

of the tree x that the structure stage writes. Everything is differentiable, and several starts are one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from licag3d.geometry import Camera, equations
from licag3d.inversion.epipolar import epipolar_pair
from licag3d.models.branch_table import ARTERIES, tree_of
from licag3d.models.generator import Generator
from licag3d.structures import Branch, VesselTree

#: How the deltas of a code spread, see :class:`Codes`.
ALIKE, PATIENTS, WIDE = 0, 1, 2


@dataclass
class Codes:
    """B starts: ``label`` ``(B, labels)``, ``spread`` ``(B,)``, ``z`` ``(B, z_dim)``, ``delta`` ``(B, groups,
    w_dim)``, ``center_mm`` ``(B, 3)``, ``turn`` ``(B, 3)`` rotation vector in radians, ``log_scale`` ``(B,)``; of V
    views ``view_shift_mm`` ``(B, V, 3)`` along the axes of :class:`MovingCamera` and ``view_turn_deg`` ``(B, V, 2)``.

    ``spread`` says what ``delta`` is: :data:`ALIKE` in all directions and added to the code, or standard normal
    deviates of what :data:`PATIENTS` of the training have there, or of a :data:`WIDE` spread
    (:meth:`Generator.delta_of`)."""

    label: torch.Tensor
    spread: torch.Tensor
    z: torch.Tensor
    delta: torch.Tensor
    center_mm: torch.Tensor
    turn: torch.Tensor
    log_scale: torch.Tensor
    view_shift_mm: torch.Tensor
    view_turn_deg: torch.Tensor

    @classmethod
    def start(cls, generator: Generator, label: torch.Tensor, center_mm, views: int = 2) -> Codes:
        """The average tree of every label, at a place."""
        count, groups, w_dim = len(label), generator.config.structure, generator.config.w_dim
        center = torch.as_tensor(np.broadcast_to(center_mm, (count, 3)).copy(), dtype=torch.float32)
        sizes = ((3,), (), (views, 3), (views, 2))
        rest = [torch.zeros(count, *size) for size in sizes]
        z, delta = torch.zeros(count, generator.config.z_dim), torch.zeros(count, groups, w_dim)
        spread = torch.full((count,), WIDE if generator.config.own_deltas else ALIKE)
        return cls(label, spread, z, delta, center, *rest)

    def take(self, rows: Sequence[int]) -> Codes:
        """Some of the starts."""
        return Codes(*(value[list(rows)].detach().clone() for value in vars(self).values()))

    def and_also(self, other: Codes) -> Codes:
        """These starts and others."""
        return Codes(*(torch.cat([a, b]) for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def styles(self, generator: Generator) -> torch.Tensor:
        """Structure styles ``(B, groups, w_dim)``."""
        delta = self.delta
        if generator.config.own_deltas:
            known = generator.delta_of(delta, self.label, self.spread == WIDE)
            delta = torch.where((self.spread != ALIKE)[:, None, None], known, delta)
        return generator.map(self.z, self.label)[:, None] + delta


@dataclass(frozen=True)
class Segments:
    """M pieces of the centrelines of B trees in world LPS mm.

    ``start``, ``end`` ``(B, M, 3)``; ``radius_mm``, ``gate``, ``length_mm`` ``(B, M)``: the gate is near 1 where the
    branch is there, and near 0 where it is not. ``branch`` ``(M,)`` is the slot of the artery's table.
    """

    start: torch.Tensor
    end: torch.Tensor
    radius_mm: torch.Tensor
    gate: torch.Tensor
    length_mm: torch.Tensor
    branch: torch.Tensor

    @property
    def middle(self) -> torch.Tensor:
        return 0.5 * (self.start + self.end)


def rotation(turn: torch.Tensor) -> torch.Tensor:
    """Rotation matrices ``(B, 3, 3)`` of rotation vectors ``(B, 3)`` in radians."""
    zero = torch.zeros_like(turn[:, 0])
    x, y, z = turn.unbind(1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)
    return torch.linalg.matrix_exp(skew)


def place(points: torch.Tensor, codes: Codes) -> torch.Tensor:
    """Points ``(B, n, 3)`` of the box in world LPS mm."""
    return codes.center_mm[:, None] + codes.log_scale.exp()[:, None, None] * points @ rotation(codes.turn).mT


class TreeWriter:
    """What the structure stage of a generator writes for one artery, with frozen weights and all branches at once.

    The same numbers as ``BranchStage.vectors`` and ``courses`` (tested), a tenth of their time: offsets of all samples
    are one product, and where a branch begins is a sum over the branches before it.

    Args:
        generator: one with a structure stage. artery: ``rca`` or ``lca``.
    """

    def __init__(self, generator: Generator, artery: str) -> None:
        stage = generator.structure
        table = stage.tables[artery]
        self.generator, self.artery, self.table = generator, artery, table
        self.heads = []
        for g in range(stage.groups):
            rows = stage.rows(artery, g)
            layers = ((stage.straight[g], rows), (stage.first[g], slice(None)), (stage.last[g], rows))
            self.heads.append([((layer.weight * layer.scale)[keep].detach(), (layer.bias * layer.rate)[keep].detach())
                               for layer, keep in layers])  # fmt: skip
        self.mean, self.spread = getattr(stage, f"{artery}_mean"), getattr(stage, f"{artery}_spread")
        slots = table.slots
        parts = [table.parts(k) for k in range(len(slots))]
        self.presence = torch.tensor([part[0] for part in parts])
        self.trunk = parts[0][1]
        self.place = torch.tensor([0] + [part[1].start for part in parts[1:]])
        self.course = torch.cat([torch.arange(part[2].start, part[2].stop) for part in parts])
        self.radius = torch.cat([torch.arange(part[3].start, part[3].stop) for part in parts])
        bases = [getattr(stage, f"{artery}_basis_{k}") for k in range(len(slots))]
        self.to_offset = torch.block_diag(*(basis[:, 1:] for basis in bases))
        self.to_radius = torch.block_diag(*bases)
        count = torch.tensor([len(basis) for basis in bases])
        self.first = torch.cat([torch.zeros(1, dtype=torch.long), count.cumsum(0)])
        self.parent = torch.tensor([max(slot.parent, 0) for slot in slots])
        self.parent_count = count[self.parent]
        # Row k: the branches that lie between the root and branch k, itself included.
        self.before = torch.eye(len(slots))
        for k, slot in enumerate(slots):
            if slot.parent >= 0:
                self.before[k] += self.before[slot.parent]
        self.slot = torch.repeat_interleave(torch.arange(len(slots)), count)
        self.pieces = torch.cat([torch.arange(a, b - 1) for a, b in zip(self.first[:-1], self.first[1:], strict=True)])

    def vectors(self, codes: Codes) -> torch.Tensor:
        """``(B, size)``, presence as logit."""
        styles, out = codes.styles(self.generator), []
        for g, (straight, first, last) in enumerate(self.heads):
            hidden = torch.nn.functional.silu(torch.nn.functional.linear(styles[:, g], *first))
            out.append(torch.nn.functional.linear(styles[:, g], *straight) + torch.nn.functional.linear(hidden, *last))
        return self.mean + self.spread * torch.cat(out, 1)

    def segments(self, codes: Codes, *, softness: float = 1.0) -> Segments:
        """Segments of starts of this artery.

        Args:
            softness: divides the logits of presence: gates of rare branches then keep a gradient.
        """
        vectors = self.vectors(codes)
        offset = self.to_offset @ vectors[:, self.course].unflatten(1, (-1, 3))
        width = torch.exp((vectors[:, self.radius] @ self.to_radius.T).clamp(-3.0, 1.5))
        at = vectors[:, self.place].clamp(0.0, 1.0) * (self.parent_count - 1)
        low = torch.minimum(at.detach().floor().long(), self.parent_count - 2)
        share = (at - low)[..., None]
        rows = torch.arange(len(vectors))[:, None]
        low = low + self.first[self.parent]
        step = (1 - share) * offset[rows, low] + share * offset[rows, low + 1]
        begin = self.before @ torch.cat([vectors[:, None, self.trunk], step[:, 1:]], 1)
        own = torch.nn.functional.logsigmoid(vectors[:, self.presence[1:]] / softness)
        gate = torch.exp(own @ self.before[:, 1:].T)
        world = place(begin[:, self.slot] + offset, codes)
        width = width * codes.log_scale.exp()[:, None]
        start, end = world[:, self.pieces], world[:, self.pieces + 1]
        branch = self.slot[self.pieces]
        return Segments(
            start,
            end,
            0.5 * (width[:, self.pieces] + width[:, self.pieces + 1]),
            gate[:, branch],
            (end - start).norm(dim=2),
            branch,
        )


def named_tree(generator: Generator, codes: Codes, row: int = 0, *, present: float = 0.5) -> VesselTree:
    """The tree of one start in world LPS mm, its branches named after the anatomical plans.

    Args:
        present: branches whose gate is lower, and all that hang on them, are left out.
    """
    one = codes.take([row])
    artery = artery_of(one.label[0])
    table = generator.structure.tables[artery]
    with torch.no_grad():
        vector = generator.structure.vectors(one.styles(generator), artery)[0]
        where = list(table.offsets[:-1])
        vector[where] = torch.sigmoid(vector[where]) - present + 0.5
        tree = tree_of(vector.double().numpy(), table, (0.0, 0.0, 0.0))
        scale = float(one.log_scale.exp()[0])
        placed = []
        for branch in tree.branches:
            points = place(torch.from_numpy(branch.points_lps_mm).float()[None], one)[0].double().numpy()
            placed.append(Branch(branch.id, branch.parent, points, branch.radius_mm * scale, branch.name))
    return VesselTree(tuple(placed))


def artery_of(label: torch.Tensor) -> str:
    """``rca`` or ``lca`` of one label vector."""
    return ARTERIES[int(label[1] > label[0])]


@dataclass(frozen=True)
class MovingCamera:
    """One view whose offset and angles may move, for starts of a batch.

    Args:
        camera: as it is. axes: ``(3, 3)`` unit vectors of the offset, LPS: across the epipolar planes, toward the
            detector, along the baseline.
    """

    camera: Camera
    axes: torch.Tensor

    def matrix(self, shift_mm: torch.Tensor, turn_deg: torch.Tensor) -> torch.Tensor:
        """``(B, 3, 4)`` float32 of offsets moved by ``(B, 3)`` along the axes and angles (primary, secondary) moved by
        ``(B, 2)``: takes homogeneous points to (col, row, 1) times depth, col and row in mm at the isocentre
        (docs/geometry.md, "One view").
        """
        camera, like = self.camera, {"dtype": torch.float64}
        angles = torch.tensor([camera.primary_deg, camera.secondary_deg], **like) + turn_deg.double()
        frame = equations.view_frame(torch, angles[:, 0], angles[:, 1])
        scale = camera.mm_per_pixel
        centre = scale * torch.tensor([camera.principal_col, camera.principal_row], **like)
        size = scale * camera.sid_mm / torch.tensor([camera.spacing_col_mm, camera.spacing_row_mm], **like)
        rows = torch.stack(
            [size[0] * frame.column + centre[0] * frame.beam, size[1] * frame.row + centre[1] * frame.beam, frame.beam],
            1,
        )
        offset = torch.tensor(camera.offset_lps_mm, **like) + shift_mm.double() @ self.axes
        depth = torch.cat([centre, torch.ones(1, **like)]) * camera.sod_mm
        return torch.cat([rows, (rows @ offset[:, :, None]) + depth[:, None]], 2).float()

    def moved(self, shift_mm: np.ndarray, turn_deg: np.ndarray) -> Camera:
        """The camera of one start, ``(3,)`` and ``(2,)``."""
        if not np.any(shift_mm) and not np.any(turn_deg):
            return self.camera
        offset = np.asarray(self.camera.offset_lps_mm) + np.asarray(shift_mm, float) @ self.axes.numpy()
        return replace(
            self.camera,
            primary_deg=float(np.clip(self.camera.primary_deg + turn_deg[0], -180, 180)),
            secondary_deg=float(np.clip(self.camera.secondary_deg + turn_deg[1], -90, 90)),
        ).with_offset(offset)


def moving_cameras(cameras: Sequence[Camera]) -> tuple[MovingCamera, ...]:
    """The views with their axes; the reference view has the axes of the second one, and does not use them."""
    out = []
    for k, camera in enumerate(cameras):
        if len(cameras) > 1:
            frame = epipolar_pair(cameras[0], cameras[max(k, 1)])
            axes = np.stack([frame.across, frame.toward, np.cross(frame.across, frame.toward)])
        else:
            axes = np.eye(3)
        out.append(MovingCamera(camera, torch.from_numpy(np.asarray(axes, float))))
    return tuple(out)


def project_mm(matrix: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Image points ``(B, n, 2)`` in mm at the isocentre, (col, row) times ``mm_per_pixel``, of points ``(B, n, 3)``."""
    flat = points @ matrix[:, :, :3].mT + matrix[:, None, :, 3]
    return flat[..., :2] / flat[..., 2:]
