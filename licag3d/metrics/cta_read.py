# SPDX-License-Identifier: Apache-2.0
"""Reading a CTA (DICOM series, NIfTI, NRRD, MetaImage) and its labels: checked and bounded before anything is decoded.

SimpleITK decodes. It makes up a spacing of 1 mm where a file has none, follows references to other files and guesses
the format, so the header is looked at here first and the reader is named.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from licag3d.errors import InputError

#: Largest volume that is decoded, voxels (1.6 GB as float32), and most voxels along an axis.
MAX_VOXELS, MAX_AXIS = 400_000_000, 4096
#: Voxel sizes outside are a wrong unit or a broken header, mm.
SPACING_RANGE_MM = (0.05, 20.0)
MAX_FILES = 10_000
_HEADER_BYTES = 65_536
#: HU outside are clipped: 12-bit CT holds no more.
HU_RANGE = (-1024.0, 3071.0)


@dataclass(frozen=True)
class CtVolume:
    """A CT or label volume as stored: no resampling, any orientation.

    ``values`` ``(D, H, W)`` z, y, x; ``spacing_mm`` (x, y, z); voxel (i, j, k) along x, y, z has its centre at
    ``origin_lps_mm + direction @ (spacing * (i, j, k))``, the columns of ``direction`` ``(3, 3)`` being orthonormal.
    """

    values: np.ndarray
    spacing_mm: tuple[float, float, float]
    origin_lps_mm: np.ndarray
    direction: np.ndarray

    def to_lps(self, local_mm: np.ndarray) -> np.ndarray:
        """World points ``(..., 3)`` of points along the axes of the volume, mm from voxel (0, 0, 0)."""
        return np.asarray(local_mm, np.float64) @ self.direction.T + self.origin_lps_mm

    def to_local(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_lps`."""
        return (np.asarray(points_lps_mm, np.float64) - self.origin_lps_mm) @ self.direction

    def cropped(self, low: Sequence[int], high: Sequence[int]) -> CtVolume:
        """Voxels ``low`` to ``high`` (excluded), z, y, x."""
        z, y, x = (slice(a, b) for a, b in zip(low, high, strict=True))
        start = self.to_lps(np.array((low[2], low[1], low[0])) * np.array(self.spacing_mm))
        return CtVolume(self.values[z, y, x], self.spacing_mm, start, self.direction)

    def sampled(self, points_lps_mm: np.ndarray, outside: float) -> np.ndarray:
        """Linear interpolation at world points ``(..., 3)``; ``outside`` beyond the outermost voxel centres."""
        from scipy.ndimage import map_coordinates

        index = self.to_local(points_lps_mm) / np.array(self.spacing_mm)
        # Rounding must not push the outermost voxel centres outside.
        edge = np.clip(index, 0, np.array(self.values.shape[::-1]) - 1)
        index = np.where(np.abs(index - edge) < 0.01, edge, index)
        coordinates = np.moveaxis(index[..., ::-1], -1, 0)
        return map_coordinates(self.values, coordinates, order=1, mode="constant", cval=outside, output=np.float32)


def read_cta(path: str | Path, series: str | None = None) -> tuple[CtVolume, list[str]]:
    """A CTA in HU, float32 clipped to -1024..3071, and what was chosen or is doubtful, one sentence each.

    Args:
        path: folder of a DICOM series, or a ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.mha`` file.
        series: number (as the error or the note lists them) or SeriesInstanceUID of the series, when a folder holds
            several; default the one with the most slices.

    Raises:
        InputError: anything missing, broken or too large; no spacing; a single slice; values that are no HU.
    """
    path = Path(path)
    if path.is_dir():
        volume, notes = _read_series(path, series)
    else:
        if series is not None:
            raise InputError(f"a series was chosen, but {path.name} is a file; leave --series out")
        volume, notes = _read_file(path, "CTA"), []
    values = volume.values.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"CTA {path.name} holds NaN or infinite values; export it again in HU")
    low, high = float(values.min()), float(values.max())
    if high - low < 200:
        raise InputError(f"CTA {path.name} spans {low:g} to {high:g}, which is not HU; give the unscaled CT")
    if low >= 0 and high > 1500:
        notes.append(f"no voxel of the CTA lies below {low:g} HU: the values may be stored with an offset")
    return CtVolume(np.clip(values, *HU_RANGE), volume.spacing_mm, volume.origin_lps_mm, volume.direction), notes


def read_labels(path: str | Path) -> CtVolume:
    """Vessel labels as bool: every label but 0 is vessel.

    Raises:
        InputError: not readable, or no voxel is labelled.
    """
    volume = _read_file(Path(path), "label volume")
    if volume.values.dtype.kind == "f" and not np.isfinite(volume.values).all():
        raise InputError(f"label volume {Path(path).name} holds NaN; give whole numbers, 0 for background")
    mask = volume.values != 0
    if not mask.any():
        raise InputError(f"label volume {Path(path).name} has no vessel: every voxel is 0; give the coronary labels")
    if mask.mean() > 0.2:
        raise InputError(
            f"label volume {Path(path).name}: {100 * mask.mean():.0f} % of all voxels are labelled, so "
            "this is no vessel mask; give labels that are 0 outside the coronary arteries"
        )
    return CtVolume(mask, volume.spacing_mm, volume.origin_lps_mm, volume.direction)


def _read_file(path: Path, what: str) -> CtVolume:
    import SimpleITK as sitk

    from licag3d.io.files import check_file

    check_file(path, what=what, limit=8 << 30)
    name = path.name.lower()
    checks = {".nii": _check_nifti, ".nii.gz": _check_nifti, ".nrrd": _check_nrrd, ".mha": _check_meta}
    kind = next((end for end in sorted(checks, key=len, reverse=True) if name.endswith(end)), None)
    if kind is None:
        raise InputError(
            f"{what} {path.name}: this file type is not read; give a folder of DICOM slices, .nii, .nii.gz, .nrrd or "
            ".mha (one file, header and data together)"
        )
    checks[kind](path, what)
    reader = sitk.ImageFileReader()
    reader.SetImageIO({".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}.get(kind, "NiftiImageIO"))
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        _check_geometry(size, reader.GetSpacing(), reader.GetNumberOfComponents(), f"{what} {path.name}")
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{what} {path.name} cannot be read ({_last_line(error)}); export it again") from None
    return _volume(image, f"{what} {path.name}")


def _volume(image: Any, label: str) -> CtVolume:
    import SimpleITK as sitk

    direction = np.array(image.GetDirection()).reshape(3, 3)
    if not np.allclose(direction @ direction.T, np.eye(3), atol=1e-3):
        raise InputError(f"{label}: the axes are not at right angles (tilted gantry); resample it first")
    origin = np.array(image.GetOrigin())
    if not np.isfinite(origin).all() or np.abs(origin).max() > 1e5:
        raise InputError(f"{label}: the origin is {origin.tolist()} mm; export it again")
    return CtVolume(sitk.GetArrayFromImage(image), tuple(float(x) for x in image.GetSpacing()), origin, direction)


def _check_geometry(size: Sequence[int], spacing: Sequence[float], components: int, label: str) -> None:
    if len(size) != 3:
        raise InputError(f"{label} has {len(size)} dimensions; give one 3D volume")
    if components != 1:
        raise InputError(f"{label} has {components} values per voxel; give one grey value per voxel")
    if min(size) < 2:
        raise InputError(
            f"{label} has {' x '.join(map(str, size))} voxels: a single slice is no volume; give the whole series"
        )
    if max(size) > MAX_AXIS or math.prod(size) > MAX_VOXELS:
        raise InputError(
            f"{label} has {' x '.join(map(str, size))} voxels, more than {MAX_VOXELS:.0e}; crop or resample it"
        )
    if not all(math.isfinite(s) and SPACING_RANGE_MM[0] <= s <= SPACING_RANGE_MM[1] for s in spacing):
        raise InputError(
            f"{label}: the voxel size is {', '.join(f'{s:g}' for s in spacing)} mm; expected "
            f"{SPACING_RANGE_MM[0]:g} to {SPACING_RANGE_MM[1]:g} mm (check the unit)"
        )


def _check_nifti(path: Path, what: str) -> None:
    """The header says a voxel size, and no more voxels than are allowed."""
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            head = file.read(544)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{what} {path.name} cannot be read ({_last_line(error)}); copy it again") from None
    for order in "<>":
        if len(head) >= 348 and struct.unpack_from(f"{order}i", head)[0] == 348:
            dims = struct.unpack_from(f"{order}8h", head, 40)
            sizes = struct.unpack_from(f"{order}8f", head, 76)
            break
        if len(head) >= 540 and struct.unpack_from(f"{order}i", head)[0] == 540:
            dims = struct.unpack_from(f"{order}8q", head, 16)
            sizes = struct.unpack_from(f"{order}8d", head, 104)
            break
    else:
        raise InputError(f"{what} {path.name} is no NIfTI file (its header does not begin like one)")
    if not 1 <= dims[0] <= 7:
        raise InputError(f"{what} {path.name} has {dims[0]} dimensions; give one 3D volume")
    shape = list(dims[1 : dims[0] + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) != 3:
        raise InputError(
            f"{what} {path.name} has {len(shape)} dimensions ({' x '.join(map(str, shape))}); give one 3D volume"
        )
    if any(not s > 0 for s in sizes[1:4]):
        raise InputError(
            f"{what} {path.name} has no voxel size (pixdim {', '.join(f'{s:g}' for s in sizes[1:4])}); "
            "export it with its spacing in mm"
        )
    _check_geometry(shape, sizes[1:4], 1, f"{what} {path.name}")


def _check_nrrd(path: Path, what: str) -> None:
    fields = _text_fields(path, what, ":", end="")
    if "data file" in fields or "datafile" in fields:
        raise InputError(f"{what} {path.name} keeps its data in another file; save it as one .nrrd")
    if "space directions" not in fields and "spacings" not in fields:
        raise InputError(
            f"{what} {path.name} has no voxel size (space directions or spacings); export it with its spacing in mm"
        )
    if "none" in fields.get("space directions", "") or "nan" in fields.get("spacings", "").lower():
        raise InputError(f"{what} {path.name}: an axis has no voxel size; give one 3D volume with its spacing in mm")


def _check_meta(path: Path, what: str) -> None:
    fields = _text_fields(path, what, "=", end="elementdatafile")
    if fields.get("elementdatafile", "").strip().upper() != "LOCAL":
        raise InputError(f"{what} {path.name} keeps its data in another file; save it as one .mha")
    if "elementspacing" not in fields and "elementsize" not in fields:
        raise InputError(f"{what} {path.name} has no voxel size (ElementSpacing); export it with its spacing in mm")


def _text_fields(path: Path, what: str, separator: str, *, end: str) -> dict[str, str]:
    """Header fields in lower case, up to an empty line or the field ``end``."""
    with open(path, "rb") as file:
        lines = file.read(_HEADER_BYTES).decode("latin-1").split("\n")
    fields: dict[str, str] = {}
    for line in lines:
        line = line.rstrip("\r")
        if not line:
            return fields
        key, found, value = line.partition(separator)
        if found and not line.startswith("#"):
            fields[key.strip().lower()] = value.lstrip("=").strip()
            if end and key.strip().lower() == end:
                return fields
    raise InputError(f"{what} {path.name}: its header does not end within {_HEADER_BYTES} bytes; export it again")


def _read_series(folder: Path, series: str | None) -> tuple[CtVolume, list[str]]:
    """The chosen CT series of a folder of DICOM files (not of its subfolders)."""
    import SimpleITK as sitk

    label = f"DICOM folder {folder.name}"
    groups = _series_of(folder, label)
    chosen, notes = _choose(groups, series, label)
    slices = groups[chosen]
    if len(slices) == 1:
        raise InputError(f"{label}: the series has a single slice; give the whole series")
    names, step_mm = _ordered(slices, label)
    first = slices[0]
    size = (int(first["cols"]), int(first["rows"]), len(names))
    _check_geometry(size, (first["spacing"][1], first["spacing"][0], step_mm), 1, label)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(name) for name in names])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{label} cannot be decoded ({_last_line(error)}); export it uncompressed") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1 or image.GetSize() != size:
        raise InputError(f"{label}: the slices do not make one grey volume; give one CT series")
    across = np.cross(first["axes"][0], first["axes"][1])
    image.SetSpacing((first["spacing"][1], first["spacing"][0], step_mm))
    image.SetDirection(np.stack((first["axes"][0], first["axes"][1], across), axis=1).ravel().tolist())
    return _volume(image, label), notes


def _series_of(folder: Path, label: str) -> dict[str, list[dict]]:
    """What the headers of a folder say, by SeriesInstanceUID; CT only."""
    import pydicom

    wanted = [
        "SeriesInstanceUID",
        "Modality",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "Rows",
        "Columns",
        "NumberOfFrames",
    ]
    files = sorted(entry.path for entry in os.scandir(folder) if entry.is_file())
    if len(files) > MAX_FILES:
        raise InputError(f"{label} holds {len(files)} files, more than {MAX_FILES}; give the folder of one series")
    groups: dict[str, list[dict]] = {}
    others: set[str] = set()
    for file in files:
        try:
            ds = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=wanted)
        except Exception:  # noqa: S112 - whatever is no DICOM file is not part of the series
            continue
        if str(ds.get("Modality") or "") != "CT":
            others.add(str(ds.get("Modality") or "none")[:16])
            continue
        if int(ds.get("NumberOfFrames") or 1) > 1:
            raise InputError(f"{label}: {Path(file).name} is a multi-frame CT; convert it to NIfTI or NRRD")
        groups.setdefault(str(ds.get("SeriesInstanceUID") or ""), []).append(_slice(ds, Path(file), label))
    if not groups:
        seen = f" (found modality {', '.join(sorted(others))})" if others else ""
        raise InputError(f"{label} holds no CT slices{seen}; give the folder of the CTA series itself")
    return groups


def _slice(ds: Any, file: Path, label: str) -> dict:
    def numbers(keyword: str, count: int, remedy: str) -> np.ndarray:
        try:
            value = np.array([float(x) for x in ds.get(keyword) or ()])
        except (TypeError, ValueError):
            value = np.zeros(0)
        if len(value) != count or not np.isfinite(value).all():
            raise InputError(f"{label}: {file.name} has no usable {keyword}; {remedy}")
        return value

    spacing = numbers("PixelSpacing", 2, "a CTA without spacing cannot be measured: export it with its tags")
    axes = numbers("ImageOrientationPatient", 6, "export the series with its tags").reshape(2, 3)
    if abs(axes[0] @ axes[1]) > 1e-3 or not np.allclose(np.linalg.norm(axes, axis=1), 1, atol=1e-3):
        raise InputError(f"{label}: {file.name} has an ImageOrientationPatient that is no right angle; export it again")
    return {
        "file": file,
        "spacing": (float(spacing[0]), float(spacing[1])),
        "axes": axes,
        "position": numbers("ImagePositionPatient", 3, "export the series with its tags"),
        "rows": int(ds.get("Rows") or 0),
        "cols": int(ds.get("Columns") or 0),
    }


def _choose(groups: dict[str, list[dict]], series: str | None, label: str) -> tuple[str, list[str]]:
    order = sorted(groups, key=lambda uid: (-len(groups[uid]), uid))
    listing = "; ".join(
        f"{k + 1}: {len(groups[uid])} slices of {groups[uid][0]['cols']} x {groups[uid][0]['rows']}"
        for k, uid in enumerate(order[:8])
    )
    if series is None:
        notes = [f"{label} holds {len(order)} CT series ({listing}); took 1, choose another with --series"]
        return order[0], notes if len(order) > 1 else []
    if series in groups:
        return series, []
    if series.isascii() and series.isdigit() and 1 <= int(series[:6]) <= len(order):
        return order[int(series[:6]) - 1], []
    raise InputError(f"--series {series[:80]!r} is not in {label}; it holds {listing}")


def _ordered(slices: list[dict], label: str) -> tuple[list[Path], float]:
    """Files along the normal of the slices, and their distance in mm."""
    first = slices[0]
    for item in slices:
        same = item["rows"] == first["rows"] and item["cols"] == first["cols"]
        if (
            not same
            or not np.allclose(item["spacing"], first["spacing"], rtol=1e-3)
            or not np.allclose(item["axes"], first["axes"], atol=1e-3)
        ):
            raise InputError(
                f"{label}: its slices differ in size, spacing or orientation (a localiser among them?); give one series"
            )
    normal = np.cross(first["axes"][0], first["axes"][1])
    slices.sort(key=lambda item: float(item["position"] @ normal))
    position = np.stack([item["position"] for item in slices])
    steps = np.diff(position @ normal)
    step = float(np.median(steps))
    if steps.min() < 1e-3:
        raise InputError(f"{label}: several slices lie at the same place (cardiac phases?); give one phase")
    if np.abs(steps - step).max() > 0.05 * step:
        raise InputError(
            f"{label}: slices are {steps.min():.2f} to {steps.max():.2f} mm apart (some are missing); "
            "give the complete series"
        )
    drift = position - position[0] - np.outer((position - position[0]) @ normal, normal)
    if np.linalg.norm(drift, axis=1).max() > 0.5:
        raise InputError(f"{label}: the slices shift sideways (tilted gantry); resample the series first")
    return [item["file"] for item in slices], step


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[-160:]
