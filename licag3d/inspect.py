# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.inspect``: what a file is, before it is reconstructed."""

from __future__ import annotations

import argparse

from licag3d.command import Parser, add_debug_flag, add_geometry_flags, geometry_of, run
from licag3d.errors import InputError


def parser() -> argparse.ArgumentParser:
    result = Parser(prog="python -m licag3d.inspect", description="Say what angiograms are: kind, size, geometry, "
                                                                  "frames, contrast filling per frame, X-ray field. No "
                                                                  "patient data is printed.",
                    epilog="example: python -m licag3d.inspect a.dcm b.dcm --out frames.png")
    result.add_argument("files", nargs="+", metavar="FILE", help="PNG, TIFF, JPEG or DICOM XA; FILE#8 means frame 8, "
                                                                 "counted from 0")
    result.add_argument("--out", metavar="PNG", help="write a picture: every frame of a cine (the key frame marked), "
                                                     "the X-ray field outlined")
    add_geometry_flags(result)
    add_debug_flag(result)
    return result


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    geometry = geometry_of(arguments)
    from licag3d.io.views import open_source, read_views

    if arguments.out and len(arguments.files) > 8:
        raise InputError(f"--out with {len(arguments.files)} files: give at most 8")
    pictures, labels, chosen = [], [], []
    for start in range(0, len(arguments.files), 8):
        files = arguments.files[start:start + 8]
        views, notes = read_views(files, need_geometry=False, **geometry)
        for file, view in zip(files, views, strict=True):
            source = open_source(file)
            _describe(source, view)
            if arguments.out:
                chosen.append(len(pictures))
                _pictures(source, view, pictures, labels, chosen)
        for note in notes:
            if not note.startswith("View "):
                print(f"note: {note}")
    if arguments.out:
        from licag3d.io.keyframe import write_frame_strip

        try:
            write_frame_strip(arguments.out, pictures, labels, chosen)
        except OSError as error:
            raise InputError(f"--out {arguments.out!r} cannot be written ({error.strerror or error}): choose another "
                             f"place") from None
        print(f"wrote {arguments.out}")
    return 0


def _describe(source, view) -> None:
    camera = view.camera
    known = not any(note.startswith("No geometry") for note in view.notes)
    lines = [*source.summary, ("size", f"{source.rows} rows x {source.cols} columns"), ("frames", str(source.frames))]
    if known:
        lines += [
            ("angles", f"primary {_side(camera.primary_deg, 'LAO', 'RAO')}, secondary "
                       f"{_side(camera.secondary_deg, 'cranial', 'caudal')}"),
            ("distances", f"SID {camera.sid_mm:g} mm, SOD {camera.sod_mm:g} mm, magnification "
                          f"{camera.magnification:.3f}"),
            ("pixel spacing", f"{camera.spacing_row_mm:.4g} x {camera.spacing_col_mm:.4g} mm at the detector, "
                              f"{camera.mm_per_pixel:.4g} mm at the isocentre")]
    else:
        lines.append(("geometry", "not known"))
    lines.append(("X-ray field", f"{100 * view.valid.mean():.0f} % of the image"))
    if view.scores is not None:
        lines.append(("filling", " ".join(f"{k}{'*' if k == view.frame else ''}:{score:.1f}"
                                          for k, score in enumerate(view.scores))))
        lines.append(("background", "frames before the contrast found" if view.background is not None else
                      "no frames before the contrast"))
    print(view.file + (f"#{view.frame}" if view.frame is not None else ""))
    for name, text in lines:
        print(f"  {name:16}{text}")
    for note in view.notes:
        print(f"  {'note':16}{note}")


def _side(angle_deg: float, positive: str, negative: str) -> str:
    return f"{angle_deg:g} deg" + (f" ({positive if angle_deg > 0 else negative} "
                                   f"{abs(angle_deg):g})" if angle_deg else "")


def _pictures(source, view, pictures: list, labels: list, chosen: list) -> None:
    """All frames of a cine (at most 60, evenly spaced), or the one picture, with the X-ray field outlined."""
    import numpy as np
    from scipy import ndimage

    outline = view.valid ^ ndimage.binary_erosion(view.valid, iterations=2, border_value=1)
    numbers = [view.frame or 0]
    if view.scores is not None:
        every = np.linspace(0, source.frames - 1, min(source.frames, 60)).round().astype(int).tolist()
        numbers = sorted({*every, view.frame})
    low, high = 0.0, None
    for number, frame in zip(numbers, source.decode(numbers), strict=True):
        high = high or source.full_scale or float(np.percentile(frame.values, 99.9))
        values = frame.values
        for axis in source.flip:
            values = np.flip(values, axis)
        image = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
        if number == (view.frame or 0):
            chosen[-1] = len(pictures)
            image = np.where(outline, 1.0, view.image)
        score = f" {view.scores[number]:.1f}" if view.scores is not None else ""
        labels.append(f"{view.file[:18]}#{number}{score}" if source.frames > 1 else view.file[:30])
        pictures.append(image)


if __name__ == "__main__":
    run(main)
