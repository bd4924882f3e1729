# SPDX-License-Identifier: Apache-2.0
"""The C-arm equations against the fixed vectors and their own laws."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from licag3d.geometry import Camera, scale_gauge, view_angle_deg

ANGLES = st.tuples(st.floats(-180, 180), st.floats(-90, 90))
POINT = st.tuples(*[st.floats(-150, 150)] * 3)


@st.composite
def cameras(draw) -> Camera:
    sod = draw(st.floats(500, 900))
    primary, secondary = draw(ANGLES)
    return Camera(primary, secondary, sod + draw(st.floats(50, 600)), sod, draw(st.floats(0.05, 1)),
                  draw(st.floats(0.05, 1)), draw(st.integers(1, 2048)), draw(st.integers(1, 2048)), draw(POINT))


@pytest.fixture(scope="module")
def vector_cases(shared_data) -> list[dict]:
    path = shared_data.parent / "geometry_vectors.json"
    if not path.is_file():
        pytest.skip(f"reference vectors not found at {path}; set LICAG3D_SHARED")
    return json.loads(path.read_text())["cases"]


def camera_of(case: dict) -> Camera:
    spacing = case["pixel_spacing_mm"]
    return Camera(case["primary_deg"], case["secondary_deg"], case["sid_mm"], case["sod_mm"], spacing["row"],
                  spacing["col"], case["rows"], case["cols"], tuple(case["offset_lps_mm"]))


def test_reference_vectors(vector_cases):
    points = 0
    for case in vector_cases:
        camera = camera_of(case)
        pixels, depth = camera.project(case["points_lps_mm"])
        assert np.abs(pixels - case["pixels_col_row"]).max() < 1e-6
        assert np.abs(depth - case["depth_mm"]).max() < 1e-6
        for axis, name in zip(camera.frame, ("detector_direction", "column_axis", "row_axis"), strict=True):
            assert np.abs(axis - case[name]).max() < 1e-9
        points += len(pixels)
    assert points == 48


def test_reference_vectors_as_a_torch_batch(vector_cases):
    torch = pytest.importorskip("torch")
    from licag3d.geometry import Cameras

    by_size: dict[tuple, list[dict]] = {}
    for case in vector_cases:
        by_size.setdefault((case["rows"], case["cols"], len(case["points_lps_mm"])), []).append(case)
    points = 0
    for cases in by_size.values():
        batch = Cameras.stack([camera_of(case) for case in cases])
        world, expected, expected_depth = (torch.tensor([case[name] for case in cases], dtype=torch.float64)
                                           for name in ("points_lps_mm", "pixels_col_row", "depth_mm"))
        pixels, depth = batch.project(world)
        assert (pixels - expected).abs().max() < 1e-6
        assert (depth - expected_depth).abs().max() < 1e-6
        points += pixels[..., 0].numel()
    assert points == 48


@given(ANGLES)
def test_axes_are_orthonormal_and_turn_as_agreed(angles):
    frame = Camera(*angles, 1000, 750, 0.3, 0.3, 10, 10).frame
    axes = np.stack(frame)
    assert np.abs(axes @ axes.T - np.eye(3)).max() < 1e-12
    assert np.abs(np.cross(frame.column, frame.row) + frame.beam).max() < 1e-12


def test_frontal_view_looks_as_described():
    camera = Camera(0, 0, 1000, 750, 0.3, 0.3, 512, 512)
    (left, _), _ = camera.project([10, 0, 0])
    (_, feet), _ = camera.project([0, 0, -10])
    assert left > 255.5 and feet > 255.5  # image right is the patient's left, image down is the feet
    assert camera.source_lps_mm == pytest.approx([0, 750, 0])  # under the table
    assert Camera(90, 0, 1000, 750, 0.3, 0.3, 9, 9).frame.beam == pytest.approx([1, 0, 0])  # LAO 90: at the left side
    assert Camera(0, 30, 1000, 750, 0.3, 0.3, 9, 9).frame.beam[2] == pytest.approx(0.5)  # cranial: towards the head


@given(cameras(), POINT)
def test_ray_of_a_projected_point_runs_through_the_point(camera, point):
    (pixel,), (depth,) = camera.project([point])
    assume(depth > 10)
    source, to_pixel = camera.rays(pixel[0], pixel[1])
    reached = source + to_pixel * (depth / camera.sid_mm)
    assert np.abs(reached - point).max() < 1e-6


@given(cameras(), st.floats(-100, 3000), st.floats(-100, 3000), st.floats(0.2, 1.5))
def test_point_on_a_ray_projects_back(camera, col, row, along):
    source, to_pixel = camera.rays(col, row)
    (pixel,), (depth,) = camera.project([source + along * to_pixel])
    assert pixel == pytest.approx([col, row], abs=1e-6)
    assert depth == pytest.approx(along * camera.sid_mm)


@given(cameras(), POINT, st.integers(-50, 600), st.integers(-50, 600), st.integers(1, 700), st.integers(1, 700))
def test_crop_then_project_is_project_then_shift(camera, point, top, left, rows, cols):
    (whole,), (depth,) = camera.project([point])
    assume(depth > 10)
    cropped = camera.cropped(top, left, rows, cols)
    (part,), _ = cropped.project([point])
    assert part == pytest.approx(whole - [left, top], abs=1e-6)
    assert (cropped.rows, cropped.cols) == (rows, cols)
    # Cropping moves the principal point and nothing else: the focal length in pixels stays.
    assert (cropped.spacing_row_mm, cropped.sid_mm) == (camera.spacing_row_mm, camera.sid_mm)


@given(cameras(), POINT, st.integers(1, 2000), st.integers(1, 2000))
def test_resize_scales_pixel_edges(camera, point, rows, cols):
    (old,), (depth,) = camera.project([point])
    assume(depth > 10)
    scale = np.array([cols / camera.cols, rows / camera.rows])
    assume(0.005 < camera.spacing_row_mm / scale[1] < 9 and 0.005 < camera.spacing_col_mm / scale[0] < 9)
    (new,), _ = camera.resized(rows, cols).project([point])
    assert new == pytest.approx((old + 0.5) * scale - 0.5, abs=1e-6, rel=1e-9)


@given(cameras())
def test_resize_there_and_back_is_the_same_camera(camera):
    again = camera.resized(2 * camera.rows, 3 * camera.cols).resized(camera.rows, camera.cols)
    for name in ("spacing_row_mm", "spacing_col_mm", "principal_row", "principal_col"):
        assert getattr(again, name) == pytest.approx(getattr(camera, name), abs=1e-9)


def test_resized_image_and_resized_camera_agree():
    """The convention is that of skimage and torch: a bright dot lands where the resized camera says."""
    from skimage.transform import resize

    camera = Camera(20, -10, 1000, 750, 0.4, 0.5, 96, 120)
    image = np.zeros((96, 120))
    (pixel,), _ = camera.project([[3.0, -4.0, 5.0]])
    rows, cols = np.mgrid[:96, :120]
    image = np.exp(-((cols - pixel[0]) ** 2 + (rows - pixel[1]) ** 2) / (2 * 3.0**2))
    small = resize(image, (48, 80), anti_aliasing=True)
    rows, cols = np.mgrid[:48, :80]
    found = np.array([(small * cols).sum(), (small * rows).sum()]) / small.sum()
    (expected,), _ = camera.resized(48, 80).project([[3.0, -4.0, 5.0]])
    assert found == pytest.approx(expected, abs=0.02)


@given(cameras(), cameras(), st.floats(0.8, 1.25), st.lists(POINT, min_size=1, max_size=5))
def test_scale_gauge_leaves_both_images_unchanged(first, second, scale, points):
    points = np.array(points)
    before = [camera.project(points) for camera in (first, second)]
    assume(all(depth.min() > 50 for _, depth in before))
    centre, moved = scale_gauge(first, second, scale)
    scaled = centre + scale * (points - centre)
    for camera, (pixels, depth) in zip((first, moved), before, strict=True):
        after, new_depth = camera.project(scaled)
        assert np.abs(after - pixels).max() < 1e-6 * max(1.0, np.abs(pixels).max())
        assert new_depth == pytest.approx(scale * depth, rel=1e-9)


def test_scale_gauge_is_the_formula_of_the_geometry_page():
    first = Camera(30, 5, 1000, 750, 0.3, 0.3, 512, 512)
    second = Camera(-40, 10, 1020, 760, 0.3, 0.3, 512, 512, (3.0, -8.0, 12.0))
    scale = 1.085
    _, moved = scale_gauge(first, second, scale)
    s_1, s_2 = (-camera.sod_mm * camera.frame.beam for camera in (first, second))  # sources without offsets
    assert moved.offset_lps_mm == pytest.approx(scale * np.array(second.offset_lps_mm) + (1 - scale) * (s_2 - s_1))


@given(cameras(), POINT)
def test_offset_moves_the_point_not_the_camera(camera, point):
    (shifted,), (depth,) = camera.project([point])
    assume(depth > 10)
    (plain,), _ = camera.with_offset((0, 0, 0)).project([np.add(point, camera.offset_lps_mm)])
    assert shifted == pytest.approx(plain, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(cameras(), min_size=1, max_size=4), st.lists(POINT, min_size=1, max_size=4))
def test_batch_equals_single_cameras(singles, points):
    torch = pytest.importorskip("torch")
    from licag3d.geometry import Cameras

    singles = [replace(camera, rows=24, cols=32) for camera in singles]
    batch = Cameras.stack(singles)
    pixels, depths = batch.project(torch.tensor(points, dtype=torch.float64))
    sources, to_pixels = batch.rays()
    for k, camera in enumerate(singles):
        expected, depth = camera.project(points)
        assume(np.abs(depth).min() > 1)
        assert np.allclose(pixels[k], expected, atol=1e-6, rtol=1e-9) and np.allclose(depths[k], depth)
        source, to_pixel = camera.rays(*np.meshgrid(np.arange(32), np.arange(24)))
        assert np.allclose(sources[k], source) and np.allclose(to_pixels[k], to_pixel)
    assert batch.unstack() == singles


def test_batch_is_differentiable_in_every_parameter():
    torch = pytest.importorskip("torch")
    from licag3d.geometry import Cameras

    batch = Cameras.stack([Camera(30, 5, 1000, 750, 0.3, 0.3, 64, 64), Camera(-20, 8, 1000, 750, 0.3, 0.3, 64, 64)])
    names = ("primary_deg", "secondary_deg", "sid_mm", "sod_mm", "spacing_row_mm", "spacing_col_mm", "principal_row",
             "principal_col", "offset_lps_mm")
    points = torch.tensor([[5.0, -3.0, 8.0], [-11.0, 2.0, 4.0]], dtype=torch.float64, requires_grad=True)

    def project(points, *values):
        return batch.replace(**dict(zip(names, values, strict=True))).project(points)

    values = [getattr(batch, name).clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(project, (points, *values))


@pytest.mark.parametrize(("change", "words"), [
    ({"sid_mm": 700}, "not larger than SOD"), ({"sid_mm": math.nan}, "finite"), ({"sod_mm": math.inf}, "finite"),
    ({"spacing_row_mm": 0}, "pixel spacing"), ({"spacing_col_mm": -0.3}, "pixel spacing"),
    ({"primary_deg": 400}, "angles"), ({"secondary_deg": 91}, "angles"), ({"rows": 0}, "rows"), ({"cols": 1e6}, "cols"),
    ({"rows": 10.5}, "rows"), ({"offset_lps_mm": (0, 0)}, "offset"), ({"offset_lps_mm": (0, math.nan, 0)}, "finite"),
    ({"principal_row": math.nan}, "finite"),
])
def test_absurd_geometry_is_refused(change, words):
    good = {"primary_deg": 30, "secondary_deg": 0, "sid_mm": 1000, "sod_mm": 750, "spacing_row_mm": 0.3,
            "spacing_col_mm": 0.3, "rows": 512, "cols": 512}
    with pytest.raises(ValueError, match=words):
        Camera(**{**good, **change})


def test_view_angle():
    first, second = (Camera(a, 0, 1000, 750, 0.3, 0.3, 512, 512) for a in (30, -40))
    assert view_angle_deg(first, second) == pytest.approx(70)
    assert view_angle_deg(first, first) == pytest.approx(0, abs=1e-5)
