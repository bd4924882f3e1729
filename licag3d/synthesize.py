# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.synthesize``: angiograms from contrast-free frames."""

from __future__ import annotations

import argparse
from pathlib import Path

from licag3d.command import Parser, add_debug_flag, add_geometry_flags, device_of, geometry_of, run
from licag3d.errors import InputError

#: Grey value 255 of the uncertainty picture: this much expected error of the attenuation.
UNCERTAINTY_WHITE = 0.5


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="python -m licag3d.synthesize",
        description="Draw contrast into contrast-free frames. Per frame: NAME_angiogram.png (and .dcm for a DICOM "
        "input), NAME_vessel.png (probability), NAME_uncertainty.png and NAME_compare.png (all side by side). The "
        "vessels are predicted, not seen: not for diagnosis. Overlap (Dice) with the true vessels of synthetic "
        "patients: 0.45 with a fifth of the contrast left in the frame, 0.20 with a tenth, 0.06 without any, where "
        "next to nothing is drawn; every run says what it expects of the frame. Limits: docs/synthesis.md. Example: "
        "python -m licag3d.synthesize frame.png --out OUT",
    )
    made.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="PNG, TIFF, JPEG, DICOM XA, or a folder of them; FILE#8 means frame 8, counted from 0; without it the "
        "frame of a cine with the least contrast is taken",
    )
    made.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    made.add_argument(
        "--weights",
        default="synthesis",
        metavar="FILE",
        help="own weights (.safetensors of licag3d.train mask-first, casgan, synthesis-rivals) instead of the embedded",
    )
    made.add_argument(
        "--draw",
        choices=("likely", "guess"),
        default="likely",
        help="likely: vessels of a probability above one half; guess: as much as makes the best overlap on average, "
        "however unlikely each piece is",
    )
    made.add_argument(
        "--polarity", choices=("auto", "dark", "bright"), default="auto", help="whether vessels are dark or bright"
    )
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    add_geometry_flags(made)
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Read, draw, write, and say what must be known."""
    given = parser().parse_args(argv)
    geometry = geometry_of(given)
    if given.weights != "synthesis" and not (given.weights.endswith(".safetensors") and Path(given.weights).is_file()):
        raise InputError(
            f"--weights {given.weights}: give a .safetensors of licag3d.train mask-first, casgan or synthesis-rivals"
        )
    from licag3d.io.atomic import check_output_folder, staged_folder
    from licag3d.io.files import sniff, split_frame
    from licag3d.models.mask_first import THRESHOLD
    from licag3d.models.virtual_contrast import WARNING, draw_contrast, load_synthesiser, read_contrast_free
    from licag3d.segment import list_inputs, output_names

    files = list_inputs(given.files)
    folder = check_output_folder(given.out)
    threshold = None if given.draw == "guess" else THRESHOLD
    synthesiser = load_synthesiser(given.weights, device_of(given.device), threshold)
    count = 0
    with staged_folder(folder) as stage:
        for file, name in zip(files, output_names(files), strict=True):
            (view,), _ = read_contrast_free([file], need_geometry=False, polarity=given.polarity, **geometry)
            drawing = draw_contrast(view, synthesiser)
            count += write_drawing(stage, name, drawing)
            if sniff(split_frame(file)[0]) == "DICOM":
                count += write_dicom(stage / f"{name}_angiogram.dcm", drawing)
            share = 100 * float(drawing.synthesis.mask.mean())
            print(f"{name}: vessels drawn on {share:.1f} % of the image", flush=True)
            for warning in drawing.warnings:
                print(f"  warning: {warning}")
            for note in view.notes:
                print(f"  note: {note}")
    print(f"warning: {WARNING}")
    print(f"wrote {count} files to {folder}")
    return 0


def write_drawing(folder: Path, name: str, drawing) -> int:
    """Write the files of one frame; returns how many."""
    import numpy as np

    from licag3d.io.atomic import write_bytes

    made = drawing.synthesis
    scaled = np.clip(made.uncertainty / UNCERTAINTY_WHITE, 0, 1)
    for ending, values in (("angiogram", made.angiogram), ("vessel", made.vessel), ("uncertainty", scaled)):
        write_bytes(folder / f"{name}_{ending}.png", _png(np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)))
    write_bytes(folder / f"{name}_compare.png", _png(comparison(drawing)))
    return 4


def _png(pixels) -> bytes:
    """A picture whose header says what it is, wherever it ends up."""
    import io

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from licag3d.models.virtual_contrast import WARNING

    text = PngInfo()
    text.add_text("Description", WARNING)
    text.add_text("Software", "licag3d.synthesize")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def comparison(drawing):
    """Frame, vessel probability over it, uncertainty and angiogram side by side ``(rows, cols, 3)`` uint8."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from licag3d.report.pictures import grey_rgb

    view, made = drawing.view, drawing.synthesis
    inside = view.image[view.valid] if view.valid.any() else view.image
    low, high = np.percentile(inside, (0.3, 99.7))
    span = max(float(high - low), 1e-6)

    def grey(image):
        return grey_rgb((image - low) / span)

    over = grey(view.image).astype(np.float32)
    over += made.vessel[..., None] * (np.array((255, 90, 40), np.float32) - over)
    unsure = np.clip(made.uncertainty / UNCERTAINTY_WHITE, 0, 1)[..., None] ** 0.5
    unsure = unsure * np.array((255, 210, 90), np.float32)
    panels = [grey(view.image), over.astype(np.uint8), unsure.astype(np.uint8), grey(made.angiogram)]
    titles = ["without contrast (input)", "vessel probability", "uncertainty", "synthetic contrast, not for diagnosis"]
    side, bar = 512, 28
    rows, cols = view.image.shape
    size = (max(1, round(side * cols / max(rows, cols))), max(1, round(side * rows / max(rows, cols))))
    canvas = Image.new("RGB", (4 * size[0] + 12, size[1] + bar), (16, 20, 26))
    draw = ImageDraw.Draw(canvas)
    for k, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = k * (size[0] + 4)
        canvas.paste(Image.fromarray(panel).resize(size, Image.Resampling.BILINEAR), (left, bar))
        colour = (255, 170, 80) if k == 3 else (225, 230, 236)
        draw.text((left + 6, bar // 2), title, fill=colour, font=ImageFont.load_default(15), anchor="lm")
    return np.asarray(canvas)


def write_dicom(path: Path, drawing) -> int:
    """The angiogram as a derived XA object marked synthetic; returns 1 if written, 0 if there is no geometry that such
    an object could hold.
    """
    import hashlib
    from dataclasses import replace

    import numpy as np

    from licag3d.io.write_dicom_xa import SYNTHESISED, write_xa

    view = drawing.view
    camera = view.camera
    centred = (camera.principal_row, camera.principal_col) == ((camera.rows - 1) / 2, (camera.cols - 1) / 2)
    assumed = any(note.startswith("No geometry") for note in view.notes)
    if assumed or any(camera.offset_lps_mm) or not centred:
        return 0
    pixels = np.rint(4095 * np.clip(drawing.synthesis.angiogram, 0, 1)).astype(np.uint16)
    identity = ("synthesize", hashlib.sha256(pixels.tobytes()).hexdigest())
    # What is burnt into the source stays in the picture.
    origin = replace(SYNTHESISED, burnt_in=bool((~view.valid).any()))
    relationship = {"linear": "LIN", "log": "LOG"}.get(view.intensity, "DISP")
    write_xa(path, pixels, camera, bits=12, identity=identity, relationship=relationship, origin=origin)
    return 1


if __name__ == "__main__":
    run(main)
