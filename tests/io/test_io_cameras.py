# SPDX-License-Identifier: Apache-2.0
"""cameras.json: exact there and back; every mistake named with its key and line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from xa_files import angiogram, cine, write_xa

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.io.cameras import (
    STANDARD_ANGLES_DEG,
    cameras_to_dict,
    complete,
    read_cameras_json,
    standard_camera,
    write_cameras_json,
)
from licag3d.io.views import read_views

GOOD = {"file": "a.png", "frame": None, "primary_deg": 30.0, "secondary_deg": -5.0, "sid_mm": 1000.0, "sod_mm": 750.0,
        "pixel_spacing_mm": {"row": 0.3, "col": 0.2}, "rows": 96, "cols": 120, "offset_lps_mm": [0, 0, 0]}


def write(folder, *views, name="cameras.json") -> str:
    path = folder / name
    path.write_text(json.dumps({"views": list(views)}, indent=1))
    return str(path)


@pytest.fixture
def png(tmp_path):
    def make(name: str, seed: int = 0, rows: int = 96, cols: int = 120) -> str:
        Image.fromarray((angiogram(rows, cols, seed=seed) * 255).astype(np.uint8)).save(tmp_path / name)
        return str(tmp_path / name)

    return make


NUMBER = {"allow_nan": False, "allow_infinity": False}


@given(st.builds(Camera, st.floats(-180, 180), st.floats(-90, 90), st.floats(900, 1300), st.floats(500, 890),
                 st.floats(0.05, 2), st.floats(0.05, 2), st.integers(32, 4096), st.integers(32, 4096),
                 st.tuples(*[st.floats(-500, 500, **NUMBER)] * 3), st.none() | st.floats(-4000, 4000),
                 st.none() | st.floats(-4000, 4000)))
def test_there_and_back_is_exact(tmp_path_factory, camera):
    path = tmp_path_factory.mktemp("c") / "cameras.json"
    path.write_text(write_cameras_json([camera], ["folder/a.png"], [3]))
    ((partial, file, frame),) = read_cameras_json(path)
    assert (file, frame) == ("a.png", 3)
    assert complete(partial, camera.rows, camera.cols, "a.png") == camera


def test_schema_of_the_file():
    camera = Camera(30, -5, 1000, 750, 0.3, 0.2, 96, 120)
    (view,) = cameras_to_dict([camera], ["x/a.png"], [None])["views"]
    assert view == GOOD
    assert "principal_point_px" in cameras_to_dict([camera.cropped(4, 4, 80, 80)], ["a"], [None])["views"][0]


def test_views_read_with_it(tmp_path, png):
    second = {**GOOD, "file": "b.png", "primary_deg": -40, "offset_lps_mm": [1, 2, 3],
              "principal_point_px": {"row": 40, "col": 61.5}}
    views, notes = read_views([png("a.png"), png("b.png", 1)], cameras=write(tmp_path, GOOD, second))
    assert views[0].camera == Camera(30, -5, 1000, 750, 0.3, 0.2, 96, 120)
    assert views[1].camera.offset_lps_mm == (1, 2, 3)
    assert (views[1].camera.principal_row, views[1].camera.principal_col) == (40, 61.5)
    assert notes == []
    # Told apart by file name when the order differs; by order, with a note, when the names are others.
    views, notes = read_views([png("a.png"), png("b.png", 1)], cameras=write(tmp_path, second, GOOD))
    assert [view.camera.primary_deg for view in views] == [30, -40] and notes == []
    views, notes = read_views([png("c.png"), png("d.png", 1)], cameras=write(tmp_path, GOOD, second))
    assert [view.camera.primary_deg for view in views] == [30, -40] and sum("matched by order" in n for n in notes) == 2


def test_frame_of_a_cine(tmp_path):
    path = write_xa(tmp_path / "cine.dcm", cine(4, 96, 120))
    item = {**GOOD, "file": "cine.dcm", "frame": 2}
    (view,), notes = read_views([str(path)], cameras=write(tmp_path, item))
    assert view.frame == 2 and any("Frame 2" in note for note in notes)
    (view,), _ = read_views([f"{path}#1"], cameras=write(tmp_path, item))
    assert view.frame == 1
    with pytest.raises(InputError, match="frames 0 to 3"):
        read_views([str(path)], cameras=write(tmp_path, {**item, "frame": 9}))


def test_flags_complete_and_override_the_file(tmp_path, png):
    partial = {key: GOOD[key] for key in ("primary_deg", "secondary_deg")}
    (view,), _ = read_views([png("a.png")], cameras=write(tmp_path, partial), sid_mm=1000, sod_mm="default",
                            pixel_spacing_mm=[0.25])
    assert (view.camera.sod_mm, view.camera.spacing_col_mm) == (765, 0.25)
    assert any("765" in note and "as asked" in note for note in view.notes)
    (view,), notes = read_views([png("a.png")], cameras=write(tmp_path, GOOD), sid_mm=1100)
    assert view.camera.sid_mm == 1100
    assert any("sid_mm 1000 of the file was overridden by the command line: 1100" in note for note in notes)


@pytest.mark.parametrize(("change", "words"), [
    ({"primary_deg": "30"}, r'cameras.json, line 6, view 1: primary_deg is "30": give a number'),
    ({"primary_deg": 400}, r"line 6, view 1: primary_deg is 400"),
    ({"secondary_deg": [1]}, r"line 7, view 1: secondary_deg"),
    ({"sid_mm": True}, r"sid_mm is true: give a number"), ({"sid_mm": -1}, "sid_mm is -1"),
    ({"sid_mm": 10**400}, "sid_mm is 1000"), ({"sid_mm": 700}, r"line 8, view 1: sid_mm 700 is not larger"),
    ({"pixel_spacing_mm": 0}, "pixel_spacing_mm is 0"), ({"pixel_spacing_mm": {"row": 0.3}}, "needs 'row' and 'col'"),
    ({"pixel_spacing_mm": {"row": 0.3, "col": "x"}}, r"line 12, view 1: pixel_spacing_mm\.col"),
    ({"rows": 96.5}, "rows is 96.5: give a whole number"), ({"rows": 100}, "made for rows 100"),
    ({"frame": -1}, "frame is -1"), ({"file": 3}, "file is 3"),
    ({"offset_lps_mm": [0, 0]}, "offset_lps_mm"), ({"offset_lps_mm": [0, 0, 1e9]}, "offset_lps_mm"),
    ({"principal_point_px": [1, 2]}, "principal_point_px"), ({"principal_point_px": {"row": 1}}, "principal_point_px"),
])
def test_wrong_values_name_key_and_line(tmp_path, png, change, words):
    with pytest.raises(InputError, match=words) as caught:
        read_views([png("a.png")], cameras=write(tmp_path, {**GOOD, **change}))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 260


@pytest.mark.parametrize(("text", "words"), [
    ('{"views": [\n {"sid_mm": 1000,}\n]}', r"cameras.json, line 2, column \d+: not valid JSON"),
    ('{"views": [{"sid_mm": 1,\n"sid_mm": 2}]}', "'sid_mm' is given twice"),
    ('{"views": [\n{"sid_mm": NaN}]}', "line 2: NaN is not a number"),
    ('{"views": [\n\n{"sid_mm": -Infinity}]}', "line 3: -Infinity is not a number"),
    ('{"views": {}}', "'views' must be a list"), ('{"views": []}', "'views' must be a list"), ("3", "'views' must be"),
    ('{"views": [3]}', "view 1: a view must be an object"), ('{"views": [{}, null]}', "view 2: a view must be"),
    ("[" * 100000, "nested too deeply|not valid JSON"), ("", "is empty"), ("\x00\x01", "not valid JSON"),
    ('{"views": [{"sid_mm": 1' + "0" * 5000 + "}]}", "not valid JSON|sid_mm"),
])
def test_malformed_files(tmp_path, text, words):
    path = tmp_path / "cameras.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_cameras_json(path)


def test_not_text_missing_and_folder(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="UTF-8"):
        read_cameras_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="cameras file .*does not exist"):
        read_cameras_json(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder"):
        read_cameras_json(tmp_path)


def test_number_of_views_and_cameras_must_match(tmp_path, png):
    with pytest.raises(InputError, match="1 cameras but 2 views"):
        read_views([png("a.png"), png("b.png", 1)], cameras=write(tmp_path, GOOD))
    with pytest.raises(InputError, match="--angles has 1 pairs for 2 views"):
        read_views([png("a.png"), png("b.png", 1)], angles=[(1, 2)])
    with pytest.raises(InputError, match="--sid has 3 values for 2 views"):
        read_views([png("a.png"), png("b.png", 1)], angles=[(1, 2), (30, 0)], sid_mm=[1, 2, 3])


def test_unknown_keys_are_mentioned(tmp_path, png):
    _, notes = read_views([png("a.png")], cameras=write(tmp_path, {**GOOD, "primary": 3}))
    assert any("'primary'" in note and "ignored" in note for note in notes)


def test_standard_cameras_differ_from_each_other():
    from licag3d.geometry import view_angle_deg

    cameras = [standard_camera(k, 512, 512) for k in range(len(STANDARD_ANGLES_DEG))]
    assert len(cameras) == 8
    for i, first in enumerate(cameras):
        for second in cameras[:i]:
            assert 15 < view_angle_deg(first, second) < 165
