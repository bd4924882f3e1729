# SPDX-License-Identifier: Apache-2.0
"""Oriented, two-sided line filters: how much brighter a band is than the band on its left AND on its right.

A Hessian filter answers to one-sided edges (diaphragm, heart border, ribs, spine) with half a vessel's response. Here
the contrast to the left and to the right are taken apart and the smaller one counts, which is near zero at an edge. The
bands are long, anisotropic Gaussians, which averages noise along the vessel. Responses are divided by their own local
spread, so that one threshold in standard deviations holds for all scales, doses and anatomies.

Related: the minimum of both sides is from Koller et al., "Multiscale detection of curvilinear structures in 2-D and 3-D
image data", ICCV 1995; Sato et al. 1998 and Frangi et al. 1998 are the Hessian filters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Shape of the bands in units of the radius: width, distance of the side bands, length.
BAND_SIGMA, SIDE_DISTANCE, LENGTH_SIGMA, MIN_LENGTH_PX = 0.55, 1.9, 2.0, 3.0
ORIENTATIONS = 16
SCALE_BY_CONTRAST = 0.4


@dataclass(frozen=True)
class LineResponse:
    """Per pixel the best answer over scale and orientation, each ``(rows, cols)`` float32.

    ``score``: smaller of both side contrasts over its local spread (no unit, negative possible). ``contrast``: that
    smaller contrast, unit of the image. ``radius_px``: radius of the best scale. ``direction_col``, ``direction_row``:
    unit vector along the line.
    """

    score: np.ndarray
    contrast: np.ndarray
    radius_px: np.ndarray
    direction_col: np.ndarray
    direction_row: np.ndarray


def radii_px(mm_per_pixel: float, low_mm: float = 0.35, high_mm: float = 2.8, step: float = 1.45) -> list[float]:
    """Geometric series of radii in px, none below one pixel (thinner bands sample nothing)."""
    low, high = max(1.0, low_mm / mm_per_pixel), max(1.5, high_mm / mm_per_pixel)
    count = max(2, int(math.ceil(math.log(high / low) / math.log(step))) + 1) if high > low else 1
    return [float(r) for r in np.geomspace(low, max(high, low), count)]


def line_response(image: np.ndarray, valid: np.ndarray, radii: list[float], *, device="cpu") -> LineResponse:
    """Filter ``image`` ``(rows, cols)`` (vessels bright, already continued over invalid pixels) at every radius in px.

    Args:
        valid: ``(rows, cols)`` bool: where the spread of the responses is measured.
        device: torch device.
    """
    import torch

    rows, cols = image.shape
    full = torch.as_tensor(np.ascontiguousarray(image), dtype=torch.float32, device=device)[None, None]
    mask = torch.as_tensor(np.ascontiguousarray(valid), device=device)[None, None].float()
    best = None
    for radius in radii:
        # Coarse bands need no fine grid: work where the radius is 1.6 to 3.2 pixels.
        factor = 1
        while radius / factor >= 3.2:
            factor *= 2
        layers = torch.stack(_one_scale(_shrink(full, factor), _shrink(mask, factor), radius / factor))[None]
        if factor > 1:
            layers = torch.nn.functional.interpolate(layers, scale_factor=factor, mode="bilinear", align_corners=False)
        layers = layers[0, :, :rows, :cols]
        score = layers[0] / layers[3]
        # The score alone favours thin bands (streaks inside a wide vessel, where texture is small); the contrast of a
        # tube grows until the band is as wide as the tube. Both decide on the scale.
        key = score.clamp_min(0) ** (1 - SCALE_BY_CONTRAST) * layers[0].clamp_min(0) ** SCALE_BY_CONTRAST
        new = [score, layers[0], torch.full_like(score, radius), layers[1], layers[2], key]
        best = new if best is None else [torch.where(key > best[5], a, b) for a, b in zip(new, best, strict=True)]
    angle = 0.5 * torch.atan2(best[4], best[3])
    out = [x.cpu().numpy() for x in (*best[:3], torch.cos(angle), torch.sin(angle))]
    return LineResponse(*out)


def _shrink(x, factor: int):
    import torch

    if factor == 1:
        return x
    rows, cols = x.shape[-2:]
    x = torch.nn.functional.pad(x, (0, -cols % factor, 0, -rows % factor), mode="replicate")
    return torch.nn.functional.avg_pool2d(x, factor)


def _one_scale(image, mask, radius: float):
    """Best two-sided contrast over orientation, cosine and sine of its doubled angle, local spread, on one grid."""
    import torch

    rows, cols = image.shape[-2:]
    pad = int(math.ceil(3 * radius + 6))
    size = [_fast_size(n + 2 * pad) for n in (rows, cols)]
    mode = "reflect" if pad < min(rows, cols) else "replicate"
    padded = torch.nn.functional.pad(image, (pad, pad, pad, pad), mode=mode)[0, 0]
    spectrum = torch.fft.rfft2(padded, s=size)
    device = image.device
    wy = 2 * math.pi * torch.fft.fftfreq(size[0], device=device)[:, None]
    wx = 2 * math.pi * torch.fft.rfftfreq(size[1], device=device)[None]
    sigma_t, sigma_l = BAND_SIGMA * radius, max(LENGTH_SIGMA * radius, MIN_LENGTH_PX)
    best = None
    samples = []
    for k in range(ORIENTATIONS):
        angle = math.pi * k / ORIENTATIONS
        along, across = math.cos(angle) * wx + math.sin(angle) * wy, -math.sin(angle) * wx + math.cos(angle) * wy
        band = spectrum * torch.exp(-0.5 * ((sigma_t * across) ** 2 + (sigma_l * along) ** 2))
        phase = SIDE_DISTANCE * radius * across
        shift = torch.complex(torch.cos(phase), torch.sin(phase))
        stack = torch.stack([band * (1 - shift), band * (1 - shift.conj())])
        left, right = torch.fft.irfft2(stack, s=size)[:, pad:pad + rows, pad:pad + cols]
        response = torch.minimum(left, right)
        if k % 4 == 0:
            # The mean of both sides is blind to gradients, as the smaller side is.
            samples.append(0.5 * (left + right).abs())
        here = torch.full_like(response, 2 * angle)
        if best is None:
            best = [response, here]
        else:
            better = response > best[0]
            best = [torch.where(better, response, best[0]), torch.where(better, here, best[1])]
    contrast, double_angle = best
    spread = _local_spread(torch.stack(samples), mask[0, 0] > 0.99)
    return contrast, torch.cos(double_angle), torch.sin(double_angle), spread


def _local_spread(samples, inside, tiles: int = 7):
    """Standard deviation of ``samples`` ``(k, rows, cols)`` (absolute values) from the median in overlapping tiles.

    The median hardly sees the vessels, which fill a small part of a tile. At least half the global value is returned:
    no island of zero spread in flat or clipped corners.
    """
    import torch

    rows, cols = inside.shape
    everywhere = 1.4826 * samples[:, inside].median() if inside.any() else samples.median()
    grid = torch.zeros(tiles, tiles, device=samples.device)
    half = 0.7 * max(rows, cols) / tiles
    for i in range(tiles):
        for j in range(tiles):
            r, c = (i + 0.5) * rows / tiles, (j + 0.5) * cols / tiles
            window = tuple(slice(max(0, int(x - half)), int(x + half) + 1, 2) for x in (r, c))
            chosen = samples[(slice(None), *window)][:, inside[window]]
            # A tile with few valid pixels says nothing of its own.
            enough = chosen.shape[1] * 4 > 0.2 * (2 * half) ** 2
            grid[i, j] = 1.4826 * chosen.median() if enough else everywhere
    local = torch.nn.functional.interpolate(grid[None, None], size=(rows, cols), mode="bilinear", align_corners=False)
    return torch.maximum(local[0, 0], 0.5 * everywhere).clamp_min(1e-6)


def _fast_size(n: int) -> int:
    """The next size whose prime factors are 2, 3 and 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
