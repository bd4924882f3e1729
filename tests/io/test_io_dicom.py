# SPDX-License-Identifier: Apache-2.0
"""DICOM pixels: every transfer syntax against the numbers that were put in."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from xa_files import cine, data_set, transcode, write_xa

from licag3d.errors import InputError
from licag3d.io.codestream import Codestream, codestream
from licag3d.io.dicom import open_dicom
from licag3d.io.views import open_source, read_views


def pixels(path, frame=None) -> np.ndarray:
    source = open_dicom(path, frame)
    return np.stack([item.values for item in source.decode(range(source.frames))])


DEPTHS = [(8, 255, np.uint8), (12, 4095, np.uint16), (16, 65535, np.uint16)]


@pytest.mark.parametrize(("stored", "top", "dtype"), DEPTHS)
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big", "deflated", "rle"])
def test_uncompressed_and_rle(tmp_path, syntax, stored, top, dtype):
    frames = cine(top=top, dtype=dtype)
    ds = data_set(frames, BitsStored=stored)
    path = tmp_path / "cine.dcm"
    if syntax == "rle":
        ds.compress(RLELossless)
    elif syntax == "big":
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        ds.PixelData = frames.astype(frames.dtype.newbyteorder(">")).tobytes()
    else:
        ds.file_meta.TransferSyntaxUID = {"explicit": ds.file_meta.TransferSyntaxUID,
                                          "implicit": ImplicitVRLittleEndian,
                                          "deflated": DeflatedExplicitVRLittleEndian}[syntax]
    little = syntax != "big"
    pydicom.dcmwrite(path, ds, implicit_vr=syntax == "implicit", little_endian=little, enforce_file_format=True)
    assert np.array_equal(pixels(path), frames)


@pytest.mark.parametrize(("stored", "top", "dtype"), DEPTHS)
@pytest.mark.parametrize("uid", [JPEGLSLossless, JPEG2000Lossless])
def test_jpeg_ls_and_jpeg_2000(tmp_path, uid, stored, top, dtype):
    frames = cine(top=top, dtype=dtype)
    plain = write_xa(tmp_path / "plain.dcm", frames, BitsStored=stored)
    if uid == JPEG2000Lossless:
        path = transcode(plain, tmp_path / "cine.dcm", "JPEG2000Lossless")
    else:
        ds = pydicom.dcmread(plain)
        ds.compress(uid)
        ds.save_as(path := tmp_path / "cine.dcm")
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == uid
    assert np.array_equal(pixels(path), frames)


@pytest.mark.parametrize(("stored", "top", "dtype"), DEPTHS)
@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1"])
def test_jpeg_lossless(tmp_path, syntax, stored, top, dtype):
    frames = cine(top=top, dtype=dtype)
    path = transcode(write_xa(tmp_path / "plain.dcm", frames, BitsStored=stored), tmp_path / "cine.dcm", syntax)
    expected = {"JPEGLosslessProcess14": "1.2.840.10008.1.2.4.57", "JPEGLosslessProcess14_1": "1.2.840.10008.1.2.4.70"}
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == expected[syntax]
    assert np.array_equal(pixels(path), frames)


@pytest.mark.parametrize(("syntax", "limit"), [("JPEGBaselineProcess1", 12), ("JPEG2000", 6)])
def test_lossy_syntaxes_come_close(tmp_path, syntax, limit):
    frames = cine()
    path = transcode(write_xa(tmp_path / "plain.dcm", frames), tmp_path / "cine.dcm", syntax)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    assert np.abs(pixels(path) - frames).max() <= limit


def test_near_lossless_jpeg_ls(tmp_path):
    frames = cine()
    ds = data_set(frames)
    ds.compress(JPEGLSNearLossless, jls_error=2)
    ds.save_as(path := tmp_path / "cine.dcm")
    assert np.abs(pixels(path) - frames).max() <= 2


def test_signed_pixels_and_rescale(tmp_path):
    frames = cine().astype(np.int16) - 100
    path = write_xa(tmp_path / "a.dcm", frames, RescaleSlope="2", RescaleIntercept="50")
    assert np.array_equal(pixels(path), frames * 2.0 + 50)


def test_monochrome1_is_turned_over(tmp_path):
    frames = cine(top=4095, dtype=np.uint16)
    path = write_xa(tmp_path / "a.dcm", 4095 - frames, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(pixels(path), frames)


def test_unused_high_bits_are_cleared(tmp_path):
    frames = cine(top=4095, dtype=np.uint16)
    path = write_xa(tmp_path / "a.dcm", frames | 0x8000, BitsStored=12)
    assert np.array_equal(pixels(path), frames)


@pytest.mark.parametrize(("relationship", "meaning"),
                         [("DISP", "display"), ("LIN", "linear"), ("LOG", "log"), (None, "display")])
def test_intensity_relationship(tmp_path, relationship, meaning):
    path = write_xa(tmp_path / "a.dcm", cine(1), PixelIntensityRelationship=relationship)
    assert open_dicom(path).intensity == meaning


def test_log_with_modality_lut_is_linear(tmp_path):
    frames = cine(1)
    ds = data_set(frames, PixelIntensityRelationship="LOG")
    lut = pydicom.Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [256, 0, 16], "US"
    table = np.round(np.exp(np.arange(256) / 30)).astype(np.uint16)
    lut.add_new("LUTData", "OW", table.tobytes())
    ds.ModalityLUTSequence = [lut]
    ds.save_as(path := tmp_path / "a.dcm", enforce_file_format=True)
    assert open_dicom(path).intensity == "linear"
    assert np.array_equal(pixels(path), table[frames].astype(np.float32))


def test_linear_intensities_keep_their_zero(tmp_path):
    frames = cine(1, top=3000, dtype=np.uint16)
    path = write_xa(tmp_path / "a.dcm", frames, BitsStored=12, PixelIntensityRelationship="LIN")
    (view,), _ = read_views([str(path)], polarity="dark")
    assert view.intensity == "linear" and view.image.dtype == np.float32
    scale = np.percentile(frames, 99.95)
    assert np.allclose(view.image, np.minimum(frames[0] / scale, 1), atol=1e-6)


def test_without_preamble(tmp_path):
    frames = cine(1)
    ds = data_set(frames)
    meta = ds.file_meta
    del ds.file_meta
    pydicom.dcmwrite(tmp_path / "old.dcm", ds, implicit_vr=True, little_endian=True)
    assert meta and (tmp_path / "old.dcm").read_bytes()[128:132] != b"DICM"
    assert np.array_equal(np.stack([f.values for f in open_source(str(tmp_path / "old.dcm")).decode([0])]), frames)


def test_single_frames_are_decoded_alone(tmp_path):
    frames = cine(5)
    source = open_dicom(write_xa(tmp_path / "a.dcm", frames))
    assert np.array_equal(next(source.decode([3])).values, frames[3])
    assert [int(f.values.sum()) for f in source.decode([4, 0])] == [int(frames[4].sum()), int(frames[0].sum())]


def test_grey_rgb_secondary_capture_is_read_and_colour_refused(tmp_path):
    grey = cine(1)
    path = write_xa(tmp_path / "grey.dcm", np.repeat(grey[..., None], 3, -1))
    assert np.array_equal(pixels(path), grey)
    colour = np.repeat(grey[..., None], 3, -1).copy()
    colour[..., 0] = 255 - colour[..., 0]
    with pytest.raises(InputError, match="coloured"):
        pixels(write_xa(tmp_path / "colour.dcm", colour))


def test_real_phantom_cine(shared_data):
    source = open_source(f"{shared_data}/xa-phantom/view1.dcm#8")
    reference = pydicom.dcmread(shared_data / "xa-phantom/view1.dcm").pixel_array
    assert (source.frames, source.rows, source.cols, source.frame) == (14, 512, 512, 8)
    assert np.array_equal(next(source.decode([8])).values, reference[8])


def test_real_rle_image(shared_data):
    path = shared_data / "dicom/XA1_RLE.dcm"
    assert np.array_equal(pixels(path)[0], pydicom.dcmread(path).pixel_array)
    with pytest.raises(InputError, match=r"angles.*--angles.*--sid.*--sod.*--pixel-spacing"):
        read_views([str(path)])
    (view,), _ = read_views([str(path)], angles=[(0, 0)], sid_mm=1000, sod_mm=750, pixel_spacing_mm=0.2)
    assert view.image.max() == 1 and 0.7 < view.valid.mean() < 0.785  # a circle: pi / 4 at most


@pytest.mark.parametrize("syntax",
                         ["JPEGLosslessProcess14_1", "JPEGBaselineProcess1", "JPEG2000Lossless", "JPEGLSLossless"])
def test_codestream_header(tmp_path, syntax):
    from pydicom.encaps import get_frame

    for (stored, top, dtype) in DEPTHS if syntax != "JPEGBaselineProcess1" else DEPTHS[:1]:
        plain = write_xa(tmp_path / "plain.dcm", cine(1, 48, 72, top=top, dtype=dtype), BitsStored=stored)
        ds = pydicom.dcmread(transcode(plain, tmp_path / f"{syntax}.dcm", syntax))
        header = codestream(get_frame(ds.PixelData, 0, number_of_frames=1))
        assert header[:3] == (48, 72, 1) and stored <= header.bits <= dtype().itemsize * 8
    assert codestream(b"") is None and codestream(b"\xff\xd8\xff\xd9") is None
    assert isinstance(header, Codestream)


def test_codestream_of_another_size_is_refused(tmp_path):
    path = transcode(write_xa(tmp_path / "plain.dcm", cine(1, 64, 80)), tmp_path / "cine.dcm",
                     "JPEGLosslessProcess14_1")
    ds = pydicom.dcmread(path)
    ds.Rows = 640
    ds.save_as(path)
    with pytest.raises(InputError, match="64 x 80 pixels but the DICOM header says 640"):
        pixels(path)
    ds.Rows, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 64, 32, 32, 31
    ds.save_as(path)
    with pytest.raises(InputError, match="1 x 8 bits per pixel but the DICOM header says 1 x 32"):
        pixels(path)


@pytest.mark.parametrize("forged", ["ffd4", "ffd9", "ffc5", "ff01"])
def test_lossless_stream_without_its_huffman_table_is_refused(tmp_path, forged):
    """GDCM would follow a null pointer: the process must not end that way."""
    path = transcode(write_xa(tmp_path / "plain.dcm", cine(1)), tmp_path / "cine.dcm", "JPEGLosslessProcess14_1")
    data = path.read_bytes()
    at = data.index(b"\xff\xc4")
    path.write_bytes(data[:at] + bytes.fromhex(forged) + data[at + 2:])
    with pytest.raises(InputError, match="truncated or damaged"):
        pixels(path)
    # A scan that names another table than the one defined.
    at = data.index(b"\xff\xda")
    path.write_bytes(data[:at + 6] + b"\x30" + data[at + 7:])
    with pytest.raises(InputError, match="truncated or damaged"):
        pixels(path)
