# SPDX-License-Identifier: Apache-2.0
"""Training samples from pool frames: cropped, turned, scaled, put together anew with other contrast, dose and display.

No real frames are at hand to learn from, so the phantom's look is varied beyond what real systems show ("domain
randomisation", Tobin et al., IROS 2017). Sample ``index`` of a stream depends on seed and index alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from licag3d.data.bench_scenes import BenchBank
from licag3d.data.device_scenes import DeviceBank
from licag3d.data.distractors import DistractorBank, text_mask
from licag3d.data.phantom_frames import DEVICE, FAINT, LABELS, VESSEL, PhantomPool
from licag3d.data.sketches import faulty_points
from licag3d.data.winding import winding_branches
from licag3d.models.segmentor import normalise
from licag3d.models.sketch import sketch

#: Pixel sizes at the isocentre that samples have, mm; frames of other scales are resized for the network.
SCALE_MM = (0.16, 0.34)
#: Line integral from which a twig is taken for a vessel with good reason.
TWIG_SHOWS = 0.06


@dataclass(frozen=True)
class Randomisation:
    """How often what happens; probabilities unless said otherwise.

    Args:
        size: rows and columns of a sample, px.
        shown: the phantom's own display is used (with another tone curve) instead of a composition anew.
        empty: no vessels at all. foreign: vessels of another case in front of this background.
        fade: contrast fills a part of the tree only. distractors: at least one of the bank is added.
        shutter: collimator edges cross the sample. text: burnt-in writing.
        implants: leads, coils, rings and catheters of a device scene are added; such a sample is composed anew.
        bench: a drawn bench phantom instead of a patient. gaps: contrast is thin over short pieces of vessels.
        winding: winding side branches hang on the vessels; such a sample is composed anew.
        twig: weight of twigs that show (line integral above :data:`TWIG_SHOWS`); they and fainter ones, of weight 1,
            count as background. At weight 0 whatever might hang on a vessel is drawn, for twigs surround it closely.
        guided: a sketch of the tree with the errors of a fit is a third input. mistaken: it is of another case.
    """

    size: int = 320
    shown: float = 0.4
    empty: float = 0.06
    foreign: float = 0.12
    fade: float = 0.15
    distractors: float = 0.45
    implants: float = 0.2
    winding: float = 0.25
    shutter: float = 0.35
    text: float = 0.08
    bench: float = 0.08
    gaps: float = 0.25
    twig: float = 0.7
    guided: bool = False
    mistaken: float = 0.06


@dataclass(frozen=True)
class _Crop:
    """Layers of a crop, each (1, s, s); beyond the frame the first two are continued, the others zero. ``labels``
    are those of branches, ``mm_per_pixel`` is that of the crop."""

    image: torch.Tensor
    contrast_free: torch.Tensor
    contrast: torch.Tensor
    p: torch.Tensor
    vessel: torch.Tensor
    device: torch.Tensor
    faint: torch.Tensor
    outside: torch.Tensor
    labels: torch.Tensor
    mm_per_pixel: float


class SampleStream:
    """Batches of random samples from a pool: a function of seed, step and the number of frames in use."""

    def __init__(
        self,
        pool: PhantomPool,
        bank: DistractorBank,
        seed: int = 0,
        settings: Randomisation | None = None,
        bench: BenchBank | None = None,
        implants: DeviceBank | None = None,
    ) -> None:
        self.pool, self.bank, self.seed, self.bench, self.implants = pool, bank, seed, bench, implants
        self.settings = settings or Randomisation()
        self.frames = len(pool)

    def batch(self, step: int, size: int) -> dict[str, torch.Tensor]:
        """``size`` samples: ``x`` (n, 2, s, s) network input, ``vessel``, ``device`` (n, 1, s, s) in 0..1, ``p``
        (n, 1, s, s) line integral as shown, ``weight`` (n, 1, s, s) zero where the truth is a matter of taste,
        ``known`` (n, 1, 1, 1) one: p and devices are known.
        """
        samples = [self.sample(step * size + k) for k in range(size)]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def sample(self, index: int) -> dict[str, torch.Tensor]:
        """One sample; the entries of :meth:`batch` without their first axis, and the displayed ``grey`` (1, s, s)."""
        s = self.settings
        rng = np.random.default_rng([self.seed, 71, index])
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        bench = self.bench is not None and rng.random() < s.bench
        frame = self._bench_crop(rng) if bench else self._crop(rng, int(rng.integers(self.frames)))
        p, vessel, device = frame.p, frame.vessel, frame.device
        weight, drawn = self._weight(frame), frame
        empty = rng.random() < s.empty
        implants = self.implants is not None and not bench and rng.random() < s.implants
        winding = not bench and not empty and rng.random() < s.winding
        if rng.random() < s.shown and not (empty or bench or implants or winding):
            grey = retouch(rng, (frame.image / 255).clamp(0, 1), noise)
        else:
            contrast = frame.contrast
            if rng.random() < s.foreign and not bench:
                other = self._crop(rng, int(rng.integers(self.frames)))
                contrast, p, vessel, weight = other.contrast, other.p, other.vessel, self._weight(other)
                drawn = other
                # The lumen of the other catheter comes with its contrast.
                device = torch.maximum(device, other.device * (contrast > 0.05))
            if winding:
                integral, where = winding_branches(rng, vessel[0].numpy() > 0.5, drawn.mm_per_pixel)
                integral, where = torch.from_numpy(integral)[None], torch.from_numpy(where)[None]
                contrast, p = contrast + integral, p + integral * where
                vessel = torch.maximum(vessel, where.float())
                weight = torch.where(where, (integral > TWIG_SHOWS).float(), weight)
            gain = 0.0 if empty else float(np.exp(rng.normal(-0.05, 0.3)).clip(0.4, 1.8))
            if rng.random() < s.fade:
                fill = _filling(rng, p.shape[-1])
                weight = torch.where((vessel > 0.5) & (fill > 0.08) & (fill < 0.3), 0.0, weight)
                vessel, gain = vessel * (fill > 0.15), gain * fill
            if rng.random() < s.gaps:
                gain = gain * _gaps(rng, vessel)
            contrast, p, vessel = contrast * gain, p * gain, vessel * (0.0 if empty else 1.0)
            weight = torch.ones_like(weight) if empty else weight
            added, more = self._distractors(rng, p.shape[-1])
            device = torch.maximum(device, more)
            if implants:
                metal, where = self._implants(rng, p.shape[-1])
                added, device = added + metal, torch.maximum(device, where)
            grey = _expose(rng, noise, frame.contrast_free, contrast + added)
        grey, hidden = _cover(rng, grey, frame.outside, s)
        known = bool(rng.random() < 0.5)
        seen = ~hidden
        x = normalise(grey[None], (seen if known else torch.ones_like(seen))[None])[0]
        weight = torch.where(hidden, torch.where(vessel > 0.5, 0.0, weight), weight)
        if s.guided:
            x = torch.cat((x, self._sketch(rng, drawn)))
        return {
            "x": x,
            "vessel": vessel * seen,
            "device": device * seen,
            "p": p * seen,
            "weight": weight,
            "known": torch.ones(1, 1, 1),
            "grey": grey,
        }

    def _crop(self, rng: np.random.Generator, number: int) -> _Crop:
        """A frame, turned a little, scaled, and mirrored left to right."""
        s = self.settings.size
        stack = self.pool.layers(number)
        rows, cols = stack.shape[1:]
        have = self.pool.entries[number]["mm_per_pixel"]
        zoom = float(np.clip(np.exp(rng.uniform(*np.log(SCALE_MM))) / have, 0.6, 1.6))
        centre = rng.uniform(0.15, 0.85, 2) * (cols, rows)
        if rng.random() < 0.65:
            row, col = np.nonzero(stack[4, ::8, ::8] % DEVICE >= VESSEL)
            if len(row):
                chosen = int(rng.integers(len(row)))
                centre = 8 * np.array((col[chosen], row[chosen])) + rng.uniform(-0.4, 0.4, 2) * s * zoom
        # The whole frame must not lie outside.
        half = 0.43 * s * zoom
        centre = np.clip(centre, min(half, cols / 2), (max(cols - half, cols / 2), max(rows - half, rows / 2)))
        # Frames are upright: that catheters come from above helps to tell them from vessels.
        turn = float(np.deg2rad(rng.normal(0, 12)))
        flip = -1.0 if rng.random() < 0.5 else 1.0
        at = torch.arange(s, dtype=torch.float32) - (s - 1) / 2
        v, u = torch.meshgrid(at, at * flip, indexing="ij")
        x = centre[0] + zoom * (math.cos(turn) * u - math.sin(turn) * v)
        y = centre[1] + zoom * (math.sin(turn) * u + math.cos(turn) * v)
        outside = (x < 0) | (x > cols - 1) | (y < 0) | (y > rows - 1)
        # Only the part that is needed is read and converted.
        left, right = (int(n) for n in np.clip((math.floor(x.min()), math.ceil(x.max()) + 1), (0, 2), (cols - 2, cols)))
        top, low = (int(n) for n in np.clip((math.floor(y.min()), math.ceil(y.max()) + 1), (0, 2), (rows - 2, rows)))
        part = torch.from_numpy(np.array(stack[:, top:low, left:right])).float()
        codes = part[4].to(torch.int16)
        vessel, device, faint = ((codes & bit > 0).float() for bit in (VESSEL, DEVICE, FAINT))
        grid = torch.stack([(2 * (x - left) + 1) / (right - left) - 1, (2 * (y - top) + 1) / (low - top) - 1], -1)
        layers = torch.stack([*part[:4], vessel, device, faint])[None]
        cut = F.grid_sample(layers, grid[None], padding_mode="border", align_corners=False)[0]
        image, rest, contrast, p, vessel, device, faint = cut[:, None]
        seen = (~outside).float()[None]
        vessel = (vessel > 0.5) * seen
        labels = torch.zeros_like(vessel)
        if self.settings.guided:
            names = F.grid_sample((codes % LABELS).float()[None, None], grid[None], mode="nearest", align_corners=False)
            labels = names[0] * vessel
        return _Crop(
            image=image,
            contrast_free=rest,
            contrast=contrast * seen,
            p=p * vessel,
            vessel=vessel,
            device=(device > 0.5) * seen,
            faint=((faint > 0.5) & (vessel < 0.5)) * seen,
            outside=outside[None],
            labels=labels,
            mm_per_pixel=zoom * have,
        )

    def _weight(self, frame: _Crop) -> torch.Tensor:
        return 1 - (1 - self.settings.twig) * frame.faint * (frame.contrast > TWIG_SHOWS)

    def _sketch(self, rng: np.random.Generator, frame: _Crop) -> torch.Tensor:
        """What a fit would expect to see, (1, s, s): nothing on bench phantoms, to which the prior yields."""
        if rng.random() < self.settings.mistaken:
            frame = self._crop(rng, int(rng.integers(self.frames)))
        points = faulty_points(rng, frame.labels[0].numpy(), frame.mm_per_pixel)
        return torch.from_numpy(sketch(points, tuple(frame.labels.shape[1:])))[None]

    def _bench_crop(self, rng: np.random.Generator) -> _Crop:
        """A part of a drawn bench phantom, turned by quarters and mirrored."""
        s, scene = self.settings.size, self.bench[int(rng.integers(len(self.bench)))]
        row, col = np.nonzero(scene.vessel[::8, ::8])
        chosen = int(rng.integers(len(row)))
        reach = self.bench.size - s
        top, left = (int(np.clip(8 * n[chosen] - rng.uniform(0.2, 0.8) * s, 0, reach)) for n in (row, col))
        quarter, mirror = int(rng.integers(4)), rng.random() < 0.5

        def cut(layer: np.ndarray) -> torch.Tensor:
            part = np.rot90(layer[top : top + s, left : left + s], quarter)
            return torch.from_numpy(np.ascontiguousarray(part[:, ::-1] if mirror else part)).float()[None]

        p, none = cut(scene.p), torch.zeros(1, s, s)
        return _Crop(none, cut(scene.rest), p, p, cut(scene.vessel), cut(scene.device), none, none > 0, none, 0.25)

    def _distractors(self, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        total, device = torch.zeros(1, size, size), torch.zeros(1, size, size)
        if not len(self.bank) or rng.random() > self.settings.distractors:
            return total, device
        for _ in range(rng.integers(1, 5)):
            item = self.bank[int(rng.integers(len(self.bank)))]
            top, left = (int(rng.integers(0, n - size + 1)) for n in item.integral.shape)
            quarter, mirror = int(rng.integers(4)), rng.random() < 0.5
            for target, layer, gain in (
                (total, item.integral, float(rng.uniform(0.4, 1.3)) * (1.0 if rng.random() < 0.85 else -0.5)),
                (device, item.device, 1.0),
            ):
                cut = np.rot90(layer[top : top + size, left : left + size], quarter)
                cut = cut[:, ::-1] if mirror else cut
                target += gain * torch.from_numpy(np.ascontiguousarray(cut)).float()
        return total, device.clamp_max(1)

    def _implants(self, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A part of a device scene, upright: what is in it comes from above or below as it does in frames."""
        scene = self.implants[int(rng.integers(len(self.implants)))]
        reach = self.implants.size - size
        row, col = np.nonzero(scene.device[::8, ::8])
        at = int(rng.integers(len(row))) if len(row) else None
        middle = (0.5 * reach, 0.5 * reach) if at is None else (8 * row[at], 8 * col[at])
        top, left = (int(np.clip(n - rng.uniform(0, 1) * size, 0, reach)) for n in middle)
        # From as faint as a small vessel to black.
        gain, mirror = float(np.exp(rng.uniform(np.log(0.12), np.log(1.2)))), rng.random() < 0.5

        def cut(layer: np.ndarray) -> torch.Tensor:
            part = layer[top : top + size, left : left + size]
            return torch.from_numpy(np.ascontiguousarray(part[:, ::-1] if mirror else part)).float()[None]

        return gain * cut(scene.integral), cut(scene.device)


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of ``(1, rows, cols)``; wide ones on a coarser grid."""
    if sigma < 0.15:
        return image
    factor = 1
    while sigma / factor > 4:
        factor *= 2
    x = F.avg_pool2d(image, factor) if factor > 1 else image
    half = max(1, math.ceil(3 * sigma / factor))
    t = torch.arange(-half, half + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (t * factor / sigma) ** 2)
    kernel = kernel / kernel.sum()
    half = min(half, min(x.shape[-2:]) - 1)
    kernel = kernel[len(kernel) // 2 - half : len(kernel) // 2 + half + 1]
    kernel = kernel / kernel.sum()
    x = F.conv2d(F.pad(x[None], (half, half, half, half), mode="reflect"), kernel[None, None, :, None])
    x = F.conv2d(x, kernel[None, None, None, :])
    if factor > 1:
        x = F.interpolate(x, size=image.shape[-2:], mode="bilinear", align_corners=False)
    return x[0]


def _filling(rng: np.random.Generator, size: int) -> torch.Tensor:
    """Relative contrast (1, s, s): a smooth front, so that a part of the tree is full and a part is empty."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, 4, 4)).astype(np.float32))
    field = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)[0]
    return torch.sigmoid(float(rng.uniform(3, 12)) * (field + float(rng.uniform(-0.3, 1.2))))


def _gaps(rng: np.random.Generator, vessel: torch.Tensor) -> torch.Tensor:
    """Relative contrast (1, s, s): one, but small at up to five spots of the vessels, which stay vessels."""
    size = vessel.shape[-1]
    total = torch.ones(1, size, size)
    rows, cols = torch.nonzero(vessel[0, ::4, ::4], as_tuple=True)
    at = torch.arange(size, dtype=torch.float32)
    for _ in range(int(rng.integers(1, 6)) if len(rows) else 0):
        chosen = int(rng.integers(len(rows)))
        flat = 0.5 / float(rng.uniform(1.5, 5)) ** 2
        across = torch.exp(-flat * (at - 4 * cols[chosen]) ** 2)[None]
        down = torch.exp(-flat * (at - 4 * rows[chosen]) ** 2)[:, None]
        total = total * (1 - float(rng.uniform(0.4, 0.9)) * (across * down))
    return total


def _expose(rng, noise, rest, contrast) -> torch.Tensor:
    """Display image (1, s, s) in 0..1 of layers: attenuation, scatter, blur, quantum noise, tone curve."""
    behind = rest.clamp(-4, 5)
    middle = behind.median()
    behind = middle + float(rng.uniform(0.5, 1.5)) * (behind - middle).clamp(-2.5, 2.5)
    if rng.random() < 0.5:
        grain = blur(torch.randn(contrast.shape, generator=noise), float(rng.uniform(0.8, 5)))
        behind = behind + float(rng.uniform(0, 0.04)) * grain / grain.std().clamp_min(1e-6)
    total = behind + contrast
    sharp = blur(torch.exp(-(total - total.median())), float(rng.uniform(0.3, 1.5)))
    scatter = float(rng.uniform(0.0, 0.5))
    sharp = (1 - scatter) * sharp + scatter * blur(sharp, 30.0)
    quanta = float(np.exp(rng.uniform(np.log(300), np.log(8000))))
    counts = sharp + (sharp.clamp_min(1e-3) / quanta).sqrt() * torch.randn(contrast.shape, generator=noise)
    counts = blur(counts, float(rng.uniform(0.0, 0.9))).clamp_min(2e-3)
    if rng.random() < 0.5:
        value = counts.log()
    else:
        value = counts ** float(rng.uniform(0.25, 1.0))
    low, high = _range(value)
    span = max(high - low, float(rng.uniform(0.15, 0.9)) if rng.random() < 0.5 else 1e-3)
    low, high = low - span * float(rng.uniform(-0.02, 0.6)), low + span * (1 + float(rng.uniform(-0.02, 0.4)))
    return _finish(rng, ((value - low) / max(high - low, 1e-3)).clamp(0, 1), noise)


def retouch(rng, grey, noise) -> torch.Tensor:
    """The phantom's display with another brightness, contrast, sharpness and noise."""
    if rng.random() < 0.5:
        grey = blur(grey, float(rng.uniform(0, 1.0)))
    if rng.random() < 0.5:
        grey = grey + float(rng.uniform(0, 0.025)) * torch.randn(grey.shape, generator=noise)
    low, high = float(rng.uniform(-0.15, 0.1)), float(rng.uniform(0.85, 1.4))
    return _finish(rng, ((grey - low) / (high - low)).clamp(0, 1), noise)


def _finish(rng, unit, noise) -> torch.Tensor:
    """What a display does after the logarithm: tone curve, harmonisation, edge enhancement, compression, bytes."""
    if rng.random() < 0.3:  # dynamic range compression: the coarse part is shown with less contrast
        coarse = blur(unit, float(rng.uniform(12, 40)))
        unit = (unit - float(rng.uniform(0.2, 0.8)) * (coarse - coarse.mean())).clamp(0, 1)
    shoulder = float(rng.uniform(-0.3, 0.8))
    unit = ((1 - shoulder) * unit + shoulder * unit * unit * (3 - 2 * unit)).clamp(0, 1)
    unit = unit ** float(np.exp(rng.uniform(-0.5, 0.5)))
    if rng.random() < 0.35:
        unit = unit + float(rng.uniform(0.2, 1.6)) * (unit - blur(unit, float(rng.uniform(1.0, 4.0))))
    if rng.random() < 0.2:
        unit = compress(unit.clamp(0, 1), float(rng.uniform(0.01, 0.06)))
    return (unit.clamp(0, 1) * 255).round() / 255


def compress(image: torch.Tensor, step: float) -> torch.Tensor:
    """Blocking and ringing as of JPEG: 8 x 8 cosine transform, coefficients rounded to steps that grow with frequency.

    ``(1, rows, cols)`` with rows and cols divisible by 8.
    """
    k = torch.arange(8, dtype=torch.float32)
    basis = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) * 0.5
    basis[0] *= math.sqrt(0.5)
    rows, cols = image.shape[-2:]
    blocks = image.reshape(rows // 8, 8, cols // 8, 8).permute(0, 2, 1, 3)
    size = step * (1 + 0.6 * (k[:, None] + k[None]))
    blocks = ((basis @ blocks @ basis.T) / size).round() * size
    return (basis.T @ blocks @ basis).permute(0, 2, 1, 3).reshape(1, rows, cols).clamp(0, 1)


def _cover(rng, grey, outside, settings: Randomisation) -> tuple[torch.Tensor, torch.Tensor]:
    """Shutters and writing over a display image; also where nothing can be seen (1, s, s) bool."""
    size = grey.shape[-1]
    dark = float(rng.uniform(0, 0.12)) if rng.random() < 0.9 else float(rng.uniform(0.5, 1))
    light = torch.where(outside, 0.0, 1.0)
    if rng.random() < settings.shutter:
        at = torch.arange(size, dtype=torch.float32)
        soft = float(rng.uniform(0.4, 3))
        for _ in range(rng.integers(1, 4)):
            # Half planes at right angles (rectangular) or in between (octagonal, iris).
            turn = 0.25 * math.pi * int(rng.integers(8)) + float(rng.normal(0, 0.02))
            reach = size * float(rng.uniform(0.25, 0.5))
            far = math.cos(turn) * (at[None] - size / 2) + math.sin(turn) * (at[:, None] - size / 2) - reach
            light = light * torch.sigmoid(-far / soft)[None]
    grey = dark + (grey - dark) * light
    hidden = light < 0.3
    if rng.random() < settings.text:
        text = torch.from_numpy(text_mask(rng, size, size))[None]
        grey = torch.where(text, float(rng.choice((1.0, 0.9, 0.0))), grey)
    return grey, hidden


def _range(value: torch.Tensor) -> tuple[float, float]:
    few = value.flatten()[::7].sort().values
    return float(few[int(0.005 * len(few))]), float(few[int(0.995 * (len(few) - 1))])
