# SPDX-License-Identifier: Apache-2.0
"""CAS-IQA: how good is a synthetic angiogram? Three scores from 0 to 100.

After Huang et al., ICONIP 2025 (arXiv 2505.17619): several inputs (synthetic frame, contrast-free frame, contrast
reference), vessel tokens as the difference of the reference's and the contrast-free frame's, and three branches that
route tokens to a score each (MUST). The paper's visual backbone of seven billion weights is left out: by its own
table it is worth a hundredth over small networks. Sizes, fusion and training are ours (:data:`OPEN`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from licag3d.errors import InputError

#: Name of the embedded weights.
NAME = "iqa"
#: Rows and columns of the network's inputs.
SIDE = 192
STRIDE = 16
#: Scores of the five levels, from bad to excellent (the paper has 10, 30 ... 90).
LEVELS = (0.0, 25.0, 50.0, 75.0, 100.0)
ROUTINGS = ("must", "plain", "none")
#: What the paper leaves open or what was changed.
OPEN = {
    "backbone": "ours: a small convolutional stem, the same for all frames, in place of a large language model",
    "DConv": "not published (deformable or dilated); ours: dilated, 2",
    "fusion": "ours: at a quarter of the resolution the synthetic path also sees its difference to the contrast-free "
    "frame and how far that is from the reference's",
    "no reference": "ours: the vessel tokens are then those of the synthetic frame minus the contrast-free one",
    "comparisons": "ours: plain comparisons of the frames (see comparisons()) make a first score; tokens correct it",
    "branch output": "ours: attended tokens beside the query tokens, so that a branch can compare them",
    "places": "ours: learnt places and a bias of the attention towards the same place",
    "levels": "ours: 0, 25, 50, 75, 100, so that both ends can be reached",
}


@dataclass(frozen=True)
class IqaConfig:
    """Sizes: ``channels`` at a quarter and an eighth of the resolution, ``width`` of tokens, ``heads``.

    ``routing``: ``must``, three branches with token sets of their own; ``plain``, one transformer over all tokens;
    ``none``, no tokens at all: the comparisons of :func:`comparisons` alone.
    """

    channels: tuple[int, int] = (48, 80)
    width: int = 112
    heads: int = 2
    routing: str = "must"

    def __post_init__(self) -> None:
        if len(self.channels) != 2 or not all(4 <= c <= 256 for c in self.channels):
            raise InputError(f"channels are {self.channels}; give two of 4 to 256")
        if not 8 <= self.width <= 512 or not 1 <= self.heads <= 16 or self.width % self.heads:
            raise InputError(f"width {self.width} and heads {self.heads}: give 8 to 512, divisible by 1 to 16 heads")
        if self.routing not in ROUTINGS:
            raise InputError(f"routing is {self.routing!r}; give one of {', '.join(ROUTINGS)}")


class CasIqa(nn.Module):
    """``(n, 3, SIDE, SIDE)`` from :func:`prepare` (synthetic, contrast-free, reference) and ``(n,)`` whether there is a
    reference, to the probabilities of the levels ``(n, 3, 5)``; see :func:`scores_of`.
    """

    def __init__(self, config: IqaConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or IqaConfig()
        fine, coarse = c.channels
        self.register_buffer("middle", torch.zeros(COMPARISONS))
        self.register_buffer("spread", torch.ones(COMPARISONS))
        self.plain_heads = nn.ModuleList(_head(COMPARISONS) for _ in range(3))
        if c.routing != "none":
            self.stem = nn.Sequential(_block(16, fine), _block(fine, fine))
            self.dilated = nn.Conv2d(fine, fine, 3, padding=2, dilation=2)
            self.known = nn.Parameter(torch.zeros(2, fine))
            self.drawn_path = nn.Sequential(
                _block(3 * fine, coarse, 2), _block(coarse, coarse), _block(coarse, c.width, 2)
            )
            self.vessel_path = nn.Sequential(_block(fine, coarse, 2), _block(coarse, c.width, 2))
            count = (SIDE // STRIDE) ** 2
            self.place = nn.Parameter(0.02 * torch.randn(1, count, c.width))
            near = torch.arange(SIDE // STRIDE, dtype=torch.float32)
            at = torch.stack(torch.meshgrid(near, near, indexing="ij"), -1).reshape(count, 2)
            self.register_buffer("apart", torch.cdist(at, at).square()[None, None], persistent=False)
            self.body = (_Must if c.routing == "must" else _Plain)(c.width, c.heads)
            self.token_heads = nn.ModuleList(_head(3 * c.width, norm=True) for _ in range(3))

    def forward(
        self, frames: torch.Tensor, has_reference: torch.Tensor, compared: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Probabilities ``(n, 3, 5)`` of the levels, per score; ``compared`` is what :func:`comparisons` gives, where
        it is known already.
        """
        with torch.autocast(frames.device.type, enabled=False):
            if compared is None:
                compared = comparisons(frames.float(), has_reference)
            plain = ((compared - self.middle) / self.spread).clamp(-5, 5)
            logits = torch.stack([head(plain) for head in self.plain_heads], 1)
        if self.config.routing != "none":
            tokens = self.tokens(frames, has_reference)
            pooled = [torch.cat((t.mean(1), t.amax(1), t.square().mean(1).add(1e-6).sqrt()), -1) for t in tokens]
            logits = logits + torch.stack([head(t) for head, t in zip(self.token_heads, pooled, strict=True)], 1)
        return logits.float().softmax(-1)

    def tokens(self, frames: torch.Tensor, has_reference: torch.Tensor) -> list[torch.Tensor]:
        """Token sets ``(n, tokens, width)`` of the three scores."""
        n = len(frames)
        x = F.pixel_unshuffle(frames.transpose(0, 1).reshape(3 * n, 1, *frames.shape[2:]), 4)
        synthetic, bare, reference = self.stem(x.to(memory_format=torch.channels_last)).chunk(3)
        there = has_reference.reshape(n, 1, 1, 1).to(synthetic)
        shown = synthetic - bare
        wanted = there * (reference - bare) + (1 - there) * shown
        known = there * self.known[1][:, None, None] + (1 - there) * self.known[0][:, None, None]
        wrong = (shown - wanted).abs() + known
        drawn = self.drawn_path(torch.cat((synthetic, shown, wrong), 1))
        # DConv(f_C) - f_M, as DSA subtracts the mask image.
        vessels = self.dilated(there * reference + (1 - there) * synthetic) - bare
        vessels = self.vessel_path(vessels)
        drawn, vessels = (t.flatten(2).transpose(1, 2) + self.place for t in (drawn, vessels))
        return self.body(drawn, vessels, self.apart)


def _head(inside: int, norm: bool = False) -> nn.Sequential:
    first = [nn.LayerNorm(inside)] if norm else []
    layers = [*first, nn.Linear(inside, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, len(LEVELS))]
    return nn.Sequential(*layers)


#: How many numbers :func:`comparisons` gives: six per threshold, and fourteen.
DARKER = (0.12, 0.25, 0.5, 1.0)
COMPARISONS = 6 * len(DARKER) + 14


def comparisons(frames: torch.Tensor, has_reference: torch.Tensor) -> torch.Tensor:
    """Plain comparisons ``(n, COMPARISONS)`` of prepared frames: how much is darker than in the contrast-free frame by
    several thresholds, there and in the reference, and how much of it lies on (or within 2 px of) the other's; overlap
    and correlation of the darkening; local similarity (SSIM with boxes) and error off and on vessels; grain of all.
    Without a reference the synthetic frame is compared with itself, and the last number says so.
    """
    there = has_reference.reshape(-1, 1, 1, 1).to(frames)
    grain = (frames - F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)).abs().mean((2, 3))
    small = F.avg_pool2d(frames, 2)
    made, bare = small[:, :1], small[:, 1:2]
    truth = there * small[:, 2:] + (1 - there) * made
    drawn, wanted = (_box(x - bare, 3) for x in (made, truth))
    found = []
    for least in DARKER:
        ours, theirs = (torch.sigmoid((x - least) / (0.3 * least)) for x in (drawn, wanted))
        for one, other in ((ours, theirs), (theirs, ours)):
            total = one.sum((1, 2, 3)) + 1
            near = F.max_pool2d(other, 5, 1, 2)
            found += [total.log(), (one * other).sum((1, 2, 3)) / total, (one * near).sum((1, 2, 3)) / total]
    up = [x.clamp_min(0) for x in (drawn, wanted)]
    found.append(2 * torch.minimum(*up).sum((1, 2, 3)) / (up[0] + up[1]).sum((1, 2, 3)).clamp_min(1))
    a, b = (x - x.mean((2, 3), keepdim=True) for x in (drawn, wanted))
    found.append((a * b).mean((1, 2, 3)) / (a.square().mean((1, 2, 3)) * b.square().mean((1, 2, 3)) + 1e-4).sqrt())
    on = F.max_pool2d(torch.sigmoid((torch.maximum(*up) - 0.4) / 0.1), 7, 1, 3)
    for against in (truth, bare):
        like, error = _similarity(made, against), (made - against).square()
        for part in (on, 1 - on):
            size = part.sum((1, 2, 3)) + 1
            found += [(like * part).sum((1, 2, 3)) / size, ((error * part).sum((1, 2, 3)) / size + 1e-4).log()]
    logs = (grain + 1e-3).log()
    truth_grain = there[:, 0, 0, 0] * logs[:, 2] + (1 - there[:, 0, 0, 0]) * logs[:, 0]
    found += [logs[:, 0], logs[:, 0] - logs[:, 1], logs[:, 0] - truth_grain, there[:, 0, 0, 0]]
    return torch.stack(found, 1)


def _box(x: torch.Tensor, size: int) -> torch.Tensor:
    reach = size // 2
    x = F.pad(x, (reach,) * 4, mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(x, (size, 1), 1), (1, size), 1)


def _similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM per pixel with boxes of 7 px, in the units of :func:`prepare`."""
    means = [_box(x, 7) for x in (a, b, a * a, b * b, a * b)]
    var_a, var_b, both = means[2] - means[0] ** 2, means[3] - means[1] ** 2, means[4] - means[0] * means[1]
    light = (2 * means[0] * means[1] + 0.01) / (means[0] ** 2 + means[1] ** 2 + 0.01)
    return light * (2 * both + 0.02) / (var_a.clamp_min(0) + var_b.clamp_min(0) + 0.02)


class _Must(nn.Module):
    """Multi-path routing of tokens: a branch per score.

    Morphology: queries from self-attention on the vessel tokens, keys and values of the drawn tokens. Branches: queries
    from a convolution on the vessel tokens. Overall: self-attention of the drawn tokens, both maps added to its own.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.own = _Layer(width, heads)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.queries = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.keys = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.mix = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(3)
        )
        self.near = nn.Parameter(torch.full((3, heads, 1, 1), 0.5))

    def forward(self, drawn: torch.Tensor, vessels: torch.Tensor, apart: torch.Tensor) -> list[torch.Tensor]:
        n, count, width = drawn.shape
        side = int(count**0.5)
        grid = vessels.transpose(1, 2).reshape(n, width, side, side)
        asked = [
            self.norms[0](self.own(vessels, apart)),
            self.norms[1](vessels + self.conv(grid).flatten(2).transpose(1, 2)),
            self.norms[2](drawn),
        ]
        seen = self.norms[3](drawn)
        maps: list[torch.Tensor] = []
        tokens = []
        for k, own in enumerate(asked):
            query, key, value = (_split(f(x), self.heads) for f, x in (
                (self.queries[k], own), (self.keys[k], seen), (self.values[k], seen)))  # fmt: skip
            map_ = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 - self.near[k] * apart
            if k == 2:
                map_ = map_ + maps[0] + maps[1]
            maps.append(map_)
            attended = (map_.softmax(-1) @ value).transpose(1, 2).reshape(n, count, width)
            tokens.append(own + self.mix[k](torch.cat((own, attended), -1)))
        return tokens


class _Plain(nn.Module):
    """Without routing: both token sets side by side through two layers, one token set for all scores."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.join = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(2))

    def forward(self, drawn: torch.Tensor, vessels: torch.Tensor, apart: torch.Tensor) -> list[torch.Tensor]:
        tokens = drawn + self.join(torch.cat((drawn, vessels), -1))
        for layer in self.layers:
            tokens = layer(tokens, apart)
        return [tokens] * 3


class _Layer(nn.Module):
    """Self-attention with a bias towards the same place, and a perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.all, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.near = nn.Parameter(torch.full((heads, 1, 1), 0.2))

    def forward(self, x: torch.Tensor, apart: torch.Tensor) -> torch.Tensor:
        query, key, value = (_split(t, self.heads) for t in self.all(self.before(x)).chunk(3, -1))
        map_ = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 - self.near * apart
        x = x + self.out((map_.softmax(-1) @ value).transpose(1, 2).reshape(x.shape))
        return x + self.wide(self.between(x))


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


def scores_of(levels: torch.Tensor) -> torch.Tensor:
    """Scores ``(n, 3)`` in 0..100 from the probabilities of the levels: their mean, as in CAS-IQA and Q-Align."""
    return levels @ torch.tensor(LEVELS, device=levels.device)


def prepare(frames: torch.Tensor, has_reference: torch.Tensor) -> torch.Tensor:
    """Network input from frames ``(n, 3, h, w)`` in 0..1 (synthetic, contrast-free, reference), vessels dark.

    Minus the logarithm as for the segmentor, in robust units of the contrast-free frame: the same for all three, so
    that their differences mean something. Where there is no reference the third becomes zero. Frames of another size
    are brought to ``SIDE x SIDE``, see :func:`to_side`.
    """
    frames = to_side(frames)
    bare = frames[:, 1].flatten(1)
    dark = -(frames + bare.median(1).values.clamp_min(1e-3)[:, None, None, None]).clamp_min(1e-3).log()
    few = dark[:, 1].flatten(1)[:, ::5]
    middle = few.median(1).values
    wide = (few - middle[:, None]).abs().median(1).values * 1.4826
    unit = (dark - middle[:, None, None, None]) / wide.clamp_min(0.03)[:, None, None, None]
    unit = unit.clamp(-5, 5)
    return torch.cat((unit[:, :2], unit[:, 2:] * has_reference.reshape(-1, 1, 1, 1).to(unit)), 1)


def judge(
    model: CasIqa, synthetic: np.ndarray, contrast_free: np.ndarray, reference: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Scores 0..100 of one frame: vessel morphology consistency, branch detection, overall quality.

    Args:
        synthetic, contrast_free, reference: ``(rows, cols)`` in 0..1, vessels dark, of one size.

    Raises:
        InputError: frames of different sizes, or values that are no numbers.
    """
    frames = [synthetic, contrast_free, contrast_free if reference is None else reference]
    for name, frame in zip(("synthetic", "contrast-free", "reference"), frames, strict=True):
        if frame.shape != synthetic.shape:
            raise InputError(
                f"the {name} frame has {frame.shape[0]} x {frame.shape[1]} pixels, the synthetic one "
                f"{synthetic.shape[0]} x {synthetic.shape[1]}: give frames of one view and size"
            )
        if not np.isfinite(frame).all():
            raise InputError(f"the {name} frame holds values that are no numbers")
    stack = torch.from_numpy(np.stack(frames).astype(np.float32))[None]
    stack = stack.to(next(model.parameters()).device)
    there = torch.tensor([reference is not None], device=stack.device)
    model.eval()
    with torch.inference_mode():
        out = scores_of(model(prepare(stack, there), there))[0]
    return tuple(float(v) for v in out)


def to_side(frames: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """Frames ``(n, c, h, w)`` brought to ``side x side``: the larger side fits, the rest continues the border."""
    height, width = frames.shape[-2:]
    if height == width == side:
        return frames
    scale = side / max(height, width)
    size = (max(8, round(height * scale)), max(8, round(width * scale)))
    if size != (height, width):
        frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False, antialias=True)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    return F.pad(frames, (left, side - size[1] - left, top, side - size[0] - top), mode="replicate").clamp(0, 1)


def config_from(facts: dict, source: str) -> IqaConfig:
    """The configuration stored with weights.

    Raises:
        InputError: it is missing or senseless.
    """
    try:
        config = IqaConfig(
            tuple(int(c) for c in facts["channels"]), int(facts["width"]), int(facts["heads"]), str(facts["routing"])
        )
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{source}: holds no configuration of CAS-IQA") from None
    return config


def config_facts(config: IqaConfig) -> dict:
    """The configuration as JSON."""
    return asdict(config) | {"channels": list(config.channels)}


def load_iqa(name: str = NAME, device: str = "cpu") -> tuple[CasIqa, dict]:
    """The embedded network, or one of a file of ``python -m licag3d.train iqa``, in eval mode, with its facts.

    Raises:
        InputError: missing, damaged, or weights of another model.
    """
    from licag3d.train.checkpoints import load_into, load_weights

    if str(name).endswith(".safetensors"):
        tensors, facts = load_weights(name)
    else:
        from licag3d.weights import load

        tensors, facts = load(name)
    if facts.get("model") != "iqa":
        raise InputError(f"{name}: weights of {facts.get('model') or 'another model'}, not of CAS-IQA")
    model = CasIqa(config_from(facts.get("config", {}), str(name)))
    load_into(model, tensors, str(name))
    return model.to(device).eval(), facts
