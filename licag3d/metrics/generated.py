# SPDX-License-Identifier: Apache-2.0
"""Are generated trees like those they were learned from? Facts of one field, and distances between two sets of them.

Both sets go the same way: a field on a 0.5 mm grid, its border, thinning (``licag3d.models.tree_from_field``). What
thinning does to a tree it does to both; figures of the phantom's own centrelines would differ for that reason alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.metrics.bifurcations import bifurcations
from licag3d.metrics.centerline import tree_points
from licag3d.models.tree_from_field import FieldTree, tree_from_field
from licag3d.structures import VesselTree
from licag3d.vessels.tree import component_count
from licag3d.vessels.volume import Volume

#: Radii kept of one tree: quantiles of its length.
RADII = 64


@dataclass(frozen=True)
class TreeFacts:
    """What is compared of one tree.

    Args:
        pieces: connected pieces of at least 4 mm3. largest_share: of the volume, in the largest.
        length_mm: of all centrelines. branches, bifurcations: counts. volume_ml: inside the border.
        extent_mm: longest edge of the bounding box of the centrelines.
        radii_mm: ``(RADII,)`` quantiles of the radius over the length, or empty.
    """

    pieces: int
    largest_share: float
    length_mm: float
    branches: int
    bifurcations: int
    volume_ml: float
    extent_mm: float
    radii_mm: tuple[float, ...]

    @property
    def one_tree(self) -> bool:
        return self.pieces == 1


#: Scalars that are compared, with what they are.
SCALARS = {
    "length_mm": "total length, mm",
    "branches": "branches",
    "bifurcations": "bifurcations",
    "volume_ml": "lumen volume, ml",
    "extent_mm": "longest edge of the bounding box, mm",
}


def facts_of(volume: Volume, level_per_mm: float, *, mesh: bool = False) -> tuple[TreeFacts, FieldTree]:
    """Facts of a field above a level, and the tree they come from (with its surface, where ``mesh`` asks for it)."""
    found = tree_from_field(volume, level_per_mm=level_per_mm, mesh=mesh)
    points = tree_points(found.tree)
    shares = (np.arange(RADII) + 0.5) / RADII
    some = len(points.radius_mm) > 0
    extent = float(np.ptp(points.points_lps_mm, axis=0).max()) if some else 0.0
    radii = tuple(float(r) for r in np.quantile(points.radius_mm, shares)) if some else ()
    return (
        TreeFacts(
            found.pieces,
            found.largest_share,
            found.tree.length_mm,
            len(found.tree.branches),
            len(bifurcations(found.tree)),
            sum(found.pieces_mm3) / 1000,
            extent,
            radii,
        ),
        found,
    )


def facts_of_tree(tree: VesselTree) -> TreeFacts:
    """Facts of a tree that is known by its centrelines: no grid, no thinning.

    ``pieces`` are pieces of the centrelines; ``volume_ml`` is that of the branches one by one.
    """
    points = tree_points(tree)
    radius = points.radius_mm
    return TreeFacts(
        component_count(tree),
        1.0,
        tree.length_mm,
        len(tree.branches),
        len(bifurcations(tree)),
        float(np.pi * np.mean(radius**2) * tree.length_mm / 1000) if len(radius) else 0.0,
        float(np.ptp(points.points_lps_mm, axis=0).max()) if len(radius) else 0.0,
        tuple(float(r) for r in np.quantile(radius, (np.arange(RADII) + 0.5) / RADII)) if len(radius) else (),
    )


@dataclass(frozen=True)
class KsDistance:
    """Largest difference of two distribution functions, 0..1 (Kolmogorov-Smirnov).

    Args:
        value: of the two sets. low, high: 95 % interval by bootstrap over trees.
        chance: 95 % of random splits of both sets together stay below it. p: share of such splits that reach value.
    """

    value: float
    low: float
    high: float
    chance: float
    p: float


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples, any shapes.

    Example:
        >>> ks_distance(np.array([0.0, 1.0]), np.array([2.0, 3.0]))
        1.0
    """
    a, b = np.sort(np.ravel(a)), np.sort(np.ravel(b))
    both = np.concatenate((a, b))
    return float(np.abs(np.searchsorted(a, both, "right") / len(a) - np.searchsorted(b, both, "right") / len(b)).max())


def compare_sets(a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, draws: int = 500, seed: int = 0) -> KsDistance:
    """KS distance of what two sets of trees hold, by trees: a tree is drawn with all of its values or not at all.

    Args:
        a, b: one array of values per tree.

    Raises:
        ValueError: a set of fewer than two trees.
    """
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"sets of {len(a)} and {len(b)} trees; give at least two of each")
    rng = np.random.default_rng(seed)

    def joined(values: Sequence[np.ndarray], index: np.ndarray) -> np.ndarray:
        return np.concatenate([np.ravel(values[k]) for k in index])

    def distance(first, i, second, j) -> float:
        x, y = joined(first, i), joined(second, j)
        return ks_distance(x, y) if len(x) and len(y) else 1.0

    value = distance(a, np.arange(len(a)), b, np.arange(len(b)))
    drawn = [distance(a, rng.integers(len(a), size=len(a)), b, rng.integers(len(b), size=len(b))) for _ in range(draws)]
    both = [*a, *b]
    split = []
    for _ in range(draws):
        order = rng.permutation(len(both))
        split.append(distance(both, order[: len(a)], both, order[len(a) :]))
    low, high = np.percentile(drawn, (2.5, 97.5))
    p = (np.sum(np.array(split) >= value - 1e-12) + 1) / (draws + 1)
    return KsDistance(value, float(low), float(high), float(np.percentile(split, 95)), float(p))


def compare_trees(
    generated: Sequence[TreeFacts], phantom: Sequence[TreeFacts], *, draws: int = 500, seed: int = 0
) -> dict[str, KsDistance]:
    """KS distances of every scalar of :data:`SCALARS` and of the radii over the length (``radius_mm``)."""

    def values(facts: Sequence[TreeFacts], name: str) -> list[np.ndarray]:
        if name == "radius_mm":
            return [np.array(one.radii_mm) for one in facts]
        return [np.array([float(getattr(one, name))]) for one in facts]

    return {
        name: compare_sets(values(generated, name), values(phantom, name), draws=draws, seed=seed)
        for name in (*SCALARS, "radius_mm")
    }


def connected_share(facts: Sequence[TreeFacts]) -> tuple[float, float, float]:
    """Share of the trees in one piece, with its 95 % interval (Wilson, J. Am. Stat. Assoc. 1927).

    Raises:
        ValueError: no tree.
    """
    if not facts:
        raise ValueError("no tree was given")
    n, good, z = len(facts), sum(one.one_tree for one in facts), 1.96
    share = good / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return share, float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def spoiled(volume: Volume, how: str, rng: np.random.Generator) -> Volume:
    """A field made worse on purpose, to see that the figures notice.

    Args:
        how: ``blurred`` (1 mm), ``cut`` (twelve balls of 3 mm taken out on the vessels), ``shuffled`` (blocks of about
            20 mm in another order), ``mirrored`` (left and right exchanged: the same vessels, the wrong anatomy).
    """
    from scipy.ndimage import gaussian_filter

    values = volume.values
    if how == "blurred":
        values = gaussian_filter(values, 1.0 / volume.spacing_mm)
    elif how == "cut":
        values = _cut(values, 3.0 / volume.spacing_mm, rng)
    elif how == "shuffled":
        values = _shuffled(values, round(20 / volume.spacing_mm), rng)
    elif how == "mirrored":
        values = np.ascontiguousarray(values[:, :, ::-1])
    else:
        raise ValueError(f"how is '{how}'; choose blurred, cut, shuffled or mirrored")
    return Volume(values, volume.origin_mm, volume.spacing_mm)


def _cut(values: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    inside = np.argwhere(values > 0.5 * values.max())
    out = values.copy()
    reach = int(np.ceil(radius))
    for centre in inside[rng.integers(len(inside), size=12)]:
        window = tuple(slice(max(c - reach, 0), c + reach + 1) for c in centre)
        axes = np.ogrid[window]
        out[window][sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) <= radius**2] = 0
    return out


def _shuffled(values: np.ndarray, block: int, rng: np.random.Generator) -> np.ndarray:
    counts = [n // block for n in values.shape]
    kept = values[tuple(slice(0, n * block) for n in counts)]
    blocks = kept.reshape(counts[0], block, counts[1], block, counts[2], block).transpose(0, 2, 4, 1, 3, 5)
    flat = blocks.reshape(-1, block, block, block)[rng.permutation(np.prod(counts))]
    mixed = flat.reshape(*counts, block, block, block).transpose(0, 3, 1, 4, 2, 5).reshape(kept.shape)
    out = np.zeros_like(values)
    out[tuple(slice(0, n) for n in mixed.shape)] = mixed
    return out


@dataclass(frozen=True)
class Consistency:
    """How well one field explains projections from many directions.

    Args:
        same_field: relative difference (root mean square over that of the projections) between the projections and
            those of the baked voxels.
        held_out: relative error with which a field reconstructed from every other direction predicts the others.
        field: relative error of that reconstruction against the baked field.
        shifted: ``held_out`` when every direction is moved by one pixel at random: what inconsistency looks like.
    """

    same_field: float
    held_out: float
    field: float
    shifted: float


def view_consistency(
    render: Callable[[list], np.ndarray], baked: Volume, cameras: Sequence, *, iterations: int = 60, seed: int = 0
) -> Consistency:
    """The projections of a generator from many directions against one field.

    The reconstruction minimises ``|P v - p|^2`` over voxels that the baked field fills (dilated by two) by conjugate
    gradients on the normal equations (Hestenes and Stiefel 1952) with the exact transpose of the projector.

    Args:
        render: cameras -> line integrals ``(V, rows, cols)`` of the generator itself (``render_triplane``).
        baked: its field on voxels. cameras: an even number of ``licag3d.geometry.Camera``.
    """
    from licag3d.models.samples import line_integrals

    seen = np.asarray(render(list(cameras)), np.float32)
    again = line_integrals(baked, cameras)
    level = float(np.sqrt(np.mean(seen**2)))
    held, used = list(cameras)[1::2], list(cameras)[::2]
    found = _reconstructed(baked, used, seen[::2], iterations)
    rng = np.random.default_rng(seed)
    moves = rng.choice((-1, 1), (len(seen), 2))
    moved = np.stack([np.roll(p, m, (0, 1)) for p, m in zip(seen, moves, strict=True)])
    worse = _reconstructed(baked, used, moved[::2], iterations)

    def rms(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))

    return Consistency(
        rms(again - seen) / level,
        rms(line_integrals(found, held) - seen[1::2]) / rms(seen[1::2]),
        rms(found.values - baked.values) / rms(baked.values),
        rms(line_integrals(worse, held) - moved[1::2]) / rms(moved[1::2]),
    )


def _reconstructed(like: Volume, cameras: Sequence, projections: np.ndarray, iterations: int) -> Volume:
    """Least squares by conjugate gradients on the normal equations, on the voxels about what ``like`` fills."""
    import torch
    from scipy.ndimage import binary_dilation

    from licag3d.geometry import Cameras
    from licag3d.ops import backproject, project_volume

    support = binary_dilation(like.values > 0.02 * like.values.max(), iterations=2)
    free = torch.from_numpy(support)
    views = Cameras.stack(list(cameras))
    grid = {"voxel_size_mm": like.spacing_mm, "origin_mm": like.origin_mm}

    def forward(v: torch.Tensor) -> torch.Tensor:
        return project_volume(v, views, **grid)

    def backward(p: torch.Tensor) -> torch.Tensor:
        return backproject(p, views, shape=tuple(like.values.shape), **grid) * free

    with torch.no_grad():
        value = torch.zeros(like.values.shape)
        rest = torch.from_numpy(np.ascontiguousarray(projections))
        slope = backward(rest)
        direction, size = slope.clone(), float((slope.double() ** 2).sum())
        for _ in range(iterations):
            if size == 0:
                break
            image = forward(direction)
            step = size / max(float((image.double() ** 2).sum()), 1e-30)
            value += step * direction
            rest = rest - step * image
            slope = backward(rest)
            new = float((slope.double() ** 2).sum())
            direction = slope + new / size * direction
            size = new
    return Volume(value.numpy(), like.origin_mm, like.spacing_mm)
