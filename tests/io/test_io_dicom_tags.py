# SPDX-License-Identifier: Apache-2.0
"""Geometry from the tags of XA and Enhanced XA files."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset
from xa_files import ENHANCED_XA, cine, data_set, write_xa

from licag3d.errors import InputError
from licag3d.io.dicom import open_dicom
from licag3d.io.views import read_views


def read(tmp_path, frames=None, *, text="{}", geometry=None, **tags):
    path = write_xa(tmp_path / "a.dcm", cine(1) if frames is None else frames, **tags)
    (view,), notes = read_views([text.format(path)], **(geometry or {}))
    return view, notes


def test_plain_tags(tmp_path):
    view, notes = read(tmp_path)
    camera = view.camera
    assert (camera.primary_deg, camera.secondary_deg, camera.sid_mm, camera.sod_mm) == (30, -5, 1000, 750)
    assert (camera.spacing_row_mm, camera.spacing_col_mm, camera.rows, camera.cols) == (0.3, 0.2, 64, 80)
    assert [note for note in notes if "one view" not in note and "X-ray field" not in note] == []


@pytest.mark.parametrize(("tag", "flag"), [
    ("PositionerPrimaryAngle", "--angles"), ("PositionerSecondaryAngle", "--angles"),
    ("DistanceSourceToDetector", "--sid"),
    ("DistanceSourceToPatient", "--sod MM .or --sod default for 765 mm"), ("ImagerPixelSpacing", "--pixel-spacing")])
def test_missing_tag_names_the_flag(tmp_path, tag, flag):
    for value in (None, ""):
        with pytest.raises(InputError, match=rf"a\.dcm: no .* known for this view: give {flag}"):
            read(tmp_path, **{tag: value})


def test_flags_override_tags_with_a_note(tmp_path):
    view, notes = read(tmp_path, geometry={"angles": [(10, 5)], "sid_mm": 900, "sod_mm": 700, "pixel_spacing_mm": 0.25})
    assert (view.camera.primary_deg, view.camera.sid_mm, view.camera.sod_mm) == (10, 900, 700)
    for words in ("primary_deg 30 of the file was overridden", "sid_mm 1000 of the file", "sod_mm 750",
                  "spacing_row_mm 0.3"):
        assert any(words in note for note in notes)


def test_spacing_from_the_field_of_view(tmp_path):
    view, notes = read(tmp_path, ImagerPixelSpacing=None, FieldOfViewShape="RECTANGLE",
                       FieldOfViewDimensions=["200", "160"])
    # Length of a row first, then that of a column: 80 columns are 200 mm, 64 rows are 160 mm.
    assert (view.camera.spacing_col_mm, view.camera.spacing_row_mm) == (2.5, 2.5)
    assert any("derived from FieldOfViewDimensions 200 x 160 mm over 80 x 64 pixels" in note for note in notes)
    # written the other way round
    view, _ = read(tmp_path, ImagerPixelSpacing=None, FieldOfViewDimensions=["160", "200"])
    assert (view.camera.spacing_col_mm, view.camera.spacing_row_mm) == (2.5, 2.5)
    view, _ = read(tmp_path, ImagerPixelSpacing=None, FieldOfViewShape="ROUND", FieldOfViewDimensions=["160"])
    assert (view.camera.spacing_col_mm, view.camera.spacing_row_mm) == (2, 2)


def test_sod_from_the_magnification(tmp_path):
    view, notes = read(tmp_path, DistanceSourceToPatient=None, EstimatedRadiographicMagnificationFactor="1.25")
    assert view.camera.sod_mm == 800 and any("EstimatedRadiographicMagnificationFactor" in note for note in notes)


@pytest.mark.parametrize(("frame", "primary", "secondary"), [(0, 30, -5), (2, 35, -6.5)])
def test_angle_increments(tmp_path, frame, primary, secondary):
    vector = {"PositionerPrimaryAngleIncrement": ["0", "2", "5"],
              "PositionerSecondaryAngleIncrement": ["0", "-1", "-1.5"]}
    view, _ = read(tmp_path, cine(3), text=f"{{}}#{frame}", PositionerMotion="DYNAMIC", **vector)
    assert (view.camera.primary_deg, view.camera.secondary_deg) == (primary, secondary)


def test_one_increment_is_a_step_per_frame(tmp_path):
    view, _ = read(tmp_path, cine(3), text="{}#2", PositionerPrimaryAngleIncrement="2.5")
    assert view.camera.primary_deg == 35
    with pytest.raises(InputError, match="PositionerPrimaryAngleIncrement has 2 values for 3 frames"):
        read(tmp_path, cine(3), PositionerPrimaryAngleIncrement=["1", "2"])


def item(**tags) -> Dataset:
    ds = Dataset()
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def enhanced(**per_group) -> Dataset:
    ds = data_set(cine(3))
    for name in ("PositionerPrimaryAngle", "PositionerSecondaryAngle", "DistanceSourceToDetector",
                 "DistanceSourceToPatient",
                 "ImagerPixelSpacing", "PixelIntensityRelationship", "PatientPosition"):
        delattr(ds, name)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = ENHANCED_XA
    ds.SharedFunctionalGroupsSequence = [item(
        XRayGeometrySequence=[item(DistanceSourceToIsocenter=810.0, DistanceSourceToDetector=1200.0)],
        FieldOfViewSequence=[item(FieldOfViewDimensionsInFloat=[160.0, 128.0])],
        FramePixelDataPropertiesSequence=[item(PixelIntensityRelationship="LIN", **per_group)])]
    ds.PerFrameFunctionalGroupsSequence = [item(PositionerPositionSequence=[
        item(PositionerPrimaryAngle=10.0 + k, PositionerSecondaryAngle=-20.0 - k)]) for k in range(3)]
    return ds


def test_enhanced_xa(tmp_path):
    enhanced().save_as(path := tmp_path / "e.dcm", enforce_file_format=True)
    (view,), notes = read_views([f"{path}#2"])
    camera = view.camera
    assert (camera.primary_deg, camera.secondary_deg, camera.sid_mm, camera.sod_mm) == (12, -22, 1200, 810)
    assert (camera.spacing_row_mm, camera.spacing_col_mm) == (2, 2)
    assert view.intensity == "linear" and any("FieldOfViewDimensions" in note for note in notes)
    enhanced(ImagerPixelSpacing=["0.4", "0.5"]).save_as(path, enforce_file_format=True)
    (view,), _ = read_views([f"{path}#0"])
    assert (view.camera.spacing_row_mm, view.camera.spacing_col_mm) == (0.4, 0.5)


def test_enhanced_xa_prone_is_refused(tmp_path):
    ds = enhanced()
    ds.PatientOrientationCodeSequence = [item(CodeMeaning="recumbent", PatientOrientationModifierCodeSequence=[
        item(CodeMeaning="prone")])]
    ds.PatientGantryRelationshipCodeSequence = [item(CodeMeaning="headfirst")]
    ds.save_as(path := tmp_path / "e.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match="PatientPosition is HFP"):
        read_views([f"{path}#0"])


@pytest.mark.parametrize("position", ["FFS", "HFP", "HFDR"])
def test_other_patient_positions_are_refused_unless_angles_are_given(tmp_path, position):
    with pytest.raises(InputError, match=f"PatientPosition is {position}.*--angles"):
        read(tmp_path, PatientPosition=position)
    view, notes = read(tmp_path, PatientPosition=position, geometry={"angles": [(20, 0)]})
    assert view.camera.primary_deg == 20 and any(f"PatientPosition is {position}" in note for note in notes)


@pytest.mark.parametrize(("orientation", "axes"), [
    (["L", "F"], ()), (["R", "F"], (1,)), (["L", "H"], (0,)), (["R", "H"], (0, 1)), (["LP", "FA"], ())])
def test_mirrored_images_are_turned_over(tmp_path, orientation, axes):
    frames = cine(1)
    view, notes = read(tmp_path, frames, PatientOrientation=orientation, ShutterShape="RECTANGULAR",
                       ShutterLeftVerticalEdge="11", ShutterRightVerticalEdge="80", ShutterUpperHorizontalEdge="1",
                       ShutterLowerHorizontalEdge="64")
    expected = frames[0]
    for axis in axes:
        expected = np.flip(expected, axis)
    assert np.allclose(view.image * 255, expected, atol=1e-4)
    assert any("mirrored" in note for note in notes) == bool(axes)
    hidden = np.s_[:, -10:] if 1 in axes else np.s_[:, :10]
    assert not view.valid[hidden].any()


def test_image_on_its_side_is_refused(tmp_path):
    with pytest.raises(InputError, match="turned by 90 degrees"):
        read(tmp_path, PatientOrientation=["F", "L"])


@pytest.mark.parametrize(("tags", "words"), [
    ({"DistanceSourceToDetector": "700"}, "SID 700.0 mm is not larger than SOD 750.0"),
    ({"DistanceSourceToDetector": "nan"}, "sid_mm is nan"), ({"DistanceSourceToPatient": "inf"}, "sod_mm is inf"),
    ({"ImagerPixelSpacing": ["0", "0"]}, "pixel spacing 0.0"), ({"ImagerPixelSpacing": ["-1", "0.3"]}, "pixel spacing "
                                                                                                       "-1"),
    ({"PositionerPrimaryAngle": "400"}, "angles 400"), ({"PositionerSecondaryAngle": "-91"}, "angles"),
    ({"DistanceSourceToPatient": "1"}, "50..5000"), ({"DistanceSourceToDetector": "1e30"}, "50..5000"),
    ({"ImagerPixelSpacing": ["nan", "0.3"]}, "spacing_row_mm is nan"),
])
def test_absurd_tags_are_refused(tmp_path, tags, words):
    path = write_xa(tmp_path / "a.dcm", cine(1), **tags)
    with pytest.raises(InputError, match=words) as caught:
        read_views([str(path)])
    assert str(caught.value).startswith("a.dcm: ")


def test_tag_that_is_no_number_is_named(tmp_path):
    path = write_xa(tmp_path / "a.dcm", cine(1), DistanceSourceToDetector="1234.5678")
    path.write_bytes(path.read_bytes().replace(b"1234.5678", b"thousand "))
    with pytest.raises(InputError, match="DistanceSourceToDetector"):
        read_views([str(path)])


@pytest.mark.parametrize(("tags", "inside", "outside"), [
    ({"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": "11", "ShutterRightVerticalEdge": "70",
      "ShutterUpperHorizontalEdge": "6", "ShutterLowerHorizontalEdge": "60"}, (5, 10), (4, 10)),
    ({"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": ["32", "40"], "RadiusOfCircularShutter": "30"}, (31, 10),
     (31, 8)),
    ({"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": ["1", "1", "1", "80", "64", "1"]}, (10, 10),
     (60, 70)),
    ({"CollimatorShape": "RECTANGULAR", "CollimatorLeftVerticalEdge": "11", "CollimatorRightVerticalEdge": "70",
      "CollimatorUpperHorizontalEdge": "6", "CollimatorLowerHorizontalEdge": "60"}, (59, 69), (60, 69)),
])
def test_shutters(tmp_path, tags, inside, outside):
    shutter = open_dicom(write_xa(tmp_path / "a.dcm", cine(1), **tags)).shutter
    assert shutter[inside] and not shutter[outside]


def test_absurd_shutter_is_not_believed(tmp_path):
    tags = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": ["-500", "40"], "RadiusOfCircularShutter": "3"}
    assert open_dicom(write_xa(tmp_path / "a.dcm", cine(1), **tags)).shutter is None
