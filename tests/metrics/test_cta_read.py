# SPDX-License-Identifier: Apache-2.0
"""CT volumes from every format, and what is wrong with them."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from cta_cases import rotation, save, save_series

from licag3d.errors import InputError
from licag3d.metrics.cta_read import read_cta, read_labels


@pytest.fixture
def hu() -> np.ndarray:
    return np.random.default_rng(0).integers(-900, 900, (6, 8, 10)).astype(np.int16)


ORIGIN, SPACING = (12.5, -30.0, 101.0), 0.75


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
def test_every_file_format_gives_the_same_points_and_values(tmp_path, hu, name):
    turn = rotation(25, (1, 2, -1))
    save(tmp_path / name, hu, ORIGIN, (0.5, 0.75, 1.25), turn)
    volume, notes = read_cta(tmp_path / name)
    np.testing.assert_array_equal(volume.values, hu)
    assert notes == [] and volume.values.dtype == np.float32
    corner = volume.to_lps(np.array((9, 7, 5)) * np.array(volume.spacing_mm))
    np.testing.assert_allclose(corner, np.array(ORIGIN) + turn @ (np.array((9, 7, 5)) * (0.5, 0.75, 1.25)), atol=1e-3)
    np.testing.assert_allclose(volume.to_local(corner), (4.5, 5.25, 6.25), atol=1e-3)
    assert volume.sampled(corner[None], np.nan)[0] == pytest.approx(hu[5, 7, 9], abs=0.5)
    assert np.isnan(volume.sampled(corner[None] + 50, np.nan)[0])
    part = volume.cropped((1, 2, 3), (6, 8, 10))
    np.testing.assert_allclose(part.to_lps(np.zeros(3)), volume.to_lps(np.array((3, 2, 1)) * (0.5, 0.75, 1.25)))


def test_a_dicom_series_in_any_order_of_files(tmp_path, hu):
    save_series(tmp_path / "ct", hu, ORIGIN, SPACING)
    volume, _ = read_cta(tmp_path / "ct")
    np.testing.assert_array_equal(volume.values, hu)
    np.testing.assert_allclose(volume.origin_lps_mm, ORIGIN)
    np.testing.assert_allclose(volume.spacing_mm, [SPACING] * 3)


def test_of_several_series_the_longest_is_taken_and_said_so(tmp_path, hu):
    save_series(tmp_path / "ct", hu, ORIGIN, SPACING, uid="1.2.3")
    save_series(tmp_path / "ct", hu[:3], ORIGIN, SPACING, uid="1.2.4")
    volume, notes = read_cta(tmp_path / "ct")
    assert len(volume.values) == 6 and "--series" in notes[0]
    assert len(read_cta(tmp_path / "ct", "2")[0].values) == len(read_cta(tmp_path / "ct", "1.2.4")[0].values) == 3
    with pytest.raises(InputError, match="series"):
        read_cta(tmp_path / "ct", "9")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"missing": ("PixelSpacing",)}, "PixelSpacing"),
        ({"missing": ("ImagePositionPatient",)}, "ImagePositionPatient"),
        ({"drop": (3,)}, "missing"),
        ({"drop": (1, 2, 3, 4, 5)}, "single slice"),
        ({"modality": "MR"}, "no CT slices"),
    ],
)
def test_what_is_wrong_with_a_series(tmp_path, hu, how, words):
    save_series(tmp_path / "ct", hu, ORIGIN, SPACING, **how)
    with pytest.raises(InputError, match=words):
        read_cta(tmp_path / "ct")


def test_several_phases_at_one_place_are_refused(tmp_path, hu):
    save_series(tmp_path / "ct", hu, ORIGIN, SPACING)
    for file in sorted((tmp_path / "ct").iterdir()):
        (file.parent / f"again_{file.name}").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="one phase"):
        read_cta(tmp_path / "ct")


def edited_nifti(path, offset: int, content: bytes) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[offset : offset + len(content)] = content
    path.write_bytes(gzip.compress(bytes(data)))


@pytest.mark.parametrize(
    ("offset", "content", "words"),
    [
        (80, b"\0\0\0\0", "no voxel size"),
        (42, b"\xff\x7f\xff\x7f\xff\x7f", "voxels"),
        (0, b"\1", "no NIfTI"),
        (46, b"\1\0", "single slice"),
        (80, np.float32(0.0004).tobytes(), "voxel size"),
    ],
)
def test_broken_nifti_headers_are_refused_before_decoding(tmp_path, hu, offset, content, words):
    save(tmp_path / "a.nii.gz", hu, ORIGIN, SPACING)
    edited_nifti(tmp_path / "a.nii.gz", offset, content)
    with pytest.raises(InputError, match=words):
        read_cta(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.nrrd", "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n", "no voxel size"),
        (
            "a.nrrd",
            "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nspacings: 1 1 1\ndata file: /etc/passwd\n\n",
            "another file",
        ),
        ("a.mha", "NDims = 3\nDimSize = 2 2 2\nElementDataFile = x.raw\n", "another file"),
        ("a.mha", "NDims = 3\nDimSize = 2 2 2\nElementDataFile = LOCAL\n", "no voxel size"),
        ("a.nii.gz", "no gzip", "NIfTI"),
        ("a.mhd", "NDims = 3\n", "file type"),
        ("a.nrrd", "x" * 70000, "header"),
    ],
)
def test_headers_without_spacing_or_with_references_are_refused(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_cta(tmp_path / name)


def test_values_that_are_no_hu_and_empty_labels_are_refused(tmp_path, hu):
    save(tmp_path / "a.nii.gz", (hu / 2000).astype(np.float32), ORIGIN, SPACING)
    with pytest.raises(InputError, match="not HU"):
        read_cta(tmp_path / "a.nii.gz")
    for values, words in ((np.zeros(hu.shape), "no vessel"), (np.ones(hu.shape), "no vessel mask")):
        save(tmp_path / "l.nii.gz", values.astype(np.uint8), ORIGIN, SPACING)
        with pytest.raises(InputError, match=words):
            read_labels(tmp_path / "l.nii.gz")
    with pytest.raises(InputError, match="does not exist"):
        read_cta(tmp_path / "none.nii.gz")
    truncated = (tmp_path / "a.nii.gz").read_bytes()[:300]
    (tmp_path / "b.nii.gz").write_bytes(truncated)
    with pytest.raises(InputError, match="b.nii.gz"):
        read_cta(tmp_path / "b.nii.gz")
