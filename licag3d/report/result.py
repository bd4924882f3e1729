# SPDX-License-Identifier: Apache-2.0
"""What a reconstruction hands over, and the folder of files it becomes."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import licag3d
from licag3d.geometry import Camera, view_angle_deg
from licag3d.io.atomic import staged_folder, write_bytes, write_text
from licag3d.report.lesions import lesion_dict, reported_stenoses
from licag3d.report.view_guide import Target, guide_dict, view_guide
from licag3d.structures import VesselEvidence, VesselTree, View
from licag3d.vessels.stenosis import Stenosis
from licag3d.vessels.surface import Surface, SurfacePart
from licag3d.vessels.volume import Volume


@dataclass(frozen=True)
class StageRecord:
    """One stage of the inversion.

    Args:
        name: short, as shown to the user.
        seconds: wall time.
        losses: per loss term its values over the iterations; the last one is what the stage ended with.
        pictures: per caption a picture, ``(rows, cols)`` float or uint8, or ``(rows, cols, 3)``.
        note: one sentence on what came out.
    """

    name: str
    seconds: float
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Confidence:
    """How far the result as a whole may be trusted.

    Args:
        level: ``high``, ``moderate`` or ``low``.
        statement: one or two sentences for people.
        consistency: 0 to 1, how alike the views are under the corrected cameras: about the chance that they show the
            same artery of one patient (docs/uncertainty.md); NaN with one view.
        facts: the numbers behind it, by name.
    """

    level: str
    statement: str
    consistency: float
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """The outcome of ``python -m licag3d.invert``.

    Args:
        views: as read. cameras: refined, one per view. given_cameras: before refinement (default: those of the views).
        tree: branches with radii, LPS mm.
        attenuation: float32 volume in 1/mm.
        evidence: per view, or None where there is none.
        stages: in order of running.
        metrics: per view image metrics by name with unit, for example ``{"ssim": 0.9, "centerline_distance_px": 1.2}``.
        warnings, assumptions: one sentence each; ``scale_from`` says what fixed the absolute scale.
        surface: the lumen; default the surface of the tree.
        confidence: in the result as a whole, where it was judged. error_note: what the expected errors along the
            branches mean, one sentence.
        stenoses: as read from the views; None: told by the tree alone. judged_share: of the length of the vessels that
            some view shows clear of others.
        seed, device, seconds: of the whole run. command: as typed, for the record.
    """

    views: tuple[View, ...]
    cameras: tuple[Camera, ...]
    tree: VesselTree
    attenuation: Volume
    evidence: tuple[VesselEvidence | None, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    metrics: tuple[Mapping[str, float], ...] = ()
    warnings: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    scale_from: str = ""
    given_cameras: tuple[Camera, ...] | None = None
    surface: Surface | None = None
    seed: int = 0
    device: str = "cpu"
    seconds: float | None = None
    command: str = ""
    confidence: Confidence | None = None
    error_note: str = ""
    stenoses: tuple[Stenosis, ...] | None = None
    judged_share: float | None = None

    def __post_init__(self) -> None:
        if len(self.views) != len(self.cameras):
            raise ValueError(f"{len(self.views)} views but {len(self.cameras)} cameras")
        for name in ("evidence", "metrics", "given_cameras"):
            value = getattr(self, name)
            if value and len(value) != len(self.views):
                raise ValueError(f"{len(self.views)} views but {len(value)} entries of {name}")

    @property
    def cameras_before(self) -> tuple[Camera, ...]:
        """The cameras as given."""
        return self.given_cameras or tuple(view.camera for view in self.views)

    @property
    def narrowings(self) -> tuple[Stenosis, ...]:
        """The stenoses that result.json and the report tell of, worst first."""
        return reported_stenoses(self.tree) if self.stenoses is None else self.stenoses


FILES = {
    "report.html": "this page",
    "vessels.stl": "watertight lumen surface, LPS mm",
    "attenuation.nii.gz": "vessel attenuation in 1/mm, float32",
    "labels.nii.gz": "labels for ITK-SNAP: 0 background, 1 vessel",
    "labels.txt": "label description for ITK-SNAP",
    "centerlines.json": "branches: points, radii, parents, LPS mm",
    "centerlines.vtp": "the same for ParaView and 3D Slicer",
    "cameras.json": "refined cameras; accepted by --cameras",
    "result.json": "versions, times, losses, metrics, warnings, assumptions",
}
VIEW_FILE = "input with the reprojected contour over it"


def write_result(out_dir: str | os.PathLike, result: Reconstruction) -> dict[str, Path]:
    """Write every file of a reconstruction; all of them appear, or none.

    Other files in ``out_dir`` stay as they are.

    Returns:
        Path by file name.

    Raises:
        InputError: the folder cannot be written.
    """
    from licag3d.io.cameras import write_cameras_json
    from licag3d.io.write_centerlines import write_centerlines_json, write_centerlines_vtp
    from licag3d.io.write_mesh import write_stl
    from licag3d.io.write_volume import write_itksnap_labels, write_nifti
    from licag3d.report.page import report_html
    from licag3d.report.pictures import overlay_picture, png_bytes, tree_outline
    from licag3d.vessels.rasterize import tree_labels
    from licag3d.vessels.surface import surface_parts, tree_surface

    surface = result.surface
    if surface is None and result.tree.branches:
        surface = tree_surface(result.tree)
    if surface is None:
        surface = Surface(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
    parts = surface_parts(surface)
    outlines = [tree_outline(result.tree, camera) for camera in result.cameras]
    grid = result.attenuation
    guide = view_guide(result.tree, result.cameras, result.narrowings,
                       level=result.confidence.level if result.confidence else "")
    with staged_folder(out_dir) as stage:
        write_stl(stage / "vessels.stl", surface.vertices_lps_mm, surface.faces)
        write_nifti(stage / "attenuation.nii.gz", np.asarray(grid.values, np.float32), grid.origin_mm, grid.spacing_mm,
                    description="licag3d vessel attenuation, 1/mm")
        write_nifti(stage / "labels.nii.gz", tree_labels(result.tree, grid).values, grid.origin_mm, grid.spacing_mm,
                    description="licag3d vessel labels")
        write_itksnap_labels(stage / "labels.txt")
        write_centerlines_json(stage / "centerlines.json", result.tree)
        write_centerlines_vtp(stage / "centerlines.vtp", result.tree)
        write_text(stage / "cameras.json", write_cameras_json(
            result.cameras, [view.file or f"view_{k}" for k, view in enumerate(result.views, 1)],
            [view.frame for view in result.views]))
        for k, (view, camera, outline) in enumerate(zip(result.views, result.cameras, outlines, strict=True), 1):
            picture = overlay_picture(view.image, outline, view_caption(k, view, camera))
            write_bytes(stage / f"view_{k}.png", png_bytes(picture))
        summary = result_dict(result, surface, parts, guide)
        write_text(stage / "result.json", json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        files = {path.name: path.stat().st_size for path in stage.iterdir()}
        write_text(stage / "report.html", report_html(result, surface, parts, outlines, summary, files, guide))
        names = sorted(path.name for path in stage.iterdir())
    return {name: Path(os.path.abspath(os.path.expanduser(os.fspath(out_dir)))) / name for name in names}


def view_caption(number: int, view: View, camera: Camera) -> str:
    """``View 1: LAO 31.3, CRA 0.1 (file, frame 8)``."""
    lao = f"{'LAO' if camera.primary_deg >= 0 else 'RAO'} {abs(camera.primary_deg):.1f}\N{DEGREE SIGN}"
    cranial = f"{'CRA' if camera.secondary_deg >= 0 else 'CAU'} {abs(camera.secondary_deg):.1f}\N{DEGREE SIGN}"
    source = ", ".join(x for x in (view.file, "" if view.frame is None else f"frame {view.frame}") if x)
    return f"View {number}: {lao}, {cranial}" + (f" ({source})" if source else "")


def result_dict(result: Reconstruction, surface: Surface, parts: tuple[SurfacePart, ...],
                guide: Sequence[Target] = ()) -> dict[str, Any]:
    """The content of ``result.json``; values that are not finite become null."""
    from licag3d.vessels.tree import branch_length_mm, component_count

    radius = np.concatenate([np.zeros(0), *(b.radius_mm for b in result.tree.branches)])
    angles = [{"views": [i + 1, j + 1], "angle_deg": view_angle_deg(a, b)} for i, a in enumerate(result.cameras)
              for j, b in enumerate(result.cameras) if i < j]
    content = {
        "version": licag3d.__version__, "seed": result.seed, "device": result.device, "command": result.command,
        "seconds": result.seconds if result.seconds is not None else sum(s.seconds for s in result.stages),
        "stages": [{"name": s.name, "seconds": s.seconds, "note": s.note,
                    "losses": {k: {"first": v[0], "last": v[-1], "values": _thinned(v)}
                               for k, v in s.losses.items() if len(v)}}
                   for s in result.stages],
        "peak_memory": peak_memory(),
        "views": [{"file": view.file, "frame": view.frame, "notes": list(view.notes),
                   "metrics": dict(result.metrics[k]) if result.metrics else {},
                   "offset_change_mm": float(np.linalg.norm(np.subtract(camera.offset_lps_mm, before.offset_lps_mm)))}
                  for k, (view, camera, before) in enumerate(zip(result.views, result.cameras, result.cameras_before,
                                                                 strict=True))],
        "view_angles": angles,
        "tree": {"branches": len(result.tree.branches), "components": component_count(result.tree),
                 "length_mm": result.tree.length_mm,
                 "branch_length_mm": [branch_length_mm(b) for b in result.tree.branches],
                 "radius_mm": {"min": radius.min(), "median": np.median(radius), "max": radius.max()}
                 if radius.size else None},
        "surface": {"faces": len(surface.faces), "volume_mm3": surface.volume_mm3, "area_mm2": surface.area_mm2,
                    "open_edges": surface.open_edges(),
                    "parts": [{"faces": p.faces, "volume_mm3": p.volume_mm3, "center_lps_mm": list(p.center_lps_mm)}
                              for p in parts]},
        "attenuation": {"shape_zyx": list(result.attenuation.values.shape), "spacing_mm": result.attenuation.spacing_mm,
                        "origin_lps_mm": list(result.attenuation.origin_mm),
                        "maximum_per_mm": float(np.max(result.attenuation.values, initial=0.0))},
        "confidence": None if result.confidence is None else {
            "level": result.confidence.level, "statement": result.confidence.statement,
            "consistency": result.confidence.consistency, "facts": dict(result.confidence.facts)},
        "error_mm": _error_summary(result),
        "stenoses": [lesion_dict(lesion) for lesion in result.narrowings],
        "stenoses_judged_share": result.judged_share,
        "best_views": guide_dict(guide),
        "scale_from": result.scale_from,
        "warnings": [*result.warnings, *part_warnings(parts)],
        "assumptions": list(result.assumptions),
    }
    return _plain(content)


def _error_summary(result: Reconstruction) -> dict[str, Any] | None:
    """Expected errors over all points of the tree, mm, where they are known."""
    known = [np.asarray(b.error_mm) for b in result.tree.branches if b.error_mm is not None]
    if not known:
        return None
    half, most = np.quantile(np.concatenate(known), [0.5, 0.9])
    return {"median": half, "percentile_90": most, "note": result.error_note}


def part_warnings(parts: tuple[SurfacePart, ...]) -> list[str]:
    """A sentence on pieces beside the main one, if any: they are kept, and the user must know."""
    small = parts[1:]
    if not small:
        return []
    listed = ", ".join(f"{p.volume_mm3:.1f}" for p in small[:5]) + (", ..." if len(small) > 5 else "")
    one = len(small) == 1
    return [f"The surface has {len(small)} {'piece' if one else 'pieces'} beside the main one "
            f"({listed} mm\N{SUPERSCRIPT THREE}); "
            f"{'it is' if one else 'they are'} kept in the files."]


def peak_memory() -> dict[str, float]:
    """Largest resident memory of this process so far, and of the accelerator where one is in use, in MB."""
    import resource

    unit = 1e6 if sys.platform == "darwin" else 1e3  # macOS counts bytes, Linux kilobytes
    found = {"process_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    torch = sys.modules.get("torch")  # not imported only to be asked
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return found


def _thinned(values: Sequence[float], largest: int = 200) -> list[float]:
    if len(values) <= largest:
        return [float(v) for v in values]
    return [float(values[round(k)]) for k in np.linspace(0, len(values) - 1, largest)]


def _plain(value: Any) -> Any:
    """JSON types only; NaN and infinity, which JSON has not, become null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, str) else str(value)
