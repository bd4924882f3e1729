# SPDX-License-Identifier: Apache-2.0
"""A simulated case as a folder: what a user would have, and the truth beside it (docs/phantom.md)."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.io.atomic import write_bytes, write_text
from licag3d.io.cameras import write_cameras_json
from licag3d.io.write_centerlines import write_centerlines_json
from licag3d.phantom.simulate_case import Case, ViewTruth

if TYPE_CHECKING:
    from licag3d.phantom.cine import Cine

FORMATS = ("png", "dicom")


@dataclass(frozen=True)
class Content:
    """What a case folder holds besides views, cameras, centrelines and masks.

    ``projections``, ``mesh`` and ``labels`` are the large files; ``format`` of the views is ``png`` or ``dicom``.
    """

    projections: bool = True
    mesh: bool = True
    labels: bool = True
    format: str = "png"


def write_case(
    folder: Path, case: Case, content: Content | None = None, *, cines: Sequence[Cine] = (), source: str = ""
) -> None:
    """Write a case folder, whole or not at all.

    Args:
        cines: runs of the views, in their order, written as DICOM XA beside them.
        source: where a tree that was not sampled comes from (a file name), for the record.

    Raises:
        InputError: the folder exists already, or cannot be written; an unknown format.
    """
    content = content or Content()
    if content.format not in FORMATS:
        raise InputError(f"format is '{content.format}'; choose {' or '.join(FORMATS)}")
    if folder.exists():
        raise InputError(f"{folder} exists already; give another --out or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".case-", dir=folder.parent))
    except OSError as error:
        raise InputError(f"{folder.parent} cannot be written ({error.strerror}); give another --out") from None
    try:
        _write(stage, case, content, cines, source)
        os.chmod(stage, 0o755)
        os.rename(stage, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); free space or give another --out") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def case_settings(case: Case, *, content: Content | None = None, cines: int = 0, source: str = "") -> dict:
    """What ``truth/case.json`` says: seed, artery, patient, settings, lesions, moments of the views, files."""
    from licag3d.phantom.anatomy import sample_patient

    patient = sample_patient(case.seed)
    result = {
        "seed": case.seed,
        "artery": case.artery,
        "sex": patient.sex,
        "dominance": patient.dominance,
        "mu_per_mm": case.mu_per_mm,
        "settings": case.settings,
    }
    if source:
        # The chest is that of the sampled patient; sex and dominance of a tree from elsewhere are not known.
        result.update(source=source, sex=None, dominance=None)
    if case.lesions:
        result["lesions"] = [asdict(one) if is_dataclass(one) else one for one in case.lesions]
    if any(view.phase or view.respiration_mm or view.opacity is not None for view in case.views):
        result["views"] = [
            {
                "phase": view.phase,
                "respiration_mm": view.respiration_mm,
                "mean_opacity": None
                if view.opacity is None
                else round(float(np.concatenate(list(view.opacity.values())).mean()), 4),
            }
            for view in case.views
        ]
    if case.patient is not None and (cines or "views" in result):
        result["motion"] = _plain(asdict(case.patient.motion))
        result["filling"] = _plain(asdict(case.patient.filling))
    files = {"format": content.format} if content is not None and content.format != "png" else {}
    if cines:
        files["cines"] = cines
    if files:
        result["files"] = files
    return result


def _plain(values: dict) -> dict:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def _write(folder: Path, case: Case, content: Content, cines: Sequence[Cine], source: str) -> None:
    truth, held_out = folder / "truth", folder / "truth" / "held_out"
    held_out.mkdir(parents=True)
    names = [_name(k, content) for k in range(len(case.views))]
    for k, view in enumerate(case.views):
        _write_picture(folder / names[k], case, view.image, view.user_camera, 1 + k)
        if view.contrast_free_image is not None:
            name = names[k].replace("view_", "contrast_free_")
            _write_picture(folder / name, case, view.contrast_free_image, view.user_camera, 11 + k)
        if content.projections:
            write_bytes(folder / f"view_{k + 1}.tif", _tiff(view.measured))
    write_text(folder / "cameras.json", write_cameras_json(case.user_cameras, names, [None] * len(names)))
    write_text(truth / "cameras.json", write_cameras_json(case.true_cameras, names, [None] * len(names)))
    _write_truths(truth, case.views, content)
    if case.held_out:
        hidden = [_name(k, content) for k in range(len(case.held_out))]
        cameras = [view.true_camera for view in case.held_out]
        write_text(held_out / "cameras.json", write_cameras_json(cameras, hidden, [None] * len(hidden)))
        for k, view in enumerate(case.held_out):
            _write_picture(held_out / hidden[k], case, view.image, view.true_camera, 21 + k)
        _write_truths(held_out, case.held_out, content)
    else:
        held_out.rmdir()
    for k, cine in enumerate(cines):
        _write_cine(folder, case, cine, k)
    write_centerlines_json(truth / "centerlines.json", case.tree)
    record = case_settings(case, content=content, cines=len(cines), source=source)
    write_text(truth / "case.json", json.dumps(record, indent=1) + "\n")
    if content.mesh:
        from licag3d.io.write_mesh import write_stl
        from licag3d.phantom.truth_volumes import truth_surface

        surface = truth_surface(case.tree)
        write_stl(truth / "vessels.stl", surface.vertices_lps_mm, surface.faces)
    if content.labels:
        from licag3d.io.write_volume import write_nifti
        from licag3d.phantom.truth_volumes import truth_labels

        labels = truth_labels(case.tree)
        write_nifti(truth / "labels.nii.gz", labels.values, labels.origin_mm, labels.spacing_mm)


def _name(number: int, content: Content) -> str:
    return f"view_{number + 1}.{'png' if content.format == 'png' else 'dcm'}"


def _write_picture(path: Path, case: Case, image: np.ndarray, camera: Camera, series: int) -> None:
    if path.suffix == ".png":
        write_bytes(path, _png(image))
        return
    from licag3d.io.write_dicom_xa import write_xa

    bits = int(case.settings.get("bits", 8))
    write_xa(
        path, image, camera, bits=bits, identity=_identity(case), series=series, description=_described(case, path.stem)
    )


def _described(case: Case, stem: str) -> str:
    if stem.startswith("contrast_free"):
        return f"Synthetic {stem}, {100 * case.settings['kappa']:g} % of the contrast left"
    return f"Synthetic {stem}"


def _identity(case: Case) -> tuple:
    return (case.seed, case.artery, json.dumps(case.settings, sort_keys=True))


def _write_cine(folder: Path, case: Case, cine: Cine, number: int) -> None:
    """The run as a user gets it, and when what happened in it: times, phases, filling, centreline of every frame."""
    from licag3d.io.write_dicom_xa import write_xa

    name = f"cine_{number + 1}"
    bits = 8 if cine.frames.dtype == np.uint8 else int(case.settings.get("bits", 16))
    write_xa(
        folder / f"{name}.dcm",
        cine.frames,
        cine.user_camera,
        bits=bits,
        frame_time_ms=cine.frame_time_ms,
        identity=_identity(case),
        series=101 + number,
        description=f"Synthetic coronary cine {case.artery.upper()} run {number + 1}",
    )
    filled = np.flatnonzero(cine.filled)
    record = {
        "file": f"{name}.dcm",
        "frame_time_ms": cine.frame_time_ms,
        "filled_frames": [int(filled[0]), int(filled[-1])],
        "time_s": [round(float(x), 4) for x in cine.time_s],
        "phase": [round(float(x), 4) for x in cine.phase],
        "respiration_mm": [round(float(x), 3) for x in cine.respiration_mm],
        "mean_opacity": [round(float(x), 4) for x in cine.filling],
        "branches": [
            {"id": b.id, "parent": b.parent, "name": b.name, "samples": len(b.radius_mm)} for b in cine.tree.branches
        ],
    }
    write_text(folder / "truth" / f"{name}.json", json.dumps(record) + "\n")
    radius = np.concatenate([branch.radius_mm for branch in cine.tree.branches]).astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, points_lps_mm=cine.points_lps_mm, radius_mm=radius)
    write_bytes(folder / "truth" / f"{name}_centerlines.npz", buffer.getvalue())


def _write_truths(folder: Path, views: tuple[ViewTruth, ...], content: Content) -> None:
    for k, view in enumerate(views):
        write_bytes(folder / f"view_{k + 1}_mask.png", _png(view.mask.astype(np.uint8) * 255))
        if view.devices is not None and view.devices.any():
            write_bytes(folder / f"view_{k + 1}_devices.png", _png(view.devices.astype(np.uint8) * 255))
        if view.twigs is not None and view.twigs.any():
            write_bytes(folder / f"view_{k + 1}_twigs.png", _png(view.twigs.astype(np.uint8) * 255))
        if content.projections:
            write_bytes(folder / f"view_{k + 1}_projection.tif", _tiff(view.line_integral))
        if view.tree is not None:
            write_centerlines_json(folder / f"view_{k + 1}_centerlines.json", view.tree)


def _png(image: np.ndarray) -> bytes:
    import imageio.v3 as imageio

    return imageio.imwrite("<bytes>", image, extension=".png")


def _tiff(image: np.ndarray) -> bytes:
    """A float32 TIFF, compressed without loss."""
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image.astype(np.float32), compression="zlib", predictor=False, metadata=None)
    return buffer.getvalue()
