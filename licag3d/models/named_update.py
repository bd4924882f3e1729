# SPDX-License-Identifier: Apache-2.0
"""The lift of what is seen into the code: named places of all views, through their rays, by one Kalman step.

The dense maps of the encoder say which branch a vessel pixel belongs to and where along it. The weighted means of
those pixels are measured places: branch k, stretch j, at (u, v) mm in the window of each view. The code that queries
wrote predicts the same places exactly (the structure stage writes the branches, the camera projects them). Their
difference corrects the code by the best linear estimate under the covariances of the training patients,

    w <- w + C P' (P K P' + R)^-1 (seen - predicted),        C = cov(w, places), K = cov(places), P the projections,

with the place of the tree in each view as a further unknown (a block of R). Any number of views, in any order; the
accuracy of a pixel comes through although the code was first guessed by a network (Iskakov et al., ICCV 2019, lift
joints of bodies algebraically too; the estimate is the textbook one of Kalman filters).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from licag3d.models.branch_table import ARTERIES, BranchTable, table_of


class NamedUpdate(nn.Module):
    """Moments of the training patients (buffers) and a few learnt scales.

    Args:
        codes: styles that are corrected (structure and one for all others). w_dim: size of a style.
        stretches: J per branch; the hat functions of a stretch overlap. most: places that are used, the best seen.
        rank: directions of the covariance of places that are kept: its root is stored, for a covariance rounded to half
            precision would no longer be positive.
    """

    def __init__(self, codes: int, w_dim: int, stretches: int, most: int = 72, rank: int = 160):
        super().__init__()
        self.most = most
        self.tables: dict[str, BranchTable] = {artery: table_of(artery) for artery in ARTERIES}
        self.codes, self.stretches = codes, stretches
        for artery, table in self.tables.items():
            places = 3 * len(table.slots) * stretches
            self.register_buffer(f"{artery}_root", torch.zeros(places, min(rank, places)))
            self.register_buffer(f"{artery}_gain", torch.zeros(codes * w_dim, places))
        # Prior error of the guessed code against the spread of patients, of a place in a view (mm), of a measured place
        # (mm, and against the scatter of its pixels), pixels that a measurement needs, how far an outlier may lie.
        self.log_prior = nn.Parameter(torch.tensor([math.log(0.8), math.log(0.8)]))
        self.log_place_mm = nn.Parameter(torch.tensor(math.log(3.0)))
        self.log_seen_mm = nn.Parameter(torch.tensor(math.log(2.0)))
        self.log_scatter = nn.Parameter(torch.tensor(math.log(0.5)))
        self.log_mass = nn.Parameter(torch.tensor(math.log(0.7)))
        self.log_outlier = nn.Parameter(torch.tensor(math.log(3.0)))
        # How much less a place says along its vessel than across it: where along it lies is hard to tell.
        self.log_slide = nn.Parameter(torch.tensor(math.log(4.0)))

    def hats(self, samples: int) -> torch.Tensor:
        """``(J, samples)``: weights of the samples of a branch in each stretch, rows sum to one."""
        return _hats(torch.linspace(0, 1, samples), self.stretches, normal=True)

    def places(self, courses) -> torch.Tensor:
        """Named places ``(B, slots * J, 3)`` of courses as ``BranchStage.courses`` gives them."""
        return torch.cat([self.hats(p.shape[1]).to(p) @ p for p, _, _ in courses], 1)

    @torch.no_grad()
    def set_moments(self, artery: str, codes: torch.Tensor, places: torch.Tensor) -> None:
        """Covariances of patients: codes ``(T, codes * w_dim)``, places ``(T, slots * J * 3)``."""
        code, place = codes - codes.mean(0), places - places.mean(0)
        value, vector = torch.linalg.eigh(place.T @ place / len(place))
        root = getattr(self, f"{artery}_root")
        root.copy_((vector * value.clamp_min(0).sqrt())[:, -root.shape[1] :])
        getattr(self, f"{artery}_gain").copy_(code.T @ place / len(place))

    def measure(
        self, names: torch.Tensor, share: torch.Tensor, chance: torch.Tensor, at_mm: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Measured places ``(N, slots * J, 2)`` in mm and their precision ``(N, slots * J)`` in 1/mm^2.

        Args:
            names: ``(N, M, slots)`` probabilities of the branches in each cell. share: ``(N, M)`` along the branch.
            chance: ``(N, M)`` how much vessel a cell shows. at_mm: ``(N, M, 2)`` where. ``share`` may also be
            ``(N, M, slots)``, along each branch.
        """
        weight = names * chance[..., None]
        x, y = at_mm.unbind(-1)
        facts = torch.stack([torch.ones_like(x), x, y, x * x + y * y], 1)  # (N, 4, M)
        if share.ndim == 3:
            hats = _hats(share.transpose(1, 2), self.stretches, normal=False)  # (N, slots, J, M)
            sums = ((hats * weight.transpose(1, 2)[:, :, None]) @ facts.transpose(1, 2)[:, None]).flatten(1, 2)
        else:
            hats = _hats(share, self.stretches, normal=False)  # (N, J, M)
            both = (hats[:, :, None] * facts[:, None]).flatten(1, 2)  # (N, 4 J, M)
            sums = (both @ weight).unflatten(1, (self.stretches, 4)).permute(0, 3, 1, 2).flatten(1, 2)
        mass = sums[..., 0]
        mean = sums[..., 1:3] / mass.clamp_min(1e-4)[..., None]
        scatter = (sums[..., 3] / mass.clamp_min(1e-4) - mean.square().sum(-1)).clamp_min(0)
        spread2 = (2 * self.log_seen_mm).exp() + self.log_scatter.exp() ** 2 * scatter * 0.1
        sure = mass.square() / (mass.square() + (2 * self.log_mass).exp())
        return mean, sure / spread2

    def _ways(self, places: torch.Tensor) -> torch.Tensor:
        """Directions ``(B, slots * J, 3)`` of the branches at their places."""
        by_branch = places.unflatten(1, (-1, self.stretches))
        if self.stretches == 1:
            return torch.ones_like(places)
        step = by_branch[:, :, 1:] - by_branch[:, :, :-1]
        return torch.cat([step[:, :, :1], 0.5 * (step[:, :, 1:] + step[:, :, :-1]), step[:, :, -1:]], 2).flatten(1, 2)

    def forward(
        self,
        places: torch.Tensor,
        seen_mm: torch.Tensor,
        precision: torch.Tensor,
        cameras: torch.Tensor,
        place_mm: torch.Tensor,
        log_scale: torch.Tensor,
        artery: str,
        *,
        origin: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Corrections of codes ``(B, codes * w_dim)`` and of the place in each view ``(B, V, 2)`` mm.

        Args:
            places: ``(B, K, 3)`` of the guessed code, mm. seen_mm: ``(B, V, K, 2)``; precision: ``(B, V, K)``, 0 for
                what is not seen. cameras: ``(B, V, 11)``. place_mm, log_scale: ``(B, V, 2)``, ``(B, V)`` as guessed.
            origin: ``places`` and ``place_mm`` of the first guess where this one is a later one: the corrections are
            then those of the first guess, projected as at the later one (an iterated Kalman step).
        """
        apart = None if origin is None else (places - origin[0], place_mm - origin[1])
        b, v = seen_mm.shape[:2]
        # The best seen places alone: the work grows with the third power of their number.
        most = min(self.most, places.shape[1])
        best = precision.detach().sum(1).topk(most, dim=1).indices.sort(dim=1).values
        ways = self._ways(places).gather(1, best[..., None].expand(-1, -1, 3))
        places = places.gather(1, best[..., None].expand(-1, -1, 3))
        seen_mm = seen_mm.gather(2, best[:, None, :, None].expand(-1, v, -1, 2))
        precision = precision.gather(2, best[:, None].expand(-1, v, -1))
        k = most
        axes = (3 * best[..., None] + torch.arange(3, device=best.device)).flatten(1)  # (B, 3 K)
        prior = (2 * self.log_prior[ARTERIES.index(artery)]).exp()
        half = getattr(self, f"{artery}_root")[axes]
        covariance = prior * half @ half.transpose(1, 2)
        predicted, slope = project(places, cameras, place_mm, log_scale)  # (B, V, K, 2), (B, V, K, 2, 3)
        # Axes along and across the vessel as it is predicted in each view.
        along = F.normalize(torch.einsum("bvkai,bki->bvka", slope.detach(), ways.detach()) + 1e-6, dim=-1)
        turn = torch.stack([along, torch.stack([-along[..., 1], along[..., 0]], -1)], -2)  # (B, V, K, 2, 2)
        left = seen_mm - predicted
        if apart is not None:
            moved = apart[0].gather(1, best[..., None].expand(-1, -1, 3))
            left = left + torch.einsum("bvkai,bki->bvka", slope, moved) + apart[1][:, :, None]
        off = (turn @ left[..., None])[..., 0]
        slope = turn @ slope
        share = torch.stack([(-2 * self.log_slide).exp(), torch.ones_like(self.log_slide)])
        precision = precision[..., None] * share  # (B, V, K, 2)
        # What is much farther off than code and place allow is named wrongly.
        diagonal = covariance.diagonal(dim1=1, dim2=2).unflatten(1, (k, 3)).sum(2)[:, None] / 1.5
        place2 = (2 * self.log_place_mm).exp()
        allowed = diagonal[..., None] + place2 + 1 / precision.clamp_min(1e-3)
        here = off if origin is None else (turn @ (seen_mm - predicted)[..., None])[..., 0]
        far = (here.square() / allowed).sum(-1, keepdim=True)
        root = (precision / (1 + far / (2 * self.log_outlier).exp())).clamp_min(1e-12).sqrt()  # (B, V, K, 2)
        slope = (root[..., None] * slope).permute(0, 1, 3, 2, 4).reshape(b, 2 * v, k, 3)  # rows: view and axis
        # The measurement matrix has one place per row; written out it makes two plain products of matrices.
        rows = torch.zeros(b, 2 * v, k, k, 3, dtype=off.dtype, device=off.device)
        at = torch.arange(k, device=off.device)
        rows[:, :, at, at] = slope
        rows = rows.view(b, 2 * v * k, 3 * k)
        system = rows @ covariance @ rows.transpose(1, 2)
        # What a shift of a whole view does: the same to all its places, turned into their axes.
        same = torch.eye(v, dtype=off.dtype, device=off.device)
        moves = torch.einsum("bvkac,vw->bvakwc", root[..., None] * turn, same).reshape(b, 2 * v * k, 2 * v)
        moves = place2.sqrt() * moves
        system = system + moves @ moves.transpose(1, 2)
        system = system + torch.eye(system.shape[-1], device=off.device, dtype=off.dtype)
        right = (root * off).permute(0, 1, 3, 2).reshape(b, -1, 1)
        factor = torch.linalg.cholesky(system)
        answer = torch.cholesky_solve(right, factor)[..., 0]
        shift = (place2.sqrt() * moves.transpose(1, 2) @ answer[..., None]).view(b, v, 2)
        answer = answer.view(b, 2 * v, k)
        back = torch.einsum("brk,brki->bki", answer, slope).flatten(1)
        everywhere = torch.zeros(b, getattr(self, f"{artery}_root").shape[0], dtype=back.dtype, device=back.device)
        code = prior * everywhere.scatter(1, axes, back) @ getattr(self, f"{artery}_gain").T
        return code, shift


def along_courses(courses, cameras, place_mm, log_scale, at_mm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance ``(B, V, M, slots)`` in mm of points ``at_mm`` ``(B, V, M, 2)`` of the windows from each branch as the
    views show it, and the share ``(B, V, M, slots)`` of its length where it is nearest.
    """
    distances, shares = [], []
    for points, _, _ in courses:
        seen, _ = project(points, cameras, place_mm, log_scale)
        away = torch.cdist(at_mm, seen)
        least = away.min(3)
        distances.append(least.values)
        shares.append(least.indices.to(at_mm.dtype) / (points.shape[1] - 1))
    return torch.stack(distances, -1), torch.stack(shares, -1)


def project(points: torch.Tensor, cameras: torch.Tensor, place_mm: torch.Tensor, log_scale: torch.Tensor):
    """(u, v) ``(B, V, K, 2)`` in windows of points ``(B, K, 3)`` in mm from the centre of the box, and the derivative
    ``(B, V, K, 2, 3)``. Distances to the source as in ``view_windows.camera_numbers``.
    """
    beam, column, row = cameras[..., :3], cameras[..., 3:6], cameras[..., 6:9]
    sod = 750.0 + 100.0 * cameras[..., 9]
    # The scale tells how far the centre is from the source.
    depth = 1 + torch.einsum("bki,bvi->bvk", points, beam) / (sod * torch.exp(-log_scale))[..., None]
    grow = log_scale.exp()[..., None] / depth
    axes = torch.stack([column, row], 2)  # (B, V, 2, 3)
    flat = torch.einsum("bki,bvai->bvka", points, axes) * grow[..., None]
    tilt = beam / (sod * torch.exp(-log_scale))[..., None]
    slope = grow[..., None, None] * axes[:, :, None] - (flat / depth[..., None])[..., None] * tilt[:, :, None, None]
    return flat + place_mm[:, :, None], slope


def _hats(share: torch.Tensor, count: int, *, normal: bool) -> torch.Tensor:
    """Hat functions of shares ``(..., M)``: ``(..., J, M)``; with ``normal`` each sums to one over M."""
    centre = (torch.arange(count, device=share.device, dtype=share.dtype) + 0.5) / count
    # Both ends belong to the outer stretches.
    inside = share.clamp(float(0.5 / count), float(1 - 0.5 / count))
    hats = (1 - (inside[..., None, :] - centre[:, None]).abs() * count).clamp_min(0)
    return hats / hats.sum(-1, keepdim=True).clamp_min(1e-6) if normal else hats


def cells_of(windows: torch.Tensor, cells: int, window_mm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """How much vessel each cell of the dense maps shows, ``(N, cells^2)``, and its centroid ``(N, cells^2, 2)`` in mm
    from the middle of the window, from windows ``(N, channels, S, S)``.
    """
    chance = windows[:, :1].float()
    side = chance.shape[-1] // cells
    step = window_mm / chance.shape[-1]
    inner = (torch.arange(side, device=chance.device) + 0.5 - 0.5 * side) * step
    kernel = torch.stack([torch.ones(side, side, device=chance.device), inner.expand(side, side), inner[:, None].expand(
        side, side)])[:, None] / side**2  # fmt: skip
    pooled = F.conv2d(chance, kernel, stride=side)
    mass = pooled[:, 0].flatten(1)
    middle = (torch.arange(cells, device=chance.device) + 0.5 - 0.5 * cells) * (side * step)
    middle = torch.stack(torch.meshgrid(middle, middle, indexing="ij")[::-1]).flatten(1)
    place = pooled[:, 1:].flatten(2) / mass.clamp_min(1e-4)[:, None] + middle
    # A few pixels of vessel in a cell are enough.
    return (4 * mass).clamp(max=1) * (mass > 0.02), place.transpose(1, 2)


def patients_moments(update: NamedUpdate, stage, codes: torch.Tensor, artery: str, batch: int = 256) -> None:
    """Set the moments of one artery from codes ``(T, codes, w_dim)`` of training patients."""
    places = []
    with torch.no_grad():
        for part in codes.split(batch):
            vectors = stage.vectors(part[:, : stage.groups], artery)
            places.append(update.places(stage.courses(vectors, artery)).flatten(1))
    update.set_moments(artery, codes.flatten(1), torch.cat(places))
