# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.keyframe``: the frame of a cine to reconstruct from, and the pair of frames of two cines."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable

from licag3d.command import Parser, add_debug_flag, add_geometry_flags, geometry_of, run
from licag3d.errors import InputError


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = Parser(
        prog="python -m licag3d.keyframe",
        description="Find the key frame of one or two cines (DICOM XA or multi-page TIFF): filled with contrast, and "
        "little motion, so that two cines meet in diastole. With two cines, pairs of frames are also ranked by how "
        "well their vessels fit one tree. Prints tables and the arguments for invert; writes a strip of the "
        "candidates. How it decides: docs/feature-space.md.",
        epilog="example: python -m licag3d.keyframe cine1.dcm cine2.dcm --out strip.png",
    )
    result.add_argument(
        "cines", nargs="+", metavar="CINE", help="one or two cines; FILE#8 takes frame 8 as the only one"
    )
    result.add_argument("--out", metavar="PNG", default="keyframes.png", help="strip of candidate frames with scores")
    result.add_argument(
        "--candidates", type=int, default=6, metavar="N", help="filled frames of each cine that are compared, 1 to 24"
    )
    result.add_argument(
        "--range-mm", type=float, default=40.0, metavar="MM", help="largest table offset between two cines, 0 to 100 mm"
    )
    result.add_argument("--json", metavar="FILE", help="write all scores as JSON too")
    add_geometry_flags(result)
    add_debug_flag(result)
    return result


def main(argv: list[str]) -> int:
    """Choose, print, draw."""
    arguments = parser().parse_args(argv)
    if len(arguments.cines) > 2:
        raise InputError(f"{len(arguments.cines)} cines; give one or two")
    if not 1 <= arguments.candidates <= 24:
        raise InputError(f"--candidates is {arguments.candidates}; give 1 to 24")
    if not 0 <= arguments.range_mm <= 100:
        raise InputError(f"--range-mm is {arguments.range_mm:g}; give 0 to 100 mm")
    from licag3d.inversion.key_frames import choose_key_frames, key_frames_json, strip_pictures
    from licag3d.io.atomic import write_text
    from licag3d.io.keyframe import write_frame_strip

    chosen = choose_key_frames(
        arguments.cines,
        candidates=arguments.candidates,
        range_mm=arguments.range_mm,
        geometry=geometry_of(arguments),
        progress=_progress(),
    )
    for note in chosen.notes:
        print(f"note: {note}")
    for cine in chosen.cines:
        print(f"{cine.label}: {cine.frames} frames, {len(cine.candidates)} candidates, key frame {cine.best}")
        print("  frame  filling  motion  similarity")
        for item in cine.candidates:
            mark = "*" if item.frame == cine.best else " "
            similarity = "-" if item.similarity is None else f"{item.similarity:.3f}"
            print(f"  {item.frame:5d}{mark} {item.filling:7.2f} {item.motion:7.4f}  {similarity:>10}")
    if chosen.pairs:
        print("pairs of frames, best fit first\n  frames     misfit  cost/mm  matched  offset")
        for pair in chosen.pairs[:8]:
            print(
                f"  {pair.first:4d} {pair.second:4d}  {pair.misfit:+7.3f}  {pair.cost:7.3f}  "
                f"{100 * pair.matched:5.0f} %  {pair.offset_mm:5.1f} mm"
            )
    _write("--out", arguments.out, lambda file: write_frame_strip(file, *strip_pictures(chosen)))
    if arguments.json:
        _write("--json", arguments.json, lambda file: write_text(file, key_frames_json(chosen)))
    print("for invert: --views " + shlex.join(f"{cine.label}#{cine.best}" for cine in chosen.cines))
    return 0


def _write(flag: str, file: str, write: Callable[[str], None]) -> None:
    try:
        write(file)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{flag} {file!r} cannot be written ({why}): choose another place") from None
    print(f"wrote {file}")


def _progress():
    """A line on a terminal, nothing elsewhere."""
    import sys

    if not sys.stderr.isatty():
        return None

    def tell(share: float, text: str) -> None:
        end = "\n" if share >= 1 else ""
        print(f"\r{100 * share:3.0f} % {text:40}", end=end, file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    run(main)
