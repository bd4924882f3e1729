# SPDX-License-Identifier: Apache-2.0
"""Bad input: one clear line each, before anything is decoded; and what is allowed with a warning."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from xa_files import angiogram, cine, data_set, write_xa

from licag3d.errors import InputError
from licag3d.geometry import view_angle_deg
from licag3d.io.views import open_source, read_views

FLAGS = {"sid_mm": 1000, "sod_mm": 750, "pixel_spacing_mm": 0.3}


@pytest.fixture
def png(tmp_path):
    def make(name: str = "a.png", seed: int = 0) -> str:
        Image.fromarray((angiogram(96, 120, seed=seed) * 255).astype(np.uint8)).save(tmp_path / name)
        return str(tmp_path / name)

    return make


def refused(words: str, paths, **options) -> str:
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    with pytest.raises(InputError, match=words) as caught:
        read_views([str(path) for path in paths], **options)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400 and "Traceback" not in text
    return text


def test_missing_file(tmp_path):
    refused("view '.*none.png' does not exist", tmp_path / "none.png")
    refused("is not a file name", "")
    refused("is not a file name", "a\0b")
    refused("cannot be opened|does not exist", "x" * 5000)


def test_empty_file(tmp_path):
    (tmp_path / "a.png").touch()
    refused("'a.png' is empty", tmp_path / "a.png")


def test_text_file(tmp_path):
    (tmp_path / "a.png").write_text("hello, I am not an image\n" * 10)
    refused("'a.png' is a text file, not a PNG, TIFF, JPEG or DICOM", tmp_path / "a.png")


@pytest.mark.parametrize(("head", "words"), [
    (b"\x1f\x8b\x08" + bytes(600), "gzip"), (b"PK\3\4" + bytes(600), "zip"), (b"%PDF-1.7" + bytes(600), "PDF"),
    (bytes(range(256)) * 4, "of an unknown kind")])
def test_other_kinds(tmp_path, head, words):
    (tmp_path / "a.dcm").write_bytes(head)
    refused(words, tmp_path / "a.dcm")


def test_folder_and_device(tmp_path):
    refused("is a folder", tmp_path)
    if os.path.exists("/dev/zero"):
        refused("device", "/dev/zero")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused("pipe", tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable_file(tmp_path, png):
    path = png()
    os.chmod(path, 0)
    refused("cannot be read .*permissions", path)


def test_unreadable_file_by_the_system_call(png, monkeypatch):
    path, real = png(), open

    def deny(name, *rest, **options):
        if str(name) == path:
            raise PermissionError(13, "Permission denied", path)
        return real(name, *rest, **options)

    monkeypatch.setattr("builtins.open", deny)
    refused("'a.png' cannot be read .Permission denied.: check its permissions", path)


@pytest.mark.parametrize(("modality", "sop", "words"), [
    ("CT", "1.2.840.10008.5.1.4.1.1.2", "modality CT .CT Image Storage. is not an X-ray angiogram"),
    ("RF", "1.2.840.10008.5.1.4.1.1.12.2", "modality RF .X-Ray Radiofluoroscopic"),
    ("MR", "1.2.840.10008.5.1.4.1.1.4", "modality MR"), ("US", "1.2.840.10008.5.1.4.1.1.6.1", "modality US"),
    ("XA", "1.2.840.10008.5.1.4.1.1.13.1.1", "X-Ray 3D Angiographic"), ("SR", "1.2.840.10008.5.1.4.1.1.88.11", "SR"),
    ("OT", "1.2.840.10008.5.1.4.1.1.7", "modality OT")])
def test_other_modalities(tmp_path, modality, sop, words):
    refused(words, write_xa(tmp_path / "a.dcm", cine(1), Modality=modality, SOPClassUID=sop))


def test_dicom_without_pixel_data(tmp_path):
    ds = data_set(cine(1))
    del ds.PixelData
    ds.save_as(path := tmp_path / "a.dcm", enforce_file_format=True)
    refused("a.dcm: the DICOM file has no pixel data", path)
    ds.PixelData = b""
    ds.save_as(path, enforce_file_format=True)
    refused("a.dcm: the DICOM file has no pixel data", path)
    ds = data_set(cine(1))
    del ds.Rows
    ds.save_as(path, enforce_file_format=True)
    refused("no image", path)


@pytest.mark.parametrize(("syntax", "words"), [
    ("1.2.840.10008.1.2.4.202", "pylibjpeg with pylibjpeg-openjpeg"), ("1.2.840.10008.1.2.4.102", "MPEG.*export the "
                                                                                                  "cine"),
    ("1.2.3.4.5", "1.2.3.4.5.*unknown.*cannot be decoded")])
def test_undecodable_syntax_names_the_package(tmp_path, syntax, words):
    ds = data_set(cine(1))
    ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(path := tmp_path / "a.dcm", ds, implicit_vr=False, little_endian=True, enforce_file_format=True)
    refused(words, path)


def test_missing_decoder_names_the_package(tmp_path, monkeypatch):
    ds = data_set(cine(1))
    ds.compress("1.2.840.10008.1.2.4.80")
    ds.save_as(path := tmp_path / "a.dcm")
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", property(lambda self: False))
    refused("JPEG-LS Lossless.*install pyjpegls or python-gdcm", path)


def test_twelve_bit_jpeg_extended_names_the_package(tmp_path):
    ds = data_set(cine(1, top=4095, dtype=np.uint16), BitsStored=12)
    header = bytes.fromhex("ffd8ffc1000b0c00400050010111 00".replace(" ", "")) + bytes(60) + b"\xff\xd9"
    ds.PixelData = pydicom.encaps.encapsulate([header])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.51"
    ds.save_as(path := tmp_path / "a.dcm")
    refused("JPEG Extended.*install pylibjpeg with pylibjpeg-libjpeg", path)


@pytest.mark.parametrize("keep", [200, 500, 1500, 0.5, 0.95])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_dicom(tmp_path, keep, compressed):
    ds = data_set(cine(1))
    if compressed:
        ds.compress("1.2.840.10008.1.2.4.80")
    ds.save_as(path := tmp_path / "a.dcm", enforce_file_format=True)
    data = path.read_bytes()
    path.write_bytes(data[:int(keep * len(data)) if keep < 1 else keep])
    refused("a.dcm", path)


@pytest.mark.parametrize(("tags", "words"), [
    ({"Rows": 20000, "Columns": 20000}, "20000 x 20000"), ({"NumberOfFrames": 100000}, "claims 100000 frames"),
    ({"Rows": 4000, "Columns": 4000, "NumberOfFrames": 2000}, "2000 frames"), ({"NumberOfFrames": -3}, "-3 frames"),
    ({"Rows": 1}, "at least 32"), ({"BitsAllocated": 64}, "64 bits"), ({"SamplesPerPixel": 7}, "7 samples"),
    ({"Rows": 65}, "a.dcm: decoding frame 0 failed"), ({"NumberOfFrames": 2}, "a.dcm: decoding frame")])
def test_forged_sizes_are_bounded_before_decoding(tmp_path, tags, words):
    refused(words, write_xa(tmp_path / "a.dcm", cine(1), **tags))


def test_deflated_bomb(tmp_path, monkeypatch):
    ds = data_set(cine(1))
    ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    ds.add_new(0x00091001, "OB", bytes(3 * 2**20))
    ds.save_as(path := tmp_path / "a.dcm", enforce_file_format=True)
    monkeypatch.setattr("licag3d.io.dicom.MAX_INFLATED_BYTES", 2**20)
    refused("grows beyond 1 MiB", path)


@pytest.mark.parametrize(("frame", "words"), [
    ("3", r"frame 3 does not exist: the file has frames 0 to 2 \(counted from 0\)"), ("-1", "frame '-1' is not a whole "
                                                                                            "number"),
    ("x", "not a whole number"), ("", "not a whole number"), ("1.5", "not a whole number"),
    ("99999999999", "not a whole")])
def test_frame_out_of_range(tmp_path, frame, words):
    refused(words, f"{write_xa(tmp_path / 'a.dcm', cine(3))}#{frame}")


def test_frame_of_a_still(png):
    refused("only frame 0", png() + "#1")


def test_name_with_a_hash(tmp_path, png):
    path = png("odd#name.png")
    assert open_source(path).frame is None and open_source(path + "#0").frame == 0


def test_view_with_partial_geometry_is_refused(tmp_path, png):
    text = refused("a.png: no SOD", png(), angles=[(30, 0)], sid_mm=1000, pixel_spacing_mm=0.3)
    assert "--sod MM (or --sod default for 765 mm)" in text
    refused("a.png: no angles", png(), **FLAGS)
    dicom = write_xa(tmp_path / "b.dcm", cine(1))
    refused("a.png: no angles, SID", [png(), str(dicom)])  # one view with geometry, one without: nothing is assumed


def test_nothing_known_means_a_standard_pair_and_says_so(png):
    views, notes = read_views([png("a.png"), png("b.png", 1)])
    assert [view.camera.primary_deg for view in views] == [-30, 40]
    assert view_angle_deg(views[0].camera, views[1].camera) == pytest.approx(70)
    assert views[0].camera.spacing_col_mm == pytest.approx(200 / 120)
    assert "were assumed" in notes[0] and all("assumed" in view.notes[0] for view in views)


@pytest.mark.parametrize(("change", "words"), [
    ({"sid_mm": 700}, "SID 700.0 mm is not larger than SOD"), ({"sid_mm": float("nan")}, "--sid nan"),
    ({"sod_mm": float("inf")}, "--sod inf"), ({"pixel_spacing_mm": 0}, "--pixel-spacing 0"),
    ({"pixel_spacing_mm": 50}, "50"),
    ({"angles": [(400, 0)]}, "--angles 400,0"), ({"angles": [(0, 95)]}, "--angles 0,95"),
    ({"sid_mm": "x"}, "--sid 'x'"),
    ({"angles": [(float("nan"), 0)]}, "--angles nan"), ({"angles": [(1, 2, 3)]}, "--angles"),
    ({"angles": [5]}, "--angles"),
    ({"sod_mm": "vendor"}, "--sod 'vendor'"), ({"sid_mm": 1e300}, "50..5000")])
def test_absurd_flags(png, change, words):
    refused(words, png(), **{"angles": [(30, 0)], **FLAGS, **change})


def test_same_view_twice(tmp_path, png):
    first = png()
    copy = tmp_path / "copy.png"
    copy.write_bytes(open(first, "rb").read())
    words = "views 1 and 2 are the same picture"
    refused(words, [first, first])
    refused(words, [first, copy], angles=[(30, 0), (-30, 0)], **FLAGS)
    dicom = str(write_xa(tmp_path / "a.dcm", cine(3)))
    refused(words, [dicom, dicom])
    refused(words, [dicom + "#1", dicom + "#1"])
    refused("views 1 and 3 are the same", [first, png("b.png", 1), copy])


def test_same_pixels_in_different_files(tmp_path, png):
    first = png()
    Image.open(first).save(tmp_path / "b.tif")
    refused("views 1 and 2 have identical pixels", [first, tmp_path / "b.tif"], angles=[(30, 0), (-30, 0)], **FLAGS)


def test_two_frames_of_one_cine_are_one_direction(tmp_path):
    dicom = str(write_xa(tmp_path / "a.dcm", cine(3)))
    views, notes = read_views([dicom + "#0", dicom + "#2"])
    assert [view.frame for view in views] == [0, 2]
    assert any("same line within 0.0 degrees" in note for note in notes)


@pytest.mark.parametrize(("second", "warned"),
                         [((34, 0), True), ((30, 4.5), True), ((36, 0), False), ((-147, 0), True)])
def test_same_direction_is_a_warning(png, second, warned):
    _, notes = read_views([png("a.png"), png("b.png", 1)], angles=[(30, 0), second], **FLAGS)
    assert any("look along the same line" in note for note in notes) == warned


def test_one_view_is_a_warning(png):
    views, notes = read_views([png()], angles=[(30, 0)], **FLAGS)
    assert len(views) == 1 and any("Only one view" in note for note in notes)


def test_number_of_views(png):
    refused("0 views given", [])
    refused("9 views given", [png()] * 9)


def test_everything_is_checked_before_anything_is_decoded(tmp_path, png, monkeypatch):
    """The second view is bad: the first one is never decoded."""
    def never(*_):
        raise AssertionError("decoded too early")

    monkeypatch.setattr("licag3d.io.images._decode", never)
    monkeypatch.setattr("licag3d.io.dicom._decode_one", never)
    dicom = str(write_xa(tmp_path / "a.dcm", cine(3)))
    refused("SID", [dicom, write_xa(tmp_path / "b.dcm", cine(3, rows=66), DistanceSourceToDetector="10")])
    refused("frames 0 to 2", [dicom, f"{dicom}#7"])
    refused("does not exist", [png(), str(tmp_path / "none.png")])
    refused("2 pairs for 1 views", [png()], angles=[(1, 1), (2, 2)], **FLAGS)


def test_bright_vessels_are_turned_over(tmp_path):
    image = angiogram(256, 256)
    for name, picture in (("dark.png", image), ("bright.png", 1 - image)):
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(tmp_path / name)
    (dark,), _ = read_views([str(tmp_path / "dark.png")], need_geometry=False)
    (bright,), notes = read_views([str(tmp_path / "bright.png")], need_geometry=False)
    assert np.abs(dark.image - bright.image).max() < 0.01
    assert any("turned over" in note for note in notes)
    (kept,), _ = read_views([str(tmp_path / "bright.png")], need_geometry=False, polarity="dark")
    assert np.abs(kept.image - (1 - dark.image)).max() < 0.01


def test_real_angiograms_keep_their_polarity_and_their_negatives_are_found(shared_data, tmp_path):
    files = sorted((shared_data / "arcade/images").glob("*.png"))
    assert len(files) == 8
    found = 0
    for file in files:
        (view,), _ = read_views([str(file)], need_geometry=False)
        assert not any("turned over" in note for note in view.notes), file.name
        assert view.valid.mean() > 0.6
        Image.fromarray(255 - np.asarray(Image.open(file))).save(tmp_path / file.name)
        (view,), _ = read_views([str(tmp_path / file.name)], need_geometry=False)
        found += any("turned over" in note for note in view.notes)
    assert found == 8


@pytest.mark.parametrize("name", ["rca/view_1", "rca/view_2", "lca/view_1", "lca/view_2"])
def test_a_soft_shutter_on_a_bright_field_is_not_taken_for_bright_vessels(name):
    examples = Path(__file__).resolve().parents[2] / "examples"
    (view,), _ = read_views([str(examples / f"{name}.png")], need_geometry=False)
    assert not any("turned over" in note for note in view.notes)


def test_real_pair(shared_data):
    views, notes = read_views([str(shared_data / f"xa-phantom/view{k}.dcm") for k in (1, 2)])
    assert [view.camera.primary_deg for view in views] == [31.3, -27.3]
    assert [view.camera.sid_mm for view in views] == [860, 865]
    assert views[0].camera.spacing_col_mm == pytest.approx(200 / 512)
    assert sum("FieldOfViewDimensions" in note for note in notes) == 2
    for view in views:
        assert view.image.dtype == np.float32 and 0 <= view.image.min() < view.image.max() <= 1
        assert view.frame != 0 and len(view.scores) in (14, 12)  # frame 0 is noise before the dose settles
        assert not view.valid[0].any() and view.valid[256, 256] and 0.8 < view.valid.mean() < 0.92
        assert view.background is None  # nothing is contrast-free in these cines
    assert not any("PHANTOM" in note for note in notes)


def test_importing_the_readers_is_light():
    import subprocess

    code = ("import sys, licag3d.io.views; bad = [m for m in ('torch', 'scipy', 'skimage', 'pydicom', 'PIL') if m in "
            "sys.modules]; "
            "assert not bad, bad")
    subprocess.run([sys.executable, "-c", code], check=True)


