# SPDX-License-Identifier: Apache-2.0
"""X-ray angiograms to DICOM: one picture or a cine, uncompressed, marked as synthetic, without any patient."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.io.atomic import write_bytes

XA_STORAGE = "1.2.840.10008.5.1.4.1.1.12.1"
#: Made from UUIDs (PS3.5 B.2): valid without a registered root.
_UID_ROOT = "2.25."
_RELATIONSHIPS = ("DISP", "LIN", "LOG")
_MAX_BYTES = 2**31


def uid_of(*parts: object) -> str:
    """The same UID for the same parts, another one for others: ``2.25.`` and a UUID (version 8) of their digest.

    Example:
        >>> uid_of("case", 1) == uid_of("case", 1), uid_of("case", 1) == uid_of("case", 2)
        (True, False)
    """
    digest = bytearray(hashlib.sha256("\x1f".join(repr(part) for part in parts).encode()).digest()[:16])
    digest[6], digest[8] = digest[6] & 0x0F | 0x80, digest[8] & 0x3F | 0x80
    return _UID_ROOT + str(int.from_bytes(digest, "big"))


@dataclass(frozen=True)
class Origin:
    """What a file says of where its pixels come from; the default is the phantom."""

    patient_name: str = "SYNTHETIC^PHANTOM"
    patient_comments: str = "Synthetic data: no patient, no acquisition. Not for diagnosis."
    deidentification: str = "never a patient: computed from a random seed"
    study: str = "Synthetic coronary angiography"
    series: str = "Synthetic coronary angiogram"
    model_name: str = "coronary phantom"
    derivation: str = "Synthetic: rendered from a computed coronary tree, no X-ray was taken."
    contrast: str = "simulated iodine"
    burnt_in: bool = False


PHANTOM = Origin()
#: Contrast drawn into a frame of a patient by ``python -m licag3d.synthesize``.
SYNTHESISED = Origin(
    patient_name="SYNTHETIC^CONTRAST",
    patient_comments="Synthetic contrast: the vessels were predicted, not seen. Not for diagnosis.",
    deidentification="nothing of the source but its pixels and geometry was taken over",
    study="Synthetic contrast angiography",
    series="Synthetic contrast, not for diagnosis",
    model_name="virtual contrast",
    derivation="Synthetic contrast drawn by a network into a frame without contrast; no contrast agent was given.",
    contrast="none (synthetic)",
)


def write_xa(
    path: str | Path,
    frames: np.ndarray | Sequence[np.ndarray],
    camera: Camera,
    *,
    bits: int = 8,
    frame_time_ms: float | None = None,
    identity: Sequence[object] = (),
    series: int = 1,
    relationship: str = "DISP",
    description: str = "",
    kvp: float | None = None,
    origin: Origin = PHANTOM,
) -> None:
    """Write an X-Ray Angiographic Image (PS3.3 A.14), explicit VR little endian, pixel data as they are.

    The file says wherever it can that it is no acquisition: image type ``DERIVED``, the attribute Synthetic Data, a
    patient called ``SYNTHETIC^PHANTOM`` (or as ``origin`` says), no date and no time. The same arguments give the same
    bytes.

    Args:
        frames: ``(n, rows, cols)`` or n pictures ``(rows, cols)``, uint8 for 8 bits, uint16 above; vessels dark.
        camera: of all frames. XA has no tag for an offset or a cropped principal point, so both must be plain.
        bits: bits stored, 8 to 16.
        frame_time_ms: time from frame to frame; needed for more than one frame.
        identity: what makes the study unique (for example seed and artery); ``series`` numbers the runs in it.
        relationship: of pixel value and intensity: ``DISP`` (display curve), ``LIN`` or ``LOG``.
        description: series description, at most 64 characters. kvp: tube voltage, where known.
        origin: what is said of where the pixels come from.

    Raises:
        InputError: frames of other sizes or kinds, values above the bits, more than 2 GiB, no frame time, a camera
            with an offset or a moved principal point, or a file that cannot be written.
    """
    pixels = _checked(frames, camera, bits)
    count = len(pixels)
    if count > 1 and not (frame_time_ms is not None and 1 <= frame_time_ms <= 10_000):
        raise InputError(f"frame time of a cine is {frame_time_ms} ms; give 1 to 10000 ms")
    if relationship not in _RELATIONSHIPS:
        raise InputError(f"intensity relationship is '{relationship}'; choose {', '.join(_RELATIONSHIPS)}")
    if any(camera.offset_lps_mm) or (camera.principal_row, camera.principal_col) != (
        (camera.rows - 1) / 2,
        (camera.cols - 1) / 2,
    ):
        raise InputError(
            "a DICOM XA file cannot hold an offset or a moved principal point; give the camera as a user has it"
        )
    data = _data_set(
        pixels, camera, bits, frame_time_ms, tuple(identity), series, relationship, description, kvp, origin
    )
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    try:
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise InputError(f"{Path(path).name} cannot be written ({error.strerror}); give another --out") from None


def _checked(frames: np.ndarray | Sequence[np.ndarray], camera: Camera, bits: int) -> np.ndarray:
    if int(bits) != bits or not 8 <= bits <= 16:
        raise InputError(f"number of bits is {bits}; give 8 to 16")
    try:
        pixels = np.asarray(frames)
    except ValueError:
        raise InputError("the frames of a cine have different sizes; give frames of one size") from None
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or len(pixels) == 0 or pixels.shape[1:] != (camera.rows, camera.cols):
        raise InputError(
            f"frames have shape {pixels.shape}; give (n, {camera.rows}, {camera.cols}), the size of the camera"
        )
    wanted = np.uint8 if bits == 8 else np.uint16
    if pixels.dtype != wanted:
        raise InputError(f"frames are {pixels.dtype}; give {np.dtype(wanted)} for {bits} bits")
    if pixels.nbytes > _MAX_BYTES:
        raise InputError(f"the cine has {pixels.nbytes / 2**30:.1f} GiB of pixels; give fewer or smaller frames")
    if bits not in (8, 16) and int(pixels.max()) >= 1 << bits:
        raise InputError(f"a pixel is {int(pixels.max())}, which {bits} bits cannot hold; scale the frames")
    return pixels


def _data_set(
    pixels: np.ndarray,
    camera: Camera,
    bits: int,
    frame_time_ms: float | None,
    identity: tuple,
    series: int,
    relationship: str,
    description: str,
    kvp: float | None,
    origin: Origin,
) -> Any:
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    import licag3d

    rows, cols = camera.rows, camera.cols
    study, name = uid_of("licag3d study", *identity), uid_of("licag3d image", *identity, series)
    data = Dataset()
    data.preamble = b"\0" * 128
    data.file_meta = FileMetaDataset()
    data.file_meta.FileMetaInformationVersion = b"\0\1"
    data.file_meta.MediaStorageSOPClassUID = XA_STORAGE
    data.file_meta.MediaStorageSOPInstanceUID = name
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.ImplementationClassUID = uid_of("licag3d implementation")
    data.file_meta.ImplementationVersionName = f"LICAG3D {licag3d.__version__}"[:16]
    # SOP common, patient, study, series, equipment. Type 2 attributes are there and empty.
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID, data.SOPInstanceUID = XA_STORAGE, name
    if tag_for_keyword("SyntheticData") is not None:  # (0008,001C), in the standard since 2023
        data.SyntheticData = "YES"
    data.PatientName, data.PatientID = origin.patient_name, "SYNTHETIC"
    data.PatientBirthDate = data.PatientSex = ""
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = origin.deidentification
    data.PatientComments = origin.patient_comments
    data.StudyInstanceUID, data.SeriesInstanceUID = study, uid_of("licag3d series", *identity, series)
    data.StudyDate = data.StudyTime = data.ReferringPhysicianName = data.StudyID = data.AccessionNumber = ""
    data.StudyDescription = origin.study
    data.Modality, data.SeriesNumber, data.InstanceNumber = "XA", series, 1
    data.SeriesDescription = (description or origin.series)[:64]
    data.PatientPosition, data.Laterality = "HFS", ""
    data.Manufacturer, data.ManufacturerModelName = "licag3d", origin.model_name
    data.SoftwareVersions = licag3d.__version__
    # Image.
    data.ImageType = ["DERIVED", "PRIMARY", "SINGLE PLANE"]
    data.DerivationDescription = origin.derivation
    data.PatientOrientation = _orientation(camera)
    data.BurnedInAnnotation, data.LossyImageCompression = "YES" if origin.burnt_in else "NO", "00"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = rows, cols
    data.BitsAllocated = 8 if bits == 8 else 16
    data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits - 1, 0
    data.PixelIntensityRelationship = relationship
    data.WindowCenter, data.WindowWidth = _decimal(2.0 ** (bits - 1)), _decimal(2.0**bits)
    if len(pixels) > 1:
        assert frame_time_ms is not None
        data.NumberOfFrames = len(pixels)
        data.FrameIncrementPointer = 0x00181063  # FrameTime
        data.FrameTime = _decimal(frame_time_ms)
        data.CineRate = data.RecommendedDisplayFrameRate = max(1, round(1000 / frame_time_ms))
        data.ActualFrameDuration = max(1, round(frame_time_ms))
        data.StartTrim, data.StopTrim = 1, len(pixels)
    # Acquisition and positioner.
    data.KVP = "" if kvp is None else _decimal(kvp)
    data.ExposureTime = data.XRayTubeCurrent = data.Exposure = ""
    data.RadiationSetting = "GR"
    data.ContrastBolusAgent = origin.contrast
    data.ImagerPixelSpacing = [_decimal(camera.spacing_row_mm), _decimal(camera.spacing_col_mm)]
    data.DistanceSourceToDetector, data.DistanceSourceToPatient = _decimal(camera.sid_mm), _decimal(camera.sod_mm)
    data.EstimatedRadiographicMagnificationFactor = _decimal(camera.magnification)
    data.PositionerMotion = "STATIC"
    data.PositionerPrimaryAngle = _decimal(camera.primary_deg)
    data.PositionerSecondaryAngle = _decimal(camera.secondary_deg)
    content = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)).tobytes()
    data.PixelData = content + b"\0" * (len(content) % 2)
    data["PixelData"].VR = "OB" if bits == 8 else "OW"
    return data


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters, as precise as they allow."""
    if not math.isfinite(value):
        raise InputError(f"{value} cannot be written to DICOM; give a finite number")
    for digits in range(16, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    raise InputError(f"{value} cannot be written in 16 characters")


def _orientation(camera: Camera) -> list[str]:
    """Where rows and columns of the picture lead, main direction only: L, R, P, A, H or F."""
    result = []
    for axis in (camera.frame.column, camera.frame.row):
        main = int(np.argmax(np.abs(axis)))
        result.append(("LPH" if axis[main] > 0 else "RAF")[main])
    return result
