# SPDX-License-Identifier: Apache-2.0
"""The pre-trained angiogram encoder as a further input of the segmentor's coarsest level."""

from __future__ import annotations

import torch
from torch import nn

from licag3d.models.vasomim import load_encoder


def encoder_width(name: str = "encoder") -> int:
    """Channels of the encoder's last feature map.

    Raises:
        InputError: no such weights.
    """
    return load_encoder(name).dim


class EncoderContext(nn.Module):
    """Last feature map ``(n, width, h', w')`` of frames ``(n, 1, h, w)`` in 0..1; the encoder is frozen."""

    def __init__(self, width: int, name: str = "encoder") -> None:
        super().__init__()
        self.encoder = load_encoder(name)
        if self.encoder.dim != width:
            from licag3d.errors import InputError

            raise InputError(f"the encoder has {self.encoder.dim} channels, the segmentor was trained with {width}")

    def train(self, mode: bool = True) -> EncoderContext:
        """The encoder is frozen: it never leaves eval mode."""
        return super().train(False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Feature map of the frames."""
        with torch.no_grad():
            return self.encoder.maps(frames)[-1]
