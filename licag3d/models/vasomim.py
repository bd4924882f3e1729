# SPDX-License-Identifier: Apache-2.0
"""VasoMIM: a vision transformer that learns angiograms by rebuilding hidden patches, vessels hidden first.

Huang et al., "VasoMIM: Vascular Anatomy-Aware Masked Image Modeling for Vessel Segmentation", AAAI 2026
(arXiv 2508.10794, extended in arXiv 2602.11536), on top of masked autoencoders (He et al., CVPR 2022). This file holds
the network; which patches are hidden and what is asked of them is in :mod:`licag3d.models.vessel_masking`; the encoder
for other modules is :func:`load_encoder`. Everything has one grey channel.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from licag3d.errors import InputError

#: Raised when tensors of older files no longer mean the same.
ENCODER_VERSION = 1
#: Grey values 0..1 are shifted and scaled by these, the same for every frame: contrast stays visible to the encoder.
GREY_MEAN, GREY_SPREAD = 0.5, 0.25
MAX_SIDE_PX = 4096


@dataclass(frozen=True)
class EncoderConfig:
    """Size of the network.

    Args:
        image_px: side of the square training images.
        patch_px: side of a patch; one token each.
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder, thrown away after training.
    """

    image_px: int = 128
    patch_px: int = 8
    width: int = 192
    depth: int = 6
    heads: int = 3
    decoder_width: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 4

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 4096:
                raise InputError(f"encoder configuration: {item.name} is {value!r}; give a whole number 1 to 4096")
        if self.image_px % self.patch_px:
            raise InputError(
                f"encoder configuration: image_px {self.image_px} is no multiple of patch_px "
                f"{self.patch_px}; change one of them"
            )
        for width, heads in ((self.width, self.heads), (self.decoder_width, self.decoder_heads)):
            if width % heads or width % 4:
                raise InputError(
                    f"encoder configuration: width {width} must be a multiple of 4 and of the {heads} "
                    f"heads; change width or heads"
                )

    @property
    def grid(self) -> int:
        """Patches along one side of a training image."""
        return self.image_px // self.patch_px

    @property
    def patches(self) -> int:
        """Patches of a training image."""
        return self.grid**2


#: Named sizes. ``vit-3m`` (2.7 M in the encoder) is the one whose weights come with the package.
SIZES: dict[str, EncoderConfig] = {
    "vit-mini": EncoderConfig(image_px=64, width=64, depth=2, heads=2, decoder_width=48, decoder_depth=1,
                              decoder_heads=2),
    "vit-3m": EncoderConfig(),
    "vit-3m-224": EncoderConfig(image_px=224, patch_px=16),
    "vit-s": EncoderConfig(image_px=224, patch_px=16, width=384, depth=12, heads=6, decoder_width=256,
                           decoder_depth=4, decoder_heads=8),
    "vit-s-8": EncoderConfig(image_px=224, patch_px=8, width=384, depth=12, heads=6, decoder_width=256,
                             decoder_depth=4, decoder_heads=8),
    "vit-b": EncoderConfig(image_px=224, patch_px=16, width=768, depth=12, heads=12, decoder_width=512,
                           decoder_depth=8, decoder_heads=16),
}  # fmt: skip


def config_of(size: str, **changes: int) -> EncoderConfig:
    """A named size, with changes.

    Raises:
        InputError: no such size, or numbers that do not fit each other.

    Example:
        >>> config_of("vit-s", image_px=256).patches
        256
    """
    if size not in SIZES:
        raise InputError(f"encoder size {size!r} is not known; give one of {', '.join(SIZES)}")
    return EncoderConfig(**{**asdict(SIZES[size]), **changes})


def patchify(images: Tensor, patch_px: int) -> Tensor:
    """``(n, 1, h, w)`` to ``(n, patches, patch_px ** 2)``, patches row by row."""
    n, _, h, w = images.shape
    p = patch_px
    return images.reshape(n, h // p, p, w // p, p).permute(0, 1, 3, 2, 4).reshape(n, (h // p) * (w // p), p * p)


def unpatchify(patches: Tensor, patch_px: int, rows: int) -> Tensor:
    """Inverse of :func:`patchify`; ``rows`` is the number of patch rows."""
    n, count, _ = patches.shape
    p, cols = patch_px, count // rows
    return patches.reshape(n, rows, cols, p, p).permute(0, 1, 3, 2, 4).reshape(n, 1, rows * p, cols * p)


def position_code(rows: int, cols: int, width: int, grid: int, device=None) -> Tensor:
    """Sine and cosine of row and column ``(rows * cols, width)`` (Vaswani et al. 2017, in two dimensions).

    Another number of patches than the ``grid`` of training is spread over the same range, as one interpolates learned
    positions, so that an encoder takes images of any size.
    """
    quarter = width // 4
    rate = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device=device) / quarter)
    codes = []
    for count in (rows, cols):
        at = (torch.arange(count, dtype=torch.float64, device=device) + 0.5) * (grid / count) - 0.5
        codes.append(torch.cat([torch.sin(at[:, None] * rate), torch.cos(at[:, None] * rate)], 1))
    row, col = codes
    both = torch.cat([row[:, None].expand(-1, cols, -1), col[None].expand(rows, -1, -1)], -1)
    return both.reshape(rows * cols, width).float()


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, count, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, count, width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


class Encoder(nn.Module):
    """Patches to tokens. ``keep`` ``(n, k)`` numbers of visible patches, or None for all."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.patch_px**2, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        _initialise(self)

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embedded patches with positions ``(n, patches or k, width)``."""
        p = self.config.patch_px
        rows, cols = images.shape[-2] // p, images.shape[-1] // p
        x = self.embed((patchify(images, p) - GREY_MEAN) / GREY_SPREAD)
        x = x + position_code(rows, cols, self.config.width, self.config.grid, images.device)
        return x if keep is None else x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.tokens(images, keep)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def levels(self, images: Tensor, count: int = 3) -> list[Tensor]:
        """Tokens ``(n, patches, width)`` after ``count`` evenly spread depths, the last one normalised."""
        chosen = {math.ceil(self.config.depth * (k + 1) / count) - 1 for k in range(count)}
        x, out = self.tokens(images), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in chosen:
                out.append(self.norm(x) if number == self.config.depth - 1 else x)
        return out


class MaskedAutoencoder(nn.Module):
    """Encoder on the visible patches, small decoder on all; the network of both VasoMIM and plain MAE.

    Example:
        >>> import torch
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
        self.blocks = nn.ModuleList(Block(config.decoder_width, config.decoder_heads)
                                    for _ in range(config.decoder_depth))  # fmt: skip
        self.norm = nn.LayerNorm(config.decoder_width)
        self.predict = nn.Linear(config.decoder_width, config.patch_px**2)
        for part in (self.enter, self.blocks, self.predict):
            _initialise(part)

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
            raise InputError(f"encoder input has shape {tuple(images.shape)} and type {images.dtype}; give float "
                             f"(n, 1, rows, cols) with grey values in 0..1")  # fmt: skip
        if min(images.shape[-2:]) < p or max(images.shape[-2:]) > MAX_SIDE_PX:
            raise InputError(f"encoder input is {images.shape[-2]} x {images.shape[-1]} px; give {p} to "
                             f"{MAX_SIDE_PX} px per side")  # fmt: skip
        return images

    def features(self, images: Tensor) -> Tensor:
        """One vector per image ``(n, dim)`` float32: the mean of the last tokens.

        Images of another size are first brought to the size of training (area average where smaller), so that features
        of 512 and 1024 pixel frames compare. Gradients flow to ``images``.
        """
        side = self.config.image_px
        images = self._check(images)
        if tuple(images.shape[-2:]) != (side, side):
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        return self.encoder(images).float().mean(1)

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
        try:
            from licag3d import weights

            state, card = weights.load(text)
        except (ImportError, InputError):
            if text != "encoder":
                raise
            import warnings

            # Until the first training has ended there are no weights to embed.
            warnings.warn("no encoder weights are embedded yet: an untrained encoder is used", stacklevel=2)
            return load_encoder("random", device)
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
        raise InputError(f"{label}: encoder version {config['version']!r}; this release reads version {ENCODER_VERSION}: "
                         f"train it again or use the matching release")  # fmt: skip
    known = {item.name for item in fields(EncoderConfig)}
    encoder = Encoder(EncoderConfig(**{key: value for key, value in config.items() if key in known}))
    expected = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if expected != found:
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise InputError(f"{label}: {len(wrong)} tensors do not fit the configuration ({wrong[0]}: "
                         f"{found.get(wrong[0])}, expected {expected.get(wrong[0])}); it is of another size")  # fmt: skip
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
