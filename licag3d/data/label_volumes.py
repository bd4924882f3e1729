# SPDX-License-Identifier: Apache-2.0
"""Label volumes of coronary CT angiography (NIfTI, NRRD): read safely, turned to isotropic LPS; folders of them."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from licag3d.errors import InputError
from licag3d.vessels.volume import Volume

#: A heart at 0.25 mm has 0.4e9 voxels; what claims more is damaged or no heart.
MAX_VOXELS, MAX_BYTES = 500_000_000, 4 * 2**30
#: Voxel size that can show a coronary artery, mm, and the largest ratio of its sides.
SPACING_MM, MAX_ANISOTROPY = (0.1, 2.5), 8.0
MAX_LABELS = 64
MAX_FILES = 100_000
_ENDINGS = (".nii", ".nii.gz", ".nrrd")
_LABEL_NAME = re.compile(r"label|seg|mask", re.IGNORECASE)


@dataclass(frozen=True)
class LabelVolume:
    """A label volume on an isotropic LPS grid, cut to what is labelled.

    Args:
        labels: uint16 values, 0 background.
        share: label value -> how much of each voxel carries it, float32 in 0..1 on the same grid. On a grid that was
            resampled the edges are interpolated, so that oblique and anisotropic volumes give no stairs.
        notes: what was assumed or done on the way, one sentence each.
    """

    labels: Volume
    share: dict[int, np.ndarray]
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[int, ...]:
        """The labels that occur, ascending."""
        return tuple(sorted(self.share))

    def merged(self, values=None) -> Volume:
        """The share of several labels together (default all)."""
        chosen = self.values if values is None else [v for v in values if v in self.share]
        total = np.zeros(self.labels.values.shape, np.float32)
        for value in chosen:
            total += self.share[value]
        return Volume(np.minimum(total, 1.0), self.labels.origin_mm, self.labels.spacing_mm)


def read_label_volume(path: str | Path, *, spacing_mm: float | None = None) -> LabelVolume:
    """Read a NIfTI or NRRD label volume as isotropic LPS.

    The affine of the file decides, whatever its axes: flips and permutations are undone exactly, oblique or anisotropic
    grids are resampled linearly, label by label.

    Args:
        path: ``.nii``, ``.nii.gz`` or ``.nrrd`` in one file.
        spacing_mm: voxel size of the result; default the smallest side of the file's voxels, at least 0.25 mm.

    Raises:
        InputError: not such a file, damaged, too large, no integer labels, nothing labelled, or an affine that is
            sheared, of absurd voxel size or anisotropy.
    """
    path = Path(path)
    image = _read_image(path)
    label = path.name
    file_spacing = np.asarray(image.GetSpacing())
    if spacing_mm is None:
        spacing_mm = max(float(file_spacing.min()), 0.25)
    if not SPACING_MM[0] <= spacing_mm <= SPACING_MM[1]:
        raise InputError(f"{label}: the spacing asked for is {spacing_mm} mm; give {SPACING_MM[0]} to {SPACING_MM[1]}")
    import SimpleITK as sitk

    image = sitk.DICOMOrient(image, "LPS")
    array = sitk.GetArrayViewFromImage(image)
    values = _label_values(array, label)
    image, notes = _cropped(image, array, sitk)
    array = sitk.GetArrayFromImage(image)
    straight = np.allclose(np.reshape(image.GetDirection(), (3, 3)), np.eye(3), atol=1e-3)
    size = np.asarray(image.GetSpacing())
    if straight and np.allclose(size, spacing_mm, rtol=5e-3):
        grid = Volume(array.astype(np.uint16), image.GetOrigin(), float(size.mean()))
        return LabelVolume(grid, {v: (array == v).astype(np.float32) for v in values}, tuple(notes))
    what = "oblique" if not straight else "anisotropic" if np.ptp(size) > 5e-3 * size.max() else "other"
    notes.append(
        f"the {what} grid of {size[0]:.3g} x {size[1]:.3g} x {size[2]:.3g} mm was resampled to {spacing_mm:.3g} mm"
    )
    return _resampled(image, array, values, spacing_mm, tuple(notes), label, sitk)


def _read_image(path: Path):
    from licag3d.io.files import check_file, hostile, quiet_libraries

    check_file(path, what="label volume")
    label = path.name
    _check_header(path)
    with hostile(label, "reading the label volume"), quiet_libraries():
        import SimpleITK as sitk

        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO("NrrdImageIO" if _kind(path) == "NRRD" else "NiftiImageIO")
        reader.ReadImageInformation()
        size, parts = list(reader.GetSize()), reader.GetNumberOfComponents()
        while len(size) > 3 and size[-1] == 1:
            size.pop()
        if len(size) != 3 or parts != 1:
            raise InputError(
                f"{label}: the volume has {len(size)} axes and {parts} values per voxel; "
                "give one label volume with three axes"
            )
        if math.prod(size) > MAX_VOXELS or min(size) < 2:
            raise InputError(
                f"{label}: the volume has {' x '.join(map(str, size))} voxels; 2 along every axis and at "
                f"most {MAX_VOXELS:.0e} in all can be read: crop or resample it"
            )
        reader_spacing = np.asarray(reader.GetSpacing()[:3])
        _check_affine(reader_spacing, np.asarray(reader.GetDirection()), len(reader.GetSize()), label)
        if len(reader.GetSize()) > 3:
            reader.SetExtractSize(size + [0] * (len(reader.GetSize()) - 3))
        if _kind(path) == "NIfTI":
            _check_length(path, math.prod(size))
        return reader.Execute()


def _check_affine(spacing: np.ndarray, direction: np.ndarray, axes: int, label: str) -> None:
    if not np.all(np.isfinite(spacing)) or spacing.min() < SPACING_MM[0] or spacing.max() > 2 * SPACING_MM[1]:
        raise InputError(
            f"{label}: voxels of {' x '.join(f'{x:.4g}' for x in spacing)} mm; coronary arteries need sides "
            f"of {SPACING_MM[0]} to {2 * SPACING_MM[1]} mm: check the unit of the affine (mm)"
        )
    if spacing.max() > MAX_ANISOTROPY * spacing.min():
        raise InputError(
            f"{label}: voxels of {' x '.join(f'{x:.4g}' for x in spacing)} mm are more than "
            f"{MAX_ANISOTROPY:g} times longer than wide: export thinner slices"
        )
    matrix = direction.reshape(axes, axes)[:3, :3]
    if not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-2):
        raise InputError(
            f"{label}: the axes of the affine are not at right angles (sheared); resample the volume to a "
            "rectangular grid"
        )


def _kind(path: Path) -> str:
    with open(path, "rb") as file:
        return "NRRD" if file.read(4) == b"NRRD" else "NIfTI"


def _check_header(path: Path) -> None:
    """Refuse what the decoder must not see: other formats, and headers that point at other files."""
    import gzip
    import zlib

    with open(path, "rb") as file:
        head = file.read(65536)
    if head.startswith(b"NRRD"):
        lines = head.split(b"\n\n")[0].split(b"\r\n\r\n")[0].lower().splitlines()
        if any(line.replace(b" ", b"").startswith(b"datafile:") for line in lines):
            raise InputError(
                f"{path.name}: the NRRD header points at another file (data file); save header and data in "
                "one .nrrd file"
            )
        return
    packed = head.startswith(b"\x1f\x8b")
    if packed:
        try:
            with gzip.open(path) as file:
                head = file.read(544)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{path.name}: it is not a sound gzip file ({type(error).__name__}); copy it again"
            ) from None
    magic = head[344:348] if len(head) >= 348 else b""
    if magic[:3] == b"ni1":
        raise InputError(f"{path.name}: header and data are two files (.hdr/.img); save them as one .nii or .nii.gz")
    if magic[:3] != b"n+1" and head[4:7] != b"n+2":
        raise InputError(f"{path.name}: neither NIfTI nor NRRD; give a .nii, .nii.gz or .nrrd label volume")
    # The decoder goes by the name; a packed volume under a plain name would be read as noise.
    if packed != path.name.lower().endswith(".gz"):
        raise InputError(
            f"{path.name}: {'a gzip file must end in .nii.gz' if packed else 'not a gzip file'}; rename it"
        )


def _check_length(path: Path, voxels: int) -> None:
    """Refuse a NIfTI file that ends early: its reader would take what is missing for background."""
    import gzip

    packed = path.name.lower().endswith(".gz")
    with gzip.open(path) if packed else open(path, "rb") as file:
        head = file.read(544)
        order = "<" if head[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
        second = struct.unpack(order + "i", head[:4])[0] == 540
        bits = struct.unpack_from(order + "h", head, 14 if second else 72)[0]
        offset = (
            struct.unpack_from(order + "q", head, 168)[0] if second else struct.unpack_from(order + "f", head, 108)[0]
        )
        wanted = int(offset) + voxels * bits // 8 if 0 <= offset < 2**31 and 0 < bits <= 64 else 0
        if not 0 < wanted <= MAX_BYTES:
            raise InputError(
                f"{path.name}: {bits} bits per voxel from byte {offset:g} on: the header is damaged, or the "
                f"volume has more than {MAX_BYTES / 2**30:.0f} GiB"
            )
        there = len(head)
        if packed:  # the length of a packed file shows only by unpacking it
            while there < wanted and (part := file.read(min(1 << 22, wanted - there))):
                there += len(part)
        else:
            there = path.stat().st_size
    if there < wanted:
        raise InputError(f"{path.name}: the file is truncated: {there} of {wanted} bytes; copy or export it again")


def _label_values(array: np.ndarray, label: str) -> list[int]:
    if array.dtype.kind == "f":
        if not np.isfinite(array.sum(dtype=np.float64)):
            raise InputError(f"{label}: the volume holds NaN or infinite values, so it is no label volume")
        if np.any(array != np.rint(array)):
            raise InputError(
                f"{label}: the values are not whole numbers (up to {array.max():g}): this is an image, not labels"
            )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise InputError(f"{label}: values from {low} to {high}: labels lie in 0 to 65535; is this the CT itself?")
    count = np.bincount(np.asarray(array, np.uint16).ravel(), minlength=1)
    values = [int(v) for v in np.flatnonzero(count) if v != 0]
    if not values:
        raise InputError(f"{label}: no voxel is labelled, so there is no vessel in it")
    if len(values) > MAX_LABELS:
        raise InputError(f"{label}: {len(values)} different labels; coronary labels are one, two or the SCCT segments")
    if count[0] < 0.5 * count.sum():
        raise InputError(
            f"{label}: {100 * (1 - count[0] / count.sum()):.0f} % of the volume is labelled; coronary "
            "arteries fill less than a hundredth: is the background 0?"
        )
    return values


def _cropped(image, array: np.ndarray, sitk):
    """The image cut to its labels with a margin of two voxels, padded with background where the volume ends."""
    low, high = [], []
    for axis in range(3):  # z, y, x
        used = np.flatnonzero(array.any(axis=tuple(k for k in range(3) if k != axis)))
        low.append(int(used[0]))
        high.append(int(used[-1]) + 1)
    cut = any(a == 0 or b == n for a, b, n in zip(low, high, array.shape, strict=True))
    low, size = low[::-1], [b - a for a, b in zip(low[::-1], high[::-1], strict=True)]
    image = sitk.RegionOfInterest(image, size, low)
    margin = [2, 2, 2]
    notes = ["labels reach the border of the volume; vessels may be cut off there"] if cut else []
    return sitk.ConstantPad(image, margin, margin, 0), notes


def _resampled(image, array, values, spacing_mm, notes, label, sitk) -> LabelVolume:
    corners = [
        image.TransformIndexToPhysicalPoint([int(k * (n - 1)) for k, n in zip(at, image.GetSize(), strict=True)])
        for at in np.ndindex(2, 2, 2)
    ]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    size = [int(n) for n in np.ceil((high - low) / spacing_mm) + 1]
    if math.prod(size) * len(values) > MAX_VOXELS:
        raise InputError(
            f"{label}: resampling to {spacing_mm:g} mm needs {math.prod(size):.2g} voxels for each of "
            f"{len(values)} labels; give a larger spacing"
        )
    share = {}
    for value in values:
        one = sitk.GetImageFromArray((array == value).astype(np.float32))
        one.CopyInformation(image)
        out = sitk.Resample(
            one,
            size,
            sitk.Transform(),
            sitk.sitkLinear,
            low.tolist(),
            [spacing_mm] * 3,
            np.eye(3).ravel().tolist(),
            0.0,
            sitk.sitkFloat32,
        )
        share[value] = sitk.GetArrayFromImage(out)
    stack = np.stack([share[v] for v in values])
    best = np.asarray(values, np.uint16)[stack.argmax(0)]
    labels = np.where(stack.sum(0) >= 0.5, best, 0).astype(np.uint16)
    return LabelVolume(Volume(labels, tuple(low.tolist()), float(spacing_mm)), share, notes)


def iterate_label_cases(folder: str | Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every label volume below a folder, in the order of their paths; files are not opened.

    Where a folder holds images beside labels (``12.img.nii.gz``, ``12.label.nii.gz``), only names with ``label``,
    ``seg`` or ``mask`` count. Links to folders are not followed. Names are unique: the way below the folder without
    ending, ``/`` turned to ``_``.

    Raises:
        InputError: the folder does not exist, holds no label volume, or more than 100 000 files.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{str(folder)[-200:]!r} is not a folder; give the folder of the label volumes")
    found: list[Path] = []
    seen = 0
    for where, folders, files in os.walk(root):
        folders.sort()
        seen += len(files)
        if seen > MAX_FILES:
            raise InputError(f"{root.name}: more than {MAX_FILES} files below it; give the folder of the label volumes")
        volumes = sorted(name for name in files if name.lower().endswith(_ENDINGS) and not name.startswith("."))
        chosen = [name for name in volumes if _LABEL_NAME.search(name)] or volumes
        found += [Path(where) / name for name in chosen]
    if not found:
        raise InputError(f"{root.name}: no .nii, .nii.gz or .nrrd file in the folder or below it")
    names: dict[str, int] = {}
    for path in sorted(found):
        way = "_".join(path.relative_to(root).parts)
        ending = next(end for end in sorted(_ENDINGS, key=len, reverse=True) if way.lower().endswith(end))
        name = re.sub(r"[^A-Za-z0-9._-]", "_", way[: -len(ending)]) or "case"
        names[name] = names.get(name, 0) + 1
        yield (name if names[name] == 1 else f"{name}_{names[name]}"), path
