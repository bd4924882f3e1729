# SPDX-License-Identifier: Apache-2.0
"""What each part of the inversion is worth, and how far cameras come back, on validation cases (docs/inversion.md).

    python tools/ablation.py --out ablation.json --cases 12
    python tools/ablation.py --out cameras.json --cases 52 --first-seed 54200 --offset-mm 20 --rows default
    python tools/ablation.py --out outside.json --cases 12 --first-seed 53100 --trees outside --rows default no-prior

Evidence and camera search run once per case, the rows after them. Finished rows are in the file at once; a run that was
interrupted goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from licag3d.command import Parser, run
from licag3d.errors import InputError

CAMERA_FIGURES = ("offset_error_in_plane_mm", "offset_error_depth_mm", "offset_error_beyond_gauge_mm")


def rows() -> dict[str, tuple[Callable, str]]:
    """Per row what it changes in the settings, and the cameras that it begins with: ``searched``, ``given``, or
    ``evolved`` on the baked field of the tree that the searched ones gave."""

    def no_matched(s):
        stage = s.prior_stage
        apart = replace(stage.completion, apart_mm=1e9, doubt=0.0)
        return replace(s, prior_stage=replace(stage, rounds=0, fit=replace(stage.fit, space=0.0), completion=apart))

    def no_names(s):
        return replace(s, prior_stage=replace(s.prior_stage, fit=replace(s.prior_stage.fit, named_mm=0.0)))

    def apart_by_masks(s):
        return replace(s, refinement=replace(s.refinement, overlaps=replace(s.refinement.overlaps, rounds=0)))

    return {
        "default": (lambda s: s, "searched"),
        "no-prior": (lambda s: replace(s, prior="none"), "searched"),
        "no-refinement": (lambda s: replace(s, skip=("refinement",)), "searched"),
        "no-overlaps": (apart_by_masks, "searched"),
        "no-rematching": (lambda s: replace(s, prior_stage=replace(s.prior_stage, rounds=0)), "searched"),
        "no-branch-search": (lambda s: replace(s, prior_stage=replace(s.prior_stage, branches=None)), "searched"),
        "no-contrast": (lambda s: replace(s, prior_stage=replace(s.prior_stage, contrast=None)), "searched"),
        "no-matched-points": (no_matched, "searched"),
        "no-judge": (lambda s: replace(s, judge=False), "searched"),
        "no-named-start": (no_names, "searched"),
        "gradient-cameras": (lambda s: s, "given"),
        "no-camera-correction": (lambda s: replace(s, camera_correction="none"), "given"),
        "baked-evolution": (lambda s: s, "evolved"),
    }


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python tools/ablation.py", description="Score the inversion with parts left out.")
    made.add_argument("--out", required=True, metavar="FILE", help="result file (JSON), continued if it exists")
    made.add_argument("--cases", type=int, default=12, metavar="N", help="cases, right and left in turn (default 12)")
    made.add_argument("--first-seed", type=int, default=53006, metavar="S", help="validation seed of the first pair")
    made.add_argument("--offset-mm", type=float, default=5.0, metavar="MM", help="unknown table offset (default 5 mm)")
    made.add_argument(
        "--trees", choices=("family", "outside"), default="family", help="of the phantom, or bent ones that no plan "
        "of it draws (licag3d.phantom.outside_family)"
    )  # fmt: skip
    made.add_argument("--rows", nargs="+", choices=tuple(rows()), default=tuple(rows()), help="default: all")
    return made


def main(argv: list[str]) -> int:
    """Run what is missing and print the table."""
    from licag3d.io.atomic import write_text
    from licag3d.phantom.splits import VALIDATION

    given = parser().parse_args(argv)
    last = given.first_seed + (given.cases + 1) // 2 - 1
    if given.cases < 1 or given.first_seed not in VALIDATION or last not in VALIDATION:
        raise InputError(f"--cases {given.cases} --first-seed {given.first_seed}: give validation seeds 50000 to 59999")
    path = Path(given.out)
    done = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for k in range(given.cases):
        seed, artery = given.first_seed + k // 2, ("rca", "lca")[k % 2]
        name = f"{seed}_{artery}_{given.offset_mm:g}mm" + ("_outside" if given.trees == "outside" else "")
        missing = [row for row in given.rows if row not in done.get(name, {})]
        if missing:
            done.setdefault(name, {}).update(score_case(seed, artery, given.offset_mm, missing, trees=given.trees))
            write_text(path, json.dumps(done))
            print(name, {row: round(done[name][row]["f1"], 3) for row in missing}, file=sys.stderr, flush=True)
    print(table(done, given.rows))
    return 0


def score_case(seed: int, artery: str, offset_mm: float, wanted, trees: str = "family") -> dict[str, dict[str, float]]:
    """Scores of the rows on one case: 60 degrees, angles 1 degree off, full background, images alone."""
    from licag3d.inversion.chains import chains_from_graph
    from licag3d.inversion.consistency import contrast_of
    from licag3d.inversion.settings import inversion_settings
    from licag3d.inversion.several import correct_cameras
    from licag3d.inversion.tree_stages import find_tree
    from licag3d.io.views import read_views
    from licag3d.metrics.scores import Truth, score
    from licag3d.models.centerline2d import trace_centerlines
    from licag3d.models.vessel_evidence import vessel_evidence
    from licag3d.phantom.anatomy import sample_tree
    from licag3d.phantom.outside_family import outside_tree
    from licag3d.phantom.simulate_case import simulate_case
    from licag3d.phantom.write_case import Content, write_case

    case = simulate_case(
        seed, artery, separation_deg=60, offset_mm=offset_mm, angle_error_deg=1.0, background="full", held_out=1,
        tree=outside_tree(sample_tree(seed, artery), seed) if trees == "outside" else None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "case"
        write_case(place, case, Content(projections=False, mesh=False, labels=False))
        files = [str(place / f"view_{k}.png") for k in (1, 2)]
        views, _ = read_views(files, cameras=place / "cameras.json", masks=None)
    settings = inversion_settings()
    evidence = [vessel_evidence(view) for view in views]
    chains = [chains_from_graph(trace_centerlines(e, v), v.camera) for e, v in zip(evidence, views, strict=True)]
    given = tuple(view.camera for view in views)
    searched, _ = correct_cameras(given, chains, settings, contrast=[contrast_of(item) for item in evidence])
    truth = Truth(case.tree, case.true_cameras, [view.true_camera for view in case.held_out])
    found = {}
    for row in wanted:
        change, begin = rows()[row]
        try:
            cameras = given if begin == "given" else searched
            if begin == "evolved":
                first = find_tree(views, evidence, chains, searched, change(settings))
                cameras = evolved(first.tree, first.cameras, evidence)
            made = find_tree(views, evidence, chains, cameras, change(settings))
        except InputError:  # nothing can be matched: counts as nothing found
            found[row] = {"f1": 0.0}
            continue
        scores = score(made.tree, truth, made.cameras)
        found[row] = {
            "f1": scores["centerline_f1_1mm_after_similarity"],
            "held_out_mm": scores["heldout_reprojection_mm_after_similarity"],
            **{name: scores[name] for name in CAMERA_FIGURES},
        }
    return found


def evolved(tree, cameras, evidence):
    """All views but the first corrected on the baked field of a tree."""
    from licag3d.inversion.camera_evolution import evolve_camera

    rest = zip(cameras[1:], evidence[1:], strict=True)
    return (cameras[0], *(evolve_camera(tree, cameras[0], camera, item).camera for camera, item in rest))


def table(done: dict, wanted) -> str:
    """Mean F1 per row, its difference to ``default`` with 95 % (bootstrap over the cases), medians of the distances."""
    lines = [
        "| row | cases | F1 1 mm | difference | held-out mm | in plane mm | beyond gauge mm |",
        "|---|" + "---|" * 6,
    ]
    rng = np.random.default_rng(0)
    for row in wanted:
        cases = [c for c in done.values() if row in c]
        f1 = np.array([c[row]["f1"] for c in cases])
        pairs = np.array([c[row]["f1"] - c["default"]["f1"] for c in cases if "default" in c])
        low, high = np.percentile(rng.choice(pairs, (5000, len(pairs))).mean(1), [2.5, 97.5]) if len(pairs) else (0, 0)
        middle = [
            np.nanmedian([c[row].get(name, np.nan) for c in cases])
            for name in ("held_out_mm", CAMERA_FIGURES[0], CAMERA_FIGURES[2])
        ]
        shown = f"{pairs.mean():.3f} ({low:.3f} to {high:.3f})" if len(pairs) else ""
        distances = " | ".join(f"{value:.2f}" for value in middle)
        lines.append(f"| {row} | {len(cases)} | {f1.mean():.3f} | {shown} | {distances} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
