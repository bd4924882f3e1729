# SPDX-License-Identifier: Apache-2.0
"""Angiograms written as DICOM XA: tags, pixels, and a round trip through the reader."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.io.views import open_source, read_views
from licag3d.io.write_dicom_xa import uid_of, write_xa

CAMERA = Camera(-31.25, 22.5, sid_mm=1043.7, sod_mm=751.3, spacing_row_mm=0.391, spacing_col_mm=0.387, rows=70, cols=64)
OTHER = replace(CAMERA, primary_deg=40.123456789, secondary_deg=-5.0)


def run(frames: int = 5, bits: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**bits, (frames, 70, 64)).astype(np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_pixels_come_back_as_they_were(tmp_path, bits):
    frames = run(bits=bits)
    write_xa(tmp_path / "a.dcm", frames, CAMERA, bits=bits, frame_time_ms=66.7, identity=(1,))
    data = pydicom.dcmread(tmp_path / "a.dcm")
    assert np.array_equal(data.pixel_array, frames)
    assert (data.BitsStored, data.HighBit, data.BitsAllocated) == (bits, bits - 1, 8 if bits == 8 else 16)
    assert data.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    read = list(open_source(str(tmp_path / "a.dcm")).decode([3, 0]))
    assert np.array_equal(read[0].values, frames[3]) and np.array_equal(read[1].values, frames[0])


def test_the_reader_finds_the_same_cameras(tmp_path):
    write_xa(tmp_path / "a.dcm", run(), CAMERA, frame_time_ms=66.7, identity=(1,), series=1)
    write_xa(tmp_path / "b.dcm", run(1, seed=1), OTHER, identity=(1,), series=2)
    views, _ = read_views([str(tmp_path / "a.dcm#2"), str(tmp_path / "b.dcm")])
    assert [view.camera for view in views] == [CAMERA, OTHER]
    assert views[0].frame == 2 and views[1].frame is None and views[0].intensity == "display"
    assert not any("mirrored" in note for view in views for note in view.notes)


@pytest.mark.parametrize("primary", [-70, -30, 0, 45, 90, 120])
def test_the_orientation_tag_agrees_with_the_camera(tmp_path, primary):
    camera = replace(CAMERA, primary_deg=primary, secondary_deg=-30)
    write_xa(tmp_path / "a.dcm", run(1), camera)
    assert open_source(str(tmp_path / "a.dcm")).flip == ()


def test_the_file_says_that_it_is_synthetic_and_names_no_patient(tmp_path):
    write_xa(tmp_path / "a.dcm", run(), CAMERA, frame_time_ms=66.7, identity=("case", 7))
    data = pydicom.dcmread(tmp_path / "a.dcm")
    assert data.ImageType[0] == "DERIVED" and "ynthetic" in data.DerivationDescription
    assert data.SyntheticData == "YES" and str(data.PatientName) == "SYNTHETIC^PHANTOM"
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName"):
        assert str(data[name].value) == ""
    assert data.NumberOfFrames == 5 and data.CineRate == 15 and float(data.FrameTime) == 66.7
    assert data.FrameIncrementPointer == 0x00181063 and data.PixelIntensityRelationship == "DISP"
    assert data.SOPClassUID == data.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.12.1"
    uids = [data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID]
    assert all(UID(uid).is_valid and len(uid) <= 64 for uid in uids) and len(set(uids)) == 3
    assert data.SOPInstanceUID == data.file_meta.MediaStorageSOPInstanceUID


def test_the_same_arguments_give_the_same_bytes_and_others_other_identities(tmp_path):
    for name, series in (("a", 1), ("b", 1), ("c", 2)):
        write_xa(tmp_path / name, run(), CAMERA, frame_time_ms=80, identity=(3, "rca"), series=series)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other
    one, two = (pydicom.dcmread(tmp_path / name, stop_before_pixels=True) for name in "ac")
    assert one.StudyInstanceUID == two.StudyInstanceUID and one.SeriesInstanceUID != two.SeriesInstanceUID
    assert uid_of(1, 2) != uid_of(12) and uid_of("1") != uid_of(1)


@pytest.mark.parametrize("change, words", [
    ({"frames": np.zeros((2, 70, 63), np.uint8)}, "size of the camera"),
    ({"frames": np.zeros((0, 70, 64), np.uint8)}, "size of the camera"),
    ({"frames": np.zeros((2, 70, 64), np.float32)}, "float32"),
    ({"frames": [np.zeros((70, 64), np.uint8), np.zeros((70, 60), np.uint8)]}, "different sizes"),
    ({"frames": np.full((2, 70, 64), 5000, np.uint16), "bits": 12}, "12 bits cannot hold"),
    ({"bits": 7}, "bits is 7"),
    ({"frame_time_ms": None}, "frame time"),
    ({"frame_time_ms": float("nan")}, "frame time"),
    ({"relationship": "SQRT"}, "choose DISP"),
    ({"camera": CAMERA.with_offset((1, 0, 0))}, "offset"),
    ({"camera": replace(CAMERA, principal_col=3.0)}, "principal")])
def test_what_cannot_be_written_is_refused(tmp_path, change, words):
    arguments = {"frames": run(), "camera": CAMERA, "frame_time_ms": 66.7} | change
    with pytest.raises(InputError, match=words):
        write_xa(tmp_path / "a.dcm", **arguments)
    assert not (tmp_path / "a.dcm").exists()
