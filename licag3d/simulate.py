# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.simulate``: synthetic patients with exact truth."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

#: Seeds of one run are ``seed * CASES_PER_SEED + case number``, so that runs with different seeds never share a case.
CASES_PER_SEED = 10_000
_EXAMPLES = """examples:
  python -m licag3d.simulate --out cases --cases 4 --seed 1
  python -m licag3d.simulate --out hard --cases 20 --artery lca --offset-mm 20 --angle-error-deg 1 --disease random
  python -m licag3d.simulate --out cines --cases 2 --format dicom --cine --bits 12
"""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = Parser(
        prog="python -m licag3d.simulate",
        description="Write synthetic angiogram pairs with exact truth: "
        "views, cameras as a user would have them, and a truth folder per case. Layout: docs/phantom.md.",
        epilog=_EXAMPLES,
    )
    result.add_argument("--out", required=True, metavar="DIR", help="folder for the cases; finished cases are kept")
    result.add_argument("--cases", type=int, default=10, metavar="N", help="number of cases, 1 to 10000")
    result.add_argument(
        "--seed", type=int, default=0, help="the same seed and settings give the same files, 0 to 400000"
    )
    result.add_argument(
        "--artery", choices=("rca", "lca", "both"), default="both", help="right, left, or alternating right and left"
    )
    views = result.add_argument_group("views")
    views.add_argument("--views", type=int, default=2, metavar="N", help="views per case, 1 to 4")
    views.add_argument(
        "--separation",
        type=float,
        default=60.0,
        metavar="DEG",
        help="angle between the first and every other view in degrees, 20 to 110",
    )
    views.add_argument(
        "--angles", choices=("working", "free"), default="working", help="views that operators use, or any within reach"
    )
    views.add_argument(
        "--offset-mm",
        type=float,
        default=5.0,
        metavar="MM",
        help="length of the unknown table offset of every view but the first, 0 to 80 mm",
    )
    views.add_argument(
        "--angle-error-deg",
        type=float,
        default=0.0,
        metavar="DEG",
        help="error of the angles in cameras.json in degrees, 0 to 10",
    )
    views.add_argument(
        "--distance-error-mm",
        type=float,
        default=0.0,
        metavar="MM",
        help="error of SID and SOD in cameras.json in mm, 0 to 100",
    )
    views.add_argument(
        "--distance-jitter-mm",
        type=float,
        default=0.0,
        metavar="MM",
        help="how far SID and SOD of every view lie from the common ones in mm, 0 to 100 (known to the user)",
    )
    anatomy = result.add_argument_group("patient")
    anatomy.add_argument(
        "--disease", choices=("none", "random"), default="none", help="stenoses, aneurysms and occlusions"
    )
    anatomy.add_argument("--twigs", action="store_true", help="with the vessels under 0.7 mm that angiograms show")
    anatomy.add_argument(
        "--from-labels",
        metavar="DIR",
        help="trees from CT label volumes (NIfTI, NRRD) in this folder instead of sampled ones",
    )
    anatomy.add_argument(
        "--phases",
        choices=("same", "different"),
        default="same",
        help="views at end-diastole, or every view but the first anywhere in the heartbeat",
    )
    anatomy.add_argument(
        "--respiration-mm",
        type=float,
        default=0.0,
        metavar="MM",
        help="how far breathing moves the heart between views and during a cine in mm, 0 to 25",
    )
    image = result.add_argument_group("image")
    image.add_argument(
        "--background",
        choices=("full", "flat"),
        default="full",
        help="chest with catheter and noise, or uniform with noise",
    )
    image.add_argument("--size", type=int, default=512, metavar="PX", help="rows and columns, 64 to 2048")
    image.add_argument(
        "--filling",
        choices=("full", "random"),
        default="full",
        help="contrast everywhere, or every view at a moment between inflow and washout",
    )
    image.add_argument(
        "--kappa",
        type=float,
        metavar="K",
        help="write contrast_free_N beside each view: the same moment with this share of the contrast left, 0 to 1",
    )
    image.add_argument("--bits", type=int, default=8, metavar="N", help="bits of the images: 8, 10, 12 or 16")
    image.add_argument("--format", choices=("png", "dicom"), default="png", help="of the views")
    image.add_argument(
        "--cine", action="store_true", help="write a DICOM XA cine of every view too: inflow, filling, washout"
    )
    image.add_argument("--cine-fps", type=float, default=15.0, metavar="N", help="frames per second, 2 to 60")
    image.add_argument("--images-only", action="store_true", help="leave out vessels.stl and labels.nii.gz (faster)")
    add_debug_flag(result)
    return result


def main(argv: list[str]) -> int:
    """Simulate and write; a second call with the same arguments goes on where the first stopped."""
    arguments = parser().parse_args(argv)
    if not 1 <= arguments.cases <= CASES_PER_SEED:
        raise InputError(f"--cases is {arguments.cases}; give 1 to {CASES_PER_SEED}")
    if not 0 <= arguments.seed <= 400_000:
        raise InputError(f"--seed is {arguments.seed}; give 0 to 400000")
    if not 2 <= arguments.cine_fps <= 60:
        raise InputError(f"--cine-fps is {arguments.cine_fps}; give 2 to 60")
    from licag3d.io.atomic import check_output_folder

    out = check_output_folder(arguments.out)
    from tqdm import tqdm

    from licag3d.phantom.case_settings import check_settings, recorded
    from licag3d.phantom.simulate_case import simulate_case
    from licag3d.phantom.write_case import Content, write_case

    settings = _settings(arguments)
    check_settings(**settings)
    files = {"format": arguments.format, "cines": arguments.views if arguments.cine else 0}
    with_volumes = not arguments.images_only
    content = Content(mesh=with_volumes, labels=with_volumes, format=arguments.format)
    began, made = time.perf_counter(), 0
    # A bar on a terminal; elsewhere one line per case is enough.
    bar = tqdm(total=arguments.cases, unit="case", disable=not sys.stderr.isatty())
    with bar:
        for number, (artery, tree, source) in enumerate(_patients(arguments)):
            seed = arguments.seed * CASES_PER_SEED + number
            folder = out / f"{source + '_' if source else ''}{artery}_{seed:06d}"
            wanted = {"settings": recorded(settings), "files": files, "source": source}
            if _finished(folder, seed, wanted):
                bar.write(f"{folder.name}: there already", file=sys.stdout)
            else:
                case = simulate_case(seed, artery, tree=tree, **settings)
                write_case(folder, case, content, cines=_cines(arguments, case, bar), source=source)
                made += 1
                bar.write(f"{folder.name}: written", file=sys.stdout)
                sys.stdout.flush()
            bar.update()
    seconds = time.perf_counter() - began
    print(f"{made} cases in {seconds:.1f} s, {arguments.cases - made} there already: {out}")
    return 0


def _settings(arguments: argparse.Namespace) -> dict:
    return {
        "views": arguments.views,
        "separation_deg": arguments.separation,
        "offset_mm": arguments.offset_mm,
        "angle_error_deg": arguments.angle_error_deg,
        "background": arguments.background,
        "rows": arguments.size,
        "cols": arguments.size,
        "disease": arguments.disease,
        "twigs": arguments.twigs,
        "phases": arguments.phases,
        "respiration_mm": arguments.respiration_mm,
        "kappa": arguments.kappa,
        "filling": arguments.filling,
        "bits": arguments.bits,
        "angles": arguments.angles,
        "distance_jitter_mm": arguments.distance_jitter_mm,
        "distance_error_mm": arguments.distance_error_mm,
    }


def _patients(arguments: argparse.Namespace) -> Iterator[tuple[str, object, str]]:
    """Artery, tree (None: sampled) and its source of every case."""
    arteries = ("rca", "lca") if arguments.artery == "both" else (arguments.artery,)
    if arguments.from_labels is None:
        for number in range(arguments.cases):
            yield arteries[number % len(arteries)], None, ""
        return
    if arguments.twigs:
        raise InputError("--twigs belongs to sampled trees; leave it out with --from-labels")
    from licag3d.data.label_volumes import iterate_label_cases
    from licag3d.phantom.from_labels import tree_from_labels

    found, number = [], 0
    for name, path in iterate_label_cases(arguments.from_labels):
        trees = tree_from_labels(path)
        if set(trees) == {"tree"}:
            if arguments.artery == "both":
                raise InputError(f"{path.name} does not tell the side of its tree; give --artery rca or lca")
            trees = {arguments.artery: trees["tree"]}
        for artery in (artery for artery in arteries if artery in trees):
            found.append((artery, trees[artery], name))
            yield found[-1]
            number += 1
            if number == arguments.cases:
                return
    if not found:
        raise InputError(f"--from-labels {arguments.from_labels}: no {arguments.artery} tree in its label volumes")
    while number < arguments.cases:  # the same trees again, seen by other views in another chest
        yield found[number % len(found)]
        number += 1


def _cines(arguments: argparse.Namespace, case, bar) -> list:
    if not arguments.cine:
        return []
    from licag3d.phantom.cine import simulate_cine

    made = []
    for view in range(arguments.views):

        def tell(done: int, count: int, view: int = view) -> None:
            bar.set_postfix_str(f"cine {view + 1}: {done}/{count} frames", refresh=done % 5 == 0)

        made.append(
            simulate_cine(
                case,
                view,
                frames_per_s=arguments.cine_fps,
                respiration_mm=arguments.respiration_mm,
                bits=arguments.bits,
                progress=tell,
            )
        )
    bar.set_postfix_str("")
    return made


def _finished(folder: Path, seed: int, wanted: dict) -> bool:
    """Whether the folder holds this very case; a folder with other settings is an error, not overwritten."""
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / "truth" / "case.json").read_text("utf-8"))
        files = {"format": "png", "cines": 0, **found.get("files", {})}
        same = (
            found["seed"] == seed
            and found["settings"] == wanted["settings"]
            and files == wanted["files"]
            and found.get("source", "") == wanted["source"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise InputError(f"{folder} exists and was made with other settings; give another --out or remove it")
    return True


if __name__ == "__main__":
    run(main)
