# SPDX-License-Identifier: Apache-2.0
"""A simulated case as a folder: what a user would have, and the truth beside it (docs/phantom.md)."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from licag3d.errors import InputError
from licag3d.io.atomic import write_bytes, write_text
from licag3d.io.cameras import write_cameras_json
from licag3d.io.write_centerlines import write_centerlines_json
from licag3d.phantom.simulate_case import Case, ViewTruth


@dataclass(frozen=True)
class Content:
    """Which large files a case folder holds besides views, cameras, centrelines and masks."""

    projections: bool = True
    mesh: bool = True
    labels: bool = True


def write_case(folder: Path, case: Case, content: Content | None = None) -> None:
    """Write a case folder, whole or not at all.

    Raises:
        InputError: the folder exists already, or cannot be written.
    """
    content = content or Content()
    if folder.exists():
        raise InputError(f"{folder} exists already; give another --out or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".case-", dir=folder.parent))
    except OSError as error:
        raise InputError(f"{folder.parent} cannot be written ({error.strerror}); give another --out") from None
    try:
        _write(stage, case, content)
        os.chmod(stage, 0o755)
        os.rename(stage, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); free space or give another --out") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def case_settings(case: Case) -> dict:
    """What ``truth/case.json`` says: seed, artery, patient and settings."""
    from licag3d.phantom.anatomy import sample_patient

    patient = sample_patient(case.seed)
    return {
        "seed": case.seed,
        "artery": case.artery,
        "sex": patient.sex,
        "dominance": patient.dominance,
        "mu_per_mm": case.mu_per_mm,
        "settings": case.settings,
    }


def _write(folder: Path, case: Case, content: Content) -> None:
    truth, held_out = folder / "truth", folder / "truth" / "held_out"
    held_out.mkdir(parents=True)
    names = [f"view_{k + 1}.png" for k in range(len(case.views))]
    for name, view in zip(names, case.views, strict=True):
        write_bytes(folder / name, _png(view.image))
        if content.projections:
            write_bytes(folder / name.replace(".png", ".tif"), _tiff(view.measured))
    write_text(folder / "cameras.json", write_cameras_json(case.user_cameras, names, [None] * len(names)))
    write_text(truth / "cameras.json", write_cameras_json(case.true_cameras, names, [None] * len(names)))
    _write_truths(truth, case.views, content)
    if case.held_out:
        hidden = [f"view_{k + 1}.png" for k in range(len(case.held_out))]
        cameras = [view.true_camera for view in case.held_out]
        write_text(held_out / "cameras.json", write_cameras_json(cameras, hidden, [None] * len(hidden)))
        for name, view in zip(hidden, case.held_out, strict=True):
            write_bytes(held_out / name, _png(view.image))
        _write_truths(held_out, case.held_out, content)
    else:
        held_out.rmdir()
    write_centerlines_json(truth / "centerlines.json", case.tree)
    write_text(truth / "case.json", json.dumps(case_settings(case), indent=1) + "\n")
    if content.mesh:
        from licag3d.io.write_mesh import write_stl
        from licag3d.vessels.surface import tree_surface

        surface = tree_surface(case.tree, spacing_mm=0.4)
        write_stl(truth / "vessels.stl", surface.vertices_lps_mm, surface.faces)
    if content.labels:
        from licag3d.io.write_volume import write_nifti
        from licag3d.vessels.rasterize import tree_grid, tree_labels

        labels = tree_labels(case.tree, tree_grid(case.tree, 0.5))
        write_nifti(truth / "labels.nii.gz", labels.values, labels.origin_mm, labels.spacing_mm)


def _write_truths(folder: Path, views: tuple[ViewTruth, ...], content: Content) -> None:
    for k, view in enumerate(views):
        write_bytes(folder / f"view_{k + 1}_mask.png", _png(view.mask.astype(np.uint8) * 255))
        if content.projections:
            write_bytes(folder / f"view_{k + 1}_projection.tif", _tiff(view.line_integral))


def _png(image: np.ndarray) -> bytes:
    import imageio.v3 as imageio

    return imageio.imwrite("<bytes>", image, extension=".png")


def _tiff(image: np.ndarray) -> bytes:
    """A float32 TIFF, compressed without loss."""
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image.astype(np.float32), compression="zlib", predictor=False, metadata=None)
    return buffer.getvalue()
