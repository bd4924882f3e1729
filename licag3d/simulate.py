# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.simulate``: synthetic patients with exact truth."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

#: Seeds of one run are ``seed * CASES_PER_SEED + case number``, so that runs with different seeds never share a case.
CASES_PER_SEED = 10_000


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = Parser(
        prog="python -m licag3d.simulate",
        description="Write synthetic angiogram pairs with exact truth: "
        "views, cameras as a user would have them, and a truth folder per case. Layout: docs/phantom.md.",
    )
    result.add_argument("--out", required=True, metavar="DIR", help="folder for the cases; finished cases are kept")
    result.add_argument("--cases", type=int, default=10, metavar="N", help="number of cases, 1 to 10000")
    result.add_argument("--seed", type=int, default=0, help="the same seed and settings give the same files")
    result.add_argument(
        "--artery", choices=("rca", "lca", "both"), default="both", help="right, left, or alternating right and left"
    )
    result.add_argument("--views", type=int, default=2, metavar="N", help="views per case, 1 to 4")
    result.add_argument(
        "--separation",
        type=float,
        default=60.0,
        metavar="DEG",
        help="angle between the first and every other view in degrees, 20 to 110",
    )
    result.add_argument(
        "--offset-mm",
        type=float,
        default=5.0,
        metavar="MM",
        help="length of the unknown table offset of every view but the first, 0 to 80 mm",
    )
    result.add_argument(
        "--angle-error-deg",
        type=float,
        default=0.0,
        metavar="DEG",
        help="error of the angles in cameras.json in degrees, 0 to 10",
    )
    result.add_argument(
        "--background",
        choices=("full", "flat"),
        default="full",
        help="chest with catheter and noise, or uniform with noise",
    )
    result.add_argument("--size", type=int, default=512, metavar="PX", help="rows and columns, 64 to 2048")
    result.add_argument("--images-only", action="store_true", help="leave out vessels.stl and labels.nii.gz (faster)")
    add_debug_flag(result)
    return result


def main(argv: list[str]) -> int:
    """Simulate and write; a second call with the same arguments goes on where the first stopped."""
    arguments = parser().parse_args(argv)
    if not 1 <= arguments.cases <= CASES_PER_SEED:
        raise InputError(f"--cases is {arguments.cases}; give 1 to {CASES_PER_SEED}")
    if not 0 <= arguments.seed <= 400_000:
        raise InputError(f"--seed is {arguments.seed}; give 0 to 400000")
    from licag3d.io.atomic import check_output_folder

    out = check_output_folder(arguments.out)
    from licag3d.phantom.simulate_case import check_settings, simulate_case
    from licag3d.phantom.write_case import Content, write_case

    settings = {
        "views": arguments.views,
        "separation_deg": arguments.separation,
        "offset_mm": arguments.offset_mm,
        "angle_error_deg": arguments.angle_error_deg,
        "background": arguments.background,
        "rows": arguments.size,
        "cols": arguments.size,
    }
    check_settings(**settings)
    arteries = ("rca", "lca") if arguments.artery == "both" else (arguments.artery,)
    content = Content(mesh=not arguments.images_only, labels=not arguments.images_only)
    began, made = time.perf_counter(), 0
    for number in range(arguments.cases):
        seed, artery = arguments.seed * CASES_PER_SEED + number, arteries[number % len(arteries)]
        folder = out / f"{artery}_{seed:06d}"
        if _finished(folder, seed, settings):
            print(f"{folder.name}: there already")
            continue
        write_case(folder, simulate_case(seed, artery, **settings), content)
        made += 1
        print(f"{folder.name}: written", flush=True)
    seconds = time.perf_counter() - began
    print(f"{made} cases in {seconds:.1f} s, {arguments.cases - made} there already: {out}")
    return 0


def _finished(folder: Path, seed: int, settings: dict) -> bool:
    """Whether the folder holds this very case; a folder with other settings is an error, not overwritten."""
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / "truth" / "case.json").read_text("utf-8"))
        same = found["seed"] == seed and all(found["settings"][key] == value for key, value in settings.items())
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise InputError(f"{folder} exists and was made with other settings; give another --out or remove it")
    return True


if __name__ == "__main__":
    run(main)
