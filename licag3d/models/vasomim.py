# SPDX-License-Identifier: Apache-2.0
"""VasoMIM: a vision transformer that learns angiograms by rebuilding hidden patches, vessels hidden first.

Huang et al., "VasoMIM: Vascular Anatomy-Aware Masked Image Modeling for Vessel Segmentation", AAAI 2026
(arXiv 2508.10794, extended in arXiv 2602.11536), on top of masked autoencoders (He et al., CVPR 2022). This file holds
the network; the transformer is in :mod:`licag3d.models.vit`, which patches are hidden and what is asked of them is in
:mod:`licag3d.models.vessel_masking`; the encoder for other modules is :func:`load_encoder`. Everything has one grey
channel.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from licag3d.errors import InputError
from licag3d.models.vit import Block, Encoder, EncoderConfig, config_of, initialise, position_code

#: Raised when tensors of older files no longer mean the same.
ENCODER_VERSION = 1
MAX_SIDE_PX = 4096
#: Tiles per side in which a whole frame is seen: fine vessels of a 512 pixel frame survive at 3 x 64 pixels.
TILES = 3


class MaskedAutoencoder(nn.Module):
    """Encoder on the visible patches, small decoder on all; the network of both VasoMIM and plain MAE.

    Example:
        >>> import torch
        >>> from licag3d.models.vit import SIZES
        >>> model = MaskedAutoencoder(SIZES["vit-mini"])
        >>> mask = torch.zeros(2, 64, dtype=torch.bool)
        >>> mask[:, :32] = True
        >>> model(torch.rand(2, 1, 64, 64), mask).shape
        torch.Size([2, 64, 64])
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.enter = nn.Linear(config.width, config.decoder_width)
        self.hidden = nn.Parameter(0.02 * torch.randn(config.decoder_width))
        self.blocks = nn.ModuleList(
            Block(config.decoder_width, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(config.decoder_width)
        self.predict = nn.Linear(config.decoder_width, config.patch_px**2)
        for part in (self.enter, self.blocks, self.predict):
            initialise(part)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predicted patches ``(n, patches, patch_px ** 2)`` from the visible ones.

        Args:
            images: ``(n, 1, h, w)`` in 0..1.
            mask: ``(n, patches)`` bool, True where hidden; the same number in every image.
        """
        n, count = mask.shape
        visible = count - int(mask[0].sum())
        # A stable sort keeps the patches in order: visible ones first.
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        keep = order[:, :visible]
        seen = self.enter(self.encoder(images, keep))
        width = seen.shape[-1]
        x = self.hidden.to(seen.dtype).expand(n, count, width).scatter(1, keep[..., None].expand(-1, -1, width), seen)
        p = self.config.patch_px
        rows, cols = images.shape[-2] // p, images.shape[-1] // p
        x = x + position_code(rows, cols, width, self.config.grid, images.device)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x))


def to_tiles(images: Tensor, count: int) -> Tensor:
    """``(n, c, count h, count w)`` to its tiles ``(n count ** 2, c, h, w)``."""
    n, c, h, w = images.shape
    h, w = h // count, w // count
    return images.reshape(n, c, count, h, count, w).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, h, w)


def from_tiles(tiles: Tensor, count: int) -> Tensor:
    """Inverse of :func:`to_tiles`, for maps of any size."""
    _, c, h, w = tiles.shape
    return tiles.reshape(-1, count, count, c, h, w).permute(0, 3, 1, 4, 2, 5).reshape(-1, c, count * h, count * w)


class AngiogramEncoder(nn.Module):
    """A frozen encoder for other modules; see :func:`load_encoder`.

    Attributes:
        name: which weights these are.
        hash: first 12 hexadecimal digits of the SHA-256 of the tensors as fp16: quote it with every feature distance.
        dim: length of a feature vector.
    """

    def __init__(self, encoder: Encoder, name: str) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.name = name
        self.hash = state_hash(encoder.state_dict())
        self.dim = encoder.config.width

    @property
    def config(self) -> EncoderConfig:
        return self.encoder.config

    def _check(self, images: Tensor) -> Tensor:
        p = self.config.patch_px
        if images.ndim != 4 or images.shape[1] != 1 or not images.is_floating_point():
            raise InputError(
                f"encoder input has shape {tuple(images.shape)} and type {images.dtype}; give float "
                f"(n, 1, rows, cols) with grey values in 0..1"
            )
        if min(images.shape[-2:]) < p or max(images.shape[-2:]) > MAX_SIDE_PX:
            raise InputError(
                f"encoder input is {images.shape[-2]} x {images.shape[-1]} px; give {p} to {MAX_SIDE_PX} px per side"
            )
        return images

    def features(self, images: Tensor) -> Tensor:
        """One vector per image ``(n, dim)`` float32: the mean of the last tokens.

        Images are first brought to three times the size of the training crops (area average where larger), so that
        features of 512 and 1024 pixel frames compare, and seen as nine tiles of exactly that size, as in training: a
        frame shrunk to a single crop would lose its fine vessels. Gradients flow to ``images``.
        """
        side, n = TILES * self.config.image_px, len(self._check(images))
        if tuple(images.shape[-2:]) != (side, side):
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        return self.encoder(to_tiles(images, TILES)).float().reshape(n, -1, self.dim).mean(1)

    def maps(self, images: Tensor, count: int = 3) -> list[Tensor]:
        """Feature maps ``(n, dim, h', w')`` float32 of ``count`` depths at the size given, one cell per patch.

        Sides that are no multiple of the patch are continued by their edge: ``h' = ceil(h / patch_px)``.
        """
        images, p = self._check(images), self.config.patch_px
        h, w = images.shape[-2:]
        if h % p or w % p:
            images = F.pad(images, (0, -w % p, 0, -h % p), mode="replicate")
        rows, cols = images.shape[-2] // p, images.shape[-1] // p
        levels = self.encoder.levels(images, count)
        return [x.float().transpose(1, 2).reshape(len(x), -1, rows, cols) for x in levels]

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


def state_hash(state: dict[str, Tensor]) -> str:
    """First 12 digits of the SHA-256 over names, shapes and fp16 values of all tensors, in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float16).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:12]


def load_encoder(name: str | Path = "encoder", device: str | torch.device = "cpu") -> AngiogramEncoder:
    """The frozen angiogram encoder.

    Args:
        name: ``"encoder"`` for the weights of the package, ``"random"`` or ``"random:SIZE"`` for an untrained one (a
            baseline; always the same), or the path of an ``encoder.safetensors`` written by
            ``python -m licag3d.train vasomim``.
        device: torch device.

    Raises:
        InputError: no such weights, a file that is not an encoder, or one of another version or size.

    Example:
        >>> import torch
        >>> encoder = load_encoder("random:vit-mini")
        >>> encoder.features(torch.rand(2, 1, 96, 80)).shape, encoder.maps(torch.rand(1, 1, 96, 80))[0].shape
        (torch.Size([2, 64]), torch.Size([1, 64, 12, 10]))
    """
    text = str(name)
    if text.partition(":")[0] == "random":
        encoder = random_encoder(config_of(text.partition(":")[2] or "vit-3m"))
    elif text.endswith(".safetensors"):
        state, config = read_encoder_file(Path(text))
        encoder, text = encoder_from(state, config, Path(text).name), Path(text).stem
    else:
        from licag3d import weights

        state, card = weights.load(text)
        encoder = encoder_from(state, card.get("config"), f"weights {text!r}")
    return AngiogramEncoder(encoder, text).to(device).eval()


def random_encoder(config: EncoderConfig, seed: int = 0) -> Encoder:
    """An untrained encoder that depends on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(config)


def encoder_from(state: dict[str, Tensor], config: object, label: str) -> Encoder:
    """Build an encoder from tensors and the configuration stored beside them.

    Raises:
        InputError: version, configuration and tensors do not belong together.
    """
    if not isinstance(config, dict) or "version" not in config:
        raise InputError(
            f"{label}: holds no encoder configuration; give an encoder.safetensors of licag3d.train vasomim"
        )
    if config["version"] != ENCODER_VERSION:
        raise InputError(
            f"{label}: encoder version {config['version']!r}; this release reads version "
            f"{ENCODER_VERSION}: train it again or use the matching release"
        )
    known = {item.name for item in fields(EncoderConfig)}
    encoder = Encoder(EncoderConfig(**{key: value for key, value in config.items() if key in known}))
    expected = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if expected != found:
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise InputError(
            f"{label}: {len(wrong)} tensors do not fit the configuration ({wrong[0]}: {found.get(wrong[0])}, "
            f"expected {expected.get(wrong[0])}); it is of another size"
        )
    encoder.load_state_dict({key: value.float() for key, value in state.items()})
    return encoder


def encoder_metadata(config: EncoderConfig) -> dict[str, int]:
    """What is stored beside the tensors, and in the card under ``config``."""
    return {"version": ENCODER_VERSION, **asdict(config)}


def read_encoder_file(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and configuration of an ``encoder.safetensors``.

    Raises:
        InputError: missing, damaged, or no encoder.
    """
    import json

    from safetensors import SafetensorError, safe_open

    from licag3d.io.files import check_file

    check_file(path, what="encoder")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            config = json.loads((file.metadata() or {}).get("licag3d.encoder", "null"))
            return {key: file.get_tensor(key) for key in file.keys()}, config
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"encoder {path.name!r} cannot be read ({str(error)[:120]}); copy it again") from None


def write_encoder_file(path: Path, encoder: Encoder) -> None:
    """Write an ``encoder.safetensors`` (fp16, configuration inside), atomically."""
    import json

    from safetensors.torch import save

    from licag3d.io.atomic import write_bytes

    state = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in encoder.state_dict().items()}
    write_bytes(path, save(state, {"licag3d.encoder": json.dumps(encoder_metadata(encoder.config))}))
