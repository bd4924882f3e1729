# SPDX-License-Identifier: Apache-2.0
"""What the tree encoder is worth on VALIDATION patients: one-pass trees from one, two and three views.

    python tools/benchmark_encoder.py --pool validation.safetensors --patients 24 --json encoder.json

Windows are drawn as in training (docs/encoder.md), with its errors. Per artery and number of views: course error (mean
distance of corresponding points, mm), centreline F1 at 1, 2 and 3 mm after the best similarity, the same of the mean
tree (what no picture is needed for), artery accuracy, and how well tuple codes tell one patient from two.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from tqdm import tqdm

from licag3d.command import Parser, run
from licag3d.io.atomic import write_text
from licag3d.metrics.alignment import best_similarity, best_translation
from licag3d.metrics.centerline import harmonic, nearest_distances, tree_points
from licag3d.models.branch_table import ARTERIES
from licag3d.models.encode_views import frozen_tokens, vector_tree
from licag3d.models.encoder import load_tree_encoder
from licag3d.models.generator import load_generator
from licag3d.phantom import splits
from licag3d.train.encoder_check import patient_auc
from licag3d.train.encoder_data import CodeReader, TreePoints, ViewMaker
from licag3d.train.encoder_step import course_errors_mm
from licag3d.train.generator_data import pool_of
from licag3d.train.generator_vectors import VectorSet

TOLERANCES_MM = (1.0, 2.0, 3.0)


def scores(pred, truth) -> dict[str, float]:
    """F1 of a tree after the best similarity."""
    ours, theirs = tree_points(pred, 0.5), tree_points(truth, 0.5)
    start = best_translation(ours.points_lps_mm, theirs.points_lps_mm)
    moved = best_similarity(ours.points_lps_mm, theirs.points_lps_mm, start).apply_to(ours)
    forward, _ = nearest_distances(moved.points_lps_mm, theirs.points_lps_mm)
    backward, _ = nearest_distances(theirs.points_lps_mm, moved.points_lps_mm)
    return {
        f"f1_{limit:g}mm": harmonic(float((forward <= limit).mean()), float((backward <= limit).mean()))
        for limit in TOLERANCES_MM
    }


@torch.no_grad()
def measure(net, generator, maker: ViewMaker, patients: int, views: int) -> dict:
    """All figures; patients per artery, the first ones of the pool."""
    stage = generator.structure
    out: dict[str, dict[str, list[float]]] = {}
    codes: dict[str, list[torch.Tensor]] = {"first": [], "second": [], "artery": []}
    for artery in ARTERIES:
        count = min(patients, len(maker.data.number[artery]))
        bar = tqdm(range(count), desc=artery, disable=not sys.stderr.isatty())
        for row in bar:
            batch = maker.batch(np.random.default_rng([21, row]), [(artery, row)], views)
            seen = net.see(batch["windows"], batch["cameras"], frozen_tokens(net, batch["windows"]))
            truth = maker.points.pool.tree(int(batch["number"][0]))
            vector = batch[f"{artery}.vector"]
            tries = {"mean tree": net.w_average[batch["artery"]][:, None].expand(-1, stage.groups, -1)}
            for number in range(1, views + 1):
                code = net.read(seen.only(list(range(number))), batch["artery"])
                said = out.setdefault(f"{artery}, {number} views", {})
                found = int(code.label[0, 1] > code.label[0, 0])
                said.setdefault("artery", []).append(float(found == int(batch["artery"][0])))
                tries[f"{number} views"] = code.w_plus[:, : stage.groups]
            for name, styles in tries.items():
                written = stage.vectors(styles, artery)
                said = out.setdefault(f"{artery}, {name}", {})
                error = float(course_errors_mm(stage, artery, written, vector)[0])
                for key, value in {
                    "course_mm": error,
                    **scores(vector_tree(stage, artery, written[0]), truth),
                }.items():
                    said.setdefault(key, []).append(value)
            for k, key in enumerate(("first", "second")):
                codes[key].append(net.read(seen.only([k]), batch["artery"], correct=False).tuple_code)
            codes["artery"].append(batch["artery"])
    first, second, artery = (torch.cat(codes[key]) for key in ("first", "second", "artery"))
    rows = {name: {key: round(float(np.mean(x)), 4) for key, x in said.items()} for name, said in out.items()}
    return {"rows": rows, "patient_auc": round(patient_auc(first, second, artery), 4)}


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = Parser(prog="python tools/benchmark_encoder.py", description="Measure the tree encoder.")
    parser.add_argument("--weights", default="tree_encoder", help="embedded weights or a .safetensors file")
    parser.add_argument("--pool", required=True, help="pool of VALIDATION trees, grown where it is missing")
    parser.add_argument("--trees", type=int, default=48, help="of the pool")
    parser.add_argument("--patients", type=int, default=24, help="per artery")
    parser.add_argument("--json", help="write the figures there")
    given = parser.parse_args(argv)
    generator, _ = load_generator()
    pool = pool_of(given.pool, given.trees, splits.VALIDATION)
    tables = generator.structure.tables
    maker = ViewMaker(TreePoints(pool, tables), VectorSet(pool, tables), CodeReader(generator), 1)
    found = measure(load_tree_encoder(given.weights), generator, maker, given.patients, 3)
    for name, row in found["rows"].items():
        print(f"{name:18s}" + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    print(f"patients told apart (area under the curve): {found['patient_auc']:.3f}")
    if given.json:
        write_text(given.json, json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    run(main)
