# SPDX-License-Identifier: Apache-2.0
"""A plain vision transformer for images of one channel and of any size (Dosovitskiy et al., ICLR 2021)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from licag3d.errors import InputError

#: Grey values 0..1 are shifted and scaled by these, the same for every frame: contrast stays visible to the encoder.
GREY_MEAN, GREY_SPREAD = 0.5, 0.25


@dataclass(frozen=True)
class EncoderConfig:
    """Size of the network.

    Args:
        image_px: side of the square training images.
        patch_px: side of a patch; one token each.
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder, thrown away after training.
    """

    image_px: int = 64
    patch_px: int = 8
    width: int = 192
    depth: int = 6
    heads: int = 3
    decoder_width: int = 128
    decoder_depth: int = 1
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
    "vit-mini": EncoderConfig(
        image_px=64, width=64, depth=2, heads=2, decoder_width=48, decoder_depth=1, decoder_heads=2
    ),
    "vit-3m": EncoderConfig(),
    "vit-3m-224": EncoderConfig(image_px=224, patch_px=16),
    "vit-s": EncoderConfig(
        image_px=224, patch_px=16, width=384, depth=12, heads=6, decoder_width=256, decoder_depth=4, decoder_heads=8
    ),
    "vit-s-8": EncoderConfig(
        image_px=224, patch_px=8, width=384, depth=12, heads=6, decoder_width=256, decoder_depth=4, decoder_heads=8
    ),
    "vit-b": EncoderConfig(
        image_px=224, patch_px=16, width=768, depth=12, heads=12, decoder_width=512, decoder_depth=8, decoder_heads=16
    ),
}


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


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of ``(n, heads, tokens, width)``.

    On a CPU the backward pass of the fused kernel is written out in scalar bfloat16 and takes as long as the rest of
    the network; two matrix products are several times as fast for the few hundred tokens of training.
    """
    if q.device.type != "cpu" or not (torch.is_grad_enabled() and q.requires_grad):
        return F.scaled_dot_product_attention(q, k, v)
    weights = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return torch.matmul(torch.softmax(weights, dim=-1, dtype=weights.dtype), v)


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
        mixed = attention(q, k, v).transpose(1, 2).reshape(n, count, width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def initialise(module: nn.Module) -> None:
    """Xavier weights and zero biases of every linear layer."""
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
        initialise(self)

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
