# SPDX-License-Identifier: Apache-2.0
"""Which place of the other view shows the same vessel: a network over two traced views.

Pictures of vessels go through a small U-Net (Ronneberger et al., MICCAI 2015) that knows both viewing angles; its
features are read off at the centreline points of either view. The points then look at those of their own view and of
the other one in turn (as in SuperGlue, Sarlin et al., CVPR 2020), near epipolar planes first. Every candidate place of
a point, and "none of them", gets a logit; a softmax over them gives probabilities.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.inversion.candidates import Candidates
from licag3d.inversion.chains import Chains
from licag3d.models.correspondence_cues import PLACE_CUES, POINT_CUES, VIEW_CUES, middle_mm, place_cues, view_cues
from licag3d.ops.match import PathPrices

#: Names of branches that the network tells apart while it learns; the last stands for all others.
BRANCHES = (
    *("RCA", "CB", "SN", "AM1", "AM2", "R-PDA", "R-PLB", "AVN", "LM", "LAD", "D1", "D2", "S1", "S2", "S3", "LCx"),
    *("OM1", "OM2", "RI", "L-PLB", "other"),
)
#: Widths of nearness, mm: between points of one view, and between epipolar planes.
NEAR_MM, PLANE_MM = (2.0, 6.0, 20.0), (0.7, 2.5, 10.0)

#: Rows and columns of the pictures that are folded into channels.
FOLD = 4
#: Fields of :class:`PairSample` that only training knows.
TRUTHS = ("right", "branch", "depth")


@dataclass(frozen=True)
class CorrespondenceConfig:
    """Sizes: ``channels`` of the U-Net's levels from a quarter of the resolution down, ``width`` of a point's features,
    ``heads`` and ``rounds`` (own view, then other view) of attention."""

    channels: tuple[int, ...] = (32, 48, 72, 96)
    width: int = 96
    heads: int = 3
    rounds: int = 3

    def __post_init__(self) -> None:
        # Sizes come from files too: they are bounded before anything is made of them.
        if not 2 <= len(self.channels) <= 6 or not all(isinstance(c, int) and 4 <= c <= 512 for c in self.channels):
            raise InputError(f"channels are {self.channels}; give 2 to 6 whole numbers from 4 to 512")
        for name, low, high in (("width", 8, 1024), ("heads", 1, 16), ("rounds", 0, 12)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise InputError(f"{name} is {value}; give a whole number from {low} to {high}")
        if self.width % self.heads:
            raise InputError(f"width is {self.width}; give a multiple of the {self.heads} heads")


@dataclass
class PairSample:
    """One pair of views for the network; lists hold view 0 and view 1, T points and K candidates each.

    ``points`` ``(T, POINT_CUES)``; ``at`` ``(T, 2)`` share of the picture 0..1; ``place_mm`` ``(T, 2)``; ``piece``,
    ``arc_mm`` ``(T,)``; ``view`` ``(VIEW_CUES,)``; ``cues`` ``(N, K, PLACE_CUES)``; ``row`` ``(N,)`` point that stands
    for each asked row; ``near`` ``(N, K)`` point of the other view; ``real`` ``(N, K)``. In training also ``right``
    ``(N, K)``, ``branch`` ``(T,)`` (-1 unknown), ``depth`` ``(T,)`` (NaN unknown, in units of TREE_MM).
    """

    points: list[torch.Tensor]
    at: list[torch.Tensor]
    place_mm: list[torch.Tensor]
    piece: list[torch.Tensor]
    arc_mm: list[torch.Tensor]
    view: list[torch.Tensor]
    cues: list[torch.Tensor]
    row: list[torch.Tensor]
    near: list[torch.Tensor]
    real: list[torch.Tensor]
    right: list[torch.Tensor] | None = None
    branch: list[torch.Tensor] | None = None
    depth: list[torch.Tensor] | None = None

    def to(self, device) -> PairSample:
        """The same on another device."""
        moved = {k: None if v is None else [x.to(device) for x in v] for k, v in self.__dict__.items()}
        return PairSample(**moved)


def pair_sample(
    cameras: tuple[Camera, Camera],
    chains: tuple[Chains, Chains],
    candidates: tuple[Candidates, Candidates],
    prices: PathPrices,
    points: tuple[tuple[Chains, np.ndarray], tuple[Chains, np.ndarray]] | None = None,
) -> PairSample:
    """What the network gets of two traced views.

    Args:
        candidates: of the points of ``chains``, either way, made with ``prices``.
        points: of either view the thinned pieces that the network sees and their rows in ``chains``; by default all.
    """
    middle = middle_mm(cameras, chains)
    seen = chains if points is None else tuple(thin for thin, _ in points)
    rows = [np.arange(len(c.step_mm)) for c in chains] if points is None else [rows for _, rows in points]
    # Of every point the nearest one that the network sees, along the same piece.
    stand = [_nearest_row(r, len(c.step_mm)) for r, c in zip(rows, chains, strict=True)]
    out: dict[str, list[torch.Tensor]] = {k: [] for k in PairSample.__annotations__ if k not in TRUTHS}
    for k in (0, 1):
        cams = cameras[k], cameras[1 - k]
        cue = view_cues(cams, (seen[k], seen[1 - k]), middle)
        cues, near, real = place_cues(candidates[k], cams, (chains[k], chains[1 - k]), middle, prices)
        near = stand[1 - k][near] if len(stand[1 - k]) else near
        values = (
            cue.points, cue.at, cue.place_mm, cue.piece, cue.arc_mm, cue.view, cues, stand[k], near, real
        )  # fmt: skip
        for name, value in zip(out, values, strict=True):
            tensor = torch.from_numpy(np.ascontiguousarray(value))
            out[name].append(tensor.float() if tensor.is_floating_point() else tensor)
    return PairSample(**out)


def pictures_of(seen) -> np.ndarray:
    """Network input ``(2, side, side)`` of a :class:`licag3d.data.view_pairs.SeenView`: probability, and the line
    integral in units of its median on vessels, which an unknown display does not change."""
    on = seen.line_integral[seen.probability > 0.5]
    on = on[on > 0]
    usual = float(np.median(on)) if len(on) else 1.0
    return np.stack([seen.probability, np.clip(seen.line_integral / (2 * usual), 0, 2)]).astype(np.float32)


def _nearest_row(rows: np.ndarray, count: int) -> np.ndarray:
    """Index into sorted ``rows`` of the one nearest to each of ``count`` points."""
    if not len(rows):
        return np.zeros(count, np.int64)
    return np.searchsorted((rows[1:] + rows[:-1]) / 2, np.arange(count), side="right")


@dataclass
class PointsSaid:
    """What the network says of one view: ``logits`` ``(N, K + 1)`` (last: none; -inf where there is no candidate),
    ``branch`` ``(T, len(BRANCHES))`` logits, ``depth`` ``(T, 2)`` median and log spread, units of TREE_MM."""

    logits: torch.Tensor
    branch: torch.Tensor
    depth: torch.Tensor


class Correspondence(nn.Module):
    """Pictures ``(2 B, 2, side, side)`` (views of a pair one after the other) and B samples to ``B`` pairs of
    :class:`PointsSaid`."""

    def __init__(self, config: CorrespondenceConfig | None = None) -> None:
        super().__init__()
        self.config = config or CorrespondenceConfig()
        c, width = self.config.channels, self.config.width
        folded = 2 * FOLD**2
        self.stem = nn.Sequential(nn.Conv2d(folded, c[0], 3, padding=1, bias=False), nn.BatchNorm2d(c[0]), nn.ReLU())
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(c[:-1], c[1:], strict=True))
        self.angles = nn.Sequential(nn.Linear(VIEW_CUES, 64), nn.GELU(), nn.Linear(64, 2 * c[-1]))
        self.deep = _block(c[-1], c[-1])
        self.up = nn.ModuleList(_block(a + b, a) for a, b in zip(c[:-1], c[1:], strict=True))
        self.point = nn.Sequential(
            nn.Linear(c[0] + c[1] + POINT_CUES + VIEW_CUES, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.own = nn.ModuleList(Attend(width, self.config.heads, len(NEAR_MM) + 1) for _ in range(self.config.rounds))
        self.other = nn.ModuleList(Attend(width, self.config.heads, len(PLANE_MM)) for _ in range(self.config.rounds))
        self.norm = nn.LayerNorm(width)
        self.branch = nn.Linear(width, len(BRANCHES))
        self.depth = nn.Linear(width, 2)
        self.ask, self.answer, self.both = (nn.Linear(width, width, bias=k == 0) for k in range(3))
        self.cue = nn.Linear(PLACE_CUES + 3, width, bias=False)
        self.judge = nn.Sequential(nn.GELU(), nn.Linear(width, 48), nn.GELU(), nn.Linear(48, 1))
        self.none = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, 1))

    def forward(self, pictures: torch.Tensor, samples: list[PairSample]) -> list[tuple[PointsSaid, PointsSaid]]:
        views = torch.stack([view for sample in samples for view in sample.view])
        fine, coarse = self.features(pictures, views)
        # Single precision from here: each number of points would have kernels of its own compiled in half precision.
        with torch.autocast(pictures.device.type, enabled=False):
            return self._compare(fine.float(), coarse.float(), samples)

    def _compare(self, fine, coarse, samples: list[PairSample]) -> list[tuple[PointsSaid, PointsSaid]]:
        out = []
        for number, sample in enumerate(samples):
            tokens = [
                self._points(fine[2 * number + k], coarse[2 * number + k], sample, k) if len(sample.points[k]) else None
                for k in (0, 1)
            ]
            if tokens[0] is None or tokens[1] is None:
                out.append(tuple(_silent(sample, k) for k in (0, 1)))
                continue
            near = [_near(sample, k) for k in (0, 1)]
            # Heights carry the sign of the side they are seen from.
            gap = sample.place_mm[0][:, None, 0] + sample.place_mm[1][None, :, 0]
            planes = torch.stack([torch.exp(-0.5 * (gap / mm) ** 2) for mm in PLANE_MM])
            near = [_prices(self.own, near[k]) for k in (0, 1)]
            planes = _prices(self.other, planes)
            for n, (own, other) in enumerate(zip(self.own, self.other, strict=True)):
                tokens = [own(tokens[k], tokens[k], near[k][n]) for k in (0, 1)]
                tokens = [
                    other(tokens[0], tokens[1], planes[n]),
                    other(tokens[1], tokens[0], planes[n].transpose(1, 2)),
                ]
            tokens = [self.norm(x) for x in tokens]
            depth = [self.depth(x).float() for x in tokens]
            out.append(tuple(self._say(tokens, depth, sample, k) for k in (0, 1)))
        return out

    def features(self, pictures: torch.Tensor, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Feature maps at a quarter and at an eighth of the resolution: exact places are among the cues."""
        x = F.pixel_unshuffle(pictures, FOLD)
        kept = [self.stem(x)]
        for block in self.down:
            kept.append(block(F.max_pool2d(kept[-1], 2)))
        scale, shift = self.angles(views)[:, :, None, None].chunk(2, 1)
        x = self.deep(kept[-1] * (1 + scale) + shift) + kept[-1]
        maps = []
        for level in range(len(self.up) - 1, -1, -1):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = self.up[level](torch.cat((kept[level], x), 1))
            maps.append(x)
        return maps[-1], maps[-2]

    def _points(self, fine, coarse, sample: PairSample, k: int) -> torch.Tensor:
        grid = (2 * sample.at[k] - 1)[None, None]
        seen = [F.grid_sample(x[None].float(), grid, align_corners=False)[0, :, 0].T for x in (fine, coarse)]
        view = sample.view[k].expand(len(grid[0, 0]), -1)
        return self.point(torch.cat([*seen, sample.points[k], view], 1))

    def _say(self, tokens, depth, sample: PairSample, k: int) -> PointsSaid:
        own, other = tokens[k], tokens[1 - k]
        real, row = sample.real[k], sample.row[k]
        at, _ = real.nonzero(as_tuple=True)
        row, near, cues = row[at], sample.near[k][real], sample.cues[k][real]
        # How far the place lies from the depth that this view expects, in units of what it is sure of.
        middle, spread = depth[k][row].unbind(-1)
        off = (cues[:, 10] - middle) * torch.exp(-spread.clamp(-4, 2))
        cues = torch.cat([cues, torch.stack([off.abs().clamp(max=6), off.clamp(-6, 6), spread], -1)], -1)
        x = self.ask(own)[row] + self.answer(other)[near] + self.both(own[row] * other[near]) + self.cue(cues)
        places = self.judge(x)[:, 0].float()
        logits = places.new_full(real.shape, float("-inf")).masked_scatter(real, places)
        none = self.none(own)[sample.row[k]].float()
        return PointsSaid(torch.cat([logits, none], 1), self.branch(own).float(), depth[k])


class Attend(nn.Module):
    """Pre-normed attention from ``(T, C)`` to ``(S, C)`` with a learnt price of distance, then two dense layers."""

    def __init__(self, width: int, heads: int, distances: int) -> None:
        super().__init__()
        self.heads = heads
        self.ask_norm, self.told_norm, self.dense_norm = (nn.LayerNorm(width) for _ in range(3))
        self.ask, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.told = nn.Linear(width, 2 * width)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        # Heads begin with different reach.
        self.price = nn.Parameter(2.0 * torch.rand(heads, distances))

    def forward(self, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """``bias`` ``(heads, T, S)`` of :func:`_prices`."""
        told = self.told_norm(y)
        key, value = self.told(told).chunk(2, -1)
        ask, key, value = (
            z.reshape(len(z), self.heads, -1).transpose(0, 1) for z in (self.ask(self.ask_norm(x)), key, value)
        )
        # Written out: the fused kernel of torch checks every number for minus infinity when there is a bias.
        weight = torch.softmax(torch.baddbmm(bias.to(ask.dtype), ask, key.mT, alpha=ask.shape[-1] ** -0.5), -1)
        said = (weight.to(value.dtype) @ value).transpose(0, 1)
        x = x + self.out(said.reshape(x.shape))
        return x + self.dense(self.dense_norm(x))


def _prices(layers, nearness: torch.Tensor) -> torch.Tensor:
    """What nearness ``(distances, T, S)`` adds to the attention of every layer ``(layers, heads, T, S)``."""
    price = torch.stack([layer.price for layer in layers])
    flat = price.flatten(0, 1) @ nearness.flatten(1)
    return flat.reshape(*price.shape[:2], *nearness.shape[1:])


def _near(sample: PairSample, k: int) -> torch.Tensor:
    """Nearness of the points of one view: in the image at several widths, and along the same piece."""
    place = sample.place_mm[k]
    square = ((place[:, None] - place[None]) ** 2).sum(-1)
    along = (sample.arc_mm[k][:, None] - sample.arc_mm[k][None]).abs()
    same = (sample.piece[k][:, None] == sample.piece[k][None]) * torch.exp(-along / 8.0)
    return torch.stack([*(torch.exp(-0.5 * square / mm**2) for mm in NEAR_MM), same])


def _silent(sample: PairSample, k: int) -> PointsSaid:
    """Where a view shows nothing, nothing matches."""
    count, used = sample.real[k].shape
    like = sample.cues[k]
    logits = like.new_full((count, used + 1), float("-inf"))
    logits[:, used] = 0.0
    total = len(sample.points[k])
    return PointsSaid(logits, like.new_zeros(total, len(BRANCHES)), like.new_zeros(total, 2))


def _block(inside: int, outside: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in ((inside, outside), (outside, outside)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def log_probability(said: PointsSaid) -> torch.Tensor:
    """``(N, K + 1)``: of every candidate, last of none; -inf where there is no candidate."""
    return F.log_softmax(said.logits, -1)


def config_facts(config: CorrespondenceConfig) -> dict:
    """The configuration as JSON values."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def build(facts: dict | CorrespondenceConfig | None = None) -> Correspondence:
    """A network of the given sizes.

    Raises:
        InputError: the sizes are no such configuration.
    """
    if isinstance(facts, dict):
        try:
            facts = CorrespondenceConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()})
        except TypeError as error:
            raise InputError(f"not a configuration of the correspondence network: {error}") from None
    return Correspondence(facts)
