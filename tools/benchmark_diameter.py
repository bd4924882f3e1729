# SPDX-License-Identifier: Apache-2.0
"""Benchmark the vessel refinement: diameters, minimal lumen diameters, centrelines and projections, before and after.

    python tools/benchmark_diameter.py --out diameter.json --cases 12
    python tools/benchmark_diameter.py --out severe.json --cases 12 --lesions severe --starts perturbed
    python tools/benchmark_diameter.py --out diameter.json --cases 24 --resume

Two-view phantom cases (60 degrees, offset 5 mm, angle error 1 degree, full background, patients with obstructive
disease), right and left in turn. Starts: ``perturbed`` is the true tree under the true cameras, its centreline
wandering by 0.5 mm (root mean square), its radii the running median over 30 mm, so that short stenoses are gone, and
off by 20 %; ``found`` is the tree of the inversion under its own cameras. Tracks: ``images`` (vessels found in the
frames) and ``masks`` (given). With ``--lesions severe`` the artery has the disease of another patient of the split, the
first of 60 with at least two stenoses of 70 % and no occlusion. Beside ``before`` and ``after`` stands ``no contrast``:
refined without reading thin lumens from the contrast in the frame. Of reported stenoses it is counted how often the
truth at their place lies within what they state. The file is written after every case. Definitions
of the scores: docs/metrics.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

SCHEMA = "licag3d-diameter-3"
#: Stenoses from these percents on are counted as reported or missed.
REPORTED = (50, 70)
#: The truth of a reported stenosis is the least diameter this near to it along the vessel, mm.
NEAR_MM = 2.5
STARTS, TRACKS = ("perturbed", "found"), ("images", "masks")
LESIONS = ("obstructive", "severe")
TIMES = ("before", "no contrast", "after")
PLACE_MM, WIDTH, WANDER_MM, WIPED_MM = 0.5, 0.2, 4.0, 30.0
#: Two-view quantitative angiography as published: mean and standard deviation of the error of the minimal lumen
#: diameter.
PUBLISHED_MLD_MM = {
    "CAAS 5, pigs, 0.5 to 1.9 mm plugs (Ramcharitar 2008)": (0.01, 0.09),
    "CardiOp-B, the same": (0.03, 0.23),
    "CAAS 5v10, bifurcation phantom": (0.013, 0.131),
    "VIRTUheart, phantoms (Solanki 2021), absolute": (0.05, 0.03),
}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python tools/benchmark_diameter.py", description="Score the vessel refinement.")
    made.add_argument("--out", required=True, metavar="FILE", help="result file (JSON)")
    made.add_argument("--cases", type=int, default=12, metavar="N", help="number of cases, 1 to 1000")
    made.add_argument("--split", choices=("validation", "benchmark"), default="validation", help="seeds to draw from")
    made.add_argument("--first", type=int, default=4000, metavar="N", help="number of the first seed within the split")
    made.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    made.add_argument("--tracks", nargs="+", choices=TRACKS, default=list(TRACKS))
    made.add_argument("--lesions", choices=LESIONS, default="obstructive", help="disease of the patients")
    made.add_argument("--prior", default="embedded", help="of the found trees: embedded, none or a generator file")
    made.add_argument("--size", type=int, default=512, metavar="PX", help="rows and columns of the views")
    made.add_argument("--resume", action="store_true", help="keep the cases that the file holds already")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Measure case by case, write the file, print the table."""
    arguments = parser().parse_args(argv)
    if not 1 <= arguments.cases <= 1000:
        raise InputError(f"--cases is {arguments.cases}; give 1 to 1000")
    if not 128 <= arguments.size <= 1024:
        raise InputError(f"--size is {arguments.size}; give 128 to 1024 px")
    from licag3d.io.atomic import check_output_folder, write_text
    from licag3d.phantom.splits import BENCHMARK, VALIDATION

    seeds = {"validation": VALIDATION, "benchmark": BENCHMARK}[arguments.split]
    numbers = [arguments.first + k // 2 for k in range(arguments.cases)]
    if not 0 <= arguments.first <= numbers[-1] < len(seeds):
        raise InputError(
            f"--first {arguments.first} with {arguments.cases} cases leaves the split of {len(seeds)} seeds"
        )
    out = Path(arguments.out)
    check_output_folder(out.parent)
    settings = {key: getattr(arguments, key) for key in ("split", "lesions", "starts", "tracks", "prior", "size")}
    store = {"schema": SCHEMA, "settings": settings, "cases": {}, "published_mld_mm": PUBLISHED_MLD_MM}
    if arguments.resume and out.exists():
        before = json.loads(out.read_text())
        if before.get("schema") != SCHEMA or before.get("settings") != settings:
            raise InputError(f"--resume: {out.name} was made with other settings; give another --out")
        store["cases"] = before["cases"]
    out.parent.mkdir(parents=True, exist_ok=True)
    for k, number in enumerate(numbers):
        artery = ("rca", "lca")[k % 2]
        name = f"{seeds[number]}_{artery}"
        if name not in store["cases"]:
            store["cases"][name] = measure_case(seeds[number], artery, arguments)
            store["summary"] = summary(store["cases"])
            write_text(out, json.dumps(store, indent=1, allow_nan=False) + "\n")
            print(f"{k + 1}/{len(numbers)} {name}", file=sys.stderr, flush=True)
    show(store["summary"])
    return 0


def measure_case(seed: int, artery: str, arguments) -> dict:
    """Scores of one case: start and track, before and after."""
    from licag3d.inversion.refinement import RefinementSettings, refine_tree
    from licag3d.phantom.anatomy import sample_tree
    from licag3d.phantom.disease import sample_disease
    from licag3d.phantom.simulate_case import simulate_case
    from licag3d.phantom.splits import BENCHMARK, VALIDATION

    # Obstructive disease, so that there are stenoses to measure: by population shares most arteries have none.
    tree, lesions = sample_disease(seed, artery, sample_tree(seed, artery), extent="obstructive")
    if arguments.lesions == "severe":
        split = VALIDATION if arguments.split == "validation" else BENCHMARK
        tree, lesions = severe_disease(seed, artery, split)
    case = simulate_case(
        seed,
        artery,
        tree=tree,
        separation_deg=60.0,
        offset_mm=5.0,
        angle_error_deg=1.0,
        background="full",
        rows=arguments.size,
        cols=arguments.size,
    )
    case = replace(case, lesions=lesions)
    result: dict[str, dict] = {}
    for track in arguments.tracks:
        views, evidence = read_case(case, track)
        for start in arguments.starts:
            if start == "perturbed":
                tree, cameras = perturbed(case.tree, seed), tuple(case.true_cameras)
            else:
                tree, cameras = found_tree(views, evidence, arguments.prior)
            begin = time.process_time()
            refined = refine_tree(tree, cameras, views, evidence)
            seconds = time.process_time() - begin
            plain = refine_tree(tree, cameras, views, evidence, RefinementSettings(density=False))
            alike = start == "perturbed"
            result[f"{start}, {track}"] = {
                "before": scores(tree, cameras, case, aligned=alike),
                "no contrast": scores(plain.tree, plain.cameras, case, aligned=alike, images=False),
                "after": scores(refined.tree, refined.cameras, case, aligned=alike) | {"cpu_seconds": seconds},
                "facts": refined.facts,
            }
    return result


def severe_disease(seed: int, artery: str, split: range):
    """The tree of one patient with the disease of another, who has at least two stenoses of 70 % in this artery."""
    from licag3d.phantom.anatomy import sample_tree
    from licag3d.phantom.disease import sample_disease

    healthy = sample_tree(seed, artery)
    best = None
    for k in range(60):
        other = split[(split.index(seed) + 2000 + 60 * (seed % 50) + k) % len(split)]
        tree, lesions = sample_disease(other, artery, healthy, extent="obstructive")
        severe = sum(x.kind == "stenosis" and x.percent_diameter >= 70 for x in lesions)
        occluded = any(x.kind == "occlusion" for x in lesions)
        if best is None or severe - 10 * occluded > best[0]:
            best = (severe - 10 * occluded, tree, lesions)
        if best[0] >= 2:
            break
    return best[1:]


def read_case(case, track: str):
    """Views and evidence as a user has them."""
    from licag3d.io.views import read_views
    from licag3d.models.vessel_evidence import vessel_evidence
    from licag3d.phantom.write_case import Content, write_case

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "case"
        write_case(place, case, Content(projections=False, mesh=False, labels=False))
        numbers = range(1, len(case.views) + 1)
        masks = [str(place / "truth" / f"view_{k}_mask.png") for k in numbers] if track == "masks" else None
        views, _ = read_views(
            [str(place / f"view_{k}.png") for k in numbers], cameras=place / "cameras.json", masks=masks
        )
    return views, [vessel_evidence(view) for view in views]


def found_tree(views, evidence, prior: str):
    """Tree and cameras of the inversion before the refinement."""
    from licag3d.inversion.chains import chains_from_graph
    from licag3d.inversion.consistency import contrast_of
    from licag3d.inversion.settings import inversion_settings
    from licag3d.inversion.several import correct_cameras
    from licag3d.inversion.tree_stages import find_tree
    from licag3d.models.centerline2d import trace_centerlines

    settings = inversion_settings(prior=prior, skip=("refinement",))
    chains = [chains_from_graph(trace_centerlines(e, v), v.camera) for e, v in zip(evidence, views, strict=True)]
    cameras, _ = correct_cameras(
        [view.camera for view in views], chains, settings, contrast=[contrast_of(item) for item in evidence]
    )
    found = find_tree(views, evidence, chains, cameras, settings)
    return found.tree, found.cameras


def perturbed(tree, seed: int):
    """The true tree, wandering, of wrong calibre and without its stenoses; branches still start on their parents."""
    from scipy.ndimage import gaussian_filter1d, median_filter

    from licag3d.structures import VesselTree
    from licag3d.vessels.tree import arc_length_mm, resample_tree

    rng = np.random.default_rng([seed, 77])
    even = resample_tree(tree, 0.5)
    made = []
    for branch in even.branches:
        count = len(branch.radius_mm)
        step = max(arc_length_mm(branch.points_lps_mm)[-1] / max(count - 1, 1), 0.1)
        sigma = WANDER_MM / step
        pad = int(4 * sigma) + 1
        waves = gaussian_filter1d(rng.standard_normal((count + 2 * pad, 4)), sigma, axis=0)[pad : pad + count]
        waves *= math.sqrt(2 * sigma * math.sqrt(math.pi))  # white noise smoothed has this over 1 as deviation
        wide = median_filter(branch.radius_mm, 2 * int(WIPED_MM / step / 2) + 1, mode="nearest")
        made.append(
            replace(
                branch,
                points_lps_mm=branch.points_lps_mm + PLACE_MM / math.sqrt(3) * waves[:, :3],
                radius_mm=wide * np.exp(WIDTH * waves[:, 3]),
            )
        )
    place = {branch.id: k for k, branch in enumerate(even.branches)}
    for k, branch in enumerate(made):
        if branch.parent is None:
            continue
        parent = even.branches[place[branch.parent]]
        nearest = int(((parent.points_lps_mm - even.branches[k].points_lps_mm[0]) ** 2).sum(1).argmin())
        points = branch.points_lps_mm.copy()
        points[0] = made[place[branch.parent]].points_lps_mm[nearest]
        made[k] = replace(branch, points_lps_mm=points)
    return VesselTree(tuple(made))


def scores(tree, cameras, case, *, aligned: bool, images: bool = True) -> dict[str, float]:
    """Scores after the best similarity (``aligned``: the tree is in the frame of the truth already), without those of
    projections where not ``images``."""
    from licag3d.metrics.alignment import Similarity, best_similarity, best_translation
    from licag3d.metrics.cameras import reprojection_mm
    from licag3d.metrics.centerline import centerline_metrics, harmonic, nearest_distances, tree_points
    from licag3d.metrics.diameters import diameter_metrics
    from licag3d.metrics.images import TruthView, view_scores
    from licag3d.metrics.lesions import lesion_metrics

    pred, true = tree_points(tree), tree_points(case.tree)
    alignment = Similarity()
    if not aligned:
        first = best_translation(pred.points_lps_mm, true.points_lps_mm)
        alignment = best_similarity(pred.points_lps_mm, true.points_lps_mm, first)
    moved, moved_tree = alignment.apply_to(pred), alignment.apply_tree(tree)
    forward, _ = nearest_distances(moved.points_lps_mm, true.points_lps_mm)
    backward, _ = nearest_distances(true.points_lps_mm, moved.points_lps_mm)
    values = {key: x for key, x in centerline_metrics(moved, true).items() if key.startswith("centerline_f1")}
    values["centerline_f1_0.5mm"] = harmonic(float((forward <= 0.5).mean()), float((backward <= 0.5).mean()))
    near = forward[forward <= 1.0]
    values["distance_within_1mm_mm"] = float(near.mean()) if len(near) else math.nan
    values |= diameter_metrics(moved_tree, case.tree)
    for lesion in case.lesions:
        one = lesion_metrics(moved, case.tree, [lesion.__dict__])
        if math.isnan(one["lesion_recall_2mm"]):
            continue  # a dilatation or an occlusion
        about = [lesion.percent_diameter, _deviation(moved_tree, case.tree, lesion)]
        values.setdefault("mld", []).append([one["mld_bias_mm"], one["stenosis_bias_percent"], *about])
    for percent in REPORTED:
        values[f"reported_{percent}"] = list(reported(moved_tree, case, percent))
    values["told"] = told(moved_tree, case.tree)
    if not images:
        return {key: _plain(value) for key, value in values.items()}
    held_out = [view.true_camera for view in case.held_out]
    for name, seen_by, shown, points in (
        ("heldout", [(camera, camera) for camera in held_out], moved_tree, moved),
        ("input", list(zip(cameras, case.true_cameras, strict=True)), tree, pred),
    ):
        rows = [(view_scores(shown, points, mine, TruthView(case.tree, true, camera)),
                 reprojection_mm(points.points_lps_mm, mine, true.points_lps_mm, camera))
                for mine, camera in seen_by]  # fmt: skip
        for key in ("ssim", "ssim_vessel"):
            values[f"{name}_{key}"] = float(np.mean([row[0][key] for row in rows]))
        values[f"{name}_reprojection_mm"] = float(np.mean([row[1] for row in rows]))
    empty = [TruthView(case.tree, true, camera).empty_scores() for camera in held_out]
    values["heldout_ssim_vessel_empty"] = float(np.mean([row["ssim_vessel"] for row in empty]))
    return {key: _plain(value) for key, value in values.items()}


def reported(tree, case, percent: float) -> tuple[int, int, int]:
    """Of the true stenoses of at least ``percent`` those that :func:`find_stenoses` reports as such (within 2 mm of
    their stretch), their number, and the reported ones that lie at no lesion within 20 points of that."""
    from licag3d.report.lesions import REPORTED_REFERENCE_MM
    from licag3d.vessels.stenosis import find_stenoses

    lesions = find_stenoses(tree, min_percent=percent, min_reference_mm=REPORTED_REFERENCE_MM)
    told = [lesion.position_lps_mm for lesion in lesions]
    narrow = [x for x in case.lesions if x.kind in ("stenosis", "diffuse")]
    true = [x for x in narrow if x.kind == "stenosis" and x.percent_diameter >= percent]
    found = sum(any(_lies_in(case.tree, x, place) for place in told) for x in true)
    near = [x for x in narrow if x.percent_diameter >= percent - 20]
    return found, len(true), sum(not any(_lies_in(case.tree, x, place) for x in near) for place in told)


def told(tree, truth) -> list[list[float]]:
    """Of every reported stenosis of half the diameter or more: error of its minimal diameter, mm, the deviation it
    states, and 1 where the truth lies in its 90 % interval. Those on no true vessel (2 mm) are left out."""
    from licag3d.report.lesions import REPORTED_REFERENCE_MM
    from licag3d.vessels.stenosis import find_stenoses
    from licag3d.vessels.tree import arc_length_mm, resample_tree

    fine = resample_tree(truth, 0.1).branches
    rows = []
    for lesion in find_stenoses(tree, min_percent=REPORTED[0], min_reference_mm=REPORTED_REFERENCE_MM):
        away = [np.linalg.norm(b.points_lps_mm - np.asarray(lesion.position_lps_mm), axis=1) for b in fine]
        k = int(np.argmin([row.min() for row in away]))
        if away[k].min() > 2.0 or lesion.minimal_sigma_mm is None:
            continue
        arc = arc_length_mm(fine[k].points_lps_mm)
        least = 2 * float(fine[k].radius_mm[np.abs(arc - arc[away[k].argmin()]) <= NEAR_MM].min())
        low, high = lesion.minimal_90_mm
        rows.append([lesion.minimal_diameter_mm - least, lesion.minimal_sigma_mm, float(low <= least <= high)])
    return rows


def _lies_in(truth, lesion, place_lps_mm, margin_mm: float = 2.0) -> bool:
    """Whether a place lies within 2 mm of the branch of a lesion, along its stretch or 2 mm around."""
    from licag3d.vessels.tree import arc_length_mm

    branch = next(b for b in truth.branches if b.id == lesion.branch_id)
    away = np.linalg.norm(branch.points_lps_mm - np.asarray(place_lps_mm), axis=1)
    at = arc_length_mm(branch.points_lps_mm)[away.argmin()] - lesion.start_mm
    return bool(away.min() < 2.0 and -margin_mm <= at <= lesion.length_mm + margin_mm)


def _deviation(tree, truth, lesion) -> float:
    """Standard deviation that the tree states for its least diameter within a lesion, mm; NaN where none."""
    from licag3d.vessels.stenosis import minimal_sigma_mm

    rows = [(r, s) for b in tree.branches if b.radius_sigma_mm is not None
            for p, r, s in zip(b.points_lps_mm, b.radius_mm, b.radius_sigma_mm, strict=True)
            if _lies_in(truth, lesion, p, 0.0)]  # fmt: skip
    if not rows:
        return math.nan
    radius, sigma = min(rows)
    return minimal_sigma_mm(2 * float(radius), 2 * float(sigma))


def summary(cases: dict) -> dict:
    """Mean over cases and 95 % bootstrap interval (fixed seed) of every score, by start and track; lesions pooled."""
    result: dict[str, dict] = {}
    for group in sorted({name for case in cases.values() for name in case}):
        for when in TIMES:
            rows = [case[group][when] for case in cases.values() if group in case]
            found = {}
            for key in rows[0]:
                if key not in ("mld", "told") and not key.startswith("reported"):
                    found[key] = interval([row.get(key) for row in rows])
            pairs = [pair for row in rows for pair in row.get("mld", [])]
            found |= lesion_summary(pairs)
            found |= {f"severe_{key}": x for key, x in lesion_summary([p for p in pairs if p[2] >= 70]).items()}
            found |= told_summary([one for row in rows for one in row.get("told", [])])
            for percent in REPORTED:
                counts = np.array([row[f"reported_{percent}"] for row in rows])
                total = counts.sum(0).tolist()
                false = total[2] / len(rows)
                found[f"reported_{percent}"] = {"found": total[0], "true": total[1], "false_per_case": false}
            result.setdefault(group, {})[when] = found
    return result


def lesion_summary(pairs: list) -> dict:
    """Errors of the minimal diameter and of the percent over lesions, and how often the stated deviation holds."""
    found: dict = {"lesions": len(pairs)}
    for k, name in enumerate(("mld", "stenosis")):
        errors = [pair[k] for pair in pairs if pair[k] is not None]
        unit = ("mm", "percent")[k]
        found[f"{name}_bias_{unit}"] = interval(errors)
        found[f"{name}_sd_{unit}"] = float(np.std(errors)) if errors else None
        found[f"{name}_error_{unit}"] = interval([abs(x) for x in errors])
        found[f"{name}_median_error_{unit}"] = float(np.median(np.abs(errors))) if errors else None
    stated = np.array([(abs(p[0]), p[3]) for p in pairs if p[0] is not None and p[3] is not None]).reshape(-1, 2)
    for times in (1, 2):
        share = float((stated[:, 0] <= times * stated[:, 1]).mean()) if len(stated) else None
        found[f"mld_within_{times}_deviations"] = share
    return found


def told_summary(rows: list) -> dict:
    """How often the truth lies within one and two deviations of reported stenoses, and in their 90 % interval."""
    values = np.array(rows, float).reshape(-1, 3)
    if not len(values):
        return {"told": 0, "told_within_1_deviations": None, "told_within_2_deviations": None, "told_within_90": None}
    times = np.abs(values[:, 0]) / values[:, 1]
    shares = {f"told_within_{n}_deviations": float((times <= n).mean()) for n in (1, 2)}
    return {"told": len(values)} | shares | {"told_within_90": float(values[:, 2].mean())}


def interval(values: list) -> dict:
    """``n``, ``mean`` and the bootstrap interval of the mean; None where nothing is known."""
    known = np.array([value for value in values if value is not None], float)
    if not len(known):
        return {"n": 0, "mean": None, "low_95": None, "high_95": None}
    draws = np.random.default_rng(0).choice(known, (2000, len(known))).mean(1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return {"n": len(known), "mean": float(known.mean()), "low_95": float(low), "high_95": float(high)}


def show(found: dict) -> None:
    """One line per score that matters."""
    keys = ("centerline_f1_1mm", "centerline_f1_0.5mm", "distance_within_1mm_mm", "diameter_bias_mm", "diameter_sd_mm",
            "mld_bias_mm", "mld_error_mm", "stenosis_error_percent", "severe_mld_bias_mm", "severe_mld_error_mm",
            "severe_stenosis_error_percent", "input_ssim", "input_ssim_vessel", "heldout_ssim",
            "heldout_ssim_vessel", "heldout_reprojection_mm")  # fmt: skip
    for group, both in found.items():
        print(f"\n{group} ({both['after']['lesions']} lesions)\n{'':30}" + "".join(f"{when:>26}" for when in TIMES))
        for key in keys:
            print(f"{key:30}" + "".join(_cell(both[when].get(key)) for when in TIMES))
        for key in ("told_within_1_deviations", "told_within_2_deviations", "told_within_90"):
            shares = [(both[when][key], both[when]["told"]) for when in TIMES]
            print(f"{key:30}" + "".join(f"{'-' if x is None else f'{x:.2f} of {n}':>26}" for x, n in shares))
        for percent in REPORTED:
            rows = [both[when][f"reported_{percent}"] for when in TIMES]
            cells = [f"{x['found']} of {x['true']}, false {x['false_per_case']:.2f}" for x in rows]
            print(f"{f'reported from {percent} %':30}" + "".join(f"{cell:>26}" for cell in cells))


def _cell(value: dict | None) -> str:
    if value is None or value["mean"] is None:
        return f"{'-':>26}"
    return f"{value['mean']:10.3f} [{value['low_95']:.3f}, {value['high_95']:.3f}]".rjust(26)


def _plain(value):
    """NaN as None, in lists too: JSON has no NaN."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    run(main)
