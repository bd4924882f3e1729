# SPDX-License-Identifier: Apache-2.0
"""DICOM XA and Enhanced XA frames: header first, one frame decoded at a time, bounded."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from licag3d.errors import InputError
from licag3d.io.codestream import codestream
from licag3d.io.dicom_tags import camera_of_frame, image_flip, item_of_frame, shutter_mask
from licag3d.io.files import (
    MAX_DICOM_BYTES,
    BoundedFile,
    Frame,
    Source,
    check_file,
    check_frame,
    check_size,
    hostile,
    quiet_libraries,
)
from licag3d.io.images import check_values, to_grey

XA = "1.2.840.10008.5.1.4.1.1.12.1"
ENHANCED_XA = "1.2.840.10008.5.1.4.1.1.12.1.1"
_EXTENDED = "1.2.840.10008.1.2.4.51"
DEFLATED = "1.2.840.10008.1.2.1.99"
MAX_INFLATED_BYTES = 2**30

# Which package decodes what, for the message when it is missing. No GPL package is installed by default.
_PACKAGES = {
    "1.2.840.10008.1.2.4.50": "python-gdcm or pillow",
    "1.2.840.10008.1.2.4.51": "pylibjpeg with pylibjpeg-libjpeg (GPL-3, not installed by default)",
    "1.2.840.10008.1.2.4.57": "python-gdcm",
    "1.2.840.10008.1.2.4.70": "python-gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls or python-gdcm",
    "1.2.840.10008.1.2.4.81": "pyjpegls or python-gdcm",
    "1.2.840.10008.1.2.4.90": "python-gdcm or pillow",
    "1.2.840.10008.1.2.4.91": "python-gdcm or pillow",
    "1.2.840.10008.1.2.4.201": "pylibjpeg with pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg with pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg with pylibjpeg-openjpeg",
}


def open_dicom(path: Path, frame: int | None = None) -> Source:
    """Check the header of a DICOM XA file; no pixel is decoded.

    Args:
        path: an existing DICOM file.
        frame: 0-based frame asked for, or None.

    Raises:
        InputError: not an X-ray angiogram, no pixel data, a transfer syntax that cannot be decoded, absurd sizes.
    """
    label = path.name
    check_file(path, limit=MAX_DICOM_BYTES)
    with hostile(label, "reading the DICOM header"):
        ds = _read(path, pixels=False)
        _check_kind(label, ds)
        if not ds.get("Rows") or not ds.get("Columns"):
            raise InputError(f"{label}: the DICOM file has no image (no Rows and Columns): give an XA image")
        rows, cols, frames = int(ds.Rows), int(ds.Columns), int(ds.get("NumberOfFrames") or 1)
        check_size(label, rows, cols, frames)
        check_frame(label, frame, frames)
        syntax = ds.file_meta.TransferSyntaxUID
        _check_decodable(label, syntax, int(ds.get("BitsStored") or 8))
        if not _has_pixels(path, ds):
            raise InputError(f"{label}: the DICOM file has no pixel data (header only): export it with its images")
        samples, bits = int(ds.get("SamplesPerPixel") or 1), int(ds.get("BitsAllocated") or 0)
        if samples not in (1, 3) or bits not in (8, 16, 32):
            raise InputError(f"{label}: {samples} samples per pixel of {bits} bits cannot be read: an XA frame has one "
                             f"sample of 8 or 16 bits")
        relationship, notes = _intensity(ds)
        shutter = shutter_mask(ds, rows, cols)
        first = camera_of_frame(ds, frame or 0, frames, rows, cols)
        flip, flip_note = image_flip(ds, first)
        stored = int(ds.get("BitsStored") or bits)
        summary = (
            ("kind", f"DICOM {'Enhanced XA' if ds.get('SOPClassUID') == ENHANCED_XA else 'XA'}, {stored} of {bits} "
                     f"bit"),
            ("transfer syntax", f"{syntax.name} ({syntax})"),
            ("intensity", f"{relationship} ({ds.get('PixelIntensityRelationship') or 'not stated'})"),
        )

    def decode(numbers: Sequence[int]) -> Iterator[Frame]:
        yield from _decode(path, ds, label, numbers)

    def camera(number: int):
        with hostile(label, "reading the geometry tags"):
            return camera_of_frame(ds, number, frames, rows, cols)

    return Source(path=path, label=label, frame=frame, kind="DICOM", rows=rows, cols=cols, frames=frames, decode=decode,
                  camera=camera, full_scale=255.0 if stored == 8 and samples == 1 and not _rescale(ds) else None,
                  intensity=relationship, shutter=shutter, flip=flip, notes=notes + flip_note, summary=summary)


def _read(path: Path, *, pixels: bool) -> Any:
    """The data set with file meta; the deflated syntax is inflated here, bounded."""
    import pydicom
    from pydicom.filereader import read_dataset, read_file_meta_info

    with BoundedFile(path) as raw:
        head = raw.read(132)
    preamble = head[128:132] == b"DICM"
    syntax = ""
    if preamble:
        syntax = str(read_file_meta_info(path).get("TransferSyntaxUID", ""))
    if syntax == DEFLATED:
        # zlib expands up to a thousandfold: never let a library inflate without a bound.
        with BoundedFile(path) as raw:
            raw.seek(132)
            length = 12 + int.from_bytes(raw.read(12)[8:12], "little")
            raw.seek(132 + length)
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            data = inflater.decompress(raw.read(), MAX_INFLATED_BYTES)
        if inflater.unconsumed_tail:
            raise InputError(f"{path.name}: the deflated data set grows beyond {MAX_INFLATED_BYTES // 2**20} MiB: "
                             f"export it uncompressed")
        ds = read_dataset(io.BytesIO(data), is_implicit_VR=False, is_little_endian=True)
        ds.file_meta = read_file_meta_info(path)
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        return ds
    with BoundedFile(path) as raw:
        ds = pydicom.dcmread(raw, stop_before_pixels=not pixels, force=not preamble)
    if not hasattr(ds, "file_meta") or not ds.file_meta.get("TransferSyntaxUID"):
        implicit, little = ds.original_encoding
        ds.file_meta = getattr(ds, "file_meta", None) or pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian if implicit else
            pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian)
    return ds


def _check_kind(label: str, ds: Any) -> None:
    modality, sop = str(ds.get("Modality") or ""), str(ds.get("SOPClassUID") or "")
    if not modality and not sop and not ds.get("Rows"):
        raise InputError(f"{label}: no DICOM image in this file: give an XA image")
    if sop in (XA, ENHANCED_XA):
        return
    from pydicom.uid import UID

    name = UID(sop).name if sop else "unknown class"
    # A code of 16 characters at most; in a damaged file it may have swallowed all that follows, the patient's name too.
    modality = modality[:16]
    if modality == "XA" and ("Secondary Capture" in name or not sop):
        return
    raise InputError(f"{label}: a DICOM file of modality {modality or 'unknown'} ({name[:80]}) is not an X-ray "
                     f"angiogram (XA): give XA or Enhanced XA images")


def _has_pixels(path: Path, ds: Any) -> bool:
    if "PixelData" in ds:
        return len(ds.PixelData) > 0
    # stop_before_pixels stopped in front of the pixel data, or the file ended: the two look alike in the data set.
    with BoundedFile(path) as raw:
        import pydicom

        found = []

        def stop(tag, vr, length):
            if tag == 0x7FE00010:
                found.append(length)
                return True
            return False

        pydicom.filereader.read_partial(raw, stop_when=stop, force=True)
    return bool(found) and found[0] != 0


def _check_decodable(label: str, syntax: Any, stored: int) -> None:
    help_text = _PACKAGES.get(str(syntax))
    name = syntax.name if syntax.name != str(syntax) else "unknown"
    try:
        available = _decoder(syntax).is_available
    except NotImplementedError:
        raise InputError(f"{label}: pixel data in transfer syntax {syntax} ({name}) cannot be decoded"
                         + (f": install {help_text}" if help_text else
                            ": export the cine uncompressed or as JPEG Lossless")) from None
    if str(syntax) == _EXTENDED and stored > 8 and "pylibjpeg" not in _decoder(syntax).available_plugins:
        available = False  # neither GDCM nor Pillow decodes more than 8 bits of this syntax
    if not available:
        raise InputError(f"{label}: pixel data in transfer syntax {syntax} ({name}) cannot be decoded here: install "
                         f"{help_text or 'a pydicom plugin for it'}, or export the cine uncompressed")


def _intensity(ds: Any) -> tuple[str, tuple[str, ...]]:
    """What the values mean, by PixelIntensityRelationship (DICOM PS3.3 C.8.7.1.1.2)."""
    value = str(item_of_frame(ds, "FramePixelDataPropertiesSequence", 0).get("PixelIntensityRelationship")
                or ds.get("PixelIntensityRelationship") or "").upper()
    if value == "LIN":
        return "linear", ()
    if value == "LOG":
        if ds.get("ModalityLUTSequence"):
            return "linear", ("Logarithmic pixel values were taken back to linear with the Modality LUT of the file.",)
        return "log", ()
    return "display", ()


def _rescale(ds: Any) -> tuple[float, float] | None:
    slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
    if slope is None and intercept is None:
        transformation = item_of_frame(ds, "PixelValueTransformationSequence", 0)
        slope, intercept = transformation.get("RescaleSlope"), transformation.get("RescaleIntercept")
    slope = 1.0 if slope is None else float(slope)
    intercept = 0.0 if intercept is None else float(intercept)
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0 or max(abs(slope), abs(intercept)) > 1e9:
        raise InputError(f"rescale slope {slope} and intercept {intercept} are absurd: correct the DICOM tags")
    return None if (slope, intercept) == (1.0, 0.0) else (slope, intercept)


def _decode(path: Path, header: Any, label: str, numbers: Sequence[int]) -> Iterator[Frame]:
    for number in numbers:
        # One guard per frame: a generator must not hold the guard while its consumer runs.
        with hostile(label, f"decoding frame {number}"), quiet_libraries():
            frame = _decode_one(path, header, label, number)
        yield frame


def _decode_one(path: Path, header: Any, label: str, number: int) -> Frame:
    from pydicom.pixels.utils import as_pixel_options

    syntax = header.file_meta.TransferSyntaxUID
    decoder = _decoder(syntax)
    if "PixelData" in header:  # inflated: the pixels are in memory already
        array, _ = decoder.as_array(header, index=number, raw=False, **as_pixel_options(header))
        return _finish(array, header, label)
    with BoundedFile(path) as raw:
        offset, vr = _pixel_offset(raw)
        if syntax.is_encapsulated:
            raw.seek(offset)
            _check_codestream(label, raw, number, header, syntax)
        raw.seek(offset)
        array, _ = decoder.as_array(raw, index=number, raw=False, decoding_plugin=_plugin(syntax, header),
                                    **_options(header, vr))
    return _finish(array, header, label)


def _options(header: Any, vr: str) -> dict[str, Any]:
    """Decoding options from the header alone, with the defaults that old XA files need."""
    bits = int(header.get("BitsAllocated") or 8)
    options = {
        "transfer_syntax_uid": header.file_meta.TransferSyntaxUID,
        "rows": int(header.Rows), "columns": int(header.Columns),
        "number_of_frames": int(header.get("NumberOfFrames") or 1),
        "samples_per_pixel": int(header.get("SamplesPerPixel") or 1),
        "bits_allocated": bits, "bits_stored": int(header.get("BitsStored") or bits),
        "pixel_representation": int(header.get("PixelRepresentation") or 0),
        "photometric_interpretation": str(header.get("PhotometricInterpretation") or "MONOCHROME2"),
        "pixel_keyword": "PixelData", "pixel_vr": vr,  # big endian 8-bit pixels are swapped in pairs when OW
    }
    if options["samples_per_pixel"] > 1:
        options["planar_configuration"] = int(header.get("PlanarConfiguration") or 0)
    return options


def _pixel_offset(raw: BoundedFile) -> tuple[int, str]:
    """Where the value of the pixel data begins, and its VR."""
    import pydicom

    found = []

    def stop(tag, vr, length):
        if tag == 0x7FE00010:
            found.append((vr, length))
            return True
        return False

    raw.seek(0)
    pydicom.filereader.read_partial(raw, stop_when=stop, force=True)
    if not found:
        raise InputError(f"{Path(raw.name).name}: the DICOM file has no pixel data: export it with its images")
    # The reader stops in front of the element: explicit VR writes tag, VR, 2 reserved, 4 length; implicit tag, 4
    # length.
    return raw.tell() + (12 if found[0][0] else 8), found[0][0] or "OW"


def _check_codestream(label: str, raw: BoundedFile, number: int, header: Any, syntax: Any) -> None:
    """The size inside the compressed frame must be that of the header, before a native decoder sees it."""
    from pydicom.encaps import get_frame

    extended = None
    data = get_frame(raw, number, number_of_frames=int(header.get("NumberOfFrames") or 1), extended_offsets=extended)
    rows, cols = int(header.Rows), int(header.Columns)
    plain = rows * cols * int(header.get("SamplesPerPixel") or 1) * int(header.BitsAllocated) // 8
    if len(data) > 4 * plain + 2**20:
        raise InputError(f"{label}: compressed frame {number} has {len(data)} bytes, more than four times the {plain} "
                         f"bytes of the picture: the file is damaged")
    if str(syntax) == "1.2.840.10008.1.2.5":
        return
    stream = codestream(data)
    if "JPEG-LS" in syntax.name and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        stream = None  # without its end marker CharLS searches for seconds before it gives up
    if stream is None:
        raise InputError(f"{label}: frame {number} is not a {syntax.name} picture: the file is truncated or damaged")
    if (stream.rows, stream.cols) != (rows, cols):
        raise InputError(f"{label}: the compressed frame {number} is {stream.rows} x {stream.cols} pixels but the "
                         f"DICOM header says {rows} x {cols}: the file is damaged")
    allocated, samples = int(header.BitsAllocated), int(header.get("SamplesPerPixel") or 1)
    if stream.samples != samples or not (1 if allocated == 8 else allocated // 2) <= stream.bits <= allocated:
        raise InputError(f"{label}: the compressed frame {number} has {stream.samples} x {stream.bits} bits per pixel "
                         f"but the DICOM header says {samples} x {allocated}: the file is damaged")


def _plugin(syntax: Any, header: Any) -> str:
    """The decoder for a syntax: the sturdiest that can do it, GDCM only for what nothing else decodes.

    GDCM aborts the whole process on some damaged baseline pictures; libjpeg-turbo, OpenJPEG and CharLS report an error.
    """
    available = _decoder(syntax).available_plugins
    wished = {"JPEG Baseline": "pillow", "JPEG 2000": "pillow", "JPEG-LS": "pyjpegls"}
    signed = int(header.get("PixelRepresentation") or 0) or int(header.get("SamplesPerPixel") or 1) > 1
    for name, plugin in wished.items():
        if name in syntax.name and plugin in available and not (plugin == "pillow" and signed):
            return plugin
    return ""


def _decoder(syntax: Any) -> Any:
    from pydicom.pixels import get_decoder

    return get_decoder(syntax)


def _finish(array: np.ndarray, header: Any, label: str) -> Frame:
    """Stored values -> grey values with vessels as displayed: Modality LUT or rescale, then MONOCHROME1 turned over."""
    if array.ndim == 3:
        return to_grey(array, label)
    stored = int(header.get("BitsStored") or header.BitsAllocated)
    high = int(header.get("HighBit") if header.get("HighBit") is not None else stored - 1)
    signed = bool(header.get("PixelRepresentation") or 0)
    if not header.file_meta.TransferSyntaxUID.is_compressed and array.dtype.kind in "ui":
        shift = max(high + 1 - stored, 0)
        if shift:
            array = array >> shift
        if not signed and stored < array.dtype.itemsize * 8:
            array = array & ((1 << stored) - 1)  # old overlays hide in the unused high bits
    values = array.astype(np.float32)
    if str(header.get("PixelIntensityRelationship") or "").upper() == "LOG" and header.get("ModalityLUTSequence"):
        from pydicom.pixels import apply_modality_lut

        values = np.asarray(apply_modality_lut(array, header), np.float32)
    elif rescale := _rescale(header):
        values = values * np.float32(rescale[0]) + np.float32(rescale[1])
    check_values(values, label)
    if str(header.get("PhotometricInterpretation") or "") == "MONOCHROME1":
        # Low values are shown bright. The full range, not the maximum of this frame, keeps frames of a cine comparable.
        low, top = (-(1 << (stored - 1)), (1 << (stored - 1)) - 1) if signed else (0, (1 << stored) - 1)
        slope, intercept = _rescale(header) or (1.0, 0.0)
        values = np.float32((low + top) * slope + 2 * intercept) - values
    return Frame(values)
