# SPDX-License-Identifier: Apache-2.0
"""Where a tri-plane field may be above a value: cells are left out only where a bound proves it to be below."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from licag3d.ops.query_triplane import query_triplane
from licag3d.ops.triplane_checks import check_field
from licag3d.ops.triplane_decoder import TriplaneDecoder

_HIDDEN_AT_A_TIME = 16
_POINTS_AT_A_TIME = 1 << 21


def occupancy_of(planes: torch.Tensor, decoder: TriplaneDecoder, *, below_mu_per_mm: float, cells: int) -> torch.Tensor:
    """Cells of the box in which the field may reach ``below_mu_per_mm``; elsewhere it is proven to stay below.

    Rendering with the result as ``occupancy`` is therefore wrong by less than ``below_mu_per_mm`` times the length of
    the ray in the box, everywhere and for any rays. There is no gradient.

    The bound, for one cell. With a_j = weight_1 t / 3 the texels after the decoder's first layer, the argument of
    hidden unit j is b_j plus one bilinear function for each plane. Write each plane's share as the bilinear
    interpolation of its values at the cell's corners plus a rest r_j, piecewise bilinear between texel centres. The
    interpolated argument p_j is multilinear in x, y, z, and softplus s is convex with 0 <= s'' <= 1/4, so that along
    each axis s(p_j) lies below its chord by at most min(d^2 / 32, |d| / 4), d being the change of p_j along the cell.
    With w_j the last layer, and since |s'| <= 1, the last sum z obeys anywhere in the cell ::

        z <= max over the 8 corners of z + sum_{w_j < 0} |w_j| sum_axes min(d_j^2 / 32, |d_j| / 4) + sum_j |w_j| |r_j|

    Both sums are largest at corners of the texel lattice and split into one number for each cell of each plane; the
    corners are a bake of ``(cells + 1)^3`` points. A rounding allowance of 4e-6 times the size of the terms is added.
    The bound tightens with the square of the cell, until cells are as fine as texels.

    Args:
        planes: ``(3, C, R, R)`` or ``(B, 3, C, R, R)``, as for :func:`licag3d.ops.render_triplane`.
        decoder: weights for C channels.
        below_mu_per_mm: attenuation in 1/mm that may be dropped, above 0.
        cells: cells along an edge of the box, at most as many as texels, which gives the sharpest grid.

    Returns:
        bool ``(cells, cells, cells)``, order [z, y, x], with B in front for a batch.

    Raises:
        ValueError: shapes or numbers out of range.
        TypeError: types or devices that do not fit together.

    Example:
        >>> decoder = TriplaneDecoder.random(channels=8, hidden=16, mu_scale=0.01, bias=-12.0)
        >>> int(occupancy_of(torch.zeros(3, 8, 32, 32), decoder, below_mu_per_mm=1e-5, cells=16).sum())
        0
    """
    check_field(planes, decoder, (0.0, 0.0, 0.0), 2.0)
    if int(cells) != cells or not 1 <= cells <= planes.shape[-1]:
        raise ValueError(
            f"cells is {cells}; expected a whole number from 1 to the {planes.shape[-1]} texels of an edge"
        )
    scale = float(decoder.mu_scale)
    if not below_mu_per_mm > 0 or not scale > 0:
        raise ValueError(f"below_mu_per_mm is {below_mu_per_mm} and mu_scale {scale}; expected both above 0")
    with torch.no_grad():
        batch = planes if planes.ndim == 5 else planes[None]
        grids = torch.stack(
            [_one_item(item.float(), decoder.to(torch.float32), below_mu_per_mm / scale, int(cells)) for item in batch]
        )
    return grids if planes.ndim == 5 else grids[0]


def _one_item(planes: torch.Tensor, decoder: TriplaneDecoder, below: float, cells: int) -> torch.Tensor:
    rest, size = _plane_bounds(planes, decoder, cells)
    corners = _corner_field(planes, decoder, cells)
    # The inverse of softplus; below log(1e-30) the corners count as that: no bound can be that sharp.
    z = torch.where(corners > 20, corners, corners.clamp(min=1e-30).expm1().log())
    highest = F.max_pool3d(z[None, None], 2, stride=1)[0, 0]
    xy, xz, yz = rest
    bound = highest + xy[None, :, :] + xz[:, None, :] + yz[:, :, None] + 4e-6 * size
    limit = torch.tensor(below, dtype=torch.float64).expm1().log() if below < 20 else torch.tensor(below)
    return ~(bound < limit.to(bound))  # NaN counts as occupied


def _corner_field(planes: torch.Tensor, decoder: TriplaneDecoder, cells: int) -> torch.Tensor:
    """``softplus(z)`` at the corners of the cells, ``(cells + 1,) * 3``, order [z, y, x]."""
    ticks = torch.linspace(-1, 1, cells + 1, device=planes.device)
    plain = TriplaneDecoder(decoder.weight_1, decoder.bias_1, decoder.weight_2, decoder.bias_2, 1.0, decoder.bias)
    slabs = []
    for some in ticks.split(max(1, _POINTS_AT_A_TIME // len(ticks) ** 2)):
        z, y, x = torch.meshgrid(some, ticks, ticks, indexing="ij")
        points = torch.stack([x, y, z], -1)
        slabs.append(query_triplane(planes, plain, points, box_center_mm=(0.0, 0.0, 0.0), box_size_mm=2.0))
    return torch.cat(slabs)


def _plane_bounds(planes: torch.Tensor, decoder: TriplaneDecoder, cells: int) -> tuple[torch.Tensor, float]:
    """For each cell of each plane, ``(3, cells, cells)``, how much the bound exceeds the corners; and the size of the
    terms of the last sum, for the rounding."""
    edge, device = planes.shape[-1], planes.device
    weight_2 = decoder.weight_2[0]
    # The lattice on which the rest is piecewise bilinear: texel centres and borders of cells, in texel units.
    borders = (torch.arange(cells + 1, device=device, dtype=torch.float64) * (edge / cells) - 0.5).clamp(0, edge - 1)
    lattice = torch.cat([torch.arange(edge, device=device, dtype=torch.float64), borders]).sort().values
    cell = (torch.searchsorted(borders, lattice, right=True) - 1).clamp(0, cells - 1)
    total = planes.new_zeros(3, cells, cells)
    size = float(decoder.output_bias().abs())
    for first in range(0, len(weight_2), _HIDDEN_AT_A_TIME):
        part = slice(first, first + _HIDDEN_AT_A_TIME)
        weight = weight_2[part]
        folded = torch.einsum("jc,pcrs->pjrs", decoder.weight_1[part] / 3, planes)
        reach = folded.abs().amax((2, 3)).sum(0) + decoder.bias_1[part].abs()
        size += float((weight.abs() * F.softplus(reach)).sum())
        for p in range(3):
            at_borders = _resample(_resample(folded[p], borders, 1), borders, 2)
            total[p] += _gap(at_borders, weight)
            total[p] += _largest_rest(folded[p], at_borders, weight.abs(), borders, lattice, cell)
    return total, size


def _gap(at_borders: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """How far the chord of softplus may lie above it, for the units that count against the field; ``(cells, cells)``.

    A change along an axis is the sum of those of two planes, d = d_1 + d_2. The bound is a concave function of d
    squared, and d^2 <= 2 d_1^2 + 2 d_2^2: it is at most the sum of the bounds of sqrt(2) d_1 and sqrt(2) d_2.
    """
    negative = (-weight).clamp(min=0)[:, None, None]

    def bound(change: torch.Tensor) -> torch.Tensor:
        return (negative * torch.minimum(change.square() / 16, change * (2**0.5 / 4))).sum(0)

    down, across = at_borders.diff(dim=1).abs(), at_borders.diff(dim=2).abs()
    return bound(torch.maximum(down[:, :, 1:], down[:, :, :-1])) + bound(torch.maximum(across[:, 1:], across[:, :-1]))


def _largest_rest(
    folded: torch.Tensor,
    at_borders: torch.Tensor,
    weight: torch.Tensor,
    borders: torch.Tensor,
    lattice: torch.Tensor,
    cell: torch.Tensor,
) -> torch.Tensor:
    """Largest sum of ``weight |r|`` over the lattice points of each cell; ``(cells, cells)``."""
    cells = len(borders) - 1
    step = (borders[1:] - borders[:-1]).clamp(min=1e-12)
    fraction = ((lattice - borders[cell]) / step[cell]).clamp(0, 1).to(folded)
    smooth = at_borders
    for axis in (1, 2):
        shape = [1, 1, 1]
        shape[axis] = -1
        f = fraction.reshape(shape)
        smooth = smooth.index_select(axis, cell) * (1 - f) + smooth.index_select(axis, cell + 1) * f
    exact = _resample(_resample(folded, lattice, 1), lattice, 2)
    error = torch.einsum("j,juv->uv", weight, (exact - smooth).abs())
    # A lattice point on a border belongs to the cells on both sides.
    other = (torch.searchsorted(borders, lattice) - 1).clamp(0, cells - 1)
    rows = error.new_zeros(cells, error.shape[1])
    for side in (cell, other):
        rows.scatter_reduce_(0, side[:, None].expand_as(error), error, "amax")
    found = rows.new_zeros(cells, cells)
    for side in (cell, other):
        found.scatter_reduce_(1, side.expand_as(rows), rows, "amax")
    return found


def _resample(values: torch.Tensor, positions: torch.Tensor, axis: int) -> torch.Tensor:
    """Linear interpolation of ``values`` along an axis at positions in texel units, clamped."""
    edge = values.shape[axis]
    low = positions.floor().long().clamp(0, max(edge - 2, 0))
    shape = [1] * values.ndim
    shape[axis] = -1
    f = (positions - low).to(values).reshape(shape)
    high = (low + 1).clamp(max=edge - 1)
    return values.index_select(axis, low) * (1 - f) + values.index_select(axis, high) * f
