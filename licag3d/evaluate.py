# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.evaluate``: score reconstructions against their truth."""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from pathlib import Path

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

#: What the table shows; everything is in metrics.json.
_SHOWN = (
    "centerline_f1_1mm",
    "centerline_f1_2mm",
    "centerline_f1_1mm_after_translation",
    "centerline_f1_1mm_after_similarity",
    "centerline_precision_1mm_after_similarity",
    "centerline_recall_1mm_after_similarity",
    "centerline_f1_2mm_after_similarity",
    "chamfer_mm",
    "chamfer_mm_after_similarity",
    "hd95_mm",
    "dice",
    "cldice",
    "radius_mae_mm",
    "heldout_reprojection_mm",
    "heldout_reprojection_mm_after_similarity",
    "input_reprojection_mm",
    "offset_error_mm",
    "offset_error_beyond_gauge_mm",
    "relative_rotation_error_deg",
    "similarity_scale",
)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = Parser(
        prog="python -m licag3d.evaluate",
        description="Score one reconstruction, or folders of them, against the "
        "truth: prints a table and writes metrics.json. Definitions: docs/metrics.md.",
    )
    result.add_argument(
        "--pred",
        required=True,
        metavar="DIR",
        help="folder with centerlines.json (and cameras.json) as "
        "licag3d.invert writes it, or a folder of such folders named like the cases",
    )
    result.add_argument(
        "--truth", required=True, metavar="DIR", help="truth folder of a case (CASE/truth), or a folder of cases"
    )
    result.add_argument("--out", metavar="FILE", help="where to write the scores (default: PRED/metrics.json)")
    add_debug_flag(result)
    return result


def main(argv: list[str]) -> int:
    """Score and print; exit status 0 even for poor scores, 2 when nothing can be scored."""
    arguments = parser().parse_args(argv)
    pred, truth = Path(arguments.pred), Path(arguments.truth)
    for name, folder in (("--pred", pred), ("--truth", truth)):
        if not folder.is_dir():
            raise InputError(f"{name} {folder} is not a folder; give the folder that was written")
    cases = _cases(pred, truth)
    scored: dict[str, dict] = {}
    for name, pred_folder, truth_folder in cases:
        scored[name] = score_folder(pred_folder, truth_folder)
        if len(cases) > 1:
            s = scored[name]["scores"]
            print(
                f"{name}: F1 1 mm {_text(s['centerline_f1_1mm'])}, after similarity "
                f"{_text(s['centerline_f1_1mm_after_similarity'])}"
                + (f", failed: {scored[name]['failed']}" if scored[name]["failed"] else "")
            )
    from licag3d.metrics.scores import mean_scores

    mean = mean_scores([case["scores"] for case in scored.values()])
    failures = [name for name, case in scored.items() if case["failed"]]
    _print_table(mean, len(cases), failures, scored)
    content = {"schema": "licag3d-metrics-1", "cases": scored, "mean": mean, "failed": failures}
    _write(Path(arguments.out) if arguments.out else pred / "metrics.json", content)
    return 0


def score_folder(pred_folder: Path, truth_folder: Path) -> dict:
    """``{"scores": {...}, "failed": reason or None}`` of one case.

    A prediction that is missing or unreadable is a failure with its scores (shares 0), never left out.

    Raises:
        InputError: the truth is missing or wrong.
    """
    from licag3d.metrics.files import read_cameras, read_tree
    from licag3d.metrics.scores import failure_scores, score

    truth = read_truth(truth_folder)
    try:
        tree = read_tree(pred_folder / "centerlines.json")
        path = pred_folder / "cameras.json"
        cameras = read_cameras(path) if path.exists() else None
    except InputError as error:
        return {"scores": failure_scores(truth), "failed": str(error)}
    if cameras is not None and len(cameras) != len(truth.cameras):
        return {
            "scores": score(tree, truth),
            "failed": None,
            "note": f"cameras.json has {len(cameras)} views, the truth {len(truth.cameras)}: camera scores left out",
        }
    return {"scores": score(tree, truth, cameras), "failed": None}


def read_truth(folder: Path):
    """:class:`licag3d.metrics.scores.Truth` of a ``truth`` folder.

    Raises:
        InputError: something is missing or wrong.
    """
    from licag3d.metrics.files import read_cameras, read_tree
    from licag3d.metrics.scores import Truth

    tree = read_tree(folder / "centerlines.json")
    if tree.length_mm <= 0:
        raise InputError(f"{folder / 'centerlines.json'} holds no vessel; give a truth with at least one branch")
    held_out = folder / "held_out" / "cameras.json"
    return Truth(tree, read_cameras(folder / "cameras.json"), read_cameras(held_out) if held_out.exists() else [])


def _cases(pred: Path, truth: Path) -> list[tuple[str, Path, Path]]:
    """Name, prediction folder and truth folder of every case."""
    if (truth / "centerlines.json").is_file():
        return [(truth.parent.name if truth.name == "truth" else truth.name, pred, truth)]
    if (truth / "truth" / "centerlines.json").is_file():
        return [(truth.name, pred, truth / "truth")]
    names = sorted(folder.name for folder in truth.iterdir() if (folder / "truth" / "centerlines.json").is_file())
    if not names:
        raise InputError(f"--truth {truth} holds no truth (centerlines.json) and no case with a truth folder")
    return [(name, pred / name, truth / name / "truth") for name in names]


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _print_table(mean: dict[str, float], count: int, failures: list[str], scored: dict[str, dict]) -> None:
    width = max(map(len, _SHOWN))
    print(f"{'score':<{width}}  {'mean of ' + str(count) + ' cases' if count > 1 else 'value'}")
    for name in _SHOWN:
        print(f"{name:<{width}}  {_text(mean[name])}")
    for name in failures:
        print(f"failed (scored 0): {name}: {scored[name]['failed']}")


def _write(path: Path, content: dict) -> None:
    """JSON with null for NaN, whole or not at all."""

    def clean(value):
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".metrics-", suffix=".json")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(clean(content), file, indent=1, allow_nan=False)
                file.write("\n")
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another place with --out") from None


if __name__ == "__main__":
    run(main)
