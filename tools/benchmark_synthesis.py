# SPDX-License-Identifier: Apache-2.0
"""Benchmark synthesis: are the vessels of a synthesised angiogram those of the patient?

    python -m licag3d.data.contrast_pairs --pool PAIRS --split validation --first 100 --cases 12 --views 1 \
        --kappas 0 0.05 0.1 0.2 --moving 0.33
    python tools/benchmark_synthesis.py --pairs PAIRS --pool POOL --out benchmarks/results/synthesis.json \
        --networks mask-first=RUN/mask_first.safetensors pix2pix=RUN2/synthesis_rival.safetensors
    python tools/benchmark_synthesis.py --pairs PAIRS --ablation RUN --out ablation.json --kappas 0.1 0.2

Every method gets the contrast-free frame and gives vessels. ``direct`` scores are of the vessels a method itself says
it drew; ``seen`` scores are of what the classical evidence finds in the angiogram it made. That evidence has learnt
nothing and is no part of any loss: it is independent of the segmentor that trains CAS-GAN and mask-first synthesis.
``oracle`` is the evidence on the true angiogram, ``identity`` on the contrast-free frame as it is; ``atlas`` draws
where vessels of training patients with that artery were most often, ``other-patient`` the vessels of one of them, both
with the mean darkening of training vessels. ``--networks`` takes one name several times, for trainings of several
seeds; ``--ablation`` takes the eight rows of ``licag3d.train casgan --ablation``, of one or several runs. A result file
that is there already is added to, method by method. Style, leak, swap and closure: tools/probe_synthesis.py.
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

SCHEMA = "licag3d-synthesis-2"
METHODS = ("oracle", "identity", "atlas", "other-patient")
ATLAS_PX = 128
ATLAS_FRAMES = 400
DRAWS = 1000
HEADS = ("dice", "cldice", "branch_f1", "missed_mm", "hallucinated_mm", "change_outside")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python tools/benchmark_synthesis.py", description="Score synthesised angiograms.")
    made.add_argument("--pairs", required=True, metavar="DIR", help="pairs of validation or benchmark seeds")
    made.add_argument("--pool", metavar="DIR", help="training frames, for atlas and other-patient")
    made.add_argument("--out", required=True, metavar="FILE", help="result file (JSON); added to if it is there")
    made.add_argument("--methods", nargs="*", choices=METHODS, default=[], help="methods without training")
    add_network_flags(made)
    made.add_argument("--draw", choices=("likely", "guess"), default="likely", help="of mask-first synthesis")
    made.add_argument("--direct-only", action="store_true", help="leave out what the classical evidence sees (slow)")
    made.add_argument("--kappas", type=float, nargs="+", metavar="K", help="only these of the pairs' kappas")
    made.add_argument("--frames", type=int, metavar="N", help="only the first N frames")
    made.add_argument("--picture", metavar="FILE", help="write a sheet of the first frames and all networks (PNG)")
    add_debug_flag(made)
    return made


def add_network_flags(made) -> None:
    """``--networks`` and ``--ablation``."""
    made.add_argument(
        "--networks", nargs="*", default=[], metavar="NAME=FILE", help="trained methods (.safetensors); the same name "
        "again is another seed"
    )  # fmt: skip
    made.add_argument(
        "--ablation", nargs="*", default=[], metavar="DIR", help="runs of licag3d.train casgan --ablation"
    )


def networks_of(given) -> dict[str, list[str]]:
    """Files by name, of ``--networks`` and ``--ablation``.

    Raises:
        InputError: a flag that is no ``NAME=FILE``, a missing file, or an ablation without rows.
    """
    found: dict[str, list[str]] = {}
    for text in given.networks:
        name, sign, file = text.partition("=")
        if not name or not sign or not Path(file).is_file():
            raise InputError(f"--networks {text}: give NAME=FILE with the .safetensors of a training")
        found.setdefault(name, []).append(file)
    for folder in given.ablation:
        rows = sorted(Path(folder).glob("row_*/casgan.safetensors"))
        if not rows:
            raise InputError(f"--ablation {folder}: holds no row_*/casgan.safetensors of licag3d.train casgan")
        for file in rows:
            found.setdefault(file.parent.name.removeprefix("row_").replace("o", "-"), []).append(str(file))
    return found


def main(argv: list[str]) -> int:
    """Measure what was asked for, write the file, print the table."""
    given = parser().parse_args(argv)
    from licag3d.data.contrast_pairs import PairPool
    from licag3d.io.atomic import check_output_folder, write_text

    out = Path(given.out)
    check_output_folder(out.parent)
    networks = networks_of(given)
    pool = check_patients(PairPool(given.pairs), "--pairs")
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
        result["methods"][method] = {"rows": measure(pool, method, maker_of(method, given), given)}
        write_text(out, json.dumps(result) + "\n")
    for name, files in networks.items():
        rows = []
        for turn, file in enumerate(files):
            rows += [row | {"turn": turn} for row in measure(pool, name, network(file, given.draw), given)]
        result["methods"][name] = {"rows": rows, "weights": [Path(file).name for file in files]}
        write_text(out, json.dumps(result) + "\n")
    result["summary"] = summary(result)
    write_text(out, json.dumps(result) + "\n")
    print(table(result["summary"]))
    if given.picture:
        write_sheet(pool, networks, given)
    return 0


def check_patients(pool, flag: str):
    """The pool itself.

    Raises:
        InputError: it holds training patients.
    """
    from licag3d.data.phantom_frames import benchmark_frames

    benchmark_frames(pool, flag)
    return pool


def measure(pool, method: str, maker: Callable, given) -> list[dict]:
    """One row per frame and kappa (oracle: per frame)."""
    from tqdm import tqdm

    from licag3d.io.collimator import valid_area
    from licag3d.metrics.synthesis import branch_scores, change_outside, independent_mask, vessel_scores

    def scores(found, frame):
        facts = vessel_scores(found, frame.mask, frame.mm_per_pixel, ignore=frame.faint)
        return facts | branch_scores(found, frame.mask, frame.labels, frame.mm_per_pixel, ignore=frame.faint)

    rows = []
    for number in tqdm(range(min(given.frames or len(pool), len(pool))), disable=None, unit="frame", desc=method):
        pair = pool.pair(number)
        kappas = (1.0,) if method == "oracle" else pair.kappas
        pictures = pair.angiogram.image[None] if method == "oracle" else pair.images
        for kappa, picture in zip(kappas, pictures, strict=True):
            if given.kappas and method != "oracle" and not np.isclose(kappa, given.kappas).any():
                continue
            # The oracle sees the angiogram and is judged by its moment; of still pairs they are the same.
            frame = pair.angiogram if method == "oracle" else pair.before
            image = picture.astype(np.float32) / 255
            valid, mm = valid_area(image), frame.mm_per_pixel
            began = time.process_time()
            made, drawn, promised = maker(image, valid, pair)
            row = {"seed": frame.seed, "artery": frame.artery, "kappa": kappa, "moving": pair.moving}
            row["processor_s"] = time.process_time() - began
            if drawn is not None:
                row["direct"] = scores(drawn, frame)
                row["promised_dice"] = promised if np.isfinite(promised) else None
                if pair.moving:
                    row["direct_at_angiogram"] = scores(drawn, pair.angiogram)
            row["change_outside"] = change_outside(made, image, frame.mask | frame.faint)
            if not given.direct_only:
                row["seen"] = scores(independent_mask(made, mm, valid), frame)
            rows.append(row)
    return rows


def network(file: str, draw: str = "likely") -> Callable:
    """``(image, valid, pair) -> (angiogram, drawn mask or None, promised Dice)`` of a trained method; a translation of
    pictures says nothing of a mask.
    """
    from licag3d.metrics.synthesis import view_of
    from licag3d.models.mask_first import THRESHOLD
    from licag3d.models.synthesis_rivals import TRANSLATORS
    from licag3d.models.virtual_contrast import load_synthesiser
    from licag3d.train.checkpoints import load_weights

    config = load_weights(file)[1].get("config", {})
    masks = config.get("method") not in TRANSLATORS and config.get("vsgg", True)
    synthesise = load_synthesiser(file, threshold=None if draw == "guess" else THRESHOLD)

    def by_network(image, valid, pair):
        made = synthesise(view_of(image, pair.before.mm_per_pixel, valid))
        return made.angiogram, made.mask if masks else None, made.expected_dice

    return by_network


def maker_of(method: str, given) -> Callable:
    """As :func:`network`, of a method without training."""
    nan = float("nan")
    if method in ("oracle", "identity"):
        return lambda image, valid, pair: (image, None, nan)
    if not given.pool:
        raise InputError(f"method {method} needs --pool DIR, the training frames")
    masks, darkness = training_masks(given.pool), mean_darkness(given.pool)

    def drawn(image, valid, mask):
        mask = resized(mask.astype(np.float32), image.shape) * valid
        return image * np.exp(-darkness * mask), mask > 0.5, nan

    if method == "other-patient":

        def of_another(image, valid, pair):
            same = masks[pair.before.artery]
            return drawn(image, valid, same[np.random.default_rng([pair.before.seed, 81]).integers(len(same))])

        return of_another
    atlases = {artery: atlas_of(stack) for artery, stack in masks.items()}
    return lambda image, valid, pair: drawn(image, valid, atlases[pair.before.artery])


def training_masks(folder) -> dict[str, np.ndarray]:
    """Vessel masks ``(n, ATLAS_PX, ATLAS_PX)`` of training frames by artery."""
    from licag3d.data.phantom_frames import VESSEL
    from licag3d.train.segmentor import training_pool

    pool = training_pool(folder)
    found: dict[str, list] = {"rca": [], "lca": []}
    for number in range(min(ATLAS_FRAMES, len(pool))):
        codes = np.asarray(pool.layers(number)[4]).astype(np.int32)
        mask = resized(((codes & VESSEL) > 0).astype(np.float32), (ATLAS_PX,) * 2) > 0.5
        found[pool.entries[number]["artery"]].append(mask)
    return {artery: np.stack(masks) for artery, masks in found.items() if masks}


def mean_darkness(folder, count: int = 32) -> float:
    """Mean attenuation of training vessels in units of their displays."""
    from licag3d.data.contrast_samples import PairSettings, PairStream
    from licag3d.train.mask_first import training_pairs

    stream = PairStream(training_pairs(folder), 0, PairSettings(size=96, shown=0.0, noisy=False))
    samples = [stream.sample(k) for k in range(count)]
    return float(np.mean([float(s["attenuation"][s["vessel"] > 0].mean()) for s in samples if s["vessel"].any()]))


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
    """Mean with 95 % interval per method, kind of score, kappa, and still, moving or all pairs."""
    lines = []
    for name, entry in result["methods"].items():
        for kind in ("direct", "seen", "direct_at_angiogram"):
            for pairs, wanted in (("all", (False, True)), ("still", (False,)), ("moving", (True,))):
                rows = [row for row in entry["rows"] if kind in row and row["moving"] in wanted]
                for kappa in sorted({row["kappa"] for row in rows}):
                    chosen = [row for row in rows if row["kappa"] == kappa]
                    line = {"method": name, "kind": kind, "pairs": pairs, "kappa": kappa}
                    for key in chosen[0][kind]:
                        line[key] = interval(chosen, lambda row, kind=kind, key=key: row[kind][key])
                    for key in ("promised_dice", "change_outside"):
                        if key in chosen[0]:
                            line[key] = interval(chosen, lambda row, key=key: row[key])
                    lines.append(line)
    return lines


def interval(rows: list[dict], value: Callable[[dict], float]) -> dict[str, float | int]:
    """Mean and its 95 % interval: bootstrap over patients and, where there are several, over trainings as well.

    A value that is missing or not finite (nothing was drawn) is left out.
    """
    patients = sorted({row["seed"] for row in rows})
    turns = sorted({row.get("turn", 0) for row in rows})
    grid = np.full((len(turns), len(patients)), np.nan)
    for row in rows:
        if value(row) is not None and np.isfinite(value(row)):
            grid[turns.index(row.get("turn", 0)), patients.index(row["seed"])] = value(row)
    if np.isnan(grid).all():
        return {"n": 0, "trainings": len(turns), "mean": None, "low_95": None, "high_95": None}
    rng = np.random.default_rng(0)
    i = rng.integers(len(turns), size=(DRAWS, len(turns), 1))
    j = rng.integers(len(patients), size=(DRAWS, 1, len(patients)))
    drawn = grid[i, j].reshape(DRAWS, -1)
    drawn = drawn[~np.isnan(drawn).all(1)]
    low, high = np.percentile(np.nanmean(drawn, 1), (2.5, 97.5))
    found = {"n": len(patients), "trainings": len(turns), "mean": float(np.nanmean(grid))}
    return found | {"low_95": float(low), "high_95": float(high)}


def table(lines: list[dict]) -> str:
    """The summary of all pairs as text."""
    text = [f"{'method':16s}{'scored':20s}{'kappa':>6s}" + "".join(f"{head:>26s}" for head in HEADS)]
    for line in lines:
        if line["pairs"] != "all":
            continue
        cells = []
        for head in HEADS:
            s, digits = line[head], 0 if head.endswith("_mm") else 3
            cells.append(f"{s['mean']:.{digits}f} ({s['low_95']:.{digits}f} to {s['high_95']:.{digits}f})".rjust(26))
        text.append(f"{line['method']:16s}{line['kind']:20s}{line['kappa']:6.2f}" + "".join(cells))
    return "\n".join(text)


def write_sheet(pool, networks: dict, given, frames: int = 4, side: int = 200) -> None:
    """Per frame a row: contrast-free at the largest kappa asked for, what every network makes of it, the truth."""
    import io

    from PIL import Image, ImageDraw

    from licag3d.io.atomic import write_bytes
    from licag3d.io.collimator import valid_area

    sheet = []
    names = ["contrast-free", *networks, "true angiogram", "true vessels"]
    makers = [network(files[0], given.draw) for files in networks.values()]
    for number in range(min(frames, given.frames or len(pool), len(pool))):
        pair = pool.pair(number)
        wanted = max(given.kappas or pair.kappas)
        image = pair.images[int(np.argmin(np.abs(np.array(pair.kappas) - wanted)))].astype(np.float32) / 255
        made = [maker(image, valid_area(image), pair)[0] for maker in makers]
        cells = [image, *made, pair.angiogram.image / 255, pair.before.mask.astype(np.float32)]
        sheet.append(np.hstack([resized(cell, (side, side)) for cell in cells]))
    picture = Image.fromarray(np.rint(255 * np.vstack(sheet).clip(0, 1)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for k, name in enumerate(names):
        draw.text((k * side + 4, 4), name, fill=255, stroke_width=2, stroke_fill=0)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_bytes(given.picture, buffer.getvalue())


if __name__ == "__main__":
    run(main)
