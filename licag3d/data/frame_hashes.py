# SPDX-License-Identifier: Apache-2.0
"""Frames that are nearly the same, told by hashes."""

from __future__ import annotations

import numpy as np

HASH_SIDE = 16


def perceptual_hash(frame: np.ndarray) -> np.ndarray:
    """256-bit hash ``(4,)`` uint64 of a frame: signs of the horizontal differences of a 16 x 17 thumbnail.

    Differences do not change with brightness, contrast or any monotone display; re-compressed, resized and windowed
    copies of a frame differ in a few bits, frames of another view or patient in many (figures: docs/vasomim.md).
    """
    import torch

    image = torch.from_numpy(frame.astype(np.float32))[None, None]
    small = torch.nn.functional.interpolate(image, size=(HASH_SIDE, HASH_SIDE + 1), mode="bilinear", antialias=True)
    bits = np.diff(small[0, 0].numpy(), axis=1) > 0
    return np.packbits(bits).view(np.uint64)


class HashSet:
    """Hashes met so far, searched by Hamming distance."""

    def __init__(self, near_bits: int) -> None:
        self.near_bits = near_bits
        self._hashes = np.zeros((1024, 4), np.uint64)
        self._count = 0

    def seen(self, value: np.ndarray) -> bool:
        """Whether a hash this near was met; if not, it is kept."""
        known = self._hashes[: self._count]
        if self._count and int(np.bitwise_count(known ^ value).sum(1, dtype=np.int64).min()) <= self.near_bits:
            return True
        if self._count == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        self._hashes[self._count] = value
        self._count += 1
        return False
