# SPDX-License-Identifier: Apache-2.0
"""What synthesis is compared with: networks of other methods, of the same sizes as CAS-GAN's.

``cyclegan`` (Zhu et al., ICCV 2017) and ``cut`` (Park et al., ECCV 2020) are those of the harmonisation between
centres, here from contrast-free frames to angiograms and without anything that holds vessels in place. ``pix2pix``
(Isola et al., CVPR 2017) learns from pairs. ``constant-mask`` finds the vessels and darkens them all alike.
``attentiongan`` is a row of CAS-GAN: see ``licag3d.train.synthesis_rivals``. Identity, atlas and another patient's
vessels have nothing to train: see ``tools/benchmark_synthesis.py``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from licag3d.errors import InputError
from licag3d.models.casgan import STRIDE, Drawn, Generator, encoder, patches
from licag3d.models.cyclegan import CycleGan, CycleganConfig, Translator
from licag3d.models.mask_first import gate

TRANSLATORS = ("cyclegan", "cut", "pix2pix")
METHODS = (*TRANSLATORS, "constant-mask")


@dataclass(frozen=True)
class RivalConfig:
    """Architecture: ``method``, ``channels`` of the first layer, residual ``blocks``, ``patch_channels`` of the
    discriminators; ``size`` of a crop and number of frames of the ``buffer`` of CycleGAN and CUT.
    """

    method: str = "pix2pix"
    channels: int = 16
    blocks: int = 3
    patch_channels: int = 16
    size: int = 128
    buffer: int = 50

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method is {self.method!r}; give one of {', '.join(METHODS)}")
        parts = {name: value for name, value in asdict(self).items() if name != "method"}
        CycleganConfig(**parts)  # the same bounds


class Pix2Pix(nn.Module):
    """A generator and a discriminator that sees the contrast-free frame beside the angiogram."""

    def __init__(self, config: RivalConfig) -> None:
        super().__init__()
        self.config = config
        self.forth = Translator(config.channels, config.blocks)
        self.judge = patches(config.patch_channels, 2)


class ConstantMask(nn.Module):
    """The vessels of a contrast-free frame, all darkened by one constant: ``y = x exp(-a)`` inside, x outside."""

    def __init__(self, config: RivalConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder(config.channels, config.blocks)
        self.generator = Generator(4 * config.channels, config.channels, config.blocks, start=-2.0)
        self.raw_depth = nn.Parameter(torch.tensor(-1.0))

    @property
    def depth(self) -> torch.Tensor:
        """The constant attenuation, not negative."""
        return F.softplus(self.raw_depth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logit of a vessel ``(n, 1, h, w)``."""
        return self.generator(self.encoder(x))

    def draw(self, x: torch.Tensor) -> Drawn:
        """The angiogram; attention is the probability of a vessel."""
        vessel = self(x).float().sigmoid()
        return Drawn(x * torch.exp(-gate(vessel) * self.depth), vessel, self.depth.expand_as(x))


def build(config: RivalConfig) -> nn.Module:
    """The network that is trained, with its discriminators."""
    if config.method == "pix2pix":
        return Pix2Pix(config)
    if config.method == "constant-mask":
        return ConstantMask(config)
    return CycleGan(CycleganConfig(**asdict(config)))


def drawing_part(model: nn.Module) -> nn.Module:
    """What draws angiograms: the generator of a translation, or the whole network of ``constant-mask``."""
    return model if isinstance(model, ConstantMask) else model.forth


def synthesise(part: nn.Module, image: np.ndarray, mm_per_pixel: float, working_mm: float):
    """The angiogram of one frame of any size.

    What a network changes is computed at the working scale and laid over the frame itself (translations: in units of
    the logit), so that what it leaves alone stays as sharp as it was.

    Args:
        part: of :func:`drawing_part`.
        image: ``(rows, cols)`` in 0..1. mm_per_pixel, working_mm: pixel sizes at the isocentre.

    Returns:
        Angiogram ``(rows, cols)`` float32, and the probability of a vessel, for translations the darkening (0..1).
    """
    rows, cols = image.shape
    frame = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    frame = frame.to(next(part.parameters()).device)
    size = [max(4 * STRIDE, round(n * mm_per_pixel / working_mm)) for n in (rows, cols)]
    part.eval()
    with torch.inference_mode():
        small = F.interpolate(frame, size=size, mode="bilinear", align_corners=False, antialias=True)
        padded = F.pad(small, (0, -size[1] % STRIDE, 0, -size[0] % STRIDE), mode="replicate")

        def full(x: torch.Tensor) -> torch.Tensor:
            cut = x[..., : size[0], : size[1]].float()
            return F.interpolate(cut, size=(rows, cols), mode="bilinear", align_corners=False)

        if isinstance(part, ConstantMask):
            drawn = full(part(padded)).sigmoid()
            made = frame * torch.exp(-gate(drawn) * part.depth)
        else:
            after, before, own = (torch.logit(x.clamp(0.01, 0.99)) for x in (part(padded), padded, frame))
            made = (own + full(after - before)).sigmoid()
            drawn = (frame - made).clamp(0, 1)
    return made[0, 0].cpu().numpy(), drawn[0, 0].cpu().numpy()


def config_from(facts: dict, source: str) -> RivalConfig:
    """The configuration stored with weights.

    Raises:
        InputError: it is missing or senseless.
    """
    try:
        known = {name: type(value)(facts[name]) for name, value in asdict(RivalConfig()).items()}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{source}: holds no configuration of a rival of synthesis") from None
    return RivalConfig(**known)


def load_rival(path: str, device: str = "cpu") -> tuple[nn.Module, dict]:
    """The drawing part of a file written by ``python -m licag3d.train synthesis-rivals``, in eval mode, and its facts.

    Raises:
        InputError: missing, damaged, or weights of another model.
    """
    from licag3d.train.checkpoints import load_into, load_weights

    tensors, facts = load_weights(path)
    if facts.get("model") != "synthesis-rival":
        raise InputError(f"{path}: weights of {facts.get('model') or 'another model'}, not of a rival of synthesis")
    part = drawing_part(build(config_from(facts.get("config", {}), path)))
    load_into(part, tensors, path)
    return part.to(device, memory_format=torch.channels_last).eval(), facts
