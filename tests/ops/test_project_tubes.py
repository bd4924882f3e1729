# SPDX-License-Identifier: Apache-2.0
"""project_tubes against closed forms and against its twin, which finds the intervals by another derivation."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray_cases import random_rays, single_ray, views

from licag3d.geometry import Camera, Cameras, Rays
from licag3d.ops import native, project_tubes, reference


def path(points, radii, segments, rays) -> torch.Tensor:
    return project_tubes(torch.tensor(points, dtype=torch.float64), torch.tensor(radii, dtype=torch.float64),
                         torch.tensor(segments, dtype=torch.int64).reshape(-1, 2), rays)


def through(point, direction) -> Rays:
    unit = torch.tensor(direction, dtype=torch.float64)
    unit = unit / unit.norm()
    start = torch.tensor(point, dtype=torch.float64) - 400 * unit
    return single_ray(start.tolist(), (800 * unit).tolist())


@pytest.mark.parametrize("angle_deg", [90, 60, 30, 10, 5])
def test_tube_at_an_angle(angle_deg) -> None:
    # Through the middle of a long cylinder, at an angle to its axis: 2 r / sin.
    angle = math.radians(angle_deg)
    rays = through((0, 0, 0), (math.cos(angle), math.sin(angle), 0))
    got = path([(-60, 0, 0), (60, 0, 0)], [1.5, 1.5], [(0, 1)], rays)
    assert float(got[0]) == pytest.approx(3.0 / math.sin(angle), rel=1e-6)


@pytest.mark.parametrize("distance", [0.0, 0.7, 1.9, 1.999, 2.0, 2.5])
def test_chord_of_a_ball(distance) -> None:
    rays = through((3, 4 + distance, 5), (0.6, 0.0, 0.8))
    expected = 2 * math.sqrt(max(0.0, 4 - distance**2))
    for points, radii, segments in (([(3, 4, 5)], [2.0], [(0, 0)]),
                                    ([(3, 4, 5), (3.5, 4, 5)], [2.0, 0.3], [(0, 1)])):  # the second hides in the first
        assert float(path(points, radii, segments, rays)[0]) == pytest.approx(expected, abs=1e-6)


def test_along_the_axis_of_a_cone() -> None:
    # From the far side of one end ball to the far side of the other.
    rays = through((0, 0, 0), (0, 0, 1))
    assert float(path([(0, 0, -8), (0, 0, 9)], [3.0, 1.0], [(0, 1)], rays)[0]) == pytest.approx(3 + 17 + 1, rel=1e-6)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.8])
def test_across_a_cone_between_its_balls(place) -> None:
    # Perpendicular to the axis at place h: the tangent cone has radius (ra - h sin) / cos there.
    length, ra, rb = 20.0, 3.0, 1.0
    sine = (ra - rb) / length
    expected = 2 * (ra - place * length * sine) / math.sqrt(1 - sine**2)
    rays = through((0, 0, place * length), (1, 2, 0))
    assert float(path([(0, 0, 0), (0, 0, length)], [ra, rb], [(0, 1)], rays)[0]) == pytest.approx(expected, rel=1e-6)


def test_overlap_counts_once_and_gaps_do_not_count() -> None:
    rays = through((0, 0, 0), (1, 0, 0))
    chain = [(-4, 0, 0), (0, 0, 0), (4, 0, 0), (9, 0, 0), (12, 0, 0)]
    joined = path(chain, [1.0] * 5, [(0, 1), (1, 2)], rays)
    assert float(joined[0]) == pytest.approx(10, rel=1e-6)
    assert float(path(chain, [1.0] * 5, [(0, 1), (1, 2), (0, 2), (2, 1)], rays)[0]) == pytest.approx(10, rel=1e-6)
    with_gap = path(chain, [1.0] * 5, [(0, 1), (1, 2), (3, 4)], rays)
    assert float(with_gap[0]) == pytest.approx(10 + 5, rel=1e-6)


def test_only_the_part_between_source_and_pixel_counts() -> None:
    capsule = [(-10, 0, 0), (10, 0, 0)], [1.0, 1.0], [(0, 1)]
    assert float(path(*capsule, single_ray((0, 0, 0), (100, 0, 0)))[0]) == pytest.approx(11)
    assert float(path(*capsule, single_ray((-100, 0, 0), (95, 0, 0)))[0]) == pytest.approx(6)
    assert float(path(*capsule, single_ray((20, 0, 0), (100, 0, 0)))[0]) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 30), st.integers(0, 60), st.sampled_from((0.0, 0.5, 5.0, 40.0)))
def test_any_tree_equals_the_twin(seed, count, rays_count, largest) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(12, 3, generator=generator, dtype=torch.float64) * 15
    radius = torch.rand(12, generator=generator, dtype=torch.float64) * largest
    segments = torch.randint(0, 12, (count, 2), generator=generator)
    rays = random_rays(rays_count, seed)
    got = project_tubes(points, radius, segments, rays)
    expected = reference.project_tubes(points, radius, segments, rays)
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-5)


def helix(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A tapering vessel of some 700 mm wound through the field of view."""
    t = torch.linspace(0, 30, count + 1, dtype=torch.float64)
    points = torch.stack([40 * torch.cos(t) * (0.3 + t / 40), 40 * torch.sin(t) * (0.3 + t / 40),
                          2 * t - 30 + 5 * torch.sin(3 * t)], 1)
    index = torch.arange(count)
    return points, 2.0 - t / 20, torch.stack([index, index + 1], 1)


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_views_equal_the_twin(isa) -> None:
    try:
        native.set_isa(isa)
    except (ValueError, RuntimeError) as error:
        pytest.skip(str(error))
    try:
        # Odd sizes: tiles and blocks are cut at the borders.
        cameras = views(angles=((30, 10), (-60, -20)), rows=75, cols=67, spacing_mm=2.0)
        got = project_tubes(*helix(100), cameras)
    finally:
        native.set_isa(None)
    expected = reference.project_tubes(*helix(100), cameras)
    assert (expected > 0).double().mean() > 0.03
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


def test_more_pieces_than_the_kernel_has_room_for() -> None:
    # 150 balls in a row are more disjoint pieces than it keeps; every second pair touches.
    count = 150
    points = torch.zeros(count, 3, dtype=torch.float64)
    points[:, 0] = torch.arange(count) * 3.0 + torch.arange(count) % 2 * -1.0
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    segments = torch.stack([order, order], 1)
    rays = single_ray((-100, 0, 0), (900, 0, 0))
    got = project_tubes(points, torch.full((count,), 1.1, dtype=torch.float64), segments, rays)
    # Pairs are 2 apart with radius 1.1: 4.2 each.
    assert float(got[0]) == pytest.approx(count / 2 * 4.2, rel=1e-6)


def test_moving_everything_changes_nothing() -> None:
    points, radius, segments = helix(60)
    rays = random_rays(300, 3, 60.0)
    shift = torch.tensor([130.0, -220.0, 65.0], dtype=torch.float64)
    here = project_tubes(points, radius, segments, rays)
    there = project_tubes(points + shift, radius, segments, Rays(rays.origin_mm + shift, rays.to_pixel_mm))
    assert (here > 0).any()
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-5)


def test_nothing_to_draw_and_nothing_to_draw_on() -> None:
    cameras = views()
    none = torch.zeros(0, 2, dtype=torch.int64)
    empty = project_tubes(torch.zeros(0, 3), torch.zeros(0), none, cameras)
    assert empty.shape == (len(cameras), cameras.rows, cameras.cols) and not empty.any()
    assert not project_tubes(torch.zeros(3, 3), torch.zeros(3), torch.tensor([[0, 1]]), cameras).any()
    points, radius, segments = helix(5)
    assert project_tubes(points, radius, segments, random_rays(0, 0)).shape == (0,)


def test_odd_rays_do_no_harm() -> None:
    capsule = [(-10, 0, 0), (10, 0, 0)], [1.0, 1.0], [(0, 1)]
    origin = torch.tensor([[math.nan, 0, 0], [0, -50, 0], [0, 0, 0], [0, -50, 0]], dtype=torch.float64)
    way = torch.tensor([[0, 100, 0], [0, math.inf, 0], [0, 0, 0], [0, 100, 0]], dtype=torch.float64)
    got = path(*capsule, Rays(origin, way))
    assert torch.isnan(got[:2]).all() and got[2] == 0 and float(got[3]) == pytest.approx(2)


def test_threads_and_order_do_not_matter() -> None:
    cameras = views(angles=((30, 10),), rows=70, cols=130, spacing_mm=1.0)
    points, radius, segments = helix(200)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = project_tubes(points, radius, segments, cameras)
        torch.set_num_threads(3)
        three = project_tubes(points, radius, segments, cameras)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)
    shuffled = segments[torch.randperm(200, generator=torch.Generator().manual_seed(0))].flip(1)
    torch.testing.assert_close(project_tubes(points, radius, shuffled, cameras), one, atol=1e-5, rtol=1e-5)
    flat = Rays(*(x.reshape(-1, 3) for x in cameras.rays()))
    torch.testing.assert_close(project_tubes(points, radius, segments, flat), one.reshape(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(native.cpu_library() is None, reason="needs the native library")
def test_a_full_image_takes_well_under_a_second() -> None:
    camera = Camera(30, 10, sid_mm=1000, sod_mm=750, spacing_row_mm=0.36, spacing_col_mm=0.36, rows=512, cols=512)
    cameras = Cameras.stack([camera])
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        project_tubes(*helix(500), cameras)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.6  # 0.05 s of one core; the twin takes minutes


def test_opcheck_and_compile() -> None:
    cameras = views(rows=3, cols=2)
    arguments = (*helix(4), *cameras.rays())
    torch.library.opcheck(torch.ops.licag3d.project_tubes.default, arguments)
    compiled = torch.compile(project_tubes, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*helix(4), cameras), project_tubes(*helix(4), cameras))


def test_gradients_are_refused_clearly() -> None:
    points, radius, segments = helix(4)
    with pytest.raises(RuntimeError, match="no gradient"):
        project_tubes(points.requires_grad_(), radius, segments, views())
    with torch.no_grad():
        assert project_tubes(points, radius, segments, views()).any()


@pytest.mark.parametrize(("name", "value", "error", "words"), [
    ("centerline_mm", torch.zeros(3, 3, dtype=torch.float16), TypeError, "float16"),
    ("centerline_mm", torch.zeros(3, 2), ValueError, "(3, 2)"),
    ("centerline_mm", torch.full((3, 3), math.nan), ValueError, "NaN"),
    ("centerline_mm", [[0.0, 0.0, 0.0]], TypeError, "list"),
    ("radius_mm", torch.zeros(2), ValueError, "(2,)"),
    ("radius_mm", torch.full((3,), -1.0), ValueError, "negative"),
    ("radius_mm", torch.zeros(3, dtype=torch.float64), TypeError, "float64"),
    ("radius_mm", torch.zeros(3, device="meta"), ValueError, "meta"),
    ("segments", torch.tensor([[0, 3]]), ValueError, "0..3"),
    ("segments", torch.tensor([[-1, 1]]), ValueError, "-1..1"),
    ("segments", torch.tensor([[0, 1]], dtype=torch.int32), TypeError, "int32"),
    ("segments", torch.tensor([0, 1]), ValueError, "(2,)"),
])
def test_wrong_arguments_are_told(name, value, error, words) -> None:
    arguments = {"centerline_mm": torch.zeros(3, 3), "radius_mm": torch.ones(3), "segments": torch.tensor([[0, 1]]),
                 "cameras": views(), name: value}
    with pytest.raises(error) as caught:
        project_tubes(**arguments)
    assert words in str(caught.value)
