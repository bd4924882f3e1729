# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.encode``: one pass from views to a code of the generator and a first tree."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from licag3d.command import Parser, add_debug_flag, add_geometry_flags, device_of, geometry_of, run
from licag3d.errors import InputError

_DESCRIPTION = """Encode one to eight angiograms of one artery in a single pass. Writes
  codes.npz          w_plus (16, 256), tuple_code, one tuple code per view, centre (mm), offsets (mm)
  encoding.json      artery and its probability, expected error (mm), whether views show one patient
  centerlines.json   the encoded tree: named branches, points and radii in mm, LPS
  vessels.stl        its surface, mm, LPS
  view_1.png ...     each view with the tree over it
It is a guess within a second or two, meant as a start: python -m licag3d.invert measures.
"""
_EXAMPLES = """examples:
  python -m licag3d.encode --views a.dcm b.dcm --out code
  python -m licag3d.encode --views a.png b.png --angles 31.3,0.1 -27.3,-0.1 --sid 860 --sod 720 \\
      --pixel-spacing 0.39 --out code
"""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(
        prog="python -m licag3d.encode",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    made.add_argument(
        "--views", nargs="+", required=True, metavar="FILE", help="PNG, TIFF, JPEG or DICOM XA; file.dcm#8 takes frame "
        "8 (counted from 0), otherwise the key frame of a cine is found. The first view is the reference",
    )  # fmt: skip
    made.add_argument("--out", required=True, metavar="DIR", help="folder for the results; made if missing")
    add_geometry_flags(made)
    made.add_argument(
        "--masks",
        nargs="+",
        metavar="FILE",
        help="vessel masks, one image per view: vessels bright, or labels 1 to 32 on 0",
    )
    made.add_argument(
        "--evidence", choices=("auto", "learned", "classical"), default="auto", help="how vessels are found: by a "
        "trained network, by oriented filters, or auto: the network where its weights are installed",
    )  # fmt: skip
    made.add_argument(
        "--artery", choices=("auto", "lca", "rca"), default="auto", help="artery shown; auto: as encoded"
    )
    made.add_argument("--weights", default="tree_encoder", metavar="FILE", help="own encoder, a .safetensors file")
    made.add_argument("--prior", default="generator", metavar="FILE", help="its generator, a .safetensors file")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Read, encode, write, and say what was found."""
    given = parser().parse_args(argv)
    from licag3d.io.atomic import check_output_folder

    folder = check_output_folder(given.out)
    device = device_of(given.device)
    from licag3d.io.views import read_views
    from licag3d.models.encoder import load_tree_encoder
    from licag3d.models.generator import load_generator

    views, notes = read_views(given.views, masks=given.masks, **geometry_of(given))
    for note in notes:
        print(f"note: {note}")
    encoder = load_tree_encoder(given.weights, device, generator=given.prior)
    generator, _ = load_generator(given.prior)  # writes the tree of codes that come back to the CPU
    evidence = _evidence(views, given.evidence, device)
    from licag3d.models.encode_views import encode_each, encode_views, encoded_tree

    cameras = [view.camera for view in views]
    artery = None if given.artery == "auto" else given.artery
    like = {"encoder": encoder, "artery": artery, "images": [view.image for view in views]}
    encoding = encode_views(evidence, cameras, **like)
    single = encode_each(evidence, cameras, **like)
    tree = encoded_tree(encoding, generator)
    facts = _facts(encoding, single, views, encoder)
    _write(folder, views, encoding, single, tree, facts)
    _say(facts, tree, folder)
    return 0


def _evidence(views, method: str, device: str):
    from tqdm import tqdm

    from licag3d.models.vessel_evidence import choose_method, vessel_evidence

    chosen = choose_method(method)
    bar = tqdm(views, unit="view", desc="vessels", disable=not sys.stderr.isatty())
    evidence = [vessel_evidence(view, method=chosen, device=device) for view in bar]
    for k, (view, item) in enumerate(zip(views, evidence, strict=True), 1):
        if not item.mask.any():
            raise InputError(
                f"view {k} ({view.file}) shows no vessel: choose a frame with contrast (#FRAME) or give --masks"
            )
    return evidence


def _facts(encoding, single, views, encoder) -> dict:
    """What ``encoding.json`` holds."""
    from licag3d.models.branch_table import ARTERIES
    from licag3d.models.encode_views import tuple_consistency

    together = [
        {"views": [i + 1, j + 1], "same_patient_probability": round(tuple_consistency(a, b, encoder=encoder), 4)}
        for i, a in enumerate(single)
        for j, b in enumerate(single)
        if i < j
    ]
    return {
        "schema": "licag3d-encoding-1",
        "artery": encoding.artery,
        "artery_probability": {a: round(float(encoding.label_probability[k]), 4) for k, a in enumerate(ARTERIES)},
        "co_dominant_probability": round(float(encoding.label_probability[2]), 4),
        "expected_course_error_mm": round(encoding.course_mm, 2),
        "confidence": round(encoding.confidence, 3),
        "center_lps_mm": [round(float(x), 2) for x in encoding.center_mm],
        "scale": round(encoding.scale, 4),
        "expected_scale_error": round(encoding.scale_spread, 4),
        "pairs": together,
        "views": [
            {
                "file": view.file,
                "frame": view.frame,
                "artery_probability": {a: round(float(e.label_probability[k]), 4) for k, a in enumerate(ARTERIES)},
                "offset_to_meet_mm": [round(float(x), 2) for x in encoding.offset_mm[number]],
            }
            for number, (view, e) in enumerate(zip(views, single, strict=True))
        ],
    }


def _write(folder: Path, views, encoding, single, tree, facts: dict) -> None:
    """All files, or none."""
    import io
    import json

    import numpy as np

    from licag3d.io.atomic import staged_folder, write_bytes, write_text
    from licag3d.io.write_centerlines import write_centerlines_json
    from licag3d.io.write_mesh import write_stl
    from licag3d.report.pictures import overlay_picture, png_bytes, tree_outline
    from licag3d.report.result import view_caption
    from licag3d.vessels.surface import tree_surface

    arrays = io.BytesIO()
    np.savez(
        arrays,
        w_plus=encoding.w_plus,
        tuple_code=encoding.tuple_code,
        view_tuple_codes=np.stack([e.tuple_code for e in single]),
        label_probability=encoding.label_probability,
        center_mm=encoding.center_mm,
        place_mm=encoding.place_mm,
        offset_mm=encoding.offset_mm,
    )
    with staged_folder(folder) as stage:
        write_bytes(stage / "codes.npz", arrays.getvalue())
        write_text(stage / "encoding.json", json.dumps(facts, indent=1, allow_nan=False) + "\n")
        write_centerlines_json(stage / "centerlines.json", tree)
        surface = tree_surface(tree)
        write_stl(stage / "vessels.stl", surface.vertices_lps_mm, surface.faces)
        for k, view in enumerate(views):
            camera = view.camera.with_offset(np.add(view.camera.offset_lps_mm, encoding.offset_mm[k]))
            caption = view_caption(k + 1, view, view.camera)
            picture = overlay_picture(view.image, tree_outline(tree, camera), caption)
            write_bytes(stage / f"view_{k + 1}.png", png_bytes(picture))


def _say(facts: dict, tree, folder: Path) -> None:
    for pair in facts["pairs"]:
        if pair["same_patient_probability"] < 0.5:
            a, b = pair["views"]
            print(
                f"warning: views {a} and {b} may not show one artery of one patient (probability that they do: "
                f"{pair['same_patient_probability']:.2f})"
            )
    artery = facts["artery"]
    print(
        f"artery: {artery} (probability {facts['artery_probability'][artery]:.2f}); "
        f"tree: {len(tree.branches)} branches, "
        f"{tree.length_mm:.0f} mm; expected error of its courses {facts['expected_course_error_mm']:.1f} mm"
    )
    print(f"files: {folder}")


if __name__ == "__main__":
    run(main)
