# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.segment``: vessel probability, line integral and outline of angiograms."""

from __future__ import annotations

import argparse
from pathlib import Path

from licag3d.command import Parser, add_debug_flag, add_geometry_flags, device_of, geometry_of, run
from licag3d.errors import InputError

MAX_FILES = 10_000


def parser() -> argparse.ArgumentParser:
    result = Parser(
        prog="python -m licag3d.segment",
        description="Find the vessels of angiograms. Per frame: NAME_vessel.png (probability, 8 bit, size of the "
        "input), NAME_projection.tif (float32 vessel line integral, no unit), NAME_overlay.png. Method and limits: "
        "docs/evidence.md.",
        epilog="examples:\n  python -m licag3d.segment frame.png cine.dcm#8 --out vessels\n"
        "  python -m licag3d.segment folder --out vessels --evidence classical",
    )
    result.add_argument("files", nargs="+", metavar="FILE", help="PNG, TIFF, JPEG, DICOM XA, or a folder of them; "
                                                                 "FILE#8 means frame 8, counted from 0; without it the "
                                                                 "key frame of a cine is found")
    result.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    result.add_argument("--evidence", choices=("auto", "learned", "classical"), default="auto",
                        help="learned: a trained network; classical: oriented filters; auto: learned where its weights "
                             "are installed")
    result.add_argument("--weights", default="segmentor", metavar="FILE",
                        help="own weights (.safetensors of python -m licag3d.train segmentor) instead of the embedded")
    result.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    add_geometry_flags(result)
    add_debug_flag(result)
    return result


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    geometry = geometry_of(arguments)
    if arguments.weights != "segmentor" and not (
        arguments.weights.endswith(".safetensors") and Path(arguments.weights).is_file()
    ):
        raise InputError(f"--weights {arguments.weights}: give a .safetensors file of licag3d.train segmentor")
    from licag3d.io.atomic import check_output_folder, staged_folder
    from licag3d.models.vessel_evidence import choose_method

    files = list_inputs(arguments.files)
    folder = check_output_folder(arguments.out)
    device = device_of(arguments.device)
    from licag3d.io.views import read_views
    from licag3d.models.vessel_evidence import vessel_evidence

    method = choose_method(arguments.evidence, arguments.weights)
    print(f"evidence: {method}")
    with staged_folder(folder) as stage:
        for file, name in zip(files, output_names(files), strict=True):
            (view,), _ = read_views([file], need_geometry=False, **geometry)
            evidence = vessel_evidence(view, method=method, device=device, weights=arguments.weights)
            write_evidence(stage, name, view, evidence)
            print(f"{name}: vessels on {100 * evidence.mask.mean():.1f} % of the image", flush=True)
            for note in view.notes:
                print(f"  note: {note}")
    print(f"wrote {3 * len(files)} files to {folder}")
    return 0


def list_inputs(texts: list[str]) -> list[str]:
    """The inputs with every folder replaced by the images in it, sorted by name; other files in a folder are skipped.

    Raises:
        InputError: a folder without images, or more than ``MAX_FILES`` inputs.
    """
    from licag3d.io.files import sniff

    found: list[str] = []
    for text in texts:
        if not Path(text).is_dir():
            found.append(text)
            continue
        inside = []
        for path in sorted(Path(text).iterdir()):
            if path.name.startswith(".") or not path.is_file():
                continue
            try:
                sniff(path)
            except InputError:
                continue
            inside.append(str(path))
        if not inside:
            raise InputError(f"{text}: no PNG, TIFF, JPEG or DICOM file in this folder")
        found += inside
    if len(found) > MAX_FILES:
        raise InputError(f"{len(found)} files: give at most {MAX_FILES} at a time")
    return found


def output_names(files: list[str]) -> list[str]:
    """One name per input: its file name without suffix; frame, suffix and a number are added where two are equal."""
    from licag3d.io.files import split_frame

    parts = [split_frame(file) for file in files]
    choices = [[path.stem for path, _ in parts],
               [path.stem + (f"_{frame}" if frame is not None else "") for path, frame in parts],
               [path.name.replace(".", "_") + (f"_{frame}" if frame is not None else "") for path, frame in parts]]
    names = choices[0]
    for level in choices[1:]:
        # Case-insensitive file systems would let one result overwrite another.
        lower = [name.lower() for name in names]
        names = [new if lower.count(name.lower()) > 1 else name for name, new in zip(names, level, strict=True)]
    taken: set[str] = set()
    out = []
    for name in names:
        number, unique = 2, name
        while unique.lower() in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique.lower())
        out.append(unique)
    return out


def write_evidence(folder: Path, name: str, view, evidence) -> None:
    """Write the three files of one frame."""
    import io

    import numpy as np
    from PIL import Image

    from licag3d.io.atomic import write_bytes

    def encode(array: np.ndarray, kind: str) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format=kind)
        return buffer.getvalue()

    write_bytes(folder / f"{name}_vessel.png", encode(np.rint(255 * evidence.probability).astype(np.uint8), "PNG"))
    write_bytes(folder / f"{name}_projection.tif", encode(evidence.line_integral.astype(np.float32), "TIFF"))
    write_bytes(folder / f"{name}_overlay.png", encode(overlay(view, evidence), "PNG"))


def overlay(view, evidence):
    """The frame ``(rows, cols, 3)`` uint8 with outlines (orange) and centrelines (yellow) of the vessels."""
    import numpy as np
    from scipy import ndimage

    from licag3d.models.centerline2d import trace_centerlines

    low, high = np.percentile(view.image, (0.5, 99.5))
    grey = np.clip((view.image - low) / max(float(high - low), 1e-6), 0, 1)
    picture = np.rint(255 * np.repeat(grey[..., None], 3, axis=2)).astype(np.uint8)
    picture[evidence.mask & ~ndimage.binary_erosion(evidence.mask)] = (240, 100, 40)
    col, row = np.rint(trace_centerlines(evidence, view).points).astype(int).T
    picture[np.clip(row, 0, len(picture) - 1), np.clip(col, 0, picture.shape[1] - 1)] = (255, 230, 60)
    return picture


if __name__ == "__main__":
    run(main)
