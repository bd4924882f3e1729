# SPDX-License-Identifier: Apache-2.0
"""What a synthesis does besides placing vessels: its style, its codes, and what a reconstruction makes of it.

    python tools/probe_synthesis.py distances --frames VALIDATION --networks NAME=FILE ... --out distances.json
    python tools/probe_synthesis.py leak --pairs PAIRS --pool TRAINING --networks DGL=RUN/casgan.safetensors --out F
    python tools/probe_synthesis.py swap --pairs PAIRS --networks DGL=RUN/casgan.safetensors --out F
    python tools/probe_synthesis.py closure --networks mask-first=RUN/mask_first.safetensors --out F

``distances``: Frechet distance, KID and MMD of synthesised frames from true angiograms of other frames, on the
features of the embedded angiogram encoder, each beside its floor (two halves of the true ones); another patient's
vessels cost next to nothing there, so no figure of it says that vessels are right. ``leak``: can a small probe read the
vessels of an angiogram off its background code, which should not hold them? ``swap``: the vessels of one patient's
angiogram drawn on another's contrast-free frame: are they those of the one, is the background that of the other?
``closure``: trees reconstructed from synthesised views and from the true angiograms of the same moment. ``--networks``
and ``--ablation`` are those of tools/benchmark_synthesis.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmark_synthesis import add_network_flags, check_patients, interval, network, networks_of, resized

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

#: Side and pixel size of the samples of ``distances``: what the encoder looks at, at the scale of CAS-GAN.
SIDE_PX, SIDE_MM = 192, 0.41
#: The probe of ``leak``: samples, crop, hidden width, steps of Adam.
PROBE = {"samples": 48, "size": 96, "width": 32, "steps": 250, "rate": 1e-2}
FIGURES = ("fd", "kid", "mmd", "mmd_p")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python tools/probe_synthesis.py", description="Style, codes and 3D closure of a synthesis.")
    made.add_argument("probe", choices=tuple(PROBES))
    add_network_flags(made)
    made.add_argument("--out", required=True, metavar="FILE", help="result file (JSON)")
    made.add_argument("--pairs", metavar="DIR", help="leak, swap: pairs of validation or benchmark seeds")
    made.add_argument("--pool", metavar="DIR", help="leak: training frames, for the probe")
    made.add_argument("--frames", metavar="DIR", help="distances: pool of validation frames")
    made.add_argument("--count", type=int, default=160, metavar="N", help="distances: samples of each set, 20 to 5000")
    made.add_argument("--kappas", type=float, nargs="+", default=[0.1, 0.2], metavar="K", help="residual contrast")
    made.add_argument("--cases", type=int, default=2, metavar="N", help="closure: cases, right and left in turn")
    made.add_argument(
        "--first-seed", type=int, default=53100, metavar="S", help="closure: validation seed of the first"
    )
    made.add_argument(
        "--quality", choices=("fast", "default", "best"), default="fast", help="closure: of the inversion"
    )
    made.add_argument("--seed", type=int, default=0, help="of samples, probe and partners")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Run one probe, write its file, print its table."""
    given = parser().parse_args(argv)
    from licag3d.io.atomic import check_output_folder, write_text

    out = Path(given.out)
    check_output_folder(out.parent)
    if not all(0 <= kappa <= 1 for kappa in given.kappas) or not 20 <= given.count <= 5000:
        raise InputError(f"--kappas {given.kappas} --count {given.count}: give 0 to 1, and 20 to 5000 samples")
    networks = networks_of(given)
    if not networks:
        raise InputError("give --networks NAME=FILE or --ablation DIR")
    rows = PROBES[given.probe](given, networks)
    write_text(out, json.dumps({"schema": "licag3d-synthesis-probe-1", "probe": given.probe, "rows": rows}) + "\n")
    print(table(rows))
    return 0


def table(rows: list[dict]) -> str:
    """Rows as text: names, then numbers; of an interval its mean and both ends."""

    def cell(value) -> str:
        if isinstance(value, dict):
            if value["mean"] is None:
                return "-"
            return f"{value['mean']:.3f} ({value['low_95']:.3f} to {value['high_95']:.3f})"
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    keys = [key for key in rows[0] if not isinstance(rows[0][key], list)]
    return "\n".join(["  ".join(keys), *("  ".join(cell(row.get(key, "")) for key in keys) for row in rows)])


def distances(given, networks: dict) -> list[dict]:
    """Per method and kappa the distances from true angiograms, with interval and floor."""
    from licag3d.data.phantom_frames import PhantomPool
    from licag3d.metrics.feature_space import compare_features
    from licag3d.models.vasomim import load_encoder

    if not given.frames:
        raise InputError("distances needs --frames DIR, a pool of validation frames (or pairs)")
    pool = check_patients(PhantomPool(given.frames), "--frames")
    encoder = load_encoder("encoder")
    label = f"{encoder.name}-{encoder.hash[:8]}"
    true = features(encoder, [s["y"] for s in samples(pool, given.count, given.seed, 0.0)])
    rows = []
    for kappa in given.kappas:
        bare = samples(pool, given.count, given.seed + 1, kappa)
        sets = {"true, other samples": [s["y"] for s in bare], "identity": [s["x"] for s in bare]}
        for name, files in networks.items():
            for turn, file in enumerate(files):
                maker = network(file)
                key = name if len(files) == 1 else f"{name} (training {turn + 1})"
                sets[key] = [drawn(maker, s["x"], s["valid"]) for s in bare]
        for name, frames in sets.items():
            found = compare_features(true, features(encoder, frames), encoder=label, seed=given.seed)
            row = {"method": name, "kappa": kappa, "encoder": label, "frames": len(frames)}
            for figure in FIGURES:
                value = found[f"{figure}_{label}"]
                row[figure] = {"mean": value.value, "low_95": value.low, "high_95": value.high}
                row[f"{figure}_floor"] = float(value.floor) if value.floor is not None else None
            rows.append(row)
    return rows


def samples(pool, count: int, seed: int, kappa: float) -> list[dict]:
    """Random crops of a pool: ``x`` with that residual contrast and its angiogram ``y``, same display."""
    from licag3d.data.contrast_samples import PairSettings, PairStream

    look = PairSettings(size=SIDE_PX, scale_mm=(SIDE_MM, SIDE_MM), kappa=(kappa, kappa), without=0.0, shown=0.0)
    stream = PairStream(pool, seed, look)
    return [{key: one[key][0].numpy() for key in ("x", "y", "valid")} for one in map(stream.sample, range(count))]


def drawn(maker, x: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """What a method makes of a sample."""
    from types import SimpleNamespace

    return maker(x, valid > 0.5, SimpleNamespace(before=SimpleNamespace(mm_per_pixel=SIDE_MM)))[0]


def features(encoder, frames: list[np.ndarray]) -> np.ndarray:
    """Feature vectors ``(n, dim)``."""
    import torch

    with torch.inference_mode():
        parts = [
            encoder.features(torch.from_numpy(np.stack(frames[k : k + 8]).astype(np.float32))[:, None]).numpy()
            for k in range(0, len(frames), 8)
        ]
    return np.concatenate(parts)


def leak(given, networks: dict) -> list[dict]:
    """Average precision with which a probe reads the vessels off each code, per model.

    ``background of x`` is what the anatomy alone gives away, ``vessels of y`` what a code that is meant to hold the
    vessels does; ``leak`` is where the background code of the angiogram stands between the two.
    """
    import torch

    from licag3d.data.contrast_pairs import PairPool
    from licag3d.data.contrast_samples import PairSettings, PairStream
    from licag3d.train.mask_first import training_pairs

    if not given.pairs or not given.pool:
        raise InputError("leak needs --pairs DIR (validation) and --pool DIR (training)")
    tested = working_frames(check_patients(PairPool(given.pairs), "--pairs"))
    look = PairSettings(size=PROBE["size"], scale_mm=(0.36, 0.46), kappa=(0.0, 0.0), without=1.0, shown=0.0)
    learnt = PairStream(training_pairs(given.pool), given.seed, look).batch(0, PROBE["samples"])
    rows = []
    for name, model in casgans(networks):
        codes = {"background of y": (model.background_encoder, "y"), "background of x": (model.background_encoder, "x")}
        if model.config.drl:
            codes["vessels of y"] = (model.vessel_encoder, "y")
        codes["pixels of y"] = (lambda z: torch.nn.functional.pixel_unshuffle(z, 4), "y")
        row, per = {"method": name}, {}
        for code, (encode, side) in codes.items():
            with torch.inference_mode():
                inputs = encode(learnt[side]).clone()
            probe = fit_probe(inputs, learnt["vessel"], learnt["weight"], given.seed)
            per[code] = []
            for frame in tested:
                with torch.inference_mode():
                    said = probe(encode(frame[side]))
                per[code].append(average_precision(said.numpy().ravel(), frame["cells"].numpy().ravel() > 0.5))
            found = [{"seed": k, "value": value} for k, value in enumerate(per[code])]
            row[code] = interval(found, lambda one: one["value"])
        row["chance"] = float(np.mean([float((frame["cells"] > 0.5).float().mean()) for frame in tested]))
        if "vessels of y" in per:
            low, mid, high = (np.mean(per[code]) for code in ("background of x", "background of y", "vessels of y"))
            row["leak"] = float((mid - low) / max(high - low, 1e-6))
        rows.append(row)
    return rows


def casgans(networks: dict):
    """Name and model of every CAS-GAN."""
    from licag3d.models.casgan import load_casgan

    for name, files in networks.items():
        for turn, file in enumerate(files):
            yield (name if len(files) == 1 else f"{name} (training {turn + 1})"), load_casgan(file)[0]


def working_frames(pool) -> list[dict]:
    """Still pairs without residual contrast at the scale of CAS-GAN: ``x``, ``y`` ``(1, 1, h, w)``, ``cells``
    ``(1, 1, h / 4, w / 4)`` one where vessels fill more than 0.3 of a cell of the codes, and the pair.
    """
    import torch

    found = []
    for number in range(len(pool)):
        pair = pool.pair(number)
        if pair.moving:
            continue
        side = round(len(pair.angiogram.mask) * pair.angiogram.mm_per_pixel / SIDE_MM) // 4 * 4
        pictures = (pair.images[int(np.argmin(pair.kappas))] / 255, pair.angiogram.image / 255)
        x, y, vessel = (
            torch.from_numpy(np.ascontiguousarray(resized(a.astype(np.float32), (side, side))))[None, None]
            for a in (*pictures, pair.angiogram.mask)
        )
        cells = (torch.nn.functional.avg_pool2d(vessel, 4) > 0.3).float()
        found.append({"x": x, "y": y, "vessel": vessel, "cells": cells, "pair": pair})
    if len(found) < 2:
        raise InputError(f"{pool.folder}: {len(found)} still pairs; at least 2 are needed")
    return found


def fit_probe(codes, vessel, weight, seed: int):
    """A small network from codes ``(n, c, h, w)`` to the logit of a vessel, fitted to masks of four times the size."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(codes.shape[1], affine=False)
    width = PROBE["width"]
    probe = nn.Sequential(norm, nn.Conv2d(codes.shape[1], width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))
    cells, sure = (F.avg_pool2d(vessel, 4) > 0.3).float(), F.avg_pool2d(weight, 4)
    optimiser = torch.optim.Adam(probe.parameters(), PROBE["rate"])
    rng = np.random.default_rng([seed, 83])
    for _ in range(PROBE["steps"]):
        some = torch.from_numpy(rng.integers(len(codes), size=8))
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(probe(codes[some]), cells[some], sure[some]).backward()
        optimiser.step()
    return probe.eval()


def average_precision(score: np.ndarray, truth: np.ndarray) -> float:
    """Mean precision over the true ones, in order of falling score; the share of true ones for a blind score."""
    right = truth[np.argsort(-score, kind="stable")]
    if not right.any():
        return float("nan")
    return float((np.cumsum(right) / np.arange(1, len(right) + 1))[right].mean())


def swap(given, networks: dict) -> list[dict]:
    """Vessels of patient j drawn on the frame of patient i: clDice with j's vessels (to be high, beside the oracle's),
    with i's (to be low), and the change of the frame outside j's.
    """
    import torch

    from licag3d.data.contrast_pairs import PairPool
    from licag3d.metrics.synthesis import change_outside, independent_mask, vessel_scores

    if not given.pairs:
        raise InputError("swap needs --pairs DIR, pairs of validation or benchmark seeds")
    frames = working_frames(check_patients(PairPool(given.pairs), "--pairs"))

    def found(image, mask):
        return vessel_scores(independent_mask(image, SIDE_MM), mask, SIDE_MM)["cldice"]

    rows = []
    for name, model in casgans(networks):
        values = []
        for number, own in enumerate(frames):
            other = frames[(number + 1) % len(frames)]
            y, theirs = (fitted(other[key], own["x"].shape[-1]) for key in ("y", "vessel"))
            with torch.inference_mode():
                code = (model.vessel_encoder if model.config.drl else model.background_encoder)(y)
                made = model.draw(own["x"], model.background_encoder(own["x"]), code).image
            picture, frame = made[0, 0].numpy().clip(0, 1), own["x"][0, 0].numpy()
            ours, theirs = own["vessel"][0, 0].numpy() > 0.5, theirs[0, 0].numpy() > 0.5
            values.append(
                {
                    "seed": number,
                    "theirs": found(picture, theirs),
                    "own": found(picture, ours),
                    "oracle": found(y[0, 0].numpy(), theirs),
                    "nothing": found(frame, theirs),
                    "change_outside": change_outside(picture, frame, theirs, margin_px=2),
                }
            )
        keys = ("theirs", "own", "oracle", "nothing", "change_outside")
        rows.append({"method": name} | {key: interval(values, lambda v, key=key: v[key]) for key in keys})
    return rows


def fitted(picture, side: int):
    """A picture ``(1, 1, h, h)`` cut or continued at its edge, about its middle, to ``side`` rows and columns."""
    import torch.nn.functional as F

    have = picture.shape[-1]
    if have >= side:
        first = (have - side) // 2
        return picture[..., first : first + side, first : first + side]
    before = (side - have) // 2
    return F.pad(picture, (before, side - have - before) * 2, mode="replicate")


def closure(given, networks: dict) -> list[dict]:
    """F1 at 1 mm and centreline distance after similarity of trees from true angiograms and from synthesised ones."""
    from tqdm import tqdm

    from licag3d.phantom.splits import VALIDATION

    seeds = [given.first_seed + k // 2 for k in range(given.cases)]
    if not seeds or not all(seed in VALIDATION for seed in seeds):
        raise InputError(f"--cases {given.cases} --first-seed {given.first_seed}: give validation seeds 50000 to 59999")
    values: dict[tuple, list] = {}
    for k, seed in enumerate(tqdm(seeds, disable=None, unit="case")):
        for name, kappa, scores in closure_case(seed, ("rca", "lca")[k % 2], given, networks):
            values.setdefault((name, kappa), []).append(scores | {"seed": k})
    keys = ("f1_1mm", "distance_mm", "length_share")
    return [
        {"views": name, "kappa": kappa, "cases": found}
        | {key: interval(found, lambda v, key=key: v[key]) for key in keys}
        for (name, kappa), found in values.items()
    ]


def closure_case(seed: int, artery: str, given, networks: dict):
    """``(name, kappa, scores)`` of one case: 60 degrees, table offset 5 mm, angles 1 degree off, full background."""
    from licag3d.inversion.pipeline import reconstruct
    from licag3d.inversion.settings import inversion_settings
    from licag3d.io.views import read_views
    from licag3d.metrics.scores import Truth, score
    from licag3d.models.virtual_contrast import load_synthesiser, synthesised_views
    from licag3d.phantom.simulate_case import simulate_case
    from licag3d.phantom.write_case import Content, write_case

    settings = inversion_settings(quality=given.quality)

    def scored(read, case) -> dict[str, float]:
        try:
            made = reconstruct(read()[0], settings)
        except InputError as error:  # nothing drawn, or nothing that can be matched
            return {"f1_1mm": 0.0, "distance_mm": None, "length_share": 0.0, "failed": str(error)[:80]}
        found = score(made.tree, Truth(case.tree, case.true_cameras, []), made.cameras)
        return {
            "f1_1mm": found["centerline_f1_1mm_after_similarity"],
            "distance_mm": found["chamfer_mm_after_similarity"],
            "length_share": made.tree.length_mm / case.tree.length_mm,
        }

    for turn, kappa in enumerate(given.kappas):
        case = simulate_case(
            seed, artery, separation_deg=60, offset_mm=5, angle_error_deg=1.0, background="full", held_out=0,
            kappa=kappa,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "case"
            write_case(place, case, Content(projections=False, mesh=False, labels=False))
            cameras = {"cameras": place / "cameras.json"}
            if turn == 0:
                files = [str(place / f"view_{k}.png") for k in (1, 2)]
                yield "true angiograms", 1.0, scored(lambda files=files, c=cameras: read_views(files, **c), case)
            files = [str(place / f"contrast_free_{k}.png") for k in (1, 2)]
            for name, weights in networks.items():
                for file in weights:
                    maker = load_synthesiser(file)

                    def read(files=files, maker=maker, c=cameras):
                        return synthesised_views(files, maker, **c)

                    yield name, kappa, scored(read, case)


PROBES = {"distances": distances, "leak": leak, "swap": swap, "closure": closure}


if __name__ == "__main__":
    run(main)
