# SPDX-License-Identifier: Apache-2.0
"""Hostile files: whatever the bytes, a reader gives views or one InputError, in bounded time."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pydicom
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from xa_files import angiogram, cine, data_set, transcode, write_xa

from licag3d.errors import InputError
from licag3d.io.cameras import read_cameras_json
from licag3d.io.views import open_source, read_views

EXAMPLES = int(os.environ.get("LICAG3D_FUZZ_EXAMPLES", "60"))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
FLAGS = {"angles": [(30, 0)], "sid_mm": 1000, "sod_mm": 750, "pixel_spacing_mm": 0.3}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> dict[str, bytes]:
    """A small good file of every kind."""
    folder = tmp_path_factory.mktemp("seeds")
    image = (angiogram(48, 56) * 255).astype(np.uint8)
    result = {}
    for kind, options in {"png": {}, "jpeg": {}, "tiff": {"compression": "tiff_lzw"}}.items():
        Image.fromarray(image).save(buffer := io.BytesIO(), kind, **options)
        result[kind] = buffer.getvalue()
    Image.fromarray(image.astype(np.uint16) * 257).save(buffer := io.BytesIO(), "png")
    result["png16"] = buffer.getvalue()
    tifffile.imwrite(buffer := io.BytesIO(), angiogram(48, 56).astype(np.float32), compression="zlib")
    result["tiff_float"] = buffer.getvalue()
    frames = cine(2, 48, 56)
    plain = write_xa(folder / "plain.dcm", frames, PositionerPrimaryAngleIncrement=["0", "1"], ShutterShape="CIRCULAR",
                     CenterOfCircularShutter=["24", "28"], RadiusOfCircularShutter="30", PatientOrientation=["L", "F"])
    result["dicom"] = plain.read_bytes()
    for syntax in ("JPEGLosslessProcess14_1", "JPEGBaselineProcess1", "JPEG2000Lossless", "JPEGLSLossless"):
        result[syntax] = transcode(plain, folder / f"{syntax}.dcm", syntax).read_bytes()
    for name, uid in {"rle": pydicom.uid.RLELossless, "deflated": pydicom.uid.DeflatedExplicitVRLittleEndian}.items():
        ds = data_set(frames)
        if name == "rle":
            ds.compress(uid)
        ds.file_meta.TransferSyntaxUID = uid
        ds.save_as(folder / "a.dcm", enforce_file_format=True)
        result[name] = (folder / "a.dcm").read_bytes()
    return result


KINDS = ["png", "png16", "jpeg", "tiff", "tiff_float", "dicom", "rle", "deflated", "JPEGLosslessProcess14_1",
         "JPEGBaselineProcess1", "JPEG2000Lossless", "JPEGLSLossless"]


@st.composite
def damage(draw) -> list[tuple]:
    """Edits of a file: bytes changed, cut out, doubled, or the end cut off; places as fractions of the length."""
    place = st.floats(0, 1, exclude_max=True)
    # Headers are short: half of the edits go to the first part of the file.
    place = st.one_of(place, place.map(lambda x: x**4))
    edit = st.one_of(
        st.tuples(st.just("set"), place, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("cut"), place, st.integers(1, 64)),
        st.tuples(st.just("double"), place, st.integers(1, 64)),
        st.tuples(st.just("end"), place, st.just(0)))
    return draw(st.lists(edit, min_size=1, max_size=4))


def damaged(data: bytes, edits: list[tuple]) -> bytes:
    data = bytearray(data)
    for kind, place, value in edits:
        at = int(place * len(data))
        if kind == "set":
            data[at:at + len(value)] = value
        elif kind == "flip" and data:
            data[at] ^= 1 << value
        elif kind == "cut":
            del data[at:at + value]
        elif kind == "double":
            data[at:at] = data[at:at + value]
        elif kind == "end":
            del data[at:]
    return bytes(data)


def survives(path, **options) -> None:
    try:
        views, notes = read_views([str(path)], **options)
    except InputError as error:
        assert "\n" not in str(error) and 10 < len(str(error)) < 600
        return
    for view in views:
        assert np.isfinite(view.image).all() and view.image.dtype == np.float32
        assert 0 <= view.image.min() and view.image.max() <= 1
        assert view.valid.shape == view.image.shape == (view.camera.rows, view.camera.cols)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_is_good(seeds, tmp_path, kind):
    (tmp_path / "file").write_bytes(seeds[kind])
    views, _ = read_views([str(tmp_path / "file")], **FLAGS)
    assert views[0].image.shape == (48, 56)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(seeds, tmp_path, kind):
    path = tmp_path / "file"

    @FUZZ
    @given(damage(), st.booleans())
    def run(edits, flags):
        path.write_bytes(damaged(seeds[kind], edits))
        survives(path, **(FLAGS if flags else {}))

    run()


def test_a_modality_that_swallowed_the_header_is_not_told_whole(seeds, tmp_path):
    """Found by the test above: two edits make one value of everything up to the pixels."""
    edits = [("set", 0.1015625, b"\x00"), ("cut", 0.5, 16), ("flip", 0.13671875, 0)]
    (tmp_path / "file").write_bytes(damaged(seeds["JPEGLSLossless"], edits))
    survives(tmp_path / "file")


@FUZZ
@given(st.binary(max_size=300),
       st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0",
                                                 bytes(128) + b"DICM", b"\x08\0\5\0"]))
def test_noise_behind_a_good_start(tmp_path_factory, data, head):
    path = tmp_path_factory.mktemp("n") / "file"
    path.write_bytes(head + data)
    survives(path)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
                    max_leaves=6)
VIEW = st.fixed_dictionaries({}, optional={key: JSON | st.floats(-1e4, 1e4) for key in (
    "file", "frame", "primary_deg", "secondary_deg", "sid_mm", "sod_mm", "pixel_spacing_mm", "rows", "cols",
    "offset_lps_mm",
    "principal_point_px", "other")})


@settings(FUZZ, max_examples=4 * EXAMPLES)
@given(st.lists(VIEW | JSON, max_size=3), st.booleans())
def test_cameras_of_any_content(tmp_path_factory, views, plain):
    path = tmp_path_factory.mktemp("c") / "cameras.json"
    path.write_text(json.dumps(views if plain else {"views": views}))
    reads(path)


@settings(FUZZ, max_examples=4 * EXAMPLES)
@given(damage())
def test_damaged_cameras(tmp_path_factory, edits):
    view = {"file": "a.png", "frame": 3, "primary_deg": 30.0, "secondary_deg": -5.0, "sid_mm": 1000.0, "sod_mm": 750.0,
            "pixel_spacing_mm": {"row": 0.3, "col": 0.2}, "rows": 96, "cols": 120, "offset_lps_mm": [0, 0, 0]}
    path = tmp_path_factory.mktemp("c") / "cameras.json"
    path.write_bytes(damaged(json.dumps({"views": [view, view]}, indent=1).encode(), edits))
    reads(path)


def reads(path) -> None:
    try:
        entries = read_cameras_json(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        for partial, file, _ in entries:
            assert partial.sid_mm is None or 50 <= partial.sid_mm <= 5000
            assert file is None or isinstance(file, str)


@settings(FUZZ, max_examples=2 * EXAMPLES)
@given(st.text(max_size=40))
def test_file_names_of_any_kind(name):
    try:
        open_source(name)
    except InputError:
        return
    raise AssertionError(f"{name!r} was opened")
