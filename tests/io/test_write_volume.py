# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from licag3d.io.write_volume import write_itksnap_labels, write_nifti

ORIGIN, SPACING = (-12.5, 33.0, -7.25), 0.5


@pytest.fixture
def values():
    return np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)


def test_header_bytes(tmp_path, values):
    path = tmp_path / "attenuation.nii.gz"
    write_nifti(path, values, ORIGIN, SPACING, description="attenuation in 1/mm")
    raw = gzip.decompress(path.read_bytes())
    assert len(raw) == 352 + values.nbytes
    assert struct.unpack_from("<i", raw, 0)[0] == 348 and raw[344:348] == b"n+1\0"
    assert struct.unpack_from("<8h", raw, 40)[:4] == (3, 7, 6, 5)
    assert struct.unpack_from("<2h", raw, 70) == (16, 32)
    assert struct.unpack_from("<2h", raw, 252) == (1, 1)
    sform = np.array(struct.unpack_from("<12f", raw, 280)).reshape(3, 4)
    lps = np.array([[SPACING, 0, 0, ORIGIN[0]], [0, SPACING, 0, ORIGIN[1]], [0, 0, SPACING, ORIGIN[2]]])
    np.testing.assert_array_equal(sform, np.diag([-1, -1, 1]) @ lps)
    # qform by the formula of the standard
    b, c, d, *offset = struct.unpack_from("<6f", raw, 256)
    a = max(0.0, 1 - b * b - c * c - d * d) ** 0.5
    sign, *step = struct.unpack_from("<4f", raw, 76)
    rotation = np.array([[a*a + b*b - c*c - d*d, 2*b*c - 2*a*d, 2*b*d + 2*a*c],
                         [2*b*c + 2*a*d, a*a + c*c - b*b - d*d, 2*c*d - 2*a*b],
                         [2*b*d - 2*a*c, 2*c*d + 2*a*b, a*a + d*d - b*b - c*c]])
    qform = np.column_stack([rotation * (np.array(step) * [1, 1, sign]), offset])
    np.testing.assert_array_equal(qform, sform)
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4", offset=352).reshape(5, 6, 7), values)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.uint16, bool, np.float64])
def test_an_independent_reader_agrees_in_lps(tmp_path, values, dtype):
    import SimpleITK

    values = (values * 1000 % 2).astype(dtype)
    path = tmp_path / "v.nii.gz"
    write_nifti(path, values, ORIGIN, SPACING)
    image = SimpleITK.ReadImage(str(path))
    assert image.GetDimension() == 3
    assert image.GetOrigin() == pytest.approx(ORIGIN) and image.GetSpacing() == pytest.approx([SPACING] * 3)
    assert image.GetDirection() == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))
    read = SimpleITK.GetArrayFromImage(image)
    np.testing.assert_array_equal(read, values.astype(np.float32) if np.dtype(dtype).kind == "f" else values)
    assert read.dtype == {"f": np.float32, "b": np.uint8}.get(np.dtype(dtype).kind, dtype)


def test_same_input_same_bytes(tmp_path, values):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, values, ORIGIN, SPACING)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="3 axes"):
        write_nifti(tmp_path / "a", np.zeros((2, 2)), ORIGIN, SPACING)
    with pytest.raises(ValueError, match="int64"):
        write_nifti(tmp_path / "a", np.zeros((2, 2, 2), np.int64), ORIGIN, SPACING)
    with pytest.raises(ValueError, match="32767"):
        write_nifti(tmp_path / "a", np.zeros((1, 1, 40000), np.uint8), ORIGIN, SPACING)
    assert list(tmp_path.iterdir()) == []


def test_itksnap_label_lines_have_eight_fields(tmp_path):
    write_itksnap_labels(tmp_path / "labels.txt", ["Vessel", 'a "quoted"\nname'])
    lines = [line for line in (tmp_path / "labels.txt").read_text().splitlines() if not line.startswith("#")]
    assert [int(line.split()[0]) for line in lines] == [0, 1, 2]
    for line in lines:
        numbers, label, rest = line.split('"')
        assert len(numbers.split()) == 7 and rest == "" and label
        assert all(0 <= int(x) <= 255 for x in numbers.split()[1:4])
