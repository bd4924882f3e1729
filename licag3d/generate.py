# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.generate``: synthetic coronary trees from the generator, as pictures, meshes and fields."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from licag3d.command import Parser, add_debug_flag, device_of, run
from licag3d.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from licag3d.models.samples import Sample

#: Most seeds of one run, and the largest seed.
MOST_SEEDS, LARGEST_SEED = 10_000, 2**31 - 1
VIDEOS = ("none", "turntable", "interpolation", "views")
_DESCRIPTION = """Draw synthetic coronary trees from the generator. Per seed N it writes
  seedN.png      projection            seedN.stl      lumen surface, LPS mm
  seedN.nii.gz   attenuation, 1/mm     sheet.png, video.mp4 or video.gif, samples.json
Everything written says that it is synthetic.
"""
_EXAMPLES = """examples:
  python -m licag3d.generate --seeds 134 --trunc 0.7 --grid 2x2 --artery rca --out trees
  python -m licag3d.generate --seeds 0-7,134 --artery lca --video interpolation --frames 120 --out trees
  python -m licag3d.generate --seeds 0-99 --artery rca --images-only --plain --angles 30,0 -30,20 --out pictures
"""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = Parser(
        prog="python -m licag3d.generate",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    result.add_argument("--seeds", required=True, metavar="LIST", help="for example 134 or 0-7,134")
    result.add_argument("--out", required=True, metavar="DIR", help="folder for the files")
    result.add_argument("--artery", choices=("rca", "lca"), default="rca", help="right or left coronary tree")
    result.add_argument("--co-dominant", action="store_true", help="of a co-dominant patient")
    result.add_argument(
        "--trunc", type=float, default=1.0, metavar="X", help="truncation: 1 all variety, 0 the average tree of a side"
    )
    result.add_argument("--prior", default="generator", metavar="PATH", help="own weights, a .safetensors file")
    result.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the generator")
    pictures = result.add_argument_group("pictures")
    pictures.add_argument(
        "--grid",
        metavar="RxC",
        help="rows x columns of sheet and video; with fewer seeds than places a seed is shown from several views, with "
        "more there are several sheets, and the video shows the first (default: a square that holds all seeds)",
    )
    pictures.add_argument(
        "--size", type=int, default=512, metavar="PX", help="rows and columns of a picture, 32 to 2048"
    )
    pictures.add_argument(
        "--angles",
        nargs="+",
        metavar="A,B",
        help="primary,secondary angles of the pictures in degrees, LAO and cranial positive (default: one view that "
        "suits the artery); several make seedN_view1.png, seedN_view2.png, ...",
    )
    pictures.add_argument(
        "--nine-views", action="store_true", help="the nine standard views of each seed too: seedN_views.png"
    )
    pictures.add_argument("--field-of-view", type=float, default=120.0, metavar="MM", help="at the isocentre, mm")
    pictures.add_argument(
        "--plain", action="store_true", help="no text in the pictures seedN*.png (their metadata stay)"
    )
    film = result.add_argument_group("video")
    film.add_argument(
        "--video",
        choices=VIDEOS,
        default="none",
        help="a full turn about the long axis of the patient, a walk from seed to seed, or one through the nine views",
    )
    film.add_argument("--frames", type=int, default=60, metavar="N", help="of the video, 2 to 1000")
    film.add_argument("--video-size", type=int, default=256, metavar="PX", help="of a place of the grid, 32 to 1024")
    volume = result.add_argument_group("volume")
    volume.add_argument("--spacing", type=float, default=0.5, metavar="MM", help="voxel size in mm, 0.2 to 4")
    volume.add_argument("--images-only", action="store_true", help="leave out STL and NIfTI (faster)")
    add_debug_flag(result)
    return result


def parse_seeds(text: str) -> list[int]:
    """Seeds of a list such as ``0-7,134``, in that order, each once.

    Raises:
        InputError: a part that is neither a number nor a rising range, too large a number, or too many.

    Example:
        >>> parse_seeds("3-5,134,4")
        [3, 4, 5, 134]
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", part)
        if not match:
            raise InputError(f"--seeds {text[:80]!r}: {part[:40]!r} is no seed; give numbers and ranges, as 0-7,134")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise InputError(f"--seeds {text[:80]!r}: the range {first}-{last} falls; give {last}-{first}")
        if last > LARGEST_SEED:
            raise InputError(f"--seeds {text[:80]!r}: {last} is too large; give at most {LARGEST_SEED}")
        if last - first >= MOST_SEEDS or len(found) + last - first >= MOST_SEEDS:
            raise InputError(f"--seeds {text[:80]!r}: more than {MOST_SEEDS} seeds; split them over several runs")
        found.update(dict.fromkeys(range(first, last + 1)))
    return list(found)


def parse_grid(text: str | None, seeds: int) -> tuple[int, int]:
    """Rows and columns of ``RxC``; without it a square that holds all seeds, at most 8 x 8.

    Raises:
        InputError: not two numbers from 1 to 16.
    """
    if text is None:
        side = next(n for n in range(1, 9) if n * n >= min(seeds, 64))
        return -(-min(seeds, 64) // side), side
    match = re.fullmatch(r"(\d{1,2})[xX](\d{1,2})", text.strip())
    if not match or not (1 <= int(match[1]) <= 16 and 1 <= int(match[2]) <= 16):
        raise InputError(f"--grid {text!r}: give rows x columns from 1x1 to 16x16, as 2x2")
    return int(match[1]), int(match[2])


def main(argv: list[str]) -> int:
    """Draw, render, write."""
    arguments = parser().parse_args(argv)
    seeds = parse_seeds(arguments.seeds)
    grid = parse_grid(arguments.grid, len(seeds))
    for flag, value, low, high in (
        ("--trunc", arguments.trunc, 0, 2),
        ("--size", arguments.size, 32, 2048),
        ("--video-size", arguments.video_size, 32, 1024),
        ("--frames", arguments.frames, 2, 1000),
        ("--spacing", arguments.spacing, 0.2, 4),
        ("--field-of-view", arguments.field_of_view, 20, 400),
    ):
        if not low <= value <= high:  # also catches NaN
            raise InputError(f"{flag} is {value}; give {low} to {high}")
    if arguments.video == "interpolation" and len(seeds) < 2:
        raise InputError("--video interpolation walks from seed to seed; give at least two --seeds")
    angles = _angles(arguments)
    from licag3d.io.atomic import check_output_folder

    out = check_output_folder(arguments.out)
    from tqdm import tqdm

    from licag3d.models import samples
    from licag3d.models.generator import load_generator

    generator, card = load_generator(arguments.prior, device_of(arguments.device))
    shown = grid[0] * grid[1]
    kept: list[Sample] = []  # what the video shows
    facts, pictures = [], []
    bar = tqdm(seeds, unit="tree", disable=not sys.stderr.isatty())
    for seed in bar:
        sample = samples.draw(
            generator,
            seed,
            arguments.artery,
            truncation=arguments.trunc,
            spacing_mm=arguments.spacing,
            co_dominant=arguments.co_dominant,
        )
        if len(kept) < shown and arguments.video in ("turntable", "views"):
            kept.append(sample)
        made, one = _write_sample(out, sample, angles, arguments)
        pictures += _places(sample, made, len(seeds), shown, arguments)
        facts.append(one)
        bar.write(f"seed {seed}: {one['said']}", file=sys.stdout)
    _write_sheets(out, pictures, grid)
    if arguments.video != "none":
        name = _write_video(out, generator, seeds, kept, grid, arguments)
        print(f"wrote {out / name}")
    _write_facts(out, facts, card, arguments)
    refused = sum(one["tries"] - 1 for one in facts)
    print(f"{len(seeds)} synthetic trees ({refused} codes refused: branches touched): {out}")
    return 0


def _angles(arguments: argparse.Namespace) -> list[tuple[float, float]]:
    from licag3d.command import geometry_of

    if arguments.angles is None:
        from licag3d.models.samples import FIRST_VIEW

        return [FIRST_VIEW[arguments.artery]]
    plain = argparse.Namespace(angles=arguments.angles, cameras=None, sid=None, sod=None, pixel_spacing=None)
    found = geometry_of(plain)["angles"]
    for primary, secondary in found:
        if not (abs(primary) <= 180 and abs(secondary) <= 90):
            raise InputError(f"--angles {primary:g},{secondary:g}: give -180..180 and -90..90 degrees")
    return found


def _write_sample(out: Path, sample: Sample, angles, arguments) -> tuple[list[np.ndarray], dict]:
    """The files of one seed, all or none; its pictures and what samples.json says of it."""
    from licag3d.io.atomic import staged_folder, write_bytes
    from licag3d.io.write_mesh import write_stl
    from licag3d.io.write_volume import write_nifti
    from licag3d.models import samples
    from licag3d.models.tree_from_field import tree_from_field
    from licag3d.report import samples as draw

    name = f"seed{sample.seed:04d}"
    cameras = samples.cameras_at(angles, arguments.size, field_mm=arguments.field_of_view)
    made = [draw.angiogram(p) for p in samples.line_integrals(sample.volume, cameras)]
    one = {"seed": sample.seed, "tries": sample.tries, "said": "picture written"}
    with staged_folder(out) as stage:
        for number, picture in enumerate(made, 1):
            ending = "" if len(made) == 1 else f"_view{number}"
            marked = picture if arguments.plain else draw.captioned(picture, f"{draw.MARK} {sample.seed}")
            write_bytes(stage / f"{name}{ending}.png", draw.png(marked))
        if arguments.nine_views:
            nine = samples.cameras_at(samples.NINE_VIEWS, arguments.size // 2, field_mm=arguments.field_of_view)
            views = [
                draw.captioned(draw.angiogram(p), f"{draw.MARK} {sample.seed}   {_said_view(a)}")
                for p, a in zip(samples.line_integrals(sample.volume, nine), samples.NINE_VIEWS, strict=True)
            ]
            write_bytes(stage / f"{name}_views.png", draw.png(draw.tiled(views, 3, 3)))
        if not arguments.images_only:
            found = tree_from_field(sample.volume, level_per_mm=sample.level_per_mm, mesh=True)
            write_nifti(
                stage / f"{name}.nii.gz",
                sample.volume.values,
                sample.volume.origin_mm,
                sample.volume.spacing_mm,
                description=f"licag3d SYNTHETIC coronary tree, seed {sample.seed}, 1/mm",
            )
            if found.surface is not None:
                surface = found.surface
                write_stl(stage / f"{name}.stl", surface.vertices_lps_mm, surface.faces, note="SYNTHETIC; no patient")
            one |= {
                "least_radius_mm": sample.least_radius_mm,
                "pieces": found.pieces,
                "largest_piece_share": round(found.largest_share, 5),
                "length_mm": round(found.tree.length_mm, 1),
                "branches": len(found.tree.branches),
                "said": f"{found.tree.length_mm:.0f} mm of vessels, "
                + ("one tree" if found.pieces == 1 else f"{found.pieces} pieces"),
            }
            if found.surface is None:
                one["said"] = "nothing in the field lies above the border of the lumen: no mesh was written"
    return made, one


def _said_view(angles: tuple[float, float]) -> str:
    primary, secondary = angles
    first = f"LAO {primary:g}" if primary > 0 else f"RAO {-primary:g}" if primary < 0 else "AP"
    second = f" CRA {secondary:g}" if secondary > 0 else f" CAU {-secondary:g}" if secondary < 0 else ""
    return first + second


def _places(sample: Sample, made: list[np.ndarray], seeds: int, shown: int, arguments) -> list[np.ndarray]:
    """The pictures of one seed on the sheet: one, or as many views as there are places for each seed."""
    from licag3d.models import samples
    from licag3d.report import samples as draw

    each = max(1, shown // seeds)
    said = f"{draw.MARK} {sample.seed}"
    if each == 1:
        return [draw.captioned(made[0], said)]
    angles = (*samples.NINE_VIEWS, *((a, 0.0) for a in range(-175, 180, 10)))
    chosen = [angles[k % len(angles)] for k in range(each)]
    cameras = samples.cameras_at(chosen, arguments.size, field_mm=arguments.field_of_view)
    integrals = samples.line_integrals(sample.volume, cameras)
    return [
        draw.captioned(draw.angiogram(p), f"{said}   {_said_view(a)}") for p, a in zip(integrals, chosen, strict=True)
    ]


def _write_sheets(out: Path, pictures: list[np.ndarray], grid: tuple[int, int]) -> None:
    from licag3d.io.atomic import write_bytes
    from licag3d.report import samples as draw

    page = grid[0] * grid[1]
    pages = [pictures[k : k + page] for k in range(0, len(pictures), page)]
    for number, part in enumerate(pages, 1):
        name = "sheet.png" if len(pages) == 1 else f"sheet_{number:02d}.png"
        write_bytes(out / name, draw.png(draw.tiled(part, *grid)))


def _write_video(out: Path, generator, seeds: list[int], kept, grid, arguments) -> str:
    """``video.mp4`` or ``video.gif``; returns its name."""
    from tqdm import tqdm

    from licag3d.io.atomic import write_bytes
    from licag3d.report import samples as draw

    if arguments.video == "interpolation":
        frames = _interpolation(generator, seeds, grid, arguments)
    else:
        frames = _turning(kept, grid, arguments)
    bar = tqdm(frames, total=arguments.frames, desc="video", unit="frame", disable=not sys.stderr.isatty())
    ending, content = draw.video([draw.captioned(frame, draw.MARK) for frame in bar])
    name = f"video{ending}"
    write_bytes(out / name, content)
    return name


def _turning(kept: list[Sample], grid: tuple[int, int], arguments) -> Iterator[np.ndarray]:
    """Frames of a turntable, or of a path through the nine views; places beyond the seeds look from further round."""
    from licag3d.models import samples
    from licag3d.report import samples as draw

    shown = grid[0] * grid[1]
    for number in range(arguments.frames):
        places = []
        for place in range(shown):
            part = number / arguments.frames + (place // len(kept)) / max(1, -(-shown // len(kept)))
            angles = _turn(part) if arguments.video == "turntable" else _through_nine(part)
            camera = samples.cameras_at([angles], arguments.video_size, field_mm=arguments.field_of_view)
            places.append(draw.angiogram(samples.line_integrals(kept[place % len(kept)].volume, camera)[0]))
        yield draw.tiled(places, *grid)


def _turn(part: float) -> tuple[float, float]:
    return (360 * part + 180) % 360 - 180, 0.0


def _through_nine(part: float) -> tuple[float, float]:
    """Angles on the closed path through the nine views, resting a little at each."""
    from licag3d.models.samples import NINE_VIEWS

    place = part % 1 * len(NINE_VIEWS)
    first, second = NINE_VIEWS[int(place)], NINE_VIEWS[(int(place) + 1) % len(NINE_VIEWS)]
    share = min(max((place % 1 - 0.3) / 0.7, 0), 1)
    share = share * share * (3 - 2 * share)
    return tuple(a + share * (b - a) for a, b in zip(first, second, strict=True))


def _interpolation(generator, seeds: list[int], grid, arguments) -> Iterator[np.ndarray]:
    """Frames of a closed walk over the codes; each place of the grid has a share of the seeds, at least two of them."""
    import torch

    from licag3d.models import samples
    from licag3d.report import samples as draw

    shown = min(grid[0] * grid[1], max(1, len(seeds) // 2))
    options = {"truncation": arguments.trunc, "co_dominant": arguments.co_dominant}
    walks = [samples.codes(generator, seeds[k::shown], arguments.artery, **options) for k in range(shown)]
    camera = samples.cameras_at(
        [samples.FIRST_VIEW[arguments.artery]], arguments.video_size, field_mm=arguments.field_of_view
    )
    spacing = max(arguments.spacing, 0.5)
    for number in range(arguments.frames):
        places = []
        for walk in walks:
            at = number / arguments.frames * len(walk)
            share = 0.5 - 0.5 * torch.cos(torch.tensor(torch.pi * (at % 1)))
            code = torch.lerp(walk[int(at)], walk[(int(at) + 1) % len(walk)], share.to(walk))
            sample = samples.sample_of(generator, code, arguments.artery, spacing_mm=spacing)
            places.append(draw.angiogram(samples.line_integrals(sample.volume, camera)[0]))
        yield draw.tiled(places, *grid)


def _digest(file: Path) -> str:
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()


def _write_facts(out: Path, facts: list[dict], card: dict, arguments) -> None:
    import json

    from licag3d.io.atomic import write_text

    content = {
        "synthetic": True,
        "note": "made by a generator of coronary trees; no patient, no acquisition",
        "prior": "embedded" if arguments.prior == "generator" else Path(arguments.prior).name,
        "prior_sha256": card.get("sha256") or _digest(Path(arguments.prior)),
        "artery": arguments.artery,
        "co_dominant": arguments.co_dominant,
        "truncation": arguments.trunc,
        "spacing_mm": arguments.spacing,
        "codes_refused": sum(one["tries"] - 1 for one in facts),
        "codes_refused_because": "two branches of the written tree touched outside their junctions",
        "samples": [{key: value for key, value in one.items() if key != "said"} for one in facts],
    }
    write_text(out / "samples.json", json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
