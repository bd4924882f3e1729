# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.harmonize``: frames of one centre in the style of another."""

from __future__ import annotations

import argparse
from pathlib import Path

from licag3d.command import Parser, add_debug_flag, add_geometry_flags, device_of, geometry_of, run
from licag3d.errors import InputError

#: Frames of the target that histograms are taken from.
MAX_TARGETS = 200


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="python -m licag3d.harmonize",
        description="Bring angiograms of one centre to the style of another. Per frame: NAME_harmonised.png and "
        "NAME_compare.png. Vessels are found before and after; where they would move, less of the change is taken. "
        "What it is worth: docs/harmonisation.md. Example: python -m licag3d.harmonize frame.png --weights "
        "RUN/cyclegan.safetensors --out OUT",
    )
    made.add_argument(
        "files", nargs="+", metavar="FILE", help="PNG, TIFF, JPEG, DICOM XA, or a folder of them; FILE#8 means frame 8"
    )
    made.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    made.add_argument("--weights", metavar="FILE", help="weights of python -m licag3d.train cyclegan")
    made.add_argument(
        "--direction", choices=("forth", "back"), default="forth", help="of a network: source to target, or back"
    )
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    made.add_argument(
        "--match", metavar="DIR", help="without a network: match the histogram to that of these frames (the baseline)"
    )
    made.add_argument(
        "--polarity", choices=("auto", "dark", "bright"), default="auto", help="whether vessels are dark or bright"
    )
    add_geometry_flags(made)
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Read, harmonise, write, and say what became of the vessels."""
    given = parser().parse_args(argv)
    geometry = geometry_of(given)
    if bool(given.weights) == bool(given.match):
        raise InputError("give how to harmonise: either --weights FILE (a network) or --match DIR (histograms)")
    if given.match and given.direction == "back":
        raise InputError("--direction back is for a network: histograms have none; match to the other centre's frames")
    if given.weights and not (given.weights.endswith(".safetensors") and Path(given.weights).is_file()):
        raise InputError(f"--weights {given.weights}: give a .safetensors file of python -m licag3d.train cyclegan")
    from licag3d.io.atomic import check_output_folder, staged_folder, write_bytes
    from licag3d.io.views import read_views
    from licag3d.models.cyclegan import harmonise
    from licag3d.segment import list_inputs, output_names

    files = list_inputs(given.files)
    folder = check_output_folder(given.out)
    device = device_of(given.device)
    change = network_change(given.weights, given.direction, device) if given.weights else histogram_change(given.match)
    with staged_folder(folder) as stage:
        for file, name in zip(files, output_names(files), strict=True):
            (view,), _ = read_views([file], need_geometry=False, polarity=given.polarity, **geometry)
            made = harmonise(change, view)
            write_bytes(stage / f"{name}_harmonised.png", png(made.image))
            write_bytes(stage / f"{name}_compare.png", comparison(view.image, made))
            print(f"{name}: {described(made)}", flush=True)
            for note in view.notes:
                print(f"  note: {note}")
    print(f"wrote {2 * len(files)} files to {folder}")
    return 0


def described(made) -> str:
    """One line on a harmonised frame."""
    if made.share == 0:
        return "left as it is: every share of the change would have moved vessels, lost some or made some up"
    part = "" if made.share == 1 else f", {100 * made.share:.0f} % of the change"
    return (
        f"vessels moved by {made.shift_px:.2f} px on average, {100 * made.lost:.0f} % lost, "
        f"{100 * made.made_up:.0f} % made up{part}"
    )


def network_change(weights: str, direction: str, device: str = "cpu"):
    """Function of a frame and its X-ray field to the harmonised frame, by a trained generator.

    Raises:
        InputError: weights that are missing, damaged or of another model.
    """
    from licag3d.models.cyclegan import load_translator, translate

    model, _ = load_translator(weights, direction, device)
    return lambda image, valid: translate(model, image)


def histogram_change(target: str):
    """Function of a frame and its X-ray field to one with the mean histogram of a folder's frames
    (``skimage.exposure.match_histograms``).

    Raises:
        InputError: nothing in the folder can be used.
    """
    from licag3d.data.frames import list_files
    from licag3d.io.views import read_views

    values = []
    for _, _, file in list_files([target])[:MAX_TARGETS]:
        (view,), _ = read_views([str(file)], need_geometry=False)
        values.append(view.image[view.valid] if view.valid.any() else view.image.ravel())
    return matcher(values)


def matcher(values: list):
    """Frame to one with the histogram of ``values``, arrays of grey values in 0..1: every frame of the target counts
    the same. Only the X-ray field is matched: black borders would take the dark end of the histogram for themselves.
    """
    import numpy as np
    from skimage.exposure import match_histograms

    reference = np.concatenate([np.quantile(part, np.linspace(0, 1, 2000)) for part in values])

    def change(image, valid):
        made = image.copy()
        if valid.any():
            made[valid] = match_histograms(image[valid], reference.astype(image.dtype))
        return made

    return change


def png(image) -> bytes:
    """8-bit PNG of a frame in 0..1."""
    import imageio.v3 as iio
    import numpy as np

    return iio.imwrite("<bytes>", np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8), extension=".png")


def comparison(before, made) -> bytes:
    """Frame before and after, and the change between them (grey is none), side by side."""
    import numpy as np

    change = 0.5 + 2 * (made.image - before)
    return png(np.concatenate((before, made.image, change), axis=1))


if __name__ == "__main__":
    run(main)
