# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.evaluate``: score reconstructions against their truth, or against a CTA of the same patient."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

SCHEMA = "licag3d-metrics-2"
_EXAMPLES = """examples:
  python -m licag3d.evaluate --pred out --truth examples/rca/truth
  python -m licag3d.evaluate --pred results --truth cases
  python -m licag3d.evaluate --pred out --cta cta_folder --cta-labels coronaries.nii.gz
"""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = Parser(
        prog="python -m licag3d.evaluate",
        description="Score one reconstruction, or folders of them, against the truth, or one against a CTA: prints a "
        "table and writes metrics.json. Definitions and schema: docs/metrics.md.",
        epilog=_EXAMPLES,
    )
    result.add_argument(
        "--pred",
        required=True,
        metavar="DIR",
        help="folder with centerlines.json and cameras.json as licag3d.invert writes it, or a folder of such folders "
        "named like the cases",
    )
    result.add_argument("--truth", metavar="DIR", help="truth folder of a case (CASE/truth), or a folder of cases")
    result.add_argument("--out", metavar="FILE", help="where to write the scores (default: PRED/metrics.json)")
    result.add_argument("--all", action="store_true", help="print every score, not only the main ones")
    group = result.add_argument_group("against a CTA (instead of --truth)")
    group.add_argument("--cta", metavar="PATH", help="folder of a DICOM series, or .nii, .nii.gz, .nrrd, .mha, in HU")
    group.add_argument(
        "--cta-labels", metavar="FILE", help="coronary labels of the CTA (0 is background): gives the 3D scores too"
    )
    group.add_argument(
        "--series",
        metavar="N",
        help="which series of the DICOM folder: its number or UID (default: the one with the most slices)",
    )
    group.add_argument(
        "--alignment", metavar="FILE", help="CTA to reconstruction, as cta_alignment.json has it (default: searched)"
    )
    group.add_argument(
        "--views",
        nargs="+",
        metavar="FILE",
        help="the input frames, in the order of cameras.json: compared with the CTA too",
    )
    add_debug_flag(result)
    return result


def main(argv: list[str]) -> int:
    """Score and print; exit status 0 even for poor scores, 2 when nothing can be scored."""
    arguments = parser().parse_args(argv)
    if (arguments.truth is None) == (arguments.cta is None):
        raise InputError("give either --truth or --cta: see python -m licag3d.evaluate --help")
    if arguments.cta is None:
        for flag in ("cta_labels", "series", "alignment", "views"):
            if getattr(arguments, flag) is not None:
                raise InputError(f"--{flag.replace('_', '-')} goes with --cta only")
    pred = Path(arguments.pred)
    if not pred.is_dir():
        raise InputError(f"--pred {pred} is not a folder; give the folder that was written")
    out = Path(arguments.out) if arguments.out else pred / "metrics.json"
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {out} cannot be written; give a file in a folder that exists")
    content = _against_truth(pred, arguments) if arguments.cta is None else _against_cta(pred, out.parent, arguments)
    _write(out, content)
    return 0


def score_folder(pred_folder: Path, truth_folder: Path) -> dict:
    """See :func:`licag3d.metrics.folders.score_folder`."""
    from licag3d.metrics.folders import score_folder

    return score_folder(Path(pred_folder), Path(truth_folder))


def read_truth(folder: Path):
    """See :func:`licag3d.metrics.folders.read_truth`."""
    from licag3d.metrics.folders import read_truth

    return read_truth(Path(folder))


def _against_truth(pred: Path, arguments: argparse.Namespace) -> dict:
    truth = Path(arguments.truth)
    if not truth.is_dir():
        raise InputError(f"--truth {truth} is not a folder; give the folder that was written")
    from tqdm import tqdm

    from licag3d.metrics.folders import find_cases, score_folder
    from licag3d.metrics.names import METRICS, text
    from licag3d.metrics.scores import mean_scores

    cases, warnings = find_cases(pred, truth)
    scored: dict[str, dict] = {}
    for name, pred_folder, truth_folder in tqdm(cases, unit="case", disable=len(cases) < 2 or not sys.stderr.isatty()):
        scored[name] = score_folder(pred_folder, truth_folder)
        if len(cases) > 1:
            s = scored[name]["scores"]
            print(
                f"{name}: F1 1 mm {text(s['centerline_f1_1mm'])}, after similarity "
                f"{text(s['centerline_f1_1mm_after_similarity'])}"
            )
    mean = mean_scores([case["scores"] for case in scored.values()])
    failures = [name for name, case in scored.items() if case["failed"]]
    _print_truth_table(mean, [item for item in METRICS if item.shown or arguments.all], len(cases))
    for name in failures:
        print(f"failed (shares scored 0): {name}: {scored[name]['failed']}")
    warnings += [f"{name}: {text}" for name, case in scored.items() for text in case["warnings"]]
    _warn(warnings)
    return {
        "schema": SCHEMA,
        "against": "truth",
        "cases": scored,
        "mean": mean,
        "failed": failures,
        "warnings": warnings,
        "metrics": _definitions(mean),
    }


def _against_cta(pred: Path, folder: Path, arguments: argparse.Namespace) -> dict:
    from licag3d.io.atomic import write_bytes, write_text
    from licag3d.metrics.cta import score_cta
    from licag3d.metrics.cta_picture import cta_picture
    from licag3d.metrics.cta_read import read_cta, read_labels
    from licag3d.metrics.files import read_cameras, read_tree
    from licag3d.metrics.names import metric, text
    from licag3d.metrics.rigid import alignment_json, read_alignment

    tree, cameras = read_tree(pred / "centerlines.json"), read_cameras(pred / "cameras.json")
    alignment = None if arguments.alignment is None else read_alignment(arguments.alignment)
    frames = None
    if arguments.views is not None:
        from licag3d.io.views import read_views

        frames, _ = read_views(arguments.views, cameras=pred / "cameras.json")
    cta, notes = read_cta(arguments.cta, arguments.series)
    labels = None if arguments.cta_labels is None else read_labels(arguments.cta_labels)
    result = score_cta(tree, cameras, cta, labels, alignment, frames)
    names = []
    for k, view in enumerate(result.views):
        names.append(f"cta_view_{k + 1}.png")
        write_bytes(folder / names[-1], cta_picture(view))
    write_text(folder / "cta_alignment.json", alignment_json(result.fit) + "\n")
    fit = result.fit
    print(
        f"CTA to reconstruction ({'given' if alignment else 'found'}): rotation {fit.rigid.rotation_deg:.2f} deg, "
        f"translation {', '.join(f'{x:.2f}' for x in fit.rigid.translation_mm)} mm; "
        f"{100 * fit.share_2mm:.0f} % of the reconstruction within 2 mm of a vessel, residual "
        f"{fit.residual_median_mm:.2f} mm (median), {fit.residual_rms_mm:.2f} mm (rms)"
    )
    rows = []
    for name, value in result.scores.items():
        item = metric(name)
        if arguments.all or (item is not None and item.shown and ("_after_" not in name)):
            rows.append((name, text(value), item.unit, item.better))
    _print_rows(("score", "value", "unit", "better"), rows)
    warnings = [*notes, *result.notes]
    _warn(warnings)
    return {
        "schema": SCHEMA,
        "against": "cta",
        "cases": {pred.resolve().name: {"scores": result.scores, "failed": None, "warnings": warnings}},
        "mean": result.scores,
        "failed": [],
        "warnings": warnings,
        "metrics": _definitions(result.scores),
        "alignment": result.alignment(),
        "vessels": {
            "from": "labels" if result.vessels.labelled else "tube filter",
            "lumen_hu": result.vessels.lumen_hu,
            "background_hu": result.vessels.background_hu,
        },
        "pictures": names,
    }


def _definitions(scores: dict[str, float]) -> dict[str, dict[str, str]]:
    """Unit, direction and definition of every score that occurs, once per base name."""
    from licag3d.metrics.names import metric

    found = {item.name: item for item in map(metric, scores) if item is not None}
    return {
        name: {"unit": item.unit, "better": item.better, "definition": item.definition} for name, item in found.items()
    }


def _print_truth_table(mean: dict[str, float], items: list, count: int) -> None:
    """One row per score, raw and after both alignments."""
    from licag3d.metrics.names import text

    rows = []
    for item in items:
        after = [
            text(mean[f"{item.name}_after_{how}"]) if how in item.after else "" for how in ("translation", "similarity")
        ]
        rows.append((item.name, text(mean[item.name]), *after, item.unit, item.better))
    title = f"score (mean of {count} cases)" if count > 1 else "score"
    _print_rows((title, "raw", "after translation", "after similarity", "unit", "better"), rows)


def _print_rows(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Plain columns, numbers to the right: readable in a terminal, a log and a mail."""
    widths = [max(len(str(row[k])) for row in (head, *rows)) for k in range(len(head))]
    for row in (head, *rows):
        cells = [
            str(x).ljust(w) if k in (0, len(head) - 2, len(head) - 1) else str(x).rjust(w)
            for k, (x, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _write(path: Path, content: dict) -> None:
    """JSON with null for NaN, whole or not at all."""
    from licag3d.io.atomic import write_text

    def clean(value):
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    try:
        write_text(path, json.dumps(clean(content), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another place with --out") from None


if __name__ == "__main__":
    run(main)
