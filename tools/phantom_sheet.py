# SPDX-License-Identifier: Apache-2.0
"""Phantom frames beside real ones, as one picture and as one table of statistics.

    python tools/phantom_sheet.py --real FOLDER --out sheet.png [--cases 16] [--seed 0] [--json numbers.json]

FOLDER holds ``images/*.png`` and ``labels/*.txt`` (vessel outlines: a class number, then x y pairs as shares of the
image), as ARCADE publishes them. The real frames are the last rows of the sheet. Without --real only the phantom is
drawn and measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np

from licag3d.io.atomic import write_bytes, write_text
from licag3d.phantom.simulate_case import simulate_case

#: Statistics of :func:`statistics_of` and what they are, in the order of the table.
NAMES = {
    "mean": "mean grey",
    "spread": "standard deviation of grey",
    "dark": "5th percentile of grey",
    "light": "95th percentile of grey",
    "contrast": "large vessels: grey of the ring round them minus their own, median",
    "relative_contrast": "the same over the grey of the ring",
    "noise": "noise: standard deviation of what a 1.5 px blur takes out, in flat places",
    "noise_fine": "share of noise power above a quarter of the sampling rate, flat places",
    "noise_slope": "slope of log power over log frequency, 4 to 32 cycles per frame",
    "edges": "share of pixels off the vessels with an edge (gradient above 2.5 grey/px at 2 px)",
    "ridges": "share of pixels off the vessels on a dark ridge (2 px, above 0.6 grey/px^2)",
    "bright_ridges": "the same, bright ridges",
}


def statistics_of(image: np.ndarray, vessels: np.ndarray) -> dict[str, float]:
    """What makes a frame look real, in numbers (see :data:`NAMES`).

    Args:
        image: ``(rows, cols)`` uint8. vessels: ``(rows, cols)`` bool, the large vessels.
    """
    from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter, gaussian_gradient_magnitude

    grey = image.astype(np.float64)
    rows, cols = grey.shape
    open_field = gaussian_filter(grey, 4) > 8
    inside = np.zeros_like(open_field)
    inside[rows // 16 : -rows // 16, cols // 16 : -cols // 16] = True
    inside &= binary_erosion(open_field, iterations=8, border_value=1)
    off = inside & ~binary_dilation(vessels, iterations=6)
    core = binary_erosion(vessels) & inside
    ring = binary_dilation(vessels, iterations=9) & ~binary_dilation(vessels, iterations=4) & inside
    near = gaussian_filter(np.where(ring, grey, 0), 6) / np.maximum(gaussian_filter(ring.astype(float), 6), 1e-3)
    contrast = near[core] - grey[core]
    high = grey - gaussian_filter(grey, 1.5)
    slope = gaussian_gradient_magnitude(grey, 2)
    flat = off & (slope < np.percentile(slope[off], 50)) & (grey > 20) & (grey < 235)
    small, large = _curvatures(gaussian_filter(grey, 2.0))
    return {
        "mean": float(grey[inside].mean()),
        "spread": float(grey[inside].std()),
        "dark": float(np.percentile(grey[inside], 5)),
        "light": float(np.percentile(grey[inside], 95)),
        "contrast": float(np.median(contrast)),
        "relative_contrast": float(np.median(contrast / np.maximum(near[core], 1))),
        "noise": float(high[flat].std()),
        "noise_fine": _fine_share(grey, off, slope),
        "noise_slope": _slope(grey),
        "edges": float((slope[off] > 2.5).mean()),
        "ridges": float((large[off] > 0.6).mean()),
        "bright_ridges": float((small[off] < -0.6).mean()),
    }


def _curvatures(smooth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smaller and larger eigenvalue of the second derivatives."""
    dy, dx = np.gradient(smooth)
    (dyy, dyx), (_, dxx) = np.gradient(dy), np.gradient(dx)
    mean, half = 0.5 * (dxx + dyy), np.hypot(0.5 * (dxx - dyy), dyx)
    return mean - half, mean + half


def _fine_share(grey: np.ndarray, off: np.ndarray, slope: np.ndarray, size: int = 32) -> float:
    """Share of the power above 0.25 cycles per pixel in the flatter half of the patches that hold no vessel, each
    freed of its plane.
    """
    patches = []
    for row in range(0, grey.shape[0] - size, size):
        for col in range(0, grey.shape[1] - size, size):
            place = np.s_[row : row + size, col : col + size]
            if off[place].mean() > 0.98:
                patches.append((float(slope[place].mean()), row, grey[place]))
    if not patches:
        return float("nan")
    patches = [patch for _, _, patch in sorted(patches, key=lambda one: one[:2])[: (len(patches) + 1) // 2]]
    y, x = np.mgrid[:size, :size] / size
    plane = np.stack((np.ones(size * size), y.ravel(), x.ravel()), axis=1)
    power = 0.0
    for patch in patches:
        rest = patch.ravel() - plane @ np.linalg.lstsq(plane, patch.ravel(), rcond=None)[0]
        power = power + np.abs(np.fft.fft2(rest.reshape(size, size))) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    return float(power[frequency > 0.25].sum() / power[frequency > 1.5 / size].sum())


def _slope(grey: np.ndarray) -> float:
    rows, cols = grey.shape
    inner = grey[rows // 16 : -rows // 16, cols // 16 : -cols // 16]
    window = np.hanning(inner.shape[0])[:, None] * np.hanning(inner.shape[1])[None]
    power = np.abs(np.fft.fft2((inner - inner.mean()) * window)) ** 2
    per_frame = np.hypot(
        *np.meshgrid(np.fft.fftfreq(inner.shape[1]) * inner.shape[1], np.fft.fftfreq(inner.shape[0]) * inner.shape[0])
    )
    edges = np.geomspace(4, 32, 9)
    means = [power[(per_frame >= a) & (per_frame < b)].mean() for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return float(np.polyfit(np.log(np.sqrt(edges[:-1] * edges[1:])), np.log(means), 1)[0])


def read_real(folder: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, image ``(rows, cols)`` uint8 and vessel outline mask of every real frame."""
    from skimage.draw import polygon

    found = []
    for path in sorted((folder / "images").glob("*.png"), key=lambda path: (len(path.stem), path.stem)):
        image = imageio.imread(path)
        image = image if image.ndim == 2 else image[..., 0]
        mask = np.zeros(image.shape, bool)
        for line in (folder / "labels" / f"{path.stem}.txt").read_text().splitlines():
            points = np.array(line.split()[1:], float).reshape(-1, 2)
            mask[polygon(points[:, 1] * image.shape[0], points[:, 0] * image.shape[1], image.shape)] = True
        found.append((path.stem, image, mask))
    return found


def phantom_frames(count: int, seed: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, image and large-vessel mask of one view of each of ``count`` patients, right and left in turn."""
    from licag3d.phantom.tubes import path_length_mm, tree_lines

    found = []
    for number in range(count):
        artery = ("rca", "lca")[number % 2]
        case = simulate_case(seed + number, artery, background="full", held_out=0)
        view = case.views[number // 2 % 2]
        thick = type(case.tree)(tuple(b for b in case.tree.branches if np.median(b.radius_mm) > 0.7))
        large = path_length_mm(tree_lines(thick), view.true_camera) > 1.2
        found.append((f"{artery} {seed + number}", view.image, large & view.mask))
    return found


def sheet(images: list[np.ndarray], columns: int = 4, gap: int = 4) -> np.ndarray:
    """All images side by side, ``columns`` in a row, resized to the first one's size by repetition or striding."""
    rows, cols = images[0].shape
    lines = []
    for start in range(0, len(images), columns):
        line = np.full((rows, columns * (cols + gap)), 255, np.uint8)
        for place, image in enumerate(images[start : start + columns]):
            if image.shape != (rows, cols):
                pick = (np.arange(rows) * image.shape[0] // rows, np.arange(cols) * image.shape[1] // cols)
                image = image[np.ix_(*pick)]
            line[:, place * (cols + gap) : place * (cols + gap) + cols] = image
        lines += [line, np.full((gap, line.shape[1]), 255, np.uint8)]
    return np.concatenate(lines)


def summary(frames: list[tuple[str, np.ndarray, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Mean, smallest and largest of every statistic over the frames."""
    values = [statistics_of(image, vessels) for _, image, vessels in frames]
    table = {}
    for name in NAMES:
        column = np.array([one[name] for one in values])
        table[name] = {
            "mean": float(np.nanmean(column)), "low": float(np.nanmin(column)), "high": float(np.nanmax(column))
        }  # fmt: skip
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--real", type=Path, help="folder with images/ and labels/ of real frames")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--cases", type=int, default=16, help="number of phantom patients (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first patient (default 0)")
    parser.add_argument("--json", type=Path, help="write the statistics of both sides here")
    options = parser.parse_args(arguments)
    if not 1 <= options.cases <= 400:
        parser.error(f"number of cases is {options.cases}; give 1 to 400")
    if options.real is not None and not (options.real / "images").is_dir():
        parser.error(f"no folder images/ in {options.real}; give the folder that holds images/ and labels/")
    phantom = phantom_frames(options.cases, options.seed)
    real = read_real(options.real) if options.real is not None else []
    write_bytes(options.out, imageio.imwrite("<bytes>", sheet([one[1] for one in phantom + real]), extension=".png"))
    tables = {"phantom": summary(phantom)} | ({"real": summary(real)} if real else {})
    for name, meaning in NAMES.items():
        cells = [
            f"{side}: {t[name]['mean']:8.3f} [{t[name]['low']:.3f}, {t[name]['high']:.3f}]"
            for side, t in tables.items()
        ]
        print(f"{name:18s} {'   '.join(cells)}   {meaning}")
    if options.json is not None:
        write_text(options.json, json.dumps(tables, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
