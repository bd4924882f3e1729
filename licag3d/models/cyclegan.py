# SPDX-License-Identifier: Apache-2.0
"""Style harmonisation: frames of one centre as if another had taken them, the vessels where they were.

CycleGAN (Zhu et al., ICCV 2017) or, with one direction only, CUT (Park et al., ECCV 2020), for grey frames. A generator
adds to the frame's logit, from features at a quarter of the resolution and fine ones: it starts as the identity and
cannot bend the picture without effort. Sizes are ours.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from licag3d.errors import InputError
from licag3d.models.casgan import EPSILON, STRIDE, conv, encoder, patches

#: Frames in the buffer that discriminators are shown (Shrivastava et al., CVPR 2017; 50 in CycleGAN).
BUFFER = 50
#: Shares of the change that a frame is harmonised with, the first that leaves its vessels in place.
SHARES = (1.0, 0.5, 0.25)
#: How far vessels may move on average, px, and which share of their length may appear or be lost.
MOST_SHIFT_PX, MOST_LOST = 1.0, 0.15


@dataclass(frozen=True)
class CycleganConfig:
    """Architecture.

    Args:
        method: ``cyclegan`` (two generators, cycle) or ``cut`` (one, contrastive).
        channels: of the first layer. blocks: residual blocks. patch_channels: first layer of the discriminators.
        size: rows of a training crop (of the buffer). buffer: frames kept, 0 for none.
    """

    method: str = "cyclegan"
    channels: int = 12
    blocks: int = 2
    patch_channels: int = 24
    size: int = 128
    buffer: int = BUFFER

    def __post_init__(self) -> None:
        if self.method not in ("cyclegan", "cut"):
            raise InputError(f"method is {self.method!r}; give cyclegan or cut")
        for name, value, low, high in (
            ("channels", self.channels, 4, 128),
            ("blocks", self.blocks, 0, 16),
            ("patch channels", self.patch_channels, 4, 128),
            ("size", self.size, 32, 1024),
            ("buffer", self.buffer, 0, 500),
        ):
            if not low <= value <= high:
                raise InputError(f"{name} is {value}; give {low} to {high}")


class Translator(nn.Module):
    """``(n, 1, h, w)`` in 0..1 to the same, h and w divisible by four: ``sigmoid(logit(x) + change)``."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.encoder = encoder(channels, blocks)
        self.grow = nn.ModuleList(conv(4 * channels // k, 2 * channels // k) for k in (1, 2))
        self.fine = conv(1, channels)
        self.mix = conv(2 * channels, channels)
        self.out = nn.Conv2d(channels, 1, 3, 1, 1, padding_mode="reflect")
        nn.init.zeros_(self.out.weight)  # the identity
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = self.encoder(x)
        for layer in self.grow:
            code = layer(F.interpolate(code, scale_factor=2, mode="nearest"))
            code = F.relu(F.instance_norm(code, eps=EPSILON))
        change = self.out(F.relu(self.mix(torch.cat((code, F.relu(self.fine(x))), 1))))
        return (torch.logit(x.clamp(0.01, 0.99)).float() + 8 * torch.tanh(change.float() / 8)).sigmoid()

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The frame and the encoder's features at full, half and quarter resolution, for contrastive learning."""
        kept = []
        for number, layer in enumerate(self.encoder):
            x = layer(x)
            if number in (1, 4, 7) or number == len(self.encoder) - 1:
                kept.append(x)
        return kept


class CycleGan(nn.Module):
    """Generators ``forth`` (source to target) and, for CycleGAN, ``back``; discriminators ``judge_target`` and
    ``judge_source``; for CUT a projection per layer. Buffers of shown frames are part of the state, so that a run
    resumes to the bit.
    """

    def __init__(self, config: CycleganConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or CycleganConfig()
        self.forth = Translator(c.channels, c.blocks)
        self.judge_target = patches(c.patch_channels)
        sides = ["target"]
        if c.method == "cyclegan":
            self.back = Translator(c.channels, c.blocks)
            self.judge_source = patches(c.patch_channels)
            sides.append("source")
        else:
            widths = (c.channels, 2 * c.channels, 4 * c.channels, 4 * c.channels)
            self.projections = nn.ModuleList(
                nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 64)) for width in widths
            )
        for side in sides:
            self.register_buffer(f"shown_{side}", torch.zeros(c.buffer, 1, c.size, c.size))
            self.register_buffer(f"count_{side}", torch.zeros((), dtype=torch.long))

    def remembered(self, side: str, made: torch.Tensor) -> torch.Tensor:
        """What a discriminator is shown of made frames ``(n, 1, h, w)``: half the time an older frame that this one
        takes the place of, once the buffer is full.
        """
        if not self.config.buffer:
            return made
        store, count = getattr(self, f"shown_{side}"), getattr(self, f"count_{side}")
        shown = []
        for frame in made.detach():
            if int(count) < len(store):
                store[int(count)] = frame
                count += 1
                shown.append(frame)
            elif float(torch.rand(())) < 0.5:
                place = int(torch.randint(len(store), ()))
                shown.append(store[place].clone())
                store[place] = frame
            else:
                shown.append(frame)
        return torch.stack(shown)


def translate(model: Translator, image: np.ndarray) -> np.ndarray:
    """A frame ``(rows, cols)`` in 0..1 of any size, float32."""
    rows, cols = image.shape
    frame = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    frame = F.pad(frame, (0, -cols % STRIDE, 0, -rows % STRIDE), mode="replicate")
    frame = frame.to(next(model.parameters()).device)
    model.eval()
    with torch.inference_mode():
        return model(frame)[0, 0, :rows, :cols].float().cpu().numpy()


@dataclass(frozen=True)
class Harmonised:
    """A harmonised frame ``(rows, cols)`` in 0..1, the share of the network's change in it (0: the frame as it was),
    and what the change does to vessels, see :func:`licag3d.metrics.harmonisation.vessel_shift`.
    """

    image: np.ndarray
    share: float
    shift_px: float
    lost: float
    made_up: float


def harmonise(change, view) -> Harmonised:
    """Harmonise a view and make sure that its vessels stay where they are.

    The vessels are found by the frozen segmentor before and after. If their centreline moves by :data:`MOST_SHIFT_PX`
    or more, or more than :data:`MOST_LOST` of it comes or goes, less of the change is taken, none of it in the end.

    Args:
        change: function of a frame in 0..1 and its X-ray field (bool) to another frame, as of
            :func:`licag3d.harmonize.network_change`.
        view: a :class:`licag3d.structures.View`.

    Raises:
        InputError: the change yields values that are no numbers.
    """
    from licag3d.metrics.harmonisation import vessel_shift
    from licag3d.models.segmentor import load_segmentor, predict

    def vessels(image: np.ndarray) -> np.ndarray:
        return predict(load_segmentor(), image, view.valid, view.camera.mm_per_pixel).vessel > 0.5

    before = vessels(view.image)
    made = np.where(view.valid, change(view.image, view.valid), view.image).astype(np.float32)
    if not np.isfinite(made).all():
        raise InputError(f"{view.file}: the harmonised frame holds values that are no numbers: the weights are damaged")
    for share in SHARES:
        image = view.image + share * (made - view.image)
        shift = vessel_shift(before, vessels(image))
        if shift.shift_px < MOST_SHIFT_PX and max(shift.lost, shift.made_up) <= MOST_LOST:
            return Harmonised(image, share, shift.shift_px, shift.lost, shift.made_up)
    return Harmonised(view.image, 0.0, 0.0, 0.0, 0.0)


def config_from(facts: dict, source: str) -> CycleganConfig:
    """The configuration stored with weights.

    Raises:
        InputError: it is missing or senseless.
    """
    try:
        known = {name: type(value)(facts[name]) for name, value in asdict(CycleganConfig()).items()}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{source}: holds no configuration of a harmonisation") from None
    return CycleganConfig(**known)


def load_translator(path: str, direction: str = "forth", device: str = "cpu") -> tuple[Translator, dict]:
    """A generator of a file written by ``python -m licag3d.train cyclegan``, in eval mode, and its facts.

    Args:
        direction: ``forth`` from source to target, ``back`` from target to source (CycleGAN only).

    Raises:
        InputError: missing, damaged, weights of another model, or without that direction.
    """
    from licag3d.train.checkpoints import load_into, load_weights

    tensors, facts = load_weights(path)
    if facts.get("model") != "cyclegan":
        raise InputError(f"{path}: weights of {facts.get('model') or 'another model'}, not of a harmonisation")
    config = config_from(facts.get("config", {}), path)
    start = f"{direction}."
    own = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
    if not own:
        raise InputError(f"{path}: has no direction {direction} (CUT learns one only)")
    model = Translator(config.channels, config.blocks)
    load_into(model, own, path)
    return model.to(device).eval(), facts


def sampled_places(size: tuple[int, int], count: int) -> torch.Tensor:
    """Random places of a feature map, as flat indices; at most all of them."""
    total = math.prod(size)
    return torch.randperm(total)[: min(count, total)]
