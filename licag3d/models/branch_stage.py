# SPDX-License-Identifier: Apache-2.0
"""The structure stage of the generator: W+ codes -> branches of a tree -> channels of the planes.

A tree is written as the vector of :mod:`licag3d.models.branch_table` and drawn into the planes, one channel per branch.
For a straight tube of radius r with unit tangent t, a point at distance d from its axis and ``e_ab`` the distance from
the axis in the projection on plane ab, Lagrange's identity ``|p x t|^2 = |p|^2 - (p.t)^2`` gives

    d^2 = sum over the planes of (t_a^2 + t_b^2) e_ab^2        and        sum of (t_a^2 + t_b^2) = 2,

so with ``f_ab = (t_a^2 + t_b^2) (r^2 / 2 - e_ab^2)`` the sum that a tri-plane takes is ``r^2 - d^2`` exactly: a vessel
costs one channel, keeps its round section, and what two branches share in one projection makes no ghost.
"""

from __future__ import annotations

import torch
from torch import nn

from licag3d.models.branch_table import ARTERIES, BranchTable, spline_matrix, table_of
from licag3d.models.synthesis import ScaledLinear

#: Lowest value of a drawn channel: far from a vessel.
FLOOR = -1.5
#: On either side of the middle of a segment so much is drawn: half its length and where a wide vessel meets the floor.
WINDOW_MM = 3.3
#: Calibre of which wall and distance are measured, mm: below it a texel no longer resolves the wall.
_SOFT_MM = 0.3
_PLANE_AXES = ((0, 1), (0, 2), (1, 2))


class BranchStage(nn.Module):
    """Heads from styles to vectors, for both arteries, and the drawing.

    Args:
        w_dim: size of a style. groups: styles; each writes the branches of its group. hidden: of the heads.
        resolution, box_size_mm: of the planes.
    """

    def __init__(self, w_dim: int, *, groups: int, hidden: int, resolution: int, box_size_mm: float):
        super().__init__()
        self.tables: dict[str, BranchTable] = {artery: table_of(artery) for artery in ARTERIES}
        self.resolution, self.box_size_mm = resolution, box_size_mm
        self.cuts = {artery: _cuts(table, groups) for artery, table in self.tables.items()}
        sizes = [sum(self._span(artery, g) for artery in ARTERIES) for g in range(groups)]
        self.straight = nn.ModuleList(ScaledLinear(w_dim, size, gain=0.5) for size in sizes)
        self.first = nn.ModuleList(ScaledLinear(w_dim, hidden) for _ in sizes)
        self.last = nn.ModuleList(ScaledLinear(hidden, size, gain=0.1) for size in sizes)
        for artery, table in self.tables.items():
            # Set from training data before training; presence is a logit.
            self.register_buffer(f"{artery}_mean", torch.zeros(table.size))
            self.register_buffer(f"{artery}_spread", torch.ones(table.size))
            for k, slot in enumerate(table.slots):
                basis = torch.tensor(spline_matrix(slot.knots, slot.samples), dtype=torch.float32)
                self.register_buffer(f"{artery}_basis_{k}", basis, persistent=False)

    @property
    def groups(self) -> int:
        return len(self.straight)

    @property
    def channels(self) -> int:
        """Channels drawn: one per branch of the artery that has more of them."""
        return max(len(table.slots) for table in self.tables.values())

    def vectors(self, w_plus: torch.Tensor, artery: str) -> torch.Tensor:
        """``(B, groups, w_dim)`` to vectors ``(B, size)`` of one artery, presence as logit."""
        out = []
        for g in range(self.groups):
            w = w_plus[:, g]
            both = self.straight[g](w) + self.last[g](nn.functional.silu(self.first[g](w)))
            out.append(both[:, self.rows(artery, g)])
        mean, spread = getattr(self, f"{artery}_mean"), getattr(self, f"{artery}_spread")
        return mean + spread * torch.cat(out, 1).float()

    def courses(self, vectors: torch.Tensor, artery: str) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Points ``(B, n, 3)`` in mm from the centre of the box, radius ``(B, n)``, gate ``(B, 1)`` per branch.

        The gate is near 1 for a branch that is there (and all before it), and near 0 otherwise.
        """
        table, out = self.tables[artery], []
        for k, slot in enumerate(table.slots):
            presence, place, course, radius = table.parts(k)
            basis = getattr(self, f"{artery}_basis_{k}")
            offset = basis[:, 1:] @ vectors[:, course].unflatten(1, (-1, 3))
            gate = torch.sigmoid(4 * vectors[:, presence : presence + 1])
            if slot.parent < 0:
                start, gate = vectors[:, None, place], torch.ones_like(gate)
            else:
                points, _, before = out[slot.parent]
                start = _at(points, vectors[:, place])
                gate = gate * before
            width = torch.exp((vectors[:, radius] @ basis.T).clamp(-3.0, 1.5))
            out.append((start + offset, width, gate))
        return out

    def draw(self, vectors: torch.Tensor, artery: str, *, least_radius_mm: float = 0.0) -> torch.Tensor:
        """Channels ``(B, 3, branches, R, R)`` of vectors ``(B, size)``, differentiable in them.

        Args:
            least_radius_mm: thinner vessels are drawn this wide, for a grid that cannot hold them.
        """
        table = self.tables[artery]
        courses = self.courses(vectors, artery)
        starts, ends, first, last, channel = [], [], [], [], []
        for k, (points, width, gate) in enumerate(courses):
            radius = width.clamp_min(least_radius_mm) * gate
            parent = table.slots[k].parent
            if parent >= 0:
                # Inside its parent a branch is not drawn: the parent fills that place already.
                calibre = _at(courses[parent][1][..., None], vectors[:, table.parts(k)[1]])[..., 0].detach()
                inner = 0.5 * calibre.clamp_min(max(least_radius_mm, 0.1))
                points, radius = _cut_at_wall(points, radius, inner)
                away = (points - courses[k][0][:, :1]).norm(dim=2)
                radius = radius * ((away - inner) / inner).clamp(0.0, 1.0)
            starts.append(points[:, :-1])
            ends.append(points[:, 1:])
            first.append(radius[:, :-1])
            last.append(radius[:, 1:])
            channel.append(torch.full((points.shape[1] - 1,), k, device=vectors.device))
        return draw_tubes(
            torch.cat(starts, 1),
            torch.cat(ends, 1),
            torch.cat(first, 1),
            torch.cat(last, 1),
            torch.cat(channel),
            channels=self.channels,
            resolution=self.resolution,
            box_size_mm=self.box_size_mm,
        )

    def draw_all(self, vectors, *, least_radius_mm: float = 0.0) -> torch.Tensor:
        """Channels ``(B, 3, branches, R, R)`` of ``(artery, rows, vectors)``, one for each artery that occurs."""
        rows = torch.cat([chosen for _, chosen, _ in vectors])
        drawn = torch.cat([self.draw(part, artery, least_radius_mm=least_radius_mm) for artery, _, part in vectors])
        return drawn[torch.argsort(rows)] if len(vectors) > 1 else drawn

    def rows(self, artery: str, group: int) -> slice:
        """Outputs of the heads of a group that belong to an artery."""
        first = 0 if artery == ARTERIES[0] else self._span(ARTERIES[0], group)
        return slice(first, first + self._span(artery, group))

    def _span(self, artery: str, group: int) -> int:
        cuts = self.cuts[artery]
        return cuts[group + 1] - cuts[group]


def draw_tubes(start, end, start_radius, end_radius, channel, *, channels: int, resolution: int,
               box_size_mm: float) -> torch.Tensor:  # fmt: skip
    """The largest ``f_ab`` (see the text of the module) over the tubes of each channel, in units of mm.

    ``f / (2 max(r, 0.3 mm))`` is taken: near the wall of a vessel its sum over the planes is the distance to it.

    Args:
        start, end: ``(B, N, 3)`` mm from the centre of the box. start_radius, end_radius: ``(B, N)`` mm; 0 is no tube.
        channel: ``(N,)`` int64.

    Returns:
        ``(B, 3, channels, R, R)`` float32, at least ``FLOOR``.
    """
    batch, number = start.shape[:2]
    texel, count = box_size_mm / resolution, channels * resolution * resolution
    out = start.new_full((batch * 3 * count,), FLOOR)
    with torch.no_grad():
        where, which = _winners(start, end, start_radius, end_radius, channel, out, channels, resolution, texel)
    # Only the tube that is seen in a texel has a gradient there: it is worked out once more, for these alone.
    tube, plane = which // 3, which % 3
    a, b = start.new_tensor([0, 0, 1]).long()[plane], start.new_tensor([1, 2, 2]).long()[plane]
    place = where % (resolution * resolution)
    x = (place % resolution + (0.5 - 0.5 * resolution)) * texel
    y = (place // resolution + (0.5 - 0.5 * resolution)) * texel
    begin, along = start.flatten(0, 1)[tube], (end - start).flatten(0, 1)[tube]
    rows = torch.arange(len(tube), device=start.device)
    value = _tube_value(
        x - begin[rows, a], y - begin[rows, b], along[rows, a], along[rows, b], along.square().sum(-1),
        start_radius.flatten()[tube], end_radius.flatten()[tube], texel,
    )  # fmt: skip
    return out.index_copy(0, where, value).view(batch, 3, channels, resolution, resolution)


def _winners(start, end, start_radius, end_radius, channel, out, channels: int, resolution: int, texel: float):
    """Fills ``out`` with the highest values and returns texels ``(K,)`` and their (tube, plane) numbers ``(K,)``."""
    batch, number = start.shape[:2]
    window = min(max(1, round(WINDOW_MM / texel)), (resolution - 1) // 2)
    step = torch.arange(-window, window + 1, device=start.device, dtype=torch.float32)
    length2 = (end - start).square().sum(-1)[..., None, None]
    item = torch.arange(batch, device=start.device)[:, None]
    wheres, whiches, values = [], [], []
    for plane, (a, b) in enumerate(_PLANE_AXES):  # a runs along columns, b along rows
        middle = 0.5 * (start + end)[..., (a, b)] / texel + (0.5 * resolution - 0.5)
        middle = middle.round().clamp(window, resolution - 1 - window)  # the box is wider than any tree
        x = (middle[..., :1] + step + (0.5 - 0.5 * resolution)) * texel
        y = (middle[..., 1:] + step + (0.5 - 0.5 * resolution)) * texel
        dx = (x - start[..., a, None])[:, :, None, :]
        dy = (y - start[..., b, None])[:, :, :, None]
        u, v = ((end - start)[..., axis, None, None] for axis in (a, b))
        value = _tube_value(
            dx, dy, u, v, length2, start_radius[..., None, None], end_radius[..., None, None], texel
        )  # fmt: skip
        corner = ((item * 3 + plane) * channels + channel) * resolution + middle[..., 1].long()
        corner = corner * resolution + middle[..., 0].long()
        offset = (step.long()[:, None] * resolution + step.long()).flatten()
        tube = torch.arange(batch * number, device=start.device).view(batch, number)
        near = value.flatten(2) > FLOOR
        wheres.append((corner[..., None] + offset)[near])
        whiches.append((tube * 3 + plane)[..., None].expand_as(near)[near])
        values.append(value.flatten(2)[near])
    where, which, value = torch.cat(wheres), torch.cat(whiches), torch.cat(values)
    out.scatter_reduce_(0, where, value, "amax")
    best = value == out[where]
    where, which = where[best], which[best]
    # Where two tubes tie (the ball at a joint), one of them is enough.
    order = torch.zeros_like(out, dtype=torch.int32)
    order[where] = torch.arange(len(where), device=where.device, dtype=torch.int32)
    only = order[where] == torch.arange(len(where), device=where.device, dtype=torch.int32)
    return where[only], which[only]


def _tube_value(dx, dy, u, v, length2, start_radius, end_radius, texel: float) -> torch.Tensor:
    """``f_ab / (2 max(r, 0.3 mm))`` at (dx, dy) from the start of a tube with projection (u, v)."""
    flat2 = u * u + v * v + 1e-6
    t = ((dx * u + dy * v) / flat2).clamp(0.0, 1.0)
    away2 = (dx - t * u).square() + (dy - t * v).square()
    radius = start_radius + t * (end_radius - start_radius)
    # Bilinear sampling of a square lowers it by a sixth of a texel squared per axis; thin vessels would fade.
    size2 = radius.square() + (texel**2 / 3) * radius.square() / (radius.square() + 0.05)
    share = (flat2 / (length2 + 1e-6)).clamp(max=1.0)
    value = share * (0.5 * size2 - away2) / (2 * radius.clamp(min=_SOFT_MM))
    # A tube without width is no tube: below a tenth of a millimetre it sinks.
    return (value - 20 * (0.1 - radius).clamp(min=0)).clamp(min=FLOOR)


def _cut_at_wall(points: torch.Tensor, radius: torch.Tensor, inner: torch.Tensor):
    """A course ``(B, n, 3)`` with two more points on its first stretch, and its radius there: ``inner`` ``(B, 1)`` and
    twice that from its beginning (or before the end of the stretch), where it comes out of its parent.

    Without them the calibre would grow over the whole first stretch, and a side branch of a thin vessel would hang on
    a neck that no grid holds.
    """
    stretch = points[:, 1] - points[:, 0]
    share = inner / stretch.norm(dim=1, keepdim=True).clamp_min(1e-3)
    share = torch.cat([share.clamp(max=0.48), (2 * share).clamp(max=0.96)], 1).detach()[..., None]
    between = points[:, :1] + share * stretch[:, None]
    width = radius[:, :1] + share[..., 0] * (radius[:, 1:2] - radius[:, :1])
    return (
        torch.cat([points[:, :1], between, points[:, 1:]], 1),
        torch.cat([radius[:, :1], width, radius[:, 1:]], 1),
    )


def _at(points: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Points ``(B, 1, D)`` at a share ``(B, 1)`` of the length of curves ``(B, n, D)``."""
    n = points.shape[1]
    at = share.clamp(0.0, 1.0) * (n - 1)
    low = at.detach().floor().clamp(max=n - 2).long()
    rows = torch.arange(len(points), device=points.device)[:, None]
    before, after = points[rows, low], points[rows, low + 1]
    return before + (at - low)[..., None] * (after - before)


def _cuts(table: BranchTable, groups: int) -> tuple[int, ...]:
    """Borders of the groups in the vector, between branches, so that the largest group is as small as can be."""
    limit = -(-table.size // groups)
    while True:
        borders = [0]
        for before, offset in zip(table.offsets[:-1], table.offsets[1:], strict=True):
            if offset - borders[-1] > limit and before > borders[-1]:
                borders.append(before)
        if len(borders) <= groups and all(
            b - a <= limit for a, b in zip(borders, (*borders[1:], table.size), strict=True)
        ):
            # Few branches may fill fewer groups; the rest of them write nothing.
            return (*borders, *[table.size] * (groups + 1 - len(borders)))
        limit += 1
