# SPDX-License-Identifier: Apache-2.0
"""CAS-GAN: angiograms from contrast-free frames without pairs (Huang et al., IEEE SSCI 2025, arXiv 2410.08490).

Background and vessels have codes of their own. A predictor M guesses the vessel code of a contrast-free frame from its
background code; attention A and context C are drawn from the vessel code and laid over the frame,
``y = x (1 - A) + C A``. Written from the formulas of the paper and its poster. Sizes, losses and everything else that
they leave open are ours and marked so in :data:`OPEN`.

Three switches make the eight rows of the paper's ablation: disentanglement (``drl``: two codes and the predictor), the
semantic-guided generator (``vsgg``: attention and context instead of a whole picture) and the semantic-guided loss
(``vsgl``: a discriminator of vessel maps).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from licag3d.errors import InputError

#: What the paper and the poster leave open, and what was taken; written into the configuration of every run.
OPEN = {
    "channels": "not published; ours: 16 (64 in the CycleGAN family, for 256 px on a large device)",
    "blocks": "not published; ours: 3 residual blocks per encoder and generator (CycleGAN has 9 in all)",
    "normalisation": "not published; ours: instance normalisation, resize-convolution instead of transposed one",
    "discriminators": "not published; ours: PatchGAN of three strides each, 16 channels",
    "semantic input": "not published; ours: soft vessel probability of the frozen segmentor",
    "drl off": "not published; ours: one code for everything, no vessel encoder, no predictor, no latent cycle",
    "vsgg off": "not published; ours: the angiogram is generated whole from both codes",
    "composition attenuate": "ours: y = x exp(-A C), C >= 0, can only darken",
    "leak_noise": "ours: noise on the background code before the predictor, 0 as published",
    "one step": "ours: generators and discriminators are updated from the same batch at once, not in turn",
}


@dataclass(frozen=True)
class CasganConfig:
    """Architecture of a CAS-GAN.

    Args:
        drl, vsgg, vsgl: the switches of the ablation.
        composition: ``fusion`` (as published) or ``attenuate`` (vessels can only darken).
        channels: of the first layer; doubled at each of two halvings. blocks: residual blocks of encoders and
            generators. patch_channels: first layer of the discriminators.
        leak_noise: standard deviation of noise on the background code that the predictor sees in training, as a share
            of the code's own.
    """

    drl: bool = True
    vsgg: bool = True
    vsgl: bool = True
    composition: str = "fusion"
    channels: int = 16
    blocks: int = 3
    patch_channels: int = 16
    leak_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.composition not in ("fusion", "attenuate"):
            raise InputError(f"composition is {self.composition!r}; give fusion or attenuate")
        for name, value, low, high in (
            ("channels", self.channels, 4, 256),
            ("blocks", self.blocks, 0, 16),
            ("patch channels", self.patch_channels, 4, 256),
            ("leak noise", self.leak_noise, 0, 10),
        ):
            if not low <= value <= high:
                raise InputError(f"{name} is {value}; give {low} to {high}")

    @property
    def row(self) -> str:
        """Name of the row of the ablation, as ``D-L``."""
        return "".join(
            letter if on else "-" for letter, on in zip("DGL", (self.drl, self.vsgg, self.vsgl), strict=True)
        )


def ablation_rows() -> list[tuple[bool, bool, bool]]:
    """``(drl, vsgg, vsgl)`` of the eight rows, in the order of the paper's table."""
    return [(d, g, sem) for d in (False, True) for g in (False, True) for sem in (False, True)]


#: Rows and columns of an input must be divisible by this.
STRIDE = 4
#: Of the instance normalisation: with the usual 1e-5 the gradients of flat crops (shutters) grow three hundredfold per
#: layer, beyond what single precision holds.
EPSILON = 1e-2


@dataclass(frozen=True)
class Drawn:
    """An angiogram ``(n, 1, h, w)`` in 0..1 and, with ``vsgg``, attention 0..1 and context of the same shape."""

    image: torch.Tensor
    attention: torch.Tensor | None
    context: torch.Tensor | None


class CasGan(nn.Module):
    """Generators and discriminators; the frozen segmentor is not part of it (``licag3d.losses.casgan``)."""

    def __init__(self, config: CasganConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or CasganConfig()
        code = 4 * c.channels
        self.background_encoder = encoder(c.channels, c.blocks)
        self.background_generator = Generator(code, c.channels, c.blocks)
        if c.drl:
            self.vessel_encoder = encoder(c.channels, c.blocks)
            self.predictor = nn.Sequential(*(_Residual(code) for _ in range(max(1, c.blocks))), conv(code, code))
        if c.vsgg:
            self.attention_generator = Generator(code, c.channels, c.blocks, start=-2.0)
            self.context_generator = Generator(code, c.channels, c.blocks)
        else:
            self.image_generator = Generator(code * (2 if c.drl else 1), c.channels, c.blocks)
        self.angiogram_discriminator = patches(c.patch_channels)
        self.background_discriminator = patches(c.patch_channels)
        if c.vsgl:
            self.semantic_discriminator = patches(c.patch_channels)

    def vessel_code(self, background: torch.Tensor) -> torch.Tensor:
        """Vessel code that belongs to a background code: M of it, or the same code without disentanglement."""
        if not self.config.drl:
            return background
        if self.training and self.config.leak_noise:
            background = background + self.config.leak_noise * background.detach().std() * torch.randn_like(background)
        return self.predictor(background)

    def draw(self, base: torch.Tensor, background: torch.Tensor, vessel: torch.Tensor) -> Drawn:
        """Lay the vessels of a code over a contrast-free frame ``(n, 1, h, w)``."""
        if not self.config.vsgg:
            codes = torch.cat((background, vessel), 1) if self.config.drl else background
            return Drawn(self.image_generator(codes).sigmoid(), None, None)
        attention, context = self.attention_generator(vessel).sigmoid(), self.context_generator(vessel)
        return Drawn(*fuse(base, attention, context, self.config.composition))

    def forward(self, x: torch.Tensor) -> Drawn:
        """The angiogram of contrast-free frames ``(n, 1, h, w)`` in 0..1, h and w divisible by :data:`STRIDE`."""
        background = self.background_encoder(x)
        return self.draw(x, background, self.vessel_code(background))


def fuse(
    base: torch.Tensor, attention: torch.Tensor, context: torch.Tensor, composition: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``x (1 - A) + C A`` with C in 0..1, or ``x exp(-A C)`` with C >= 0; returns the picture, A and C.

    Args:
        context: as it leaves its generator, without bounds.
    """
    if composition == "attenuate":
        context = F.softplus(context)
        return base * torch.exp(-attention * context), attention, context
    context = context.sigmoid()
    return base * (1 - attention) + context * attention, attention, context


def conv(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution. Only the first and the last layer of a network mirror the frame at its border: to do so in
    every layer takes a third of the time of a step."""
    return nn.Conv2d(inside, outside, 3, stride, 1)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        norm = nn.InstanceNorm2d
        self.body = nn.Sequential(
            conv(channels, channels),
            norm(channels, EPSILON),
            nn.ReLU(),
            conv(channels, channels),
            norm(channels, EPSILON),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def encoder(channels: int, blocks: int) -> nn.Sequential:
    """Frames ``(n, 1, h, w)`` to codes ``(n, 4 channels, h / 4, w / 4)``."""
    layers: list[nn.Module] = [nn.Conv2d(1, channels, 7, 1, 3, padding_mode="reflect"), nn.ReLU()]
    for width in (channels, 2 * channels):
        layers += [conv(width, 2 * width, 2), nn.InstanceNorm2d(2 * width, EPSILON), nn.ReLU()]
    return nn.Sequential(*layers, *(_Residual(4 * channels) for _ in range(blocks)))


class Generator(nn.Module):
    """Code ``(n, c, h / 4, w / 4)`` to one channel ``(n, 1, h, w)`` without bounds."""

    def __init__(self, code: int, channels: int, blocks: int, start: float = 0.0) -> None:
        super().__init__()
        self.enter = nn.Sequential(conv(code, 4 * channels), *(_Residual(4 * channels) for _ in range(blocks)))
        # Enlarged and convolved: transposed convolutions leave a checkerboard.
        self.grow = nn.ModuleList(conv(4 * channels // k, 2 * channels // k) for k in (1, 2))
        self.out = nn.Conv2d(channels, 1, 7, 1, 3, padding_mode="reflect")
        nn.init.constant_(self.out.bias, start)

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        x = self.enter(code)
        for layer in self.grow:
            x = layer(F.interpolate(x, scale_factor=2, mode="nearest"))
            x = F.relu(F.instance_norm(x, eps=EPSILON))
        return self.out(x)


def patches(channels: int, inside: int = 1) -> nn.Sequential:
    """A discriminator of patches: ``(n, inside, h, w)`` to a map of judgements (Isola et al., CVPR 2017)."""
    layers: list[nn.Module] = [nn.Conv2d(inside, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
    for k in (1, 2):
        layers += [
            nn.Conv2d(channels * k, channels * 2 * k, 4, 2, 1),
            nn.InstanceNorm2d(channels * 2 * k, EPSILON),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, nn.Conv2d(4 * channels, 1, 4, 1, 1))


def config_from(facts: dict, source: str) -> CasganConfig:
    """The configuration stored with weights.

    Raises:
        InputError: it is missing or senseless.
    """
    try:
        known = {name: type(value)(facts[name]) for name, value in asdict(CasganConfig()).items()}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{source}: holds no configuration of a CAS-GAN") from None
    return CasganConfig(**known)


def load_casgan(path: str, device: str = "cpu") -> tuple[CasGan, dict]:
    """A CAS-GAN of a file written by ``python -m licag3d.train casgan``, in eval mode, and its facts.

    Raises:
        InputError: missing, damaged, or weights of another model.
    """
    from licag3d.train.checkpoints import load_into, load_weights

    tensors, facts = load_weights(path)
    if facts.get("model") != "casgan":
        raise InputError(f"{path}: weights of {facts.get('model') or 'another model'}, not of a CAS-GAN")
    model = CasGan(config_from(facts.get("config", {}), path))
    load_into(model, tensors, path)
    return model.to(device, memory_format=torch.channels_last).eval(), facts


def synthesise(model: CasGan, image, mm_per_pixel: float, working_mm: float):
    """The angiogram of one frame of any size.

    Attention and context are drawn at the working scale and laid over the frame itself, so that what they leave alone
    stays as sharp as it was; without ``vsgg`` the whole picture comes from the working scale.

    Args:
        image: ``(rows, cols)`` array in 0..1. mm_per_pixel, working_mm: pixel sizes at the isocentre.

    Returns:
        Angiogram and attention ``(rows, cols)`` float32; without ``vsgg`` the attention is the darkening, 0..1.
    """
    import numpy as np

    rows, cols = image.shape
    device = next(model.parameters()).device
    frame = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None].to(device)
    size = [max(4 * STRIDE, round(n * mm_per_pixel / working_mm)) for n in (rows, cols)]
    model.eval()
    with torch.inference_mode():
        small = F.interpolate(frame, size=size, mode="bilinear", align_corners=False, antialias=True)
        padded = F.pad(small, (0, -size[1] % STRIDE, 0, -size[0] % STRIDE), mode="replicate")
        drawn = model(padded)

        def full(x: torch.Tensor) -> torch.Tensor:
            cut = x[..., : size[0], : size[1]].float()
            return F.interpolate(cut, size=(rows, cols), mode="bilinear", align_corners=False)

        if drawn.attention is None:
            made = full(drawn.image)
            attention = (frame - made).clamp(0, 1)
        elif model.config.composition == "attenuate":
            attention = full(drawn.attention)
            made = frame * torch.exp(-full(drawn.attention * drawn.context))
        else:
            attention = full(drawn.attention)
            made = frame * (1 - attention) + full(drawn.context) * attention
    return made[0, 0].cpu().numpy(), attention[0, 0].cpu().numpy()
