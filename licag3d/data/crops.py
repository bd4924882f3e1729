# SPDX-License-Identifier: Apache-2.0
"""Random square crops of training frames with their rough vessel mask: the diet of masked pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from licag3d.errors import InputError
from licag3d.models.sato import rough_vessel_mask

#: Shorter side at which vesselness is computed; its filter widths are made for it.
PRIOR_PX = 256
#: Least area of a crop, as a share of the largest square of the frame. 0.08 of 512 px is 145 px, where the finest
#: vessels are still seen.
SMALLEST_AREA = 0.08


class FrameSource(Protocol):
    """Anything with frames of any size: a pool of phantom frames or a bank of own frames."""

    def __len__(self) -> int: ...

    def image(self, number: int) -> np.ndarray:
        """Frame ``(rows, cols)``, grey values 0..255, vessels dark; may be a view of a file."""
        ...

    def key(self, number: int) -> str:
        """A name for the frame, the same in every run, fit for a file."""
        ...


class PoolSource:
    """The pictures of a :class:`licag3d.data.phantom_frames.PhantomPool`; every twentieth patient is held out.

    Args:
        validation: take the patients held out instead of the others.
    """

    def __init__(self, pool, *, validation: bool = False) -> None:
        self.pool, self.validation = pool, validation
        self.refresh(len(pool))

    def refresh(self, frames: int | None = None) -> int:
        """Take in new frames of a growing pool, at most ``frames`` of the pool; returns how many pool frames count."""
        if frames is None or frames > len(self.pool):
            self.pool.refresh()
        known = len(self.pool) if frames is None else min(frames, len(self.pool))
        if frames is not None and known < frames:
            raise InputError(f"{self.pool.folder}: the pool has {known} frames where the run had {frames}; restore it")
        held = [entry["seed"] % 20 == 0 for entry in self.pool.entries[:known]]
        self.numbers = [n for n, out in enumerate(held) if out == self.validation]
        return known

    def __len__(self) -> int:
        return len(self.numbers)

    def image(self, number: int) -> np.ndarray:
        return self.pool.layers(self.numbers[number])[0]

    def key(self, number: int) -> str:
        return Path(self.pool.entries[self.numbers[number]]["file"]).stem


class CropStream:
    """Batches of crops, each a function of its step alone.

    Vesselness is a function of the frame, computed when a frame is first met and kept as bits (8 kB per frame), in
    memory and, where ``priors`` names a folder, there too, for a resumed run and for others on the same frames.

    Args:
        sources: frame sources; one is drawn first (by ``shares``), then a frame of it, so that a small folder of real
            frames is not drowned by a large pool.
        image_px: side of the crops.
        seed: of all draws.
        shares: weight of each source; equal by default.
    """

    def __init__(
        self,
        sources: Sequence[FrameSource],
        image_px: int,
        seed: int,
        *,
        shares: Sequence[float] | None = None,
        smallest_area: float = SMALLEST_AREA,
        priors: Path | None = None,
    ) -> None:
        self.sources, self.image_px, self.seed, self.smallest_area = list(sources), image_px, seed, smallest_area
        weights = np.asarray(shares if shares is not None else [1.0] * len(self.sources), float)
        self.shares = weights / weights.sum()
        self.priors = priors
        self._priors: list[dict[int, tuple[tuple[int, int], np.ndarray]]] = [{} for _ in self.sources]

    def prior(self, source: int, number: int) -> np.ndarray:
        """Rough vessel mask of a frame, bool, shorter side :data:`PRIOR_PX` (or the frame's own if smaller)."""
        kept = self._priors[source]
        if number not in kept:
            kept[number] = self._stored(source, number)
        shape, bits = kept[number]
        return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)

    def _stored(self, source: int, number: int) -> tuple[tuple[int, int], np.ndarray]:
        frame = self.sources[source].image(number)
        factor = min(1.0, PRIOR_PX / min(frame.shape))
        size = tuple(max(8, round(n * factor)) for n in frame.shape)
        file = None if self.priors is None else self.priors / f"{self.sources[source].key(number)}.npy"
        if file is not None and file.is_file():
            try:
                bits = np.load(file, allow_pickle=False)
                if bits.dtype == np.uint8 and bits.shape == ((size[0] * size[1] + 7) // 8,):
                    return size, bits
            except (OSError, ValueError, EOFError):
                pass  # cut off: computed anew
        values = torch.from_numpy(np.asarray(frame, np.float32))[None, None]
        small = F.interpolate(values, size=size, mode="bilinear", antialias=True)
        bits = np.packbits(rough_vessel_mask(np.clip(small[0, 0].numpy() / 255.0, 0, 1)))
        if file is not None:
            import io

            from licag3d.io.atomic import write_bytes

            buffer = io.BytesIO()
            np.save(buffer, bits, allow_pickle=False)
            write_bytes(file, buffer.getvalue())
        return size, bits

    def batch(self, step: int, size: int, *, augment: bool = True) -> dict[str, Tensor]:
        """``images`` and ``vesselness``, each ``(size, 1, image_px, image_px)`` float32 in 0..1."""
        rng = np.random.default_rng([self.seed, step])
        drawn = [self._draw(rng, augment) for _ in range(size)]
        return {"images": torch.cat([d[0] for d in drawn]), "vesselness": torch.cat([d[1] for d in drawn])}

    def _draw(self, rng: np.random.Generator, augment: bool) -> tuple[Tensor, Tensor]:
        source = int(rng.choice(len(self.sources), p=self.shares))
        number = int(rng.integers(len(self.sources[source])))
        frame = self.sources[source].image(number)
        rows, cols = frame.shape
        side = min(rows, cols) * float(np.sqrt(rng.uniform(self.smallest_area, 1.0)))
        top, left = rng.random(2) * (rows - side, cols - side)
        image = _cut(frame, top / rows, left / cols, side / rows, side / cols, self.image_px) / 255.0
        prior = self.prior(source, number)
        vessel = _cut(prior, top / rows, left / cols, side / rows, side / cols, self.image_px)
        if rng.random() < 0.5:
            image, vessel = image.flip(-1), vessel.flip(-1)
        if augment:
            image = vary_display(image, rng)
        return image.clamp(0, 1), (vessel > 0.5).float()


def vary_display(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Another display setting of the same frame: gamma, contrast and brightness; ``image`` in 0..1."""
    gamma, contrast, shift = np.exp(rng.uniform(-0.35, 0.35)), rng.uniform(0.7, 1.25), rng.uniform(-0.1, 0.1)
    image = image.clamp(0, 1) ** float(gamma)
    middle = image.mean()
    return ((image - middle) * float(contrast) + middle + float(shift)).clamp(0, 1)


def _cut(frame: np.ndarray, top: float, left: float, height: float, width: float, side: int) -> Tensor:
    """A crop, in shares of the frame, as ``(1, 1, side, side)`` float32; area average where it shrinks."""
    rows, cols = frame.shape
    r0, c0 = int(top * rows), int(left * cols)
    r1, c1 = min(rows, r0 + max(8, round(height * rows))), min(cols, c0 + max(8, round(width * cols)))
    part = np.ascontiguousarray(frame[r0:r1, c0:c1], dtype=np.float32)
    return F.interpolate(torch.from_numpy(part)[None, None], size=(side, side), mode="bilinear", antialias=True)
