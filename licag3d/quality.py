# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.quality``: how good is a synthetic angiogram?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

SCHEMA = "licag3d-quality-1"
NATURE = "Computed scores: what a network learnt from exact truth of phantoms, not the opinion of readers."


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="python -m licag3d.quality",
        description="Score a synthetic angiogram from 0 to 100: vessel morphology consistency, branch detection, "
        "overall quality. Writes quality.json and quality.png. Scores are computed, not human: docs/quality.md. "
        "Example: python -m licag3d.quality made.png --frame before.png --reference angiogram.png --out OUT",
    )
    made.add_argument(
        "synthetic", metavar="FILE", help="synthetic angiogram: PNG, TIFF, JPEG or DICOM XA (FILE#8: frame 8)"
    )
    made.add_argument("--frame", required=True, metavar="FILE", help="the contrast-free frame that it was made from")
    made.add_argument(
        "--reference", metavar="FILE", help="true angiogram of the same view and moment; without it missing vessels "
        "cannot be known"
    )  # fmt: skip
    made.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    made.add_argument("--weights", default="iqa", metavar="FILE", help="own weights (file of licag3d.train iqa)")
    made.add_argument(
        "--polarity", choices=("dark", "bright"), default="dark", help="whether vessels are dark or bright in the files"
    )
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Read, score, write, and say what must be known."""
    given = parser().parse_args(argv)
    if given.weights != "iqa" and not (given.weights.endswith(".safetensors") and Path(given.weights).is_file()):
        raise InputError(f"--weights {given.weights}: give a .safetensors file of python -m licag3d.train iqa")
    from licag3d import weights as embedded
    from licag3d.io.atomic import check_output_folder, staged_folder, write_bytes, write_text

    if given.weights == "iqa" and not embedded.available("iqa"):
        raise InputError("no weights of CAS-IQA are part of this installation: train some and give --weights FILE")
    folder = check_output_folder(given.out)
    files = [given.synthetic, given.frame, *([given.reference] if given.reference else [])]
    images = read_frames(files, given.polarity)
    from licag3d.losses.iqa import SCORES
    from licag3d.models.iqa import judge, load_iqa

    model, _ = load_iqa(given.weights)
    scores = judge(model, *images)
    notes = notes_of(images)
    result = {"schema": SCHEMA, "scores": {name: round(value, 1) for name, value in zip(SCORES, scores, strict=True)}}
    result |= {"reference": given.reference is not None, "nature": NATURE, "notes": notes}
    with staged_folder(folder) as stage:
        write_text(stage / "quality.json", json.dumps(result, indent=1) + "\n")
        write_bytes(stage / "quality.png", picture(images, scores))
    names = ("vessel morphology consistency", "branch detection", "overall quality")
    for name, value in zip(names, scores, strict=True):
        print(f"{name:32s}{value:6.1f} of 100")
    for note in notes:
        print(f"  note: {note}")
    print(f"{NATURE}\nwrote quality.json and quality.png to {folder}")
    return 0


def read_frames(files: list[str], polarity: str = "dark") -> list:
    """Frames ``(rows, cols)`` float32 in 0..1, vessels dark, all of one size.

    The polarity is stated rather than guessed file by file: what is judged are differences between the files.

    Raises:
        InputError: a file that cannot be read, colour, blank, or another size than the first.
    """
    from licag3d.io.views import read_views

    images = []
    for file in files:
        (view,), _ = read_views([file], need_geometry=False, polarity=polarity)
        images.append(view.image)
        if images[0].shape != view.image.shape:
            raise InputError(
                f"{file}: {view.image.shape[0]} x {view.image.shape[1]} pixels, {files[0]} has {images[0].shape[0]} x "
                f"{images[0].shape[1]}: give frames of one view and size"
            )
    return images


def notes_of(images: list) -> list[str]:
    """What speaks against the scores, one sentence each."""
    import numpy as np

    notes = []
    if len(images) < 3:
        notes.append("No reference was given: vessels that are missing cannot be known; only what is drawn is judged.")
    if float(np.abs(images[0] - images[1]).mean()) < 1e-3:
        notes.append("The synthetic frame is the contrast-free frame: nothing was drawn.")
    if len(images) == 3:
        if float(np.abs(images[0] - images[2]).mean()) < 1e-6:
            notes.append("The synthetic frame is the reference itself.")
        away = [float(np.median(np.abs(images[2] - other))) for other in (images[1], images[0])]
        if min(away) > 0.12:
            notes.append("The reference looks unlike both other frames: is it of this view, on the same display?")
    return notes


def picture(images: list, scores) -> bytes:
    """Frames side by side, then where the synthetic frame is darker than the contrast-free one: true (white), made up
    (orange) and missing (blue) where there is a reference; PNG."""
    import io

    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from licag3d.report.pictures import grey_rgb

    synthetic, bare = images[:2]
    low, high = np.percentile(bare, (0.3, 99.7))
    panels = [grey_rgb((image - low) / max(float(high - low), 1e-6)) for image in (bare, synthetic, *images[2:])]
    panels.append(difference(images))
    titles = ["contrast-free", "synthetic", *(["reference"] if len(images) == 3 else [])]
    titles.append("white: both, orange: made up, blue: missing" if len(images) == 3 else "what was drawn")
    rows, cols = synthetic.shape
    size = (max(1, round(420 * cols / max(rows, cols))), max(1, round(420 * rows / max(rows, cols))))
    bar = 26
    canvas = Image.new("RGB", (len(panels) * (size[0] + 4), size[1] + 2 * bar), (16, 20, 26))
    draw = ImageDraw.Draw(canvas)
    for k, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = k * (size[0] + 4)
        canvas.paste(Image.fromarray(panel).resize(size, Image.Resampling.BILINEAR), (left, bar))
        draw.text((left + 6, bar // 2), title, fill=(225, 230, 236), font=ImageFont.load_default(14), anchor="lm")
    text = "morphology {:.0f}   branches {:.0f}   overall {:.0f}   (of 100; computed, not human)".format(*scores)
    draw.text((6, size[1] + bar + bar // 2), text, fill=(255, 200, 120), font=ImageFont.load_default(15), anchor="lm")
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def difference(images: list):
    """Darkening against the contrast-free frame ``(rows, cols, 3)`` uint8; see :func:`picture`."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    def darker(image):
        return np.clip(gaussian_filter(images[1] - image, 1.0 * max(image.shape) / 512), 0, None)

    drawn = darker(images[0])
    wanted = darker(images[2]) if len(images) == 3 else drawn
    scale = max(float(np.percentile(np.maximum(drawn, wanted), 99.7)), 0.02)
    drawn, wanted = np.clip(drawn / scale, 0, 1), np.clip(wanted / scale, 0, 1)
    both = np.minimum(drawn, wanted)
    colour = both[..., None] * np.array((255, 255, 255), np.float32)
    colour = colour + (drawn - both)[..., None] * np.array((255, 130, 30), np.float32)
    colour = colour + (wanted - both)[..., None] * np.array((60, 130, 255), np.float32)
    return np.clip(colour, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    run(main)
