# SPDX-License-Identifier: Apache-2.0
"""Sizes of the tree encoder, and how a card holds them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from licag3d.errors import InputError

#: Raised when tensors of older files no longer mean the same.
ENCODER_VERSION = 1


@dataclass(frozen=True)
class TreeEncoderConfig:
    """Architecture.

    Args:
        channels: of a window: vessel probability and line integral; a third is the frame itself (0..1).
        window_px: rows and columns of a window; window_mm: its edge at the isocentre.
        widths: of the pyramid at a half, a quarter, ... a 32nd of the window.
        token: width of tokens. blocks: of self-attention within a view; readers: of style queries over all views.
        heads: of attention. dense: width of the dense maps at a quarter of the window.
        styles: of the generator that W+ codes are for; structure: of those, the first that write the tree.
        w_dim: size of a style. tuple_dim: size of the code that tells patients apart.
        start: ``none``, or ``vasomim``: the tokens of the embedded angiogram encoder (frozen, not part of these
            weights) enter the pyramid as one more level.
        stretches: named places per branch that correct the code; 0 leaves the correction out. cells: of the dense maps,
            those with most vessel, that are read for it.
        lifted: channels of the tri-plane residual lifted from the views (:mod:`licag3d.models.lift`); 0 leaves it out:
            it was worth nothing (docs/encoder.md). planes: channels of the generator's planes.
    """

    channels: int = 2
    window_px: int = 256
    window_mm: float = 140.0
    widths: tuple[int, ...] = (16, 32, 56, 96, 128)
    token: int = 128
    blocks: int = 2
    readers: int = 2
    heads: int = 4
    dense: int = 28
    styles: int = 16
    structure: int = 5
    w_dim: int = 256
    tuple_dim: int = 64
    start: str = "none"
    stretches: int = 6
    cells: int = 512
    lifted: int = 0
    planes: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))
        if self.start not in ("none", "vasomim"):
            raise InputError(f"start is '{self.start}'; choose none or vasomim")
        for name, low, high in (
            ("channels", 2, 3),
            ("window_px", 32, 1024),
            ("window_mm", 40, 400),
            ("token", 8, 1024),
            ("blocks", 0, 12),
            ("readers", 1, 12),
            ("heads", 1, 16),
            ("dense", 4, 512),
            ("styles", 1, 64),
            ("structure", 1, 16),
            ("w_dim", 1, 4096),
            ("tuple_dim", 2, 1024),
            ("stretches", 0, 32),
            ("cells", 16, 65536),
            ("lifted", 0, 64),
            ("planes", 1, 512),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} is {getattr(self, name)}; give {low} to {high}")
        if len(self.widths) < 3 or not all(4 <= width <= 1024 for width in self.widths):
            raise InputError(f"widths is {self.widths}; give 3 or more numbers from 4 to 1024")
        if self.window_px % (1 << len(self.widths)):
            raise InputError(f"window_px is {self.window_px}; give a multiple of {1 << len(self.widths)}")
        if self.token % self.heads or self.token % 4:
            raise InputError(f"token is {self.token}; give a multiple of 4 and of heads ({self.heads})")
        if self.structure > self.styles:
            raise InputError(f"structure is {self.structure}, more than the {self.styles} styles")

    @property
    def map_px(self) -> int:
        """Rows and columns of the dense maps."""
        return self.window_px // 4


def tree_encoder_config(card: dict, source: str) -> TreeEncoderConfig:
    """The configuration that a card holds.

    Raises:
        InputError: there is none, or it is one of another version.
    """
    found = card.get("config") if card.get("model") == "tree_encoder" else None
    if not isinstance(found, dict):
        raise InputError(f"{source}: no weights of a tree encoder; train one (python -m licag3d.train encoder)")
    found = dict(found)
    version = found.pop("version", None)
    known = {item.name for item in fields(TreeEncoderConfig)}
    if version != ENCODER_VERSION or found.keys() - known:
        raise InputError(
            f"{source}: of another version of the tree encoder ({version!r}, this reads {ENCODER_VERSION})"
        )
    try:
        return TreeEncoderConfig(**found)
    except TypeError as error:
        raise InputError(f"{source}: the configuration of the tree encoder cannot be read ({error})") from None


def config_facts(config: TreeEncoderConfig) -> dict:
    """The configuration as JSON, with its version."""
    return {"version": ENCODER_VERSION, **asdict(config)}
