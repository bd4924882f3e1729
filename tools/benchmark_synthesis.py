# SPDX-License-Identifier: Apache-2.0
"""Benchmark synthesis: are the vessels of a synthesised angiogram those of the patient?

    python -m licag3d.data.contrast_pairs --pool PAIRS --split validation --first 100 --cases 12 --views 1 \
        --kappas 0 0.05 0.1 0.2
    python tools/benchmark_synthesis.py --pairs PAIRS --pool POOL --out benchmarks/results/synthesis.json

Every method gets the contrast-free frame and gives vessels. ``direct`` scores are of the vessels a method itself says
it drew; ``seen`` scores are of what the classical evidence, which has learnt nothing, finds in the angiogram it made.
``oracle`` is the evidence on the true angiogram, ``identity`` on the contrast-free frame as it is; ``atlas`` draws
where vessels of training patients with that artery were most often, ``other-patient`` the vessels of one of them. A
file that is there already is added to, method by method.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the package benchmarks, which is not installed

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

SCHEMA = "licag3d-synthesis-1"
METHODS = ("oracle", "identity", "atlas", "other-patient", "network")
ATLAS_PX = 128
ATLAS_FRAMES = 400


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python tools/benchmark_synthesis.py", description="Score synthesised angiograms.")
    made.add_argument("--pairs", required=True, metavar="DIR", help="pairs of validation or benchmark seeds")
    made.add_argument("--pool", metavar="DIR", help="training frames, for atlas and other-patient")
    made.add_argument("--out", required=True, metavar="FILE", help="result file (JSON); added to if it is there")
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    made.add_argument("--weights", default="synthesis", help="of the network: embedded name or .safetensors")
    made.add_argument("--draw", choices=("likely", "guess"), default="likely", help="as in licag3d.synthesize")
    made.add_argument("--direct-only", action="store_true", help="leave out what the classical evidence sees (slow)")
    made.add_argument("--name", default="mask-first", help="what the network is called in the results")
    made.add_argument("--picture", metavar="FILE", help="write a sheet of the first frames (PNG)")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Measure what was asked for, write the file, print the table."""
    given = parser().parse_args(argv)
    from licag3d.data.contrast_pairs import PairPool
    from licag3d.io.atomic import check_output_folder, write_text
    from licag3d.phantom.splits import TRAINING

    out = Path(given.out)
    check_output_folder(out.parent)
    pool = PairPool(given.pairs)
    if any(entry["seed"] in TRAINING for entry in pool.entries):
        raise InputError(f"--pairs {given.pairs}: holds training patients; a benchmark on them proves nothing")
    result = {"schema": SCHEMA, "methods": {}}
    if out.is_file():
        result = json.loads(out.read_text("utf-8"))
        if result.get("schema") != SCHEMA:
            raise InputError(f"{out}: a result of another version; give another --out")
    result["pairs"] = {
        "frames": len(pool),
        "moving": sum(entry["before"] is not None for entry in pool.entries),
        "seeds": [entry["seed"] for entry in pool.entries],
        "kappas": pool.entries[0]["kappas"],
    }
    for method in given.methods:
        name = given.name if method == "network" else method
        began = time.process_time()
        rows = measure(pool, method, given)
        result["methods"][name] = {"rows": rows, "processor_s_per_frame": (time.process_time() - began) / len(rows)}
        if method == "network":
            result["methods"][name]["weights"] = Path(given.weights).name
        write_text(out, json.dumps(result) + "\n")
    result["summary"] = summary(result)
    write_text(out, json.dumps(result) + "\n")
    print(table(result["summary"]))
    if given.picture:
        write_sheet(pool, given)
    return 0


def measure(pool, method: str, given) -> list[dict]:
    """One row per frame and kappa (oracle: per frame)."""
    from tqdm import tqdm

    from licag3d.io.collimator import valid_area
    from licag3d.metrics.synthesis import change_outside, independent_mask, vessel_scores

    maker = maker_of(method, given)
    rows = []
    for number in tqdm(range(len(pool)), disable=None, unit="frame", desc=method):
        pair = pool.pair(number)
        kappas = (1.0,) if method == "oracle" else pair.kappas
        pictures = pair.angiogram.image[None] if method == "oracle" else pair.images
        for kappa, picture in zip(kappas, pictures, strict=True):
            # The oracle sees the angiogram and is judged by its moment; of still pairs they are the same.
            frame = pair.angiogram if method == "oracle" else pair.before
            image = picture.astype(np.float32) / 255
            valid, mm = valid_area(image), frame.mm_per_pixel
            made, drawn, promised = maker(image, valid, pair)
            row = {"seed": frame.seed, "artery": frame.artery, "kappa": kappa, "moving": pair.moving}
            if drawn is not None:
                row["direct"] = vessel_scores(drawn, frame.mask, mm, ignore=frame.faint)
                row["promised_dice"] = promised
                if pair.moving:
                    at = pair.angiogram
                    row["direct_at_angiogram"] = vessel_scores(drawn, at.mask, mm, ignore=at.faint)
            if made is not None and not given.direct_only:
                found = independent_mask(made, mm, valid)
                row["seen"] = vessel_scores(found, frame.mask, mm, ignore=frame.faint)
                row["change_outside"] = change_outside(made, image, frame.mask | frame.faint)
            rows.append(row)
    return rows


def maker_of(method: str, given) -> Callable:
    """``(image, valid, pair) -> (angiogram or None, drawn mask or None, promised Dice)`` of a method."""
    nan = float("nan")
    if method in ("oracle", "identity"):
        return lambda image, valid, pair: (image, None, nan)
    if method == "network":
        from licag3d.metrics.synthesis import view_of
        from licag3d.models.mask_first import THRESHOLD
        from licag3d.models.virtual_contrast import load_synthesiser

        draw = load_synthesiser(given.weights, threshold=None if given.draw == "guess" else THRESHOLD)

        def by_network(image, valid, pair):
            made = draw(view_of(image, pair.before.mm_per_pixel, valid))
            return made.angiogram, made.mask, made.expected_dice

        return by_network
    if not given.pool:
        raise InputError(f"method {method} needs --pool DIR, the training frames")
    masks = training_masks(given.pool)
    if method == "other-patient":

        def of_another(image, valid, pair):
            same = masks[pair.before.artery]
            mask = same[np.random.default_rng([pair.before.seed, 81]).integers(len(same))]
            return None, resized(mask.astype(np.float32), image.shape) > 0.5, nan

        return of_another
    atlases = {artery: atlas_of(stack) for artery, stack in masks.items()}
    return lambda image, valid, pair: (None, resized(atlases[pair.before.artery], image.shape) > 0.5, nan)


def training_masks(folder) -> dict[str, np.ndarray]:
    """Vessel masks ``(n, ATLAS_PX, ATLAS_PX)`` of training frames by artery."""
    from licag3d.data.phantom_frames import DEVICE, VESSEL
    from licag3d.train.segmentor import training_pool

    pool = training_pool(folder)
    found: dict[str, list] = {"rca": [], "lca": []}
    for number in range(min(ATLAS_FRAMES, len(pool))):
        codes = np.asarray(pool.layers(number)[4]).astype(np.int32) % DEVICE
        found[pool.entries[number]["artery"]].append(
            resized((codes >= VESSEL).astype(np.float32), (ATLAS_PX,) * 2) > 0.5
        )
    return {artery: np.stack(masks) for artery, masks in found.items() if masks}


def atlas_of(masks: np.ndarray) -> np.ndarray:
    """Where vessels are most often, as a mask (float): the share of patients above the threshold of best mean Dice."""
    share = masks.mean(0)

    def dice(threshold: float) -> float:
        drawn = share > threshold

        return float(np.mean(2 * (masks & drawn).sum((1, 2)) / np.maximum(masks.sum((1, 2)) + drawn.sum(), 1)))

    best = max(np.linspace(0.02, 0.6, 30), key=dice)
    return (share > best).astype(np.float32)


def resized(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Area average or bilinear, ``(rows, cols)``."""
    import torch
    import torch.nn.functional as F

    values = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    return F.interpolate(values, size=shape, mode="bilinear", antialias=True, align_corners=False)[0, 0].numpy()


def summary(result: dict) -> list[dict]:
    """Mean with bootstrap interval over frames, per method, kind of score and kappa."""
    from benchmarks.statistics import statistics

    lines = []
    for name, entry in result["methods"].items():
        for kind in ("direct", "seen", "direct_at_angiogram"):
            rows = [row for row in entry["rows"] if kind in row]
            for kappa in sorted({row["kappa"] for row in rows}):
                chosen = [row for row in rows if row["kappa"] == kappa]
                line = {"method": name, "kind": kind, "kappa": kappa}
                for key in chosen[0][kind]:
                    line[key] = statistics([row[kind][key] for row in chosen])
                for key in ("promised_dice", "change_outside"):
                    values = [row[key] for row in chosen if key in row]
                    if values:
                        line[key] = statistics(values)
                lines.append(line)
    return lines


def table(lines: list[dict]) -> str:
    """The summary as text."""
    heads = ("dice", "cldice", "missed_mm", "hallucinated_mm", "truth_mm")
    text = [f"{'method':16s}{'scored':20s}{'kappa':>6s}" + "".join(f"{head:>26s}" for head in heads)]
    for line in lines:
        cells = []
        for head in heads:
            s, digits = line[head], 0 if head.endswith("_mm") else 3
            cells.append(f"{s['mean']:.{digits}f} ({s['low_95']:.{digits}f} to {s['high_95']:.{digits}f})".rjust(26))
        text.append(f"{line['method']:16s}{line['kind']:20s}{line['kappa']:6.2f}" + "".join(cells))
    return "\n".join(text)


def write_sheet(pool, given, frames: int = 4) -> None:
    """Contrast-free frame, drawn angiogram and vessels per kappa, and the true angiogram, of the first frames."""
    from PIL import Image

    from licag3d.io.collimator import valid_area
    from licag3d.metrics.synthesis import view_of
    from licag3d.models.virtual_contrast import load_synthesiser

    draw = load_synthesiser(given.weights)
    sheet = []
    for number in range(min(frames, len(pool))):
        pair = pool.pair(number)
        cells = []
        for picture in pair.images:
            image = picture.astype(np.float32) / 255
            made = draw(view_of(image, pair.before.mm_per_pixel, valid_area(image)))
            cells += [image, made.angiogram, made.vessel]
        cells += [pair.before.image / 255, pair.before.mask.astype(np.float32)]
        sheet.append(np.hstack([resized(cell, (160, 160)) for cell in cells]))
    Image.fromarray(np.rint(255 * np.vstack(sheet).clip(0, 1)).astype(np.uint8)).save(given.picture)


if __name__ == "__main__":
    run(main)
