# SPDX-License-Identifier: Apache-2.0
"""Fit the constants of the expected errors (licag3d.inversion.uncertainty) on phantom cases; docs/uncertainty.md.

    python tools/calibrate_uncertainty.py --cases FOLDER --work FOLDER             collect, fit, check, print
    python tools/calibrate_uncertainty.py --cases FOLDER --work FOLDER --write     and write the constants

``--cases`` holds case folders of ``python -m licag3d.simulate`` (validation seeds; one that is seen in training proves
nothing). Every case is reconstructed as a user would, from images and with the masks given, with the prior and without,
and what is known about each point of the tree is kept in ``--work`` beside its distance to the true centreline after
the best similarity; what is there already is not run again. Cases in order of their names: the first half is fitted,
the other half checked, and the constants that are written are fitted to all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from licag3d.command import Parser, run
from licag3d.errors import InputError

LEVEL = 0.9
#: Level of the table. Cases differ more than points of one case, and a few dozen of them are few: fitted at 0.9 sharp,
#: cases that were not fitted were covered to 0.85.
TABLE_LEVEL = 0.925
BINS = 24
#: What a case is reconstructed from, and by.
KINDS = ("images", "masks")
WAYS = {"prior": "embedded", "matching": "none"}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python tools/calibrate_uncertainty.py", description="Fit the constants of the expected errors.")
    made.add_argument("--cases", metavar="DIR", help="folder of simulated cases; without it only what --work holds")
    made.add_argument("--work", required=True, metavar="DIR", help="one file per case and kind of evidence")
    made.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS), help="what to collect")
    made.add_argument("--quality", choices=("fast", "default", "best"), default="default")
    made.add_argument("--write", action="store_true", help="write inversion/uncertainty_constants.py")
    return made


def main(argv: list[str]) -> int:
    """Collect, fit, check, write."""
    given = parser().parse_args(argv)
    work = Path(given.work)
    work.mkdir(parents=True, exist_ok=True)
    if given.cases:
        collect(Path(given.cases), work, given.quality, given.ways)
    cases = load(work)
    models, said = {}, []
    for kind in KINDS:
        for way in WAYS:
            own = [case for case in cases if (case["kind"], case["way"]) == (kind, way)]
            if len(own) < 4:
                raise InputError(f"{work} holds {len(own)} case(s) with {kind} and {way}; at least 4 are needed")
            half = (len(own) + 1) // 2
            for name, columns in columns_of_models(way).items():
                model = fit(own[:half], columns)
                said.append(check(own[half:], model, f"{kind}, {way}, {name}"))
                models[kind, way, name] = fit(own, columns)
    print("\n".join(said))
    if given.write:
        seeds = sorted({case["name"] for case in cases})
        path = Path(__file__).resolve().parents[1] / "inversion" / "uncertainty_constants.py"
        path.write_text(constants_text(models, seeds, said), "utf-8")
        print(f"written: {path.name}")
    return 0


def collect(cases: Path, work: Path, quality: str, ways: Sequence[str]) -> None:
    """Reconstruct every case and keep features and true errors of its points."""
    from tqdm import tqdm

    from licag3d.inversion import pipeline, uncertainty
    from licag3d.inversion.settings import inversion_settings
    from licag3d.io.views import read_views
    from licag3d.io.write_centerlines import read_centerlines_json

    folders = sorted(path.parent for path in cases.glob("*/cameras.json"))
    if not folders:
        raise InputError(f"{cases} holds no case folders; make some with python -m licag3d.simulate")
    jobs = [(folder, kind, way) for folder in folders for kind in KINDS for way in ways]
    for folder, kind, way in tqdm(jobs, disable=not sys.stderr.isatty()):
        out = work / f"{folder.name}_{kind}_{way}.npz"
        if out.exists():
            continue
        settings = inversion_settings(quality=quality, prior=WAYS[way])
        # The field does not move the tree; a rough one will do.
        settings = replace(settings, field=replace(settings.field, spacing_mm=1.0, iterations=2))
        files = [str(path) for path in sorted(folder.glob("view_?.png"))]
        masks = [str(folder / "truth" / f"{Path(file).stem}_mask.png") for file in files]
        views, _ = read_views(files, cameras=folder / "cameras.json", masks=masks if kind == "masks" else None)
        kept: list[np.ndarray] = []
        original = uncertainty.point_features

        def keep(*arguments, _original=original, _kept=kept, **named):
            _kept.append(_original(*arguments, **named))
            return _kept[-1]

        uncertainty.point_features = keep
        try:
            result = pipeline.reconstruct(views, settings)
        finally:
            uncertainty.point_features = original
        truth = read_centerlines_json(folder / "truth" / "centerlines.json")
        error, weight = true_errors(result.tree, truth)
        np.savez_compressed(out, features=kept[-1], error_mm=error, weight_mm=weight)


def true_errors(tree, truth) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every point to the true centreline after the best similarity, and the arc it stands for; mm."""
    from licag3d.metrics.alignment import best_similarity, best_translation
    from licag3d.metrics.centerline import nearest_distances, tree_points
    from licag3d.vessels.tree import arc_length_mm, flatten_tree

    pred, true = tree_points(tree).points_lps_mm, tree_points(truth).points_lps_mm
    moved = best_similarity(pred, true, best_translation(pred, true))
    error = nearest_distances(moved.apply(flatten_tree(tree).points_lps_mm), tree_points(truth, 0.2).points_lps_mm)[0]
    arc = [arc_length_mm(branch.points_lps_mm) for branch in tree.branches]
    return error, np.concatenate([np.gradient(a) if len(a) > 1 else np.zeros(1) for a in arc])


def load(work: Path) -> list[dict]:
    """What was collected, in order of the names."""
    out = []
    for path in sorted(work.glob("*.npz")):
        name, kind, way = path.stem.rsplit("_", 2)
        with np.load(path) as stored:
            out.append({"name": name, "kind": kind, "way": way, **{key: stored[key] for key in stored.files}})
    return out


def columns_of_models(way: str) -> dict[str, list[int]]:
    """Columns of the features that the models with and without an ensemble use."""
    from licag3d.inversion.uncertainty import ENSEMBLE, FEATURES, PRIOR

    known = [k for k, name in enumerate(FEATURES) if way == "prior" or name not in PRIOR]
    alone = {"alone": [k for k in known if FEATURES[k] not in ENSEMBLE]}
    # With a prior the ensemble is worth nothing, and is not asked.
    return alone if way == "prior" else {"ensemble": known, **alone}


def fit(cases: list[dict], columns: list[int]) -> dict:
    """Linear quantile regression (Koenker and Bassett, Econometrica 1978;46:33) of the logarithm of the error, then a
    monotone table from that score to the radius: the split conformal quantile of every bin of the score, pooled where
    it falls."""
    from licag3d.inversion.uncertainty_constants import LARGEST_MM

    x = np.concatenate([case["features"][:, columns] for case in cases])
    error = np.concatenate([case["error_mm"] for case in cases])
    weight = np.concatenate([case["weight_mm"] for case in cases])
    weights, bias = quantile_regression(x, np.log(np.clip(error, 0.05, LARGEST_MM)), weight, LEVEL)
    score = x @ weights + bias
    order = np.argsort(score, kind="stable")
    edges = np.searchsorted(np.cumsum(weight[order]) / weight.sum(), np.linspace(0, 1, BINS + 1)[1:-1])
    pieces = np.split(order, edges)
    middle = np.array([np.median(score[piece]) for piece in pieces])
    radius = rising([weighted_quantile(error[piece], weight[piece], TABLE_LEVEL) for piece in pieces])
    full = np.zeros(cases[0]["features"].shape[1])
    full[columns] = weights
    return {"weights": full, "bias": bias, "score": middle, "radius_mm": np.minimum(radius, LARGEST_MM)}


def quantile_regression(x, y, weight, level: float, *, ridge: float = 1e-3, rounds: int = 100):
    """Weights ``(f,)`` and bias of the linear ``level`` quantile of y, by majorising the pinball loss with parabolas
    (Hunter and Lange, J. Comput. Graph. Stat. 2000;9:60); a light ridge on scaled columns keeps those apart that say
    the same."""
    mean, spread = x.mean(0), np.maximum(x.std(0), 1e-6)
    z = np.concatenate([(x - mean) / spread, np.ones((len(x), 1))], axis=1)
    share = weight / weight.sum()
    hold = 2.0 * ridge * np.diag([*np.ones(x.shape[1]), 0.0])
    found = np.zeros(z.shape[1])
    found[-1] = weighted_quantile(y, weight, level)
    for _ in range(rounds):
        pull = share / (2.0 * (np.abs(y - z @ found) + 1e-3))
        found = np.linalg.solve((z * pull[:, None]).T @ z + hold, z.T @ (pull * y + (level - 0.5) * share))
    return found[:-1] / spread, float(found[-1] - (mean / spread) @ found[:-1])


def weighted_quantile(values: np.ndarray, weight: np.ndarray, level: float) -> float:
    """The smallest value with at least ``level`` of the weight at or below it."""
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weight[order]) / weight.sum()
    return float(values[order][min(int(np.searchsorted(share, level)), len(values) - 1)])


def rising(values: list[float]) -> np.ndarray:
    """The nearest sequence that never falls (pool adjacent violators)."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    return np.concatenate([np.full(count, value) for value, count in pools])


def check(cases: list[dict], model: dict, name: str) -> str:
    """One line: coverage overall, of the worst case and by stratum of the radius, and how sharp the radii are."""
    from licag3d.inversion.uncertainty import radius_of

    radius = [radius_of(case["features"], model) for case in cases]
    inside = [case["error_mm"] <= r for case, r in zip(cases, radius, strict=True)]
    per_case = [np.average(i, weights=case["weight_mm"]) for i, case in zip(inside, cases, strict=True)]
    r, i = np.concatenate(radius), np.concatenate(inside)
    w = np.concatenate([case["weight_mm"] for case in cases])
    strata = []
    for low, high in ((0, 1), (1, 2), (2, 4), (4, 7), (7, 11)):
        here = (r >= low) & (r < high)
        if w[here].sum() > 0.005 * w.sum():
            strata.append(
                f"{low}-{high} mm: {np.average(i[here], weights=w[here]):.2f} of {100 * w[here].sum() / w.sum():.0f} %"
            )
    return (
        f"{name}: {len(cases)} cases, coverage {np.average(i, weights=w):.3f} (worst case {min(per_case):.2f}), radius "
        f"median {weighted_quantile(r, w, 0.5):.2f}, mean {np.average(r, weights=w):.2f} mm; " + "; ".join(strata)
    )


def constants_text(models: dict, names: list[str], said: list[str]) -> str:
    """The file of constants."""
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        '"""Constants of licag3d.inversion.uncertainty, written by tools/calibrate_uncertainty.py: do not edit.',
        "",
        f"Fitted to {len(names)} phantom cases of the validation seeds ({names[0]} to {names[-1]}). What a fit to the",
        "first half of them gives on the other half:",
        "",
        *(part for line in said for part in _wrapped(line)),
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "#: Radii end here; this value means this or more, mm.",
        "LARGEST_MM = 10.0",
        "#: By evidence and model: weights of the features and bias of the score, and the table from score to radius.",
        "MODELS = {",
    ]
    for (kind, way, name), model in models.items():
        lines.append(f'    ("{kind}", "{way}", "{name}"): {{')
        for key in ("weights", "score", "radius_mm"):
            lines.append(f'        "{key}": (')
            lines += [f"            {float(value):.4f}," for value in model[key]]
            lines.append("        ),")
        lines += [f'        "bias": {model["bias"]:.4f},', "    },"]
    return "\n".join([*lines, "}", ""])


def _wrapped(line: str) -> list[str]:
    import textwrap

    return textwrap.wrap(line, 116, initial_indent="- ", subsequent_indent="  ")


if __name__ == "__main__":
    run(main)
