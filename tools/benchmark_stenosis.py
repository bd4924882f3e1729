# SPDX-License-Identifier: Apache-2.0
"""Benchmark the list of stenoses of whole inversions: what is found, what is listed falsely, how well it is measured.

    python tools/benchmark_stenosis.py --out severe.json --cases 16 --lesions severe
    python tools/benchmark_stenosis.py --out stenoses.json --cases 8 --first 4708 --tracks images masks --resume

Two-view phantom cases (40, 60, 60 and 90 degrees in turn, offset 5 mm, angle error 1 degree, full background), right
and left in turn, inverted by default settings from images (vessels found) or from given masks. Patients have
obstructive disease, or with ``--lesions severe`` that of another one with at least two stenoses of 70 %. Lesions that
no view shows (covered, foreshortened, outside) are counted apart. The file is written after every case. Definitions:
docs/refinement.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the package ``benchmarks``

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

SCHEMA = "licag3d-stenoses-1"
TRACKS = ("images", "masks")
LESIONS = ("obstructive", "severe")
SEPARATIONS_DEG = (40.0, 60.0, 60.0, 90.0)
#: Two-view quantitative angiography as published: mean and standard deviation of errors.
PUBLISHED = {
    "CAAS 5v10, bifurcation phantom: minimal diameter, mm": (0.013, 0.131),
    "CAAS 5v10, bifurcation phantom: percent stenosis": (-1.1, 5.1),
    "CardiOp-B, pigs with plugs (Ramcharitar 2008): minimal diameter, mm": (0.03, 0.23),
    "ten 2D systems (Keane 1995), worst: minimal diameter, mm": (0.31, 0.24),
}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python tools/benchmark_stenosis.py", description="Score the list of stenoses.")
    made.add_argument("--out", required=True, metavar="FILE", help="result file (JSON)")
    made.add_argument("--cases", type=int, default=12, metavar="N", help="number of cases, 1 to 1000")
    made.add_argument("--split", choices=("validation", "benchmark"), default="validation", help="seeds to draw from")
    made.add_argument("--first", type=int, default=4700, metavar="N", help="number of the first seed within the split")
    made.add_argument("--lesions", choices=LESIONS, default="obstructive", help="disease of the patients")
    made.add_argument("--tracks", nargs="+", choices=TRACKS, default=["images"])
    made.add_argument("--resume", action="store_true", help="keep the cases that the file holds already")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Measure case by case, write the file, print the summary."""
    arguments = parser().parse_args(argv)
    if not 1 <= arguments.cases <= 1000:
        raise InputError(f"--cases is {arguments.cases}; give 1 to 1000")
    from benchmarks.listed_stenoses import summary
    from licag3d.io.atomic import check_output_folder, write_text
    from licag3d.phantom.splits import BENCHMARK, VALIDATION

    seeds = {"validation": VALIDATION, "benchmark": BENCHMARK}[arguments.split]
    last = arguments.first + (arguments.cases - 1) // 2
    if not 0 <= arguments.first <= last < len(seeds):
        raise InputError(
            f"--first {arguments.first} with {arguments.cases} cases leaves the split of {len(seeds)} seeds"
        )
    out = Path(arguments.out)
    check_output_folder(out.parent)
    settings = {"split": arguments.split, "lesions": arguments.lesions, "tracks": list(arguments.tracks)}
    store: dict = {"schema": SCHEMA, "settings": settings, "cases": {}, "published": PUBLISHED}
    if arguments.resume and out.exists():
        before = json.loads(out.read_text())
        if before.get("schema") != SCHEMA or before.get("settings") != settings:
            raise InputError(f"--resume: {out.name} was made with other settings; give another --out")
        store["cases"] = before["cases"]
    out.parent.mkdir(parents=True, exist_ok=True)
    for k in range(arguments.cases):
        number, artery = arguments.first + k // 2, ("rca", "lca")[k % 2]
        name = f"{seeds[number]}_{artery}"
        if name not in store["cases"]:
            store["cases"][name] = measure_case(seeds, number, artery, arguments.lesions, arguments.tracks)
        rows = store["cases"].values()
        store["summary"] = {track: summary([row[track] for row in rows]) for track in arguments.tracks}
        write_text(out, json.dumps(store, indent=1, allow_nan=False) + "\n")
        print(f"{k + 1}/{arguments.cases} {name}", file=sys.stderr, flush=True)
    print(json.dumps(store["summary"], indent=1))
    return 0


def measure_case(seeds: range, number: int, artery: str, disease: str, tracks) -> dict:
    """The scores of one patient by track."""
    from benchmarks.diseased_cases import read_case, severe_disease
    from benchmarks.listed_stenoses import scores, true_stenoses
    from licag3d.inversion.pipeline import reconstruct
    from licag3d.metrics.alignment import best_similarity, best_translation
    from licag3d.metrics.centerline import tree_points
    from licag3d.phantom.anatomy import sample_tree
    from licag3d.phantom.disease import sample_disease
    from licag3d.phantom.simulate_case import simulate_case

    seed = seeds[number]
    if disease == "severe":
        tree, lesions = severe_disease(seed, artery, seeds)
    else:
        tree, lesions = sample_disease(seed, artery, sample_tree(seed, artery), extent="obstructive")
    case = simulate_case(
        seed,
        artery,
        tree=tree,
        separation_deg=SEPARATIONS_DEG[number % 4],
        offset_mm=5.0,
        angle_error_deg=1.0,
        background="full",
    )
    case = replace(case, lesions=lesions)
    true = true_stenoses(case)
    made = {}
    for track in tracks:
        views, _ = read_case(case, track)
        result = reconstruct(views)
        mine, wanted = (tree_points(x).points_lps_mm for x in (result.tree, case.tree))
        similarity = best_similarity(mine, wanted, best_translation(mine, wanted))
        made[track] = scores(result.narrowings, true, result.cameras, similarity.apply)
        made[track]["judged_share"] = result.judged_share
    return made


if __name__ == "__main__":
    run(main)
