# SPDX-License-Identifier: Apache-2.0
"""Volumes to NIfTI-1, and the label description that ITK-SNAP reads.

NIfTI-1 header: 348 bytes plus 4 bytes of extension flag, https://nifti.nimh.nih.gov/nifti-1. World axes are RAS; the
project's are LPS, so x and y change sign: ``affine = diag(-1, -1, 1) @ LPS``. As a rotation that is half a turn about
z, the quaternion (0, 0, 0, 1). qform and sform are both written, with code 1 (scanner), so that no reader must guess.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from licag3d.io.atomic import write_bytes, write_text

_TYPES = {"float32": (16, 32), "uint8": (2, 8), "uint16": (512, 16)}


def write_nifti(path: str | Path, values, origin_mm, spacing_mm: float, *, description: str = "") -> None:
    """A 3-D volume as ``.nii.gz`` (or ``.nii``), the same bytes for the same input.

    Args:
        values: ``(D, H, W)`` z, y, x; float32, uint8 or uint16 (bool becomes uint8, other floats float32).
        origin_mm: ``(3,)`` x, y, z, LPS mm, centre of voxel (0, 0, 0).
        spacing_mm: isotropic.
        description: at most 79 ASCII characters.

    Raises:
        ValueError: not 3-D, another integer type, or an axis longer than the 32767 the format can hold.
    """
    values = np.asarray(values)
    if values.ndim != 3:
        raise ValueError(f"a volume has 3 axes, this one has {values.ndim}")
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif values.dtype.kind == "f":
        values = values.astype(np.float32, copy=False)
    if values.dtype.name not in _TYPES:
        raise ValueError(f"cannot write {values.dtype} voxels; convert to float32, uint8 or uint16")
    if max(values.shape) > 32767:
        raise ValueError(f"an axis of {max(values.shape)} voxels exceeds the 32767 of NIfTI-1")
    content = _header(values, origin_mm, float(spacing_mm), description) + np.ascontiguousarray(
        values.astype(values.dtype.newbyteorder("<"), copy=False)).tobytes()
    if str(path).endswith(".gz"):
        content = gzip.compress(content, compresslevel=4, mtime=0)
    write_bytes(path, content)


def _header(values: np.ndarray, origin_mm, spacing: float, description: str) -> bytes:
    depth, height, width = values.shape
    code, bits = _TYPES[values.dtype.name]
    x, y, z = (float(v) for v in origin_mm)
    origin_ras = (-x, -y, z)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, width, height, depth, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, 1.0, spacing, spacing, spacing, 0, 0, 0, 0)  # the first is the qform sign
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)  # vox_offset, scl_slope, scl_inter
    struct.pack_into("<B", header, 123, 2)  # unit mm
    if values.size and code == 16:
        struct.pack_into("<2f", header, 124, float(values.max()), float(min(values.min(), 0)))  # display range
    struct.pack_into("<80s", header, 148, description.encode("ascii", "replace")[:79])
    struct.pack_into("<2h", header, 252, 1, 1)  # qform_code, sform_code
    struct.pack_into("<6f", header, 256, 0.0, 0.0, 1.0, *origin_ras)
    struct.pack_into("<12f", header, 280, -spacing, 0, 0, origin_ras[0], 0, -spacing, 0, origin_ras[1],
                     0, 0, spacing, origin_ras[2])
    struct.pack_into("<4s", header, 344, b"n+1\0")
    return bytes(header)


_COLORS = ((214, 39, 40), (31, 119, 180), (44, 160, 44), (255, 127, 14), (148, 103, 189), (140, 86, 75),
           (227, 119, 194), (188, 189, 34), (23, 190, 207))


def write_itksnap_labels(path: str | Path, names: Sequence[str] = ("Vessel",)) -> None:
    """The label description file of ITK-SNAP for labels 0 (background) and 1, 2, ... with the given names."""
    lines = ["#" * 48, "# ITK-SnAP Label Description File", "# File format: ",
             "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL", "# Where: ", "#    IDX:   Zero-based index ",
             "#    -R-:   Red color component (0..255)", "#    -G-:   Green color component (0..255)",
             "#    -B-:   Blue color component (0..255)", "#    -A-:   Label transparency (0.00 .. 1.00)",
             "#    VIS:   Label visibility (0 or 1)", "#    MSH:   Label mesh visibility (0 or 1)",
             "#  LABEL:   Label description ", "#" * 48, '    0     0    0    0        0  0  0    "Clear Label"']
    for index, name in enumerate(names, 1):
        red, green, blue = _COLORS[(index - 1) % len(_COLORS)]
        clean = "".join(c if c.isprintable() and c != '"' else "'" for c in str(name))
        lines.append(f'{index:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{clean}"')
    write_text(path, "\n".join(lines) + "\n")
