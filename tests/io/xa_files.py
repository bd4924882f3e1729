# SPDX-License-Identifier: Apache-2.0
"""Small made-up angiograms and DICOM files for the tests of the readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

XA = "1.2.840.10008.5.1.4.1.1.12.1"
ENHANCED_XA = "1.2.840.10008.5.1.4.1.1.12.1.1"


def angiogram(rows: int = 128, cols: int = 128, *, filling: float = 1.0, seed: int = 0,
              shift: float = 0.0) -> np.ndarray:
    """``(rows, cols)`` float 0..1: a shaded background with three dark vessels, filled up to ``filling`` of their
    way."""
    rng = np.random.default_rng(seed)
    r, c = np.arange(rows)[:, None] / rows, np.arange(cols)[None] / cols
    image = 0.62 + 0.15 * np.sin(2.0 * r + 1.0) * np.cos(1.5 * c) + rng.normal(0, 0.008, (rows, cols))
    for k, width in enumerate((0.018, 0.013, 0.010)):
        for t in np.linspace(0.12, 0.12 + 0.75 * filling, 200) if filling > 0 else ():
            centre = 0.2 + 0.25 * k + 0.12 * np.sin(5 * t + k) + shift
            box = tuple(slice(max(0, int((x - 4 * width) * n)), max(0, int((x + 4 * width) * n) + 2))
                        for x, n in ((centre, rows), (t, cols)))
            near = np.exp(-((r[box[0]] - centre) ** 2 + (c[:, box[1]] - t) ** 2) / (2 * width**2))
            image[box] *= 1 - 0.06 * near
    return np.clip(image, 0, 1)


def data_set(frames: np.ndarray, **tags) -> Dataset:
    """An XA data set of ``(frames, rows, cols)`` unsigned whole numbers; keyword ``None`` removes a tag."""
    frames = np.asarray(frames)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.SOPClassUID, ds.SOPInstanceUID = XA, generate_uid(entropy_srcs=["licag3d"])
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = XA, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.Modality = "XA"
    ds.PatientPosition = "HFS"
    ds.PositionerPrimaryAngle, ds.PositionerSecondaryAngle = "30.0", "-5.0"
    ds.DistanceSourceToDetector, ds.DistanceSourceToPatient = "1000", "750"
    ds.ImagerPixelSpacing = ["0.3", "0.2"]
    ds.PixelIntensityRelationship = "DISP"
    ds.NumberOfFrames = len(frames)
    ds.Rows, ds.Columns = frames.shape[1:3]
    ds.SamplesPerPixel = 1 if frames.ndim == 3 else frames.shape[3]
    ds.PhotometricInterpretation = "MONOCHROME2" if frames.ndim == 3 else "RGB"
    if frames.ndim == 4:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = frames.dtype.itemsize * 8
    ds.BitsStored = ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(frames.dtype.kind == "i")
    ds.PixelData = frames.astype(frames.dtype.newbyteorder("<")).tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    if "BitsStored" in tags and "HighBit" not in tags:
        ds.HighBit = ds.BitsStored - 1
    return ds


def write_xa(path: Path, frames: np.ndarray, **tags) -> Path:
    """An uncompressed XA file (explicit VR little endian)."""
    data_set(frames, **tags).save_as(path, enforce_file_format=True)
    return path


def transcode(source: Path, target: Path, syntax: str) -> Path:
    """Compress with GDCM: the name of its transfer syntax, for example ``JPEGLosslessProcess14_1``."""
    import gdcm

    for name in ("WarningOff", "ErrorOff", "DebugOff"):
        getattr(gdcm.Trace, name)()
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change(), f"GDCM cannot encode {syntax}"
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target


def cine(frames: int = 3, rows: int = 64, cols: int = 80, *, top: int = 255, dtype=np.uint8) -> np.ndarray:
    """``(frames, rows, cols)`` whole numbers 0..top, every frame different."""
    pictures = [angiogram(rows, cols, seed=k, filling=0.5 + 0.5 * k / max(frames - 1, 1)) for k in range(frames)]
    return (np.stack(pictures) * top).round().astype(dtype)
