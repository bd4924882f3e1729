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
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the package ``benchmarks``

from benchmarks.diameter_scores import REPORTED, TIMES, scores, summary
from benchmarks.diseased_cases import found_tree, perturbed, read_case, severe_disease
from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

SCHEMA = "licag3d-diameter-3"
STARTS, TRACKS = ("perturbed", "found"), ("images", "masks")
LESIONS = ("obstructive", "severe")
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



if __name__ == "__main__":
    run(main)
