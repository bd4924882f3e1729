# SPDX-License-Identifier: Apache-2.0
"""Training samples for synthesis: a contrast-free frame, its angiogram, and how much each pixel is darkened.

From a pool of phantom frames or pairs both frames are put together anew with the same display and independent quantum
noise, with a residual contrast ``kappa`` drawn per sample. What the angiogram adds is then exact in the units of the
display: ``a = ln(x / y)`` of the two frames without noise, so that ``y = x exp(-a)``. Sample ``index`` of a stream is a
function of seed and index alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from licag3d.data.contrast_pairs import KAPPA_MAX, PairPool
from licag3d.data.phantom_frames import DEVICE, FAINT, VESSEL, PhantomPool
from licag3d.data.randomise import blur, compress, retouch
from licag3d.errors import InputError

#: Grey value added before the logarithm of a display: black pixels have no ratio.
FLOOR = 1 / 64
#: Largest attenuation asked for.
MAX_ATTENUATION = 3.0


@dataclass(frozen=True)
class PairSettings:
    """What samples are like; probabilities unless said otherwise.

    Args:
        size: rows and columns, px. scale_mm: range of the pixel size at the isocentre, mm.
        kappa: range of the residual contrast; ``without`` of the samples have none at all.
        shown: the pool's own display is used where the pool holds contrast-free pictures.
        paired: y shows the patient of x; otherwise one of another number of the pool.
        noisy: y is made with noise of its own, as a detector would; otherwise it is ``clean``, which costs nothing.
        swapped: the vessels are those of another patient of the pool with that artery, so that faint contrast must be
            found rather than known by heart from what surrounds it.
    """

    size: int = 288
    scale_mm: tuple[float, float] = (0.26, 0.34)
    kappa: tuple[float, float] = (0.0, KAPPA_MAX)
    without: float = 0.1
    shown: float = 0.25
    paired: bool = True
    noisy: bool = True
    swapped: float = 0.0


@dataclass(frozen=True)
class _Layers:
    """Layers of a moment, cropped, each ``(1, s, s)``."""

    background: torch.Tensor
    contrast: torch.Tensor
    vessel: torch.Tensor
    device: torch.Tensor
    faint: torch.Tensor
    picture: torch.Tensor


class PairStream:
    """Random samples of a pool; contrast-free pictures and moving pairs are used where the pool is of pairs."""

    def __init__(self, pool: PhantomPool, seed: int = 0, settings: PairSettings | None = None) -> None:
        self.pool, self.seed, self.settings = pool, seed, settings or PairSettings()
        self.frames = len(pool)
        if not self.settings.paired and self.frames < 2:
            raise InputError(f"{pool.folder}: unpaired training needs at least two frames; render more cases")

    def batch(self, step: int, size: int) -> dict[str, torch.Tensor]:
        """``size`` samples: the entries of :meth:`sample` with a first axis."""
        samples = [self.sample(step * size + k) for k in range(size)]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def sample(self, index: int) -> dict[str, torch.Tensor]:
        """One sample, all ``(1, s, s)`` unless said otherwise.

        ``x`` contrast-free and ``y`` angiogram in 0..1; ``attenuation`` that turns x into an angiogram of its own
        moment, zero off the vessels; ``vessel`` and ``device`` 0 or 1; ``weight`` one half where the truth is a matter
        of taste, zero where nothing can be seen; ``valid`` 0 or 1; ``clean`` the angiogram of x's moment without noise;
        ``kappa`` and ``known`` ``(1, 1, 1)``: residual contrast, and one where ``attenuation`` and ``clean`` are known.
        """
        s = self.settings
        rng = np.random.default_rng([self.seed, 73, index])
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        number = int(rng.integers(self.frames))
        shown = isinstance(self.pool, PairPool) and rng.random() < s.shown
        place = _Place.drawn(rng, self.pool.entries[number], s)
        before, after, kappa = self._moments(rng, number, place, shown)
        look = _Look.drawn(rng)
        if shown:
            # The pool's display: the same retouch for both, but the ratio of the two is not known without noise.
            turn = int(rng.integers(2**62))
            x, y = (retouch(np.random.default_rng(turn), m.picture / 255, noise) for m in (before, after))
            clean, attenuation = y, torch.zeros_like(y)
        else:
            kappa = 0.0 if rng.random() < s.without else float(rng.uniform(*s.kappa))
            gain = float(np.exp(rng.normal(-0.05, 0.25)).clip(0.5, 1.6))
            with_contrast = look.intensity(before.background, gain * before.contrast)
            without = look.intensity(before.background, gain * kappa * before.contrast)
            limits = look.window(with_contrast)
            x = look.grey(without, limits, noise)
            clean, bare = (look.grey(value, limits, None) for value in (with_contrast, without))
            y = clean
            if s.noisy and s.paired:
                seen = with_contrast
                if after is not before:
                    seen = look.intensity(after.background, gain * after.contrast)
                y = look.grey(seen, limits, noise)
            attenuation = darkening(bare, clean)
        if not s.paired:
            y = self._other(rng, number, noise)
        valid = place.inside(x.shape[-1])
        near = F.max_pool2d(before.vessel[None], 3, 1, 1)[0]
        # Twigs surround vessels closely: without any weight there, whatever might hang on a vessel would be drawn.
        weight = valid * (1 - 0.5 * before.faint)
        return {
            "x": x * valid,
            "y": y * valid if s.paired else y,
            "attenuation": attenuation * near * valid,
            "vessel": before.vessel * valid,
            "device": before.device * valid,
            "weight": weight,
            "valid": valid,
            "clean": clean * valid,
            "kappa": torch.full((1, 1, 1), kappa),
            "known": torch.full((1, 1, 1), 0.0 if shown else 1.0),
        }

    def _moments(self, rng, number: int, place: _Place, shown: bool) -> tuple[_Layers, _Layers, float]:
        """Layers of the contrast-free frame and of the angiogram, and kappa of the former's picture."""
        after = place.cut(self.pool.layers(number))
        if not shown and rng.random() < self.settings.swapped:
            after = self._with_vessels_of_another(rng, number, place, after)
            return after, after, 0.0
        if not isinstance(self.pool, PairPool):
            return after, after, 0.0
        before = place.cut(self.pool.before_layers(number))
        images, kappas = self.pool.images(number), self.pool.entries[number]["kappas"]
        chosen = int(rng.integers(len(kappas)))
        if shown:
            picture = place.cut_picture(images[chosen])
            before = replace(before, picture=picture)
        return before, after, float(kappas[chosen])

    def _with_vessels_of_another(self, rng, number: int, place: _Place, layers: _Layers) -> _Layers:
        """The moment with the contrast of another patient's vessels in place of its own."""
        mine = self.pool.entries[number]
        alike = ("artery", "rows")
        same = [k for k, entry in enumerate(self.pool.entries) if all(entry[key] == mine[key] for key in alike)]
        chosen = self.pool.entries[other := same[int(rng.integers(len(same)))]]
        if chosen["seed"] == mine["seed"]:
            return layers
        theirs = place.cut(self.pool.layers(other))
        # What fills their catheter stays theirs: there is none of its kind here.
        vessels = (theirs.vessel + theirs.faint).clamp(max=1)
        contrast = theirs.contrast * F.max_pool2d(vessels[None], 5, 1, 2)[0]
        return replace(layers, contrast=contrast, vessel=theirs.vessel, faint=theirs.faint)

    def _other(self, rng, number: int, noise) -> torch.Tensor:
        """An angiogram of another number, with a display of its own."""
        other = (number + 1 + int(rng.integers(self.frames - 1))) % self.frames
        layers = _Place.drawn(rng, self.pool.entries[other], self.settings).cut(self.pool.layers(other))
        look = _Look.drawn(rng)
        value = look.intensity(layers.background, layers.contrast)
        return look.grey(value, look.window(value), noise)


def darkening(bare: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """``ln(x / y)`` of noise-free displays in 0..1, limited to 0 .. :data:`MAX_ATTENUATION`."""
    return ((bare + FLOOR).log() - (clean + FLOOR).log()).clamp(0, MAX_ATTENUATION)


@dataclass(frozen=True)
class _Place:
    """Where a sample lies on its frame: grid ``(s, s, 2)`` in pixels (x, y) of the frame."""

    grid: torch.Tensor
    side: int

    @classmethod
    def drawn(cls, rng: np.random.Generator, entry: dict, s: PairSettings) -> _Place:
        side, have = int(entry["rows"]), float(entry["mm_per_pixel"])
        zoom = float(np.clip(np.exp(rng.uniform(*np.log(s.scale_mm))) / have, 0.5, 4.0))
        half = 0.46 * s.size * zoom
        reach = max(side / 2 - half, 0.0)
        centre = side / 2 + rng.uniform(-1, 1, 2) * reach
        turn, flip = float(np.deg2rad(rng.normal(0, 6))), -1.0 if rng.random() < 0.5 else 1.0
        at = torch.arange(s.size, dtype=torch.float32) - (s.size - 1) / 2
        v, u = torch.meshgrid(at, at * flip, indexing="ij")
        x = centre[0] + zoom * (math.cos(turn) * u - math.sin(turn) * v)
        y = centre[1] + zoom * (math.sin(turn) * u + math.cos(turn) * v)
        return cls(torch.stack((x, y), -1), side)

    def inside(self, size: int) -> torch.Tensor:
        """``(1, s, s)`` one where the sample shows the frame."""
        inside = (self.grid >= 0) & (self.grid <= self.side - 1)
        return inside.all(-1).float().reshape(1, size, size)

    def _box(self) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 pixel (x, y) that the sample needs: only these are read."""
        at = self.grid.reshape(-1, 2)
        first = np.clip(np.floor(at.amin(0).numpy()).astype(int) - 1, 0, self.side - 8)
        return first, np.clip(np.ceil(at.amax(0).numpy()).astype(int) + 2, first + 8, self.side)

    def _sample(self, layers: torch.Tensor) -> torch.Tensor:
        first, last = self._box()
        size = torch.from_numpy(last - first)
        grid = (2 * (self.grid - torch.from_numpy(first)) + 1) / size - 1
        return F.grid_sample(layers[None], grid[None], padding_mode="border", align_corners=False)[0]

    def cut_picture(self, picture: np.ndarray) -> torch.Tensor:
        """A picture ``(rows, cols)`` cut to ``(1, s, s)``."""
        (left, top), (right, low) = self._box()
        return self._sample(torch.from_numpy(np.array(picture[top:low, left:right], np.float32))[None])

    def cut(self, stack: np.ndarray) -> _Layers:
        """Layers of the pool cut to the sample."""
        (left, top), (right, low) = self._box()
        values = torch.from_numpy(np.array(stack[:, top:low, left:right])).float()
        codes = values[4].to(torch.int16)
        bits = [(codes & bit > 0).float() for bit in (VESSEL, DEVICE, FAINT)]
        layers = torch.stack([*values[:3], *bits])
        picture, background, contrast, vessel, device, faint = self._sample(layers)[:, None]
        vessel = (vessel > 0.5).float()
        faint = ((faint > 0.5) & (vessel < 0.5)).float()
        return _Layers(background, contrast.clamp_min(0), vessel, (device > 0.5).float(), faint, picture)


@dataclass(frozen=True)
class _Look:
    """Exposure and display of a sample, the same for both of its frames; see ``licag3d.data.randomise``."""

    spread: float
    sharpness: float
    scatter: float
    quanta: float
    grain: float
    power: float  # of the intensity; 0 is its logarithm
    reserve: tuple[float, float]
    shoulder: float
    gamma: float
    flatten: float
    sharpen: tuple[float, float]
    coding: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> _Look:
        return cls(
            spread=float(rng.uniform(0.6, 1.4)),
            sharpness=float(rng.uniform(0.3, 1.1)),
            scatter=float(rng.uniform(0.0, 0.5)),
            quanta=float(np.exp(rng.uniform(np.log(600), np.log(12000)))),
            grain=float(rng.uniform(0.0, 0.8)),
            power=0.0 if rng.random() < 0.5 else float(rng.uniform(0.25, 1.0)),
            reserve=(float(rng.uniform(-0.02, 0.6)), float(rng.uniform(-0.02, 0.4))),
            shoulder=float(rng.uniform(-0.2, 0.7)),
            gamma=float(np.exp(rng.uniform(-0.4, 0.4))),
            flatten=float(rng.uniform(0.1, 0.6)) if rng.random() < 0.3 else 0.0,
            sharpen=(float(rng.uniform(0.2, 1.2)), float(rng.uniform(1, 3))) if rng.random() < 0.35 else (0.0, 1.0),
            coding=float(rng.uniform(0.01, 0.04)) if rng.random() < 0.15 else 0.0,
        )

    def intensity(self, background: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
        """Detected intensity ``(1, s, s)`` without noise, about 1 where the background has its median."""
        behind = background.clamp(-4, 5)
        middle = behind.median()
        behind = self.spread * (behind - middle).clamp(-2.5, 2.5)
        sharp = blur(torch.exp(-(behind + contrast)), self.sharpness)
        return (1 - self.scatter) * sharp + self.scatter * blur(sharp, 24.0)

    def _value(self, counts: torch.Tensor) -> torch.Tensor:
        counts = counts.clamp_min(2e-3)
        return counts.log() if self.power == 0 else counts**self.power

    def window(self, counts: torch.Tensor) -> tuple[float, float]:
        """Values shown black and white, for a frame with its contrast."""
        few = self._value(counts).flatten()[::7].sort().values
        low, high = float(few[int(0.005 * len(few))]), float(few[int(0.995 * (len(few) - 1))])
        span = max(high - low, 0.3)
        return low - span * self.reserve[0], low + span * (1 + self.reserve[1])

    def grey(self, counts: torch.Tensor, limits: tuple[float, float], noise: torch.Generator | None) -> torch.Tensor:
        """Display ``(1, s, s)`` in 0..1; without a generator there is no quantum noise, no coding, no rounding."""
        if noise is not None:
            counts = counts + (counts.clamp_min(1e-3) / self.quanta).sqrt() * torch.randn(counts.shape, generator=noise)
            counts = blur(counts, self.grain)
        low, high = limits
        unit = ((self._value(counts) - low) / max(high - low, 1e-3)).clamp(0, 1)
        if self.flatten:
            coarse = blur(unit, 24.0)
            unit = (unit - self.flatten * (coarse - coarse.mean())).clamp(0, 1)
        unit = ((1 - self.shoulder) * unit + self.shoulder * unit * unit * (3 - 2 * unit)).clamp(0, 1) ** self.gamma
        if self.sharpen[0]:
            unit = unit + self.sharpen[0] * (unit - blur(unit, self.sharpen[1]))
        if noise is None:
            return unit.clamp(0, 1)
        if self.coding and unit.shape[-1] % 8 == 0:
            unit = compress(unit.clamp(0, 1), self.coding)
        return (unit.clamp(0, 1) * 255).round() / 255
