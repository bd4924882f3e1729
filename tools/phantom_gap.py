# SPDX-License-Identifier: Apache-2.0
"""What tells phantom frames from real ones, measured: a linear classifier between crops of both.

    python tools/phantom_gap.py --real FRAME.png [FRAME.dcm ...] [--cases 24] [--crop 128] [--json numbers.json]

Logistic regression with a quadratic penalty on hand-made numbers of a crop, and on the features of the embedded
angiogram encoder. It is judged on crops of frames that it has not seen: one real frame and as many phantom frames as
belong to its turn are left out together. 0.5 is chance. Then the phantom frames are changed on purpose (blur, noise,
contrast of vessels, texture ...), and the share of the way from phantom to real that the classifier's answer moves
says what would make them look more real. Phantom frames are of training seeds, with diseased trees and twigs.

With ``--pool`` training samples of the segmentor stand in their place: their looks differ on purpose, so what matters
is where the real crops lie among them ("place": 50 % in the middle, 0 or 100 % beyond all of them).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Hand-made numbers of a crop, by group, in the order of :func:`numbers_of`.
GROUPS = {
    "grey": ("mean grey", "spread of grey", "skewness of grey"),
    "noise": ("noise, 1.5 px high-pass", "share of it beyond 1/4 cycle", "noise along rows over columns"),
    "bands": ("band 1 to 2 px", "band 2 to 4 px", "band 4 to 8 px", "band 8 to 16 px", "band 16 to 32 px"),
    "structure": ("pixels on an edge", "on a dark ridge", "on a bright ridge", "strength of the dark ridges"),
}
NAMES = tuple(name for names in GROUPS.values() for name in names)


@dataclass(frozen=True)
class Frame:
    """``grey`` ``(rows, cols)`` 0..1, ``valid`` the field, ``vessels`` ``(rows, cols)`` bool of a phantom frame."""

    grey: np.ndarray
    valid: np.ndarray
    vessels: np.ndarray | None = None


def numbers_of(crop: np.ndarray) -> np.ndarray:
    """The numbers of :data:`NAMES` for a crop ``(n, n)`` in 0..1; logarithms where they are sizes."""
    from scipy import ndimage

    grey = 255.0 * crop
    high = grey - ndimage.gaussian_filter(grey, 1.5)
    slope = ndimage.gaussian_gradient_magnitude(grey, 2)
    flat = slope <= np.median(slope)
    power = np.abs(np.fft.fft2(high * np.hanning(len(high))[:, None] * np.hanning(len(high)))) ** 2
    row, col = np.abs(np.fft.fftfreq(len(high)))[:, None], np.abs(np.fft.fftfreq(len(high)))[None]
    noise = high[flat].std() + 0.05
    smooth = [ndimage.gaussian_filter(grey, sigma) for sigma in (0.7, 1.4, 2.8, 5.6, 11.2, 22.4)]
    bands = [np.log((a - b).std() + 0.05) for a, b in zip(smooth[:-1], smooth[1:], strict=True)]
    dy, dx = np.gradient(smooth[2])
    (dyy, dyx), (_, dxx) = np.gradient(dy), np.gradient(dx)
    middle, half = 0.5 * (dxx + dyy), np.hypot(0.5 * (dxx - dyy), dyx)
    fine = power[np.hypot(row, col) > 0.25].sum() / power.sum()
    rows = power[(row > 0.2) & (col < 0.1)].mean() / power[(col > 0.2) & (row < 0.1)].mean()
    spread = grey.std() + 0.5
    return np.array([
        grey.mean(), np.log(spread), ((grey - grey.mean()) ** 3).mean() / spread**3,
        np.log(noise), fine, np.log(rows), *bands,
        np.sqrt((slope > 2.5).mean()), np.sqrt((middle + half > 0.6).mean()), np.sqrt((middle - half < -0.6).mean()),
        np.log(np.percentile(middle + half, 98) + 0.05),
    ])  # fmt: skip


def crops_of(frame: Frame, size: int) -> list[np.ndarray]:
    """Crops of the field side by side, none over its border."""
    rows, cols = frame.grey.shape
    out = []
    for row in range((rows % size) // 2, rows - size + 1, size):
        for col in range((cols % size) // 2, cols - size + 1, size):
            place = np.s_[row : row + size, col : col + size]
            if frame.valid[place].mean() > 0.97:
                out.append(frame.grey[place])
    return out


def encoded(crops: list[np.ndarray]) -> np.ndarray:
    """Features ``(n, dim)`` of the embedded angiogram encoder: mean of its last map over each crop."""
    import torch

    from licag3d.models.vasomim import load_encoder

    encoder = load_encoder()
    with torch.inference_mode():
        maps = encoder.maps(torch.from_numpy(np.stack(crops)[:, None].astype(np.float32)), 1)[-1]
    return maps.mean((2, 3)).numpy().astype(float)


def fitted(x: np.ndarray, real: np.ndarray, penalty: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    """Logistic regression of standardised features, both kinds weighing the same; the answer is the logit."""
    from scipy.optimize import minimize

    middle, spread = x.mean(0), x.std(0) + 1e-9
    features = np.column_stack([(x - middle) / spread, np.ones(len(x))])
    weight = np.where(real, 0.5 / real.sum(), 0.5 / (~real).sum()) * len(x)
    sign = np.where(real, 1.0, -1.0)

    def cost(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (features @ w)
        pull = -sign * weight / (1 + np.exp(np.clip(margin, -30, 30)))
        rest = penalty * np.append(w[:-1], 0)
        return float((weight * np.logaddexp(0, -margin)).sum() + 0.5 * rest @ w), features.T @ pull + rest

    w = minimize(cost, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B").x
    return lambda other: np.column_stack([(other - middle) / spread, np.ones(len(other))]) @ w


def area_under(score: np.ndarray, real: np.ndarray) -> float:
    """Chance that a real crop scores above a phantom one."""
    return float((score[real][:, None] > score[~real][None]).mean())


def judged(x: np.ndarray, real: np.ndarray, frame: np.ndarray) -> float:
    """Area under the curve on frames that were left out of the fit."""
    score = np.zeros(len(x))
    turns = len(np.unique(frame[real]))
    turn = np.where(real, np.unique(frame, return_inverse=True)[1], frame) % turns
    for k in range(turns):
        out = turn == k
        score[out] = fitted(x[~out], real[~out])(x[out])
    return area_under(score, real)


def changes() -> dict[str, Callable[[Frame, np.random.Generator], np.ndarray]]:
    """Changes of a phantom frame that a parameter of the phantom could make."""
    from scipy import ndimage

    def blur(sigma: float):
        return lambda f, g: ndimage.gaussian_filter(f.grey, sigma)

    def band(low: float, high: float, gain: float):
        def change(f: Frame, g) -> np.ndarray:
            return f.grey + gain * (ndimage.gaussian_filter(f.grey, low) - ndimage.gaussian_filter(f.grey, high))

        return change

    def noise(gain: float, sigma_px: float = 0.0):
        def change(f: Frame, g) -> np.ndarray:
            fresh = g.normal(size=f.grey.shape)
            if sigma_px:
                fresh = ndimage.gaussian_filter(fresh, sigma_px)
            return f.grey + gain / 255 * fresh / fresh.std()

        return change

    def vessels(gain: float):
        from licag3d.models.background import background_under

        def change(f: Frame, g) -> np.ndarray:
            near = ndimage.binary_dilation(f.vessels, iterations=2)
            rise = f.grey - background_under(f.grey, near, f.valid)
            return f.grey + np.where(near, (gain - 1) * ndimage.gaussian_filter(rise, 0.7), 0.0)

        return change

    return {
        "blur 0.6 px": blur(0.6),
        "sharper (band below 2 px x 1.3)": band(0.0, 2.0, 0.3),
        "white noise, 2 grey values more": noise(2.0),
        "coarse noise (1 px), 2 grey values more": noise(2.0, 1.0),
        "vessels a quarter fainter": vessels(0.75),
        "vessels a quarter darker": vessels(1.25),
        "structure of 1.5 to 4 px x 0.7": band(1.5, 4.0, -0.3),
        "structure of 1.5 to 4 px x 1.3": band(1.5, 4.0, 0.3),
        "structure of 4 to 16 px x 0.7": band(4.0, 16.0, -0.3),
        "structure of 4 to 16 px x 1.3": band(4.0, 16.0, 0.3),
        "slow changes (beyond 16 px) x 0.7": lambda f, g: f.grey - 0.3 * (
            ndimage.gaussian_filter(f.grey, 16.0) - f.grey[f.valid].mean()
        ),
        "all contrast x 0.8": lambda f, g: f.grey[f.valid].mean() + 0.8 * (f.grey - f.grey[f.valid].mean()),
    }  # fmt: skip


def phantom_frames(count: int) -> list[Frame]:
    """Display frames of training patients, right and left in turn."""
    from licag3d.io.collimator import valid_area
    from licag3d.phantom.simulate_case import simulate_case
    from licag3d.phantom.splits import training_seed

    out = []
    for k in range(count):
        artery = ("rca", "lca")[k % 2]
        case = simulate_case(
            training_seed(k), artery, views=1, held_out=0, background="full", disease="random", twigs=True
        )
        grey = case.views[0].image.astype(np.float32) / 255
        out.append(Frame(grey, valid_area(grey), case.views[0].mask | case.views[0].twigs))
    return out


def training_samples(folder: Path, count: int) -> list[Frame]:
    """Samples as the segmentor is trained on them (no bench phantoms, shutters or writing), from a pool of frames."""
    from licag3d.data.device_scenes import DeviceBank
    from licag3d.data.distractors import DistractorBank
    from licag3d.data.phantom_frames import PhantomPool
    from licag3d.data.randomise import Randomisation, SampleStream

    look = Randomisation(bench=0.0, shutter=0.0, text=0.0)
    stream = SampleStream(PhantomPool(folder), DistractorBank(60, 512), 9, look, implants=DeviceBank(12, 512))
    out = []
    for k in range(count):
        sample = stream.sample(k)
        grey = sample["grey"][0].numpy()
        out.append(Frame(grey, np.ones(grey.shape, bool), sample["vessel"][0].numpy() > 0.5))
    return out


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    from licag3d.io.atomic import write_text
    from licag3d.io.views import read_views

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", nargs="+", required=True, help="real frames, PNG or DICOM")
    parser.add_argument("--cases", type=int, default=24, help="phantom frames")
    parser.add_argument("--pool", type=Path, help="pool of training frames: samples of it instead of phantom frames")
    parser.add_argument("--crop", type=int, default=128, help="side of a crop, px")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args(arguments)
    if len(options.real) < 3 or options.cases < 4:
        parser.error("give at least three real frames and four phantom ones: whole frames are left out in turn")
    views = [read_views([path], need_geometry=False)[0][0] for path in options.real]
    others = training_samples(options.pool, options.cases) if options.pool else phantom_frames(options.cases)
    frames = [Frame(view.image, view.valid) for view in views] + others
    crops = [crops_of(frame, options.crop) for frame in frames]
    owner = np.repeat(np.arange(len(frames)), [len(c) for c in crops])
    real = owner < len(views)
    numbers = np.array([numbers_of(crop) for frame in crops for crop in frame])
    seen = encoded([crop for frame in crops for crop in frame])
    found = {"crops": [int(real.sum()), int((~real).sum())], "area": {}, "single": {}, "change": {}}
    at = 0
    found["area"]["all numbers"] = judged(numbers, real, owner)
    for group, names in GROUPS.items():
        found["area"][group] = judged(numbers[:, at : at + len(names)], real, owner)
        at += len(names)
    found["area"]["encoder"] = judged(seen, real, owner)
    for k, name in enumerate(NAMES):
        a, b = numbers[real, k], numbers[~real, k]
        gap = (b.mean() - a.mean()) / np.sqrt(0.5 * (a.var() + b.var()) + 1e-12)
        below = float((b[None] < a[:, None]).mean())
        found["single"][name] = [float(a.mean()), float(b.mean()), float(gap), area_under(numbers[:, k], real), below]
    logits = [(fitted(x, real), x) for x in (numbers, seen)]
    for name, change in changes().items():
        rng = np.random.default_rng(0)
        fresh = [
            crop
            for frame in frames[len(views) :]
            for crop in crops_of(Frame(np.clip(change(frame, rng), 0, 1).astype(np.float32), frame.valid), options.crop)
        ]
        moved = [np.array([numbers_of(crop) for crop in fresh]), encoded(fresh)]
        found["change"][name] = [
            float((logit(new).mean() - logit(x[~real]).mean()) / (logit(x[real]).mean() - logit(x[~real]).mean()))
            for (logit, x), new in zip(logits, moved, strict=True)
        ]
    print(_tables(found))
    if options.json:
        write_text(options.json, json.dumps(found, indent=1) + "\n")
    return 0


def _tables(found: dict) -> str:
    lines = [
        f"{found['crops'][0]} real crops, {found['crops'][1]} of the phantom",
        "",
        "| seen | area under the curve |",
    ]
    lines += ["|---|---|"] + [f"| {name} | {value:.2f} |" for name, value in found["area"].items()]
    lines += ["", "| number | real | phantom | difference, standard deviations | area alone | place of the real ones |"]
    lines += ["|---|---|---|---|---|---|"]
    ordered = sorted(found["single"].items(), key=lambda item: -abs(item[1][2]))
    lines += [f"| {name} | {a:.2f} | {b:.2f} | {gap:+.2f} | {area:.2f} | {100 * below:.0f} % |"
              for name, (a, b, gap, area, below) in ordered]  # fmt: skip
    lines += ["", "| change of the phantom | toward real, by numbers | by the encoder |", "|---|---|---|"]
    ordered = sorted(found["change"].items(), key=lambda item: -sum(item[1]))
    lines += [f"| {name} | {100 * a:+.0f} % | {100 * b:+.0f} % |" for name, (a, b) in ordered]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
