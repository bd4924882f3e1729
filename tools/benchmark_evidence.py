# SPDX-License-Identifier: Apache-2.0
"""Benchmark the vessel evidence: learned, classical and Sato on phantom frames, real frames, empty frames and cines.

    python tools/benchmark_evidence.py --out benchmarks/results/evidence.json --phantom 16
    python tools/benchmark_evidence.py --out out.json --shared ../shared --pictures out_pictures

Phantom frames (full background) come from seeds that no training and no choice of thresholds has seen. Real frames are
read in place from the shared folder; without it that part is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

SCHEMA = "licag3d-evidence-1"
METHODS = ("learned", "classical", "sato")
TOLERANCE_PX, EXTRA_PX = 2.0, 3.0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python tools/benchmark_evidence.py", description="Score the vessel evidence in two dimensions.")
    made.add_argument("--out", required=True, metavar="FILE", help="result file (JSON)")
    made.add_argument("--phantom", type=int, default=16, metavar="N", help="phantom frames, 0 to 1000")
    made.add_argument("--split", choices=("benchmark", "validation"), default="benchmark", help="seeds to draw from")
    made.add_argument("--first", type=int, default=0, metavar="N", help="number of the first seed of the split")
    made.add_argument("--shared", metavar="DIR", help="folder with data/arcade and data/xa-phantom")
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    made.add_argument("--weights", default="segmentor", help="of the learned evidence: embedded name or .safetensors")
    made.add_argument("--pictures", metavar="DIR", help="write an overlay per real frame and method")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Measure what was asked for, write the file, print the tables."""
    arguments = parser().parse_args(argv)
    if not 0 <= arguments.phantom <= 1000:
        raise InputError(f"--phantom is {arguments.phantom}; give 0 to 1000 frames")
    from licag3d.io.atomic import check_output_folder, write_text

    out = Path(arguments.out)
    check_output_folder(out.parent)
    result = {"schema": SCHEMA, "weights": weights_of(arguments), "methods": arguments.methods}
    if arguments.phantom:
        result["phantom"] = phantom(arguments)
    if arguments.shared:
        data = Path(arguments.shared) / "data"
        if not data.is_dir():
            raise InputError(f"--shared {arguments.shared}: no folder data in it")
        result["arcade"] = arcade(arguments, data / "arcade")
        result["cines"] = cines(arguments, data / "xa-phantom")
    result["empty"] = empty(arguments)
    result["seconds_512"] = timing(arguments)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(result, indent=1) + "\n")
    show(result)
    return 0


def weights_of(arguments) -> str:
    """Which weights the learned evidence had: step and start of the hash."""
    if "learned" not in arguments.methods:
        return ""
    if arguments.weights.endswith(".safetensors"):
        return Path(arguments.weights).name
    from licag3d.weights import load

    _, card = load(arguments.weights)
    return f"{arguments.weights} step {card.get('step')} sha256 {card['sha256'][:12]}"


def evidence_of(view, method: str, arguments):
    """Evidence of one view by one method."""
    from licag3d.models.vessel_evidence import vessel_evidence

    if method == "sato":
        return sato_evidence(view)
    return vessel_evidence(view, method=method, weights=arguments.weights)


def sato_evidence(view):
    """The usual yardstick: Sato's filter (Med. Image Anal. 1998), scales 1 to 4 px, Otsu's threshold."""
    from skimage.filters import sato, threshold_otsu

    from licag3d.models.vessel_evidence import inner_field
    from licag3d.structures import VesselEvidence

    inside = inner_field(view.valid)
    response = np.where(inside, sato(view.image, sigmas=range(1, 5), black_ridges=True), 0).astype(np.float32)
    values = response[inside]
    level = threshold_otsu(values) if values.size and np.ptp(values) > 0 else 1.0
    mask = response > level
    scaled = (response / max(float(response.max()), 1e-9)).astype(np.float32)
    return VesselEvidence(scaled, np.where(mask, response, 0), scaled, np.zeros_like(scaled), mask)


def phantom(arguments) -> dict:
    """Scores on phantom frames, one view per case, right and left in turn."""
    from tqdm import tqdm

    from licag3d.io.collimator import valid_area
    from licag3d.phantom import splits
    from licag3d.phantom.simulate_case import simulate_case
    from licag3d.structures import View

    seeds = splits.BENCHMARK if arguments.split == "benchmark" else splits.VALIDATION
    rows: dict[str, list[dict]] = {method: [] for method in arguments.methods}
    for number in tqdm(range(arguments.first, arguments.first + arguments.phantom), disable=None, unit="frame"):
        case = simulate_case(seeds[number], ("rca", "lca")[number % 2], background="full", views=1, held_out=0)
        truth = case.views[0]
        image = truth.image.astype(np.float32) / 255
        view = View(image, truth.true_camera, valid_area(image))
        for method in arguments.methods:
            found = evidence_of(view, method, arguments)
            row = phantom_scores(found, truth) | radius_scores(found, case.tree, truth.true_camera)
            rows[method].append(row | {"seed": case.seed, "artery": case.artery})
    return {"split": arguments.split, "seeds": [seeds[arguments.first], len(rows[arguments.methods[0]])],
            "mean": {method: mean_of(found) for method, found in rows.items()}, "frames": rows}  # fmt: skip


def phantom_scores(found, truth) -> dict:
    """Scores of one frame: devices and twigs (contrast-filled vessels below 0.7 mm, of which no truth knows) counted as
    wrong; with the pixels of devices left out (``_no_devices``); with centrelines on twigs left out (``_no_twigs``).
    """
    from scipy import ndimage
    from skimage.morphology import skeletonize

    from licag3d.train.scores import mask_scores

    row = mask_scores(found.mask, truth.mask)
    device = truth.devices & ~truth.mask
    other = mask_scores(found.mask & ~device, truth.mask)
    row |= {f"{key}_no_devices": other[key] for key in ("dice", "cldice", "skeleton_precision")}
    ours, theirs = skeletonize(found.mask), skeletonize(truth.mask)
    if truth.twigs is not None and truth.twigs.any():
        ours &= truth.mask | (ndimage.distance_transform_edt(~(truth.twigs & ~truth.mask)) > TOLERANCE_PX)
    precision = float(truth.mask[ours].mean()) if ours.any() else 0.0
    sensitivity = float(found.mask[theirs].mean()) if theirs.any() else 0.0
    row["cldice_no_twigs"] = 2 * precision * sensitivity / max(precision + sensitivity, 1e-9)
    row["devices_taken"] = float(found.mask[device].mean()) if device.any() else np.nan
    for name, where in (("all", truth.mask), ("found", truth.mask & found.mask)):
        p, known = found.line_integral[where], truth.line_integral[where]
        good = len(p) > 50 and float(np.ptp(p)) > 0
        row[f"correlation_{name}"] = float(np.corrcoef(p, known)[0, 1]) if good else np.nan
    return row


def radius_scores(found, tree, camera) -> dict:
    """Scatter and bias of the logarithm of found over true radius along the true vessels that were found, where no
    other branch lies within a pixel: ``radius_error`` is the root mean square.
    """
    from scipy.spatial import cKDTree

    points, radius, owner = [], [], []
    for number, branch in enumerate(tree.branches):
        at, depth = camera.project(branch.points_lps_mm)
        points.append(at)
        radius.append(branch.radius_mm * camera.sid_mm / depth / camera.spacing_col_mm)
        owner.append(np.full(len(at), number))
    points, radius, owner = np.concatenate(points), np.concatenate(radius), np.concatenate(owner)
    first, other = cKDTree(points).query_pairs(2 * float(radius.max()) + 1, output_type="ndarray").T
    gap = np.linalg.norm(points[first] - points[other], axis=1)
    touching = (owner[first] != owner[other]) & (gap < radius[first] + radius[other] + 1)
    alone = np.ones(len(points), bool)
    alone[first[touching]] = alone[other[touching]] = False
    col, row = np.rint(points).astype(int).T
    inside = (col >= 0) & (col < camera.cols) & (row >= 0) & (row < camera.rows)
    alone &= inside
    alone[inside] &= (found.mask & (found.radius_px > 0))[row[inside], col[inside]]
    if alone.sum() < 20:
        return {"radius_error": np.nan, "radius_bias": np.nan}
    error = np.log(found.radius_px[row[alone], col[alone]] / radius[alone])
    return {"radius_error": float(np.sqrt((error**2).mean())), "radius_bias": float(np.median(error))}


def arcade(arguments, folder: Path) -> dict:
    """Recall of the outlined centrelines and what lies outside, on real frames whose side branches are not outlined.

    Between the outlines of adjoining segments there are seams a pixel wide, which thinning turns into rings of
    centreline that is none. ``recall`` closes them first; ``recall_with_seams`` does not.
    """
    from scipy import ndimage
    from skimage.morphology import skeletonize

    from licag3d.io.views import read_views

    rows: dict[str, list[dict]] = {method: [] for method in arguments.methods}
    for path in sorted((folder / "images").glob("*.png"), key=lambda p: int(p.stem)):
        (view,), _ = read_views([str(path)], need_geometry=False)
        truth = outlines(folder / "labels" / f"{path.stem}.txt", view.image.shape)
        with_seams = skeletonize(truth)
        closed = ndimage.binary_closing(np.pad(truth, 4), np.ones((3, 3)))[4:-4, 4:-4] | truth
        middle = skeletonize(closed)
        near = ndimage.distance_transform_edt(~truth) <= EXTRA_PX
        for method in arguments.methods:
            found = evidence_of(view, method, arguments)
            reach = ndimage.distance_transform_edt(~skeletonize(found.mask)) if found.mask.any() else np.full(
                found.mask.shape, np.inf)  # fmt: skip
            rows[method].append({
                "frame": path.stem,
                "recall": float((reach[middle] <= TOLERANCE_PX).mean()),
                "recall_with_seams": float((reach[with_seams] <= TOLERANCE_PX).mean()),
                "recall_in_mask": float(found.mask[middle].mean()),
                "extra_area": float((found.mask & ~near).mean()),
                "dice_near": float(2 * (found.mask & truth).sum() / max((found.mask & near).sum() + truth.sum(), 1)),
            })  # fmt: skip
            picture(arguments, f"arcade_{path.stem}_{method}", view, found)
    return {"mean": {method: mean_of(found) for method, found in rows.items()}, "frames": rows}


def outlines(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Mask ``(rows, cols)`` of the polygons of a label file: class number, then x y pairs in 0..1 of the image."""
    from skimage.draw import polygon

    mask = np.zeros(shape, bool)
    for line in path.read_text("utf-8").splitlines():
        values = np.array([float(word) for word in line.split()[1:]])
        if len(values) >= 6:
            points = values[: len(values) // 2 * 2].reshape(-1, 2)
            mask[polygon(points[:, 1] * shape[0], points[:, 0] * shape[1], shape)] = True
    return mask


def cines(arguments, folder: Path) -> dict:
    """The key frames of two cines of a physical phantom: one connected tree is right; the first frames are empty."""
    from scipy import ndimage

    from licag3d.io.views import read_views

    result: dict[str, list[dict]] = {method: [] for method in arguments.methods}
    for name in ("view1", "view2"):
        for text, kind in ((f"{name}.dcm", "key frame"), (f"{name}.dcm#0", "first frame")):
            (view,), _ = read_views([str(folder / text)], need_geometry=False)
            for method in arguments.methods:
                found = evidence_of(view, method, arguments)
                labels, count = ndimage.label(found.mask, np.ones((3, 3)))
                sizes = np.bincount(labels.ravel())[1:] if count else np.zeros(1, int)
                result[method].append({
                    "cine": name, "kind": kind, "frame": view.frame, "area": float(found.mask.mean()),
                    "pieces": int(count), "largest_share": float(sizes.max() / max(sizes.sum(), 1)),
                })  # fmt: skip
                picture(arguments, f"cine_{name}_{kind.split()[0]}_{method}", view, found)
    return result


def empty(arguments) -> dict:
    """Share of the image taken for vessels where there are none: a constant image and noise of three doses."""
    from licag3d.geometry import Camera
    from licag3d.structures import View

    camera = Camera(0, 0, 1000, 750, 0.3, 0.3, 512, 512)
    rng = np.random.default_rng(1)
    ramp = np.linspace(0.3, 0.7, 512, dtype=np.float32)[None].repeat(512, 0)
    images = {"constant": np.full((512, 512), 0.5, np.float32)}
    images |= {f"noise {s}": (ramp + s * rng.standard_normal((512, 512))).astype(np.float32) for s in (0.01, 0.03, 0.1)}
    full = np.ones((512, 512), bool)
    return {
        method: {name: float(evidence_of(View(image.clip(0, 1), camera, full), method, arguments).mask.mean())
                 for name, image in images.items()}
        for method in arguments.methods
    }  # fmt: skip


def timing(arguments) -> dict:
    """Processor seconds for a 512 x 512 frame with vessels, the best of three after one run to warm up."""
    from licag3d.io.collimator import valid_area
    from licag3d.phantom.simulate_case import simulate_case
    from licag3d.structures import View

    truth = simulate_case(50_900, "lca", background="full", views=1, held_out=0).views[0]
    image = truth.image.astype(np.float32) / 255
    view = View(image, truth.true_camera, valid_area(image))
    best = {}
    for method in arguments.methods:
        evidence_of(view, method, arguments)
        spent = []
        for _ in range(3):
            began, wall = time.process_time(), time.perf_counter()
            evidence_of(view, method, arguments)
            spent.append((time.process_time() - began, time.perf_counter() - wall))
        best[method] = {"processor_s": min(a for a, _ in spent), "wall_s": min(b for _, b in spent)}
    return best


def picture(arguments, name: str, view, found) -> None:
    """Frame and overlay side by side."""
    if not arguments.pictures:
        return
    import imageio.v3 as iio

    from licag3d.segment import overlay

    folder = Path(arguments.pictures)
    folder.mkdir(parents=True, exist_ok=True)
    low, high = np.percentile(view.image, (0.5, 99.5))
    grey = np.clip(255 * (view.image - low) / max(float(high - low), 1e-6), 0, 255).astype(np.uint8)
    iio.imwrite(folder / f"{name}.png", np.concatenate([grey[..., None].repeat(3, 2), overlay(view, found)], 1))


def mean_of(rows: list[dict]) -> dict:
    """Mean of every number over the rows that have it."""
    out = {}
    for key in rows[0] if rows else ():
        values = [row[key] for row in rows if isinstance(row[key], (int, float)) and np.isfinite(row[key])]
        if values and key != "seed":
            out[key] = float(np.mean(values))
    return out


def show(result: dict) -> None:
    """Tables of the means."""
    for part in ("phantom", "arcade"):
        if part not in result:
            continue
        mean = result[part]["mean"]
        keys = list(next(iter(mean.values())))
        print(f"\n{part}: " + " | ".join(keys))
        for method, row in mean.items():
            print(f"  {method:10s}" + " | ".join(f"{row.get(key, float('nan')):.3f}" for key in keys))
    for method, rows in result.get("cines", {}).items():
        for row in rows:
            print(f"  {method:10s}{row['cine']} {row['kind']} {row['frame']}: {100 * row['area']:.2f} % in "
                  f"{row['pieces']} pieces, largest {100 * row['largest_share']:.0f} %")  # fmt: skip
    print("\nempty:", json.dumps(result["empty"]))
    print("seconds:", json.dumps(result["seconds_512"]))


if __name__ == "__main__":
    run(main)
