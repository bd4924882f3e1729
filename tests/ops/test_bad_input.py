# SPDX-License-Identifier: Apache-2.0
"""Volume and tube operators given what does not fit: an exception that names the argument, never silent garbage."""

from __future__ import annotations

import math

import pytest
import torch

from licag3d.geometry import Camera, Cameras
from licag3d.ops import backproject, project_tubes, project_volume

GRID = {"voxel_size_mm": 2.0, "origin_mm": (-8.0, -9.0, -10.0)}
VIEW = {"sid_mm": 1000, "sod_mm": 750, "spacing_row_mm": 1.5, "spacing_col_mm": 1.5, "rows": 12, "cols": 14}
HUGE = torch.zeros(1).expand(2048, 1024, 1024)  # 2^31 elements in the memory of one


def cameras(**change) -> Cameras:
    return Cameras.stack([Camera(30, 10, **{**VIEW, **change})])


@pytest.mark.parametrize(
    ("volume", "error", "message"),
    [
        (torch.zeros(4, 4, 4, device="meta"), ValueError, "volume is on meta"),
        (HUGE, ValueError, "2\\*\\*31 voxels"),
        (torch.zeros(0, 4, 4), ValueError, "volume size is \\(0, 4, 4\\)"),
        (torch.zeros(4, 4), ValueError, "volume has shape"),
        (torch.zeros(4, 4, 4, dtype=torch.int32), TypeError, "volume is torch.int32"),
        (torch.zeros(4, 4, 4, dtype=torch.float64), TypeError, "volume is torch.float64"),
        (torch.zeros(4, 4, 4, dtype=torch.complex64), TypeError, "volume is torch.complex64"),
        (torch.zeros(4, 4, 4).to_sparse(), TypeError, "volume is torch.sparse_coo"),
        (torch.zeros(4, 4, 4).numpy(), TypeError, "volume is a ndarray"),
    ],
)
def test_volumes_that_do_not_fit(volume, error, message) -> None:
    with pytest.raises(error, match=message):
        project_volume(volume, cameras(), **GRID)


@pytest.mark.parametrize(
    ("images", "shape", "error", "message"),
    [
        (torch.zeros(1, 12, 14, device="meta"), (4, 4, 4), ValueError, "projections is on meta"),
        (torch.zeros(1, 12, 14), (2048, 1024, 1024), ValueError, "2\\*\\*31 voxels"),
        (torch.zeros(1, 12, 14), (0, 4, 4), ValueError, "volume size"),
        (torch.zeros(1, 12, 14), (-4, 4, 4), ValueError, "volume size"),
        (torch.zeros(1, 14, 12), (4, 4, 4), ValueError, "projections have shape"),
        (torch.zeros(1, 12, 14, dtype=torch.int64), (4, 4, 4), TypeError, "projections is torch.int64"),
        (torch.zeros(1, 12, 14).to_sparse(), (4, 4, 4), TypeError, "projections is torch.sparse_coo"),
    ],
)
def test_projections_that_do_not_fit(images, shape, error, message) -> None:
    with pytest.raises(error, match=message):
        backproject(images, cameras(), shape=shape, **GRID)


def test_other_layouts_are_read_as_they_mean() -> None:
    values = torch.rand(10, 9, 8, generator=torch.Generator().manual_seed(0))
    turned = values.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    padded = torch.nn.functional.pad(values, (1, 2, 3, 1))[:, 3:-1, 1:-2]
    expected = project_volume(values, cameras(), **GRID)
    assert expected.any()
    for same in (turned, padded):
        assert not same.is_contiguous()
        assert torch.equal(project_volume(same, cameras(), **GRID), expected)
    back = backproject(expected, cameras(), shape=(10, 9, 8), **GRID)
    strided = torch.stack([expected, expected], -1)[..., 0]
    assert torch.equal(backproject(strided, cameras(), shape=(10, 9, 8), **GRID), back)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sid_mm": 0}, "SID 0.0 mm"),
        ({"sod_mm": 0}, "SOD 0.0 mm"),
        ({"sod_mm": 1000}, "SOD 1000.0 mm"),
        ({"spacing_row_mm": 0.0}, "pixel spacing 0.0"),
        ({"spacing_col_mm": math.nan}, "spacing_col_mm is nan"),
        ({"rows": 0}, "rows is 0"),
        ({"cols": 1 << 20}, "cols is 1048576"),
    ],
)
def test_singular_cameras_are_refused(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        cameras(**change)


@pytest.mark.parametrize("name", ["sid_mm", "sod_mm", "spacing_row_mm", "primary_deg"])
def test_cameras_that_became_nan_give_nan_and_leave_the_others_alone(name) -> None:
    """Optimisers write into camera tensors, where no constructor looks."""
    two = Cameras.stack([Camera(30, 10, **VIEW), Camera(-40, 0, **VIEW)])
    values = getattr(two, name).clone()
    values[0] = math.nan
    volume = torch.rand(10, 9, 8, generator=torch.Generator().manual_seed(0))
    good = project_volume(volume, two, **GRID)
    got = project_volume(volume, two.replace(**{name: values}), **GRID)
    assert torch.isnan(got[0]).all() and torch.equal(got[1], good[1])


def test_detectors_without_extent_do_no_harm() -> None:
    """All rays of a view the same, or without length: finite images, no crash."""
    volume = torch.ones(10, 9, 8)
    flat = cameras().replace(spacing_row_mm=torch.zeros(1), spacing_col_mm=torch.zeros(1))
    image = project_volume(volume, flat, **GRID)
    assert torch.isfinite(image).all() and float(image.max() - image.min()) < 1e-3
    assert torch.isfinite(project_volume(volume, cameras().replace(sid_mm=torch.zeros(1)), **GRID)).all()


def test_tubes_that_do_not_fit() -> None:
    line, radius, pieces = torch.zeros(2, 3), torch.ones(2), torch.tensor([[0, 1]])
    for wrong, error, message in (
        ((line.to("meta"), radius, pieces), ValueError, "centerline_mm is on meta"),
        ((line, radius, pieces + 4), ValueError, "segments hold indices"),
        ((line.int(), radius, pieces), TypeError, "centerline_mm is torch.int32"),
        ((line * math.nan, radius, pieces), ValueError, "centerline_mm"),
    ):
        with pytest.raises(error, match=message):
            project_tubes(*wrong, cameras())
