# SPDX-License-Identifier: Apache-2.0
"""Building blocks of the tree encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from licag3d.models.vit import initialise


class Residual(nn.Module):
    """Two convolutions beside a straight path, which is all there is at the start (no normalisation is needed then)."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="linear")
        nn.init.kaiming_normal_(self.last.weight, nonlinearity="linear")
        nn.init.zeros_(self.first.bias)
        nn.init.zeros_(self.last.bias)
        self.share = nn.Parameter(torch.full((1,), 0.2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.share.to(x.dtype) * self.last(F.silu(self.first(F.silu(x))))


class Mixer(nn.Module):
    """Attention of queries over tokens, then a perceptron; both beside a straight path."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_t, self.norm_x = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
        for part in (self.q, self.kv, self.out, self.mlp):
            initialise(part)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """``x`` ``(B, Q, width)``; tokens ``(B, T, width)``."""
        q = self._split(self.q(self.norm_q(x)))
        k, v = (self._split(part) for part in self.kv(self.norm_t(tokens)).chunk(2, -1))
        weights = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)).float()
        x = x + self.out(torch.matmul(weights.softmax(-1).to(v.dtype), v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_x(x))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def token_places(side: int, width: int, device) -> torch.Tensor:
    from licag3d.models.vit import position_code

    return position_code(side, side, width, side, device)
