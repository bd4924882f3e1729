# SPDX-License-Identifier: Apache-2.0
"""The learned segmentor: one small convolutional network for vessels, their line integral and devices.

A U-Net (Ronneberger et al., MICCAI 2015) that works from half resolution down: the image is folded into channels at the
entrance (space to depth) and unfolded at the exit (Shi et al., CVPR 2016), which costs a third of levels at full
resolution and keeps single pixels. The spread of the line integral is learnt beside its value (Kendall and Gal, NeurIPS
2017, here with a Laplace density).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from licag3d.errors import InputError
from licag3d.models.sketch import sketch

#: Channels of the output, in order.
VESSEL, LINE_INTEGRAL, LOG_SPREAD, DEVICE = range(4)
LOG_SPREAD_RANGE = (-6.0, 1.0)
#: Frames are brought to a pixel size within these bounds (mm at the isocentre) before the network sees them.
WORKING_MM = (0.16, 0.32)
#: Largest number of pixels of one pass.
MAX_PIXELS = 16_000_000


@dataclass(frozen=True)
class SegmentorConfig:
    """Sizes of the network.

    Args:
        channels: of the levels, from half resolution downwards.
        context: channels of an encoder's feature map that joins at the coarsest level; 0 for none.
        guided: a sketch of the expected tree is a third input.
    """

    channels: tuple[int, ...] = (32, 48, 64, 96, 128)
    context: int = 0
    guided: bool = False

    @property
    def stride(self) -> int:
        """Rows and columns of the input must be divisible by this."""
        return 2 ** len(self.channels)


@dataclass(frozen=True)
class Prediction:
    """What the network says of one frame, all ``(rows, cols)`` float32.

    ``vessel`` and ``device``: probabilities. ``line_integral``: p as the phantom has it, up to a factor that the
    display hides. ``spread``: expected absolute error of ``line_integral``.
    """

    vessel: np.ndarray
    line_integral: np.ndarray
    spread: np.ndarray
    device: np.ndarray


class Segmentor(nn.Module):
    """``(n, 2, h, w)`` from :func:`normalise`, with a sketch (:mod:`licag3d.models.sketch`) as a third channel if
    ``config.guided``, to ``(n, 4, h, w)``: vessel logit, p (not negative), log spread of p, device logit. h and w are
    divisible by ``config.stride``.
    """

    def __init__(self, config: SegmentorConfig | None = None, context: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config or SegmentorConfig()
        channels = self.config.channels
        before = [12 if self.config.guided else 8, *channels[:-1]]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(before, channels, strict=True))
        below = [*channels[1:-1], channels[-1] + self.config.context]
        self.up = nn.ModuleList(_block(a + b, a) for a, b in zip(channels[:-1], below, strict=True))
        self.out = nn.Conv2d(channels[0], 16, 3, padding=1)
        self.context = context
        with torch.no_grad():  # vessels and devices are rare: begin with "no"
            self.out.bias[:] = torch.tensor([-3.0, 0.0, -2.0, -3.0]).repeat_interleave(4)

    def forward(self, x: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        """``frames`` ``(n, 1, h, w)`` in 0..1 are needed by an encoder (``context``), if there is one."""
        kept = []
        x = F.pixel_unshuffle(x, 2)
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        if self.context is not None:
            seen = self.context(frames)
            x = torch.cat((x, F.interpolate(seen.to(x.dtype), size=x.shape[-2:], mode="bilinear")), 1)
        for level in range(len(self.up) - 1, -1, -1):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = self.up[level](torch.cat((kept[level], x), 1))
        x = F.pixel_shuffle(self.out(x), 2).float()
        vessel, p, spread, device = x.unbind(1)
        low, high = LOG_SPREAD_RANGE
        return torch.stack((vessel, F.softplus(p - 2.0), spread.clamp(low, high), device), 1)


def _block(inside: int, outside: int) -> nn.Sequential:
    layers = []
    for a, b in ((inside, outside), (outside, outside)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def normalise(grey: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Network input from frames, the same for every brightness and contrast of the display.

    Args:
        grey: ``(n, 1, h, w)`` in 0..1, vessels dark. valid: the same shape, bool; what lies outside becomes zero.

    Returns:
        ``(n, 2, h, w)``: the attenuation image in robust standard units, and its fine part (below about 12 px) in
        robust units of its own, compressed by asinh.
    """
    return torch.stack([_normalise_one(g[0], v[0]) for g, v in zip(grey, valid, strict=True)])


def _normalise_one(grey: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    if not valid.any():
        return torch.zeros(2, *grey.shape)
    everything = bool(valid.all())
    inside = grey if everything else grey[valid]
    # As in background.attenuation_image for displays.
    attenuation = -torch.log(grey.clamp_min(0) + inside.median().clamp_min(1e-3))
    inside = (attenuation if everything else attenuation[valid]).flatten()
    few = inside[:: max(1, inside.numel() // 20_000)]
    middle = few.median()
    wide = (few - middle).abs().median() * 1.4826
    coarse = (attenuation - middle) / wide.clamp_min(0.02)
    filled = torch.where(valid, attenuation, middle)
    fine = filled - _local_mean(filled, valid)
    few = (fine if everything else fine[valid]).flatten()
    few = few[:: max(1, few.numel() // 20_000)]
    fine = torch.asinh(fine / (few.abs().median() * 1.4826).clamp_min(0.003))
    return torch.where(valid, torch.stack((coarse.clamp(-4, 4), fine)), 0.0)


def _local_mean(x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over about 48 px, of valid pixels only."""
    rows, cols = x.shape
    stack = torch.stack((torch.where(valid, x, 0.0), valid.float()))[None]
    stack = F.pad(stack, (0, -cols % 4, 0, -rows % 4))
    small = F.avg_pool2d(stack, 4)
    for _ in range(2):  # two boxes make a tent
        small = F.avg_pool2d(small, 7, stride=1, padding=3)
    wide = F.interpolate(small, scale_factor=4, mode="bilinear", align_corners=False)[0, :, :rows, :cols]
    return torch.where(wide[1] > 1e-3, wide[0] / wide[1].clamp_min(1e-3), x)


def predict(
    model: Segmentor,
    image: np.ndarray,
    valid: np.ndarray,
    mm_per_pixel: float,
    working_mm: tuple[float, float] = WORKING_MM,
    *,
    mirror: bool = False,
    expected_px: np.ndarray | None = None,
) -> Prediction:
    """Run the network on one frame of any size.

    Args:
        image: ``(rows, cols)`` in 0..1, vessels dark. valid: bool, the X-ray field.
        mm_per_pixel: at the isocentre; frames outside ``working_mm`` are resized for the network and back.
        mirror: mean of the frame's and of its mirror image's answers: better everywhere, in twice the time.
        expected_px: ``(n, 2)`` (col, row) along the expected centrelines, for a guided network.

    Raises:
        InputError: the frame is too large at the working scale.
    """
    device = next(model.parameters()).device
    rows, cols = image.shape
    scale = mm_per_pixel / float(np.clip(mm_per_pixel, *working_mm)) if mm_per_pixel > 0 else 1.0
    height, width = max(8, round(rows * scale)), max(8, round(cols * scale))
    if height * width > MAX_PIXELS:
        raise InputError(f"the frame has {rows} x {cols} pixels of {mm_per_pixel:.3g} mm: too large; crop it")
    grey = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None].to(device)
    seen = torch.from_numpy(np.ascontiguousarray(valid, bool))[None, None].to(device)
    if (height, width) != (rows, cols):
        grey = F.interpolate(grey, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        seen = F.interpolate(seen.float(), size=(height, width), mode="nearest") > 0.5
    stride = model.config.stride
    pad = (0, -width % stride, 0, -height % stride)
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=_bf16(device)):
        x = normalise(grey, seen)
        if model.config.guided:
            points = np.zeros((0, 2)) if expected_px is None else (expected_px + 0.5) * (width / cols) - 0.5
            hint = torch.from_numpy(sketch(points, (height, width)))[None, None].to(device)
            x = torch.cat((x, hint), 1)
        x = F.pad(x, pad, mode="replicate")
        frame = F.pad(grey, pad, mode="replicate")
        out = _answers(model, x, frame)
        if mirror:
            out = 0.5 * (out + _answers(model, x.flip(-1), frame.flip(-1)).flip(-1))
        out = out[..., :height, :width]
        if (height, width) != (rows, cols):
            out = F.interpolate(out, size=(rows, cols), mode="bilinear", align_corners=False)
    out = np.where(valid, out[0].cpu().numpy(), 0).astype(np.float32)
    return Prediction(*out)


def _answers(model: Segmentor, x: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
    """Probabilities, p and its spread instead of logits."""
    out = model(x.to(memory_format=torch.channels_last), frame).float()
    vessel, p, log_spread, device = out.unbind(1)
    return torch.stack((vessel.sigmoid(), p, log_spread.exp(), device.sigmoid()), 1)


def _bf16(device: torch.device) -> bool:
    """Half precision where it is faster: on devices, and on CPUs that multiply in it."""
    if device.type != "cpu":
        return True
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def count_parameters(model: nn.Module) -> int:
    """How many numbers are learnt."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def config_from(facts: dict, source: str) -> SegmentorConfig:
    """The configuration stored with weights.

    Raises:
        InputError: it is missing or senseless.
    """
    try:
        channels = tuple(int(c) for c in facts["channels"])
        context, guided = int(facts.get("context", 0)), bool(facts.get("guided", False))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{source}: holds no configuration of a segmentor") from None
    if not 2 <= len(channels) <= 7 or not all(8 <= c <= 2048 for c in channels) or not 0 <= context <= 4096:
        raise InputError(f"{source}: channels {channels} and context {context} are no segmentor of this package")
    return SegmentorConfig(channels, context, guided)


def config_facts(config: SegmentorConfig) -> dict:
    """The configuration as JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}


_LOADED: dict[tuple[str, str], Segmentor] = {}


def load_segmentor(name: str = "segmentor", device: str = "cpu") -> Segmentor:
    """The embedded segmentor, or one of a file written by ``python -m licag3d.train segmentor``, in eval mode.

    Args:
        name: of embedded weights, or a path ending in ``.safetensors``. device: torch device.

    Raises:
        InputError: missing, damaged, or of another version.
    """
    key = (str(name), str(device))
    if key not in _LOADED:
        if str(name).endswith(".safetensors"):
            from licag3d.train.checkpoints import load_weights

            tensors, facts = load_weights(name)
            facts = facts.get("config", {})
        else:
            from licag3d.weights import load

            tensors, card = load(name)
            facts = card.get("config", {})
        model = build(config_from(facts, str(name)))
        from licag3d.train.checkpoints import load_into

        load_into(model, tensors, str(name))
        if len(_LOADED) > 3:
            _LOADED.clear()
        _LOADED[key] = model.to(device, memory_format=torch.channels_last).eval()
    return _LOADED[key]


def guided_from(model: Segmentor) -> Segmentor:
    """A guided network that begins as an unguided one: its answers are those of ``model`` whatever the sketch."""
    guided = Segmentor(replace(model.config, guided=True), model.context)
    state = model.state_dict()
    first = state["down.0.0.weight"]
    state["down.0.0.weight"] = torch.cat((first, torch.zeros(len(first), 4, 3, 3, dtype=first.dtype)), 1)
    guided.load_state_dict(state)
    return guided


def widened_from(model: Segmentor, channels: tuple[int, ...]) -> Segmentor:
    """A wider network that begins as a narrower one: its answers are those of ``model``.

    What is added listens at random and is not yet listened to (weights out of it are zero), so learning goes on where
    the narrow network stopped (the idea of Net2Net, Chen et al., ICLR 2016, without copies of channels).

    Args:
        channels: of the levels, as many as ``model`` has and nowhere fewer.

    Raises:
        InputError: another number of levels, or a narrower one.
    """
    old = model.config.channels
    if len(channels) != len(old) or any(new < had for new, had in zip(channels, old, strict=True)):
        raise InputError(f"channels {channels}: give {len(old)} levels, none below those of the weights, {old}")
    wide = Segmentor(replace(model.config, channels=tuple(channels)), model.context)
    last = len(old) - 1
    inputs = 12 if model.config.guided else 8
    context = model.config.context

    def spread(blocks: nn.ModuleList, level: int, before: list[tuple[int, int]]) -> None:
        """``before``: (width now, width then) of each group of channels that goes in."""
        block, source = blocks[level], (model.up if blocks is wide.up else model.down)[level]
        for conv in (0, 3):
            rows = old[level]
            weight, taken = block[conv].weight, source[conv].weight
            weight[:rows] = 0.0  # what is there does not listen to what is added
            at = have = 0
            for now, then in before:
                weight[:rows, at : at + then] = taken[:, have : have + then]
                at, have = at + now, have + then
            for key, value in source[conv + 1].state_dict().items():
                mine = getattr(block[conv + 1], key)
                if value.dim():
                    mine[:rows] = value
                else:
                    mine.copy_(value)
            before = [(channels[level], old[level])]

    with torch.no_grad():
        for level in range(len(old)):
            above = [(inputs, inputs)] if level == 0 else [(channels[level - 1], old[level - 1])]
            spread(wide.down, level, above)
        for level in range(last):
            below = [(channels[level + 1], old[level + 1])]
            if level == last - 1 and context:
                below.append((context, context))
            spread(wide.up, level, [(channels[level], old[level]), *below])
        wide.out.weight.zero_()
        wide.out.weight[:, : old[0]] = model.out.weight
        wide.out.bias.copy_(model.out.bias)
    return wide


def build(config: SegmentorConfig) -> Segmentor:
    """A segmentor with new weights; with ``context`` the pre-trained encoder feeds its coarsest level."""
    if not config.context:
        return Segmentor(config)
    from licag3d.models.segmentor_context import EncoderContext

    return Segmentor(config, EncoderContext(config.context))


def expected_error_share(p: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Confidence 0..1 of a line integral from its expected absolute error: one half where the error is a third of p."""
    ratio = spread / np.maximum(p, 1e-3)
    return (1.0 / (1.0 + (3.0 * ratio) ** 2)).astype(np.float32)
