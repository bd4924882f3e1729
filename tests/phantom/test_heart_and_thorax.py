# SPDX-License-Identifier: Apache-2.0
"""The heart surface and the chest around it: geometry against sampling along rays."""

from __future__ import annotations

import numpy as np
import pytest

from licag3d.geometry import Camera
from licag3d.phantom.heart import sample_heart
from licag3d.phantom.thorax import Organ, _length_outside, cloud, sample_thorax, thorax_integral


@pytest.fixture(scope="module")
def heart():
    return sample_heart(np.random.default_rng(0), 1.0)


def test_surface_points_have_level_one_and_come_back(heart):
    for theta in (5, 45, 90, 130):
        for phi in (-100, 0, 80, 175):
            point = heart.point(theta, phi)
            assert heart.level(point) == pytest.approx(1)
            assert heart.level(heart.point(theta, phi, 0.6)) == pytest.approx(0.6)
            np.testing.assert_allclose(heart.onto(1.7 * point[None])[0], point)


def test_normals_stand_on_the_surface(heart):
    for theta, phi in ((30, 20), (80, -60), (100, 150)):
        point, normal = heart.point(theta, phi), heart.normal(heart.point(theta, phi))
        steps = [heart.point(theta + 0.01, phi) - point, heart.point(theta, phi + 0.01) - point]
        for step in steps:
            assert abs(step @ normal) < 1e-3 * np.linalg.norm(step)
        assert normal @ point > 0 and np.linalg.norm(normal) == pytest.approx(1)


def test_the_axes_are_a_frame_that_points_like_a_heart(heart):
    axes = np.stack((heart.apex, heart.up, heart.right))
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    x, y, z = heart.apex
    assert x > 0.3 and y < -0.3 and z < -0.3
    assert heart.right[0] < 0 and heart.up[2] > 0


def test_an_organ_meets_a_ray_where_sampling_says():
    rng = np.random.default_rng(1)
    organ = Organ(np.array((3.0, -5.0, 8.0)), np.linalg.inv(np.diag((20.0, 30.0, 12.0))))
    source = np.array((0.0, 400.0, 0.0))
    rays = rng.normal((0, -1, 0), 0.05, (50, 3))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    enter, leave = organ.interval(source, rays)
    t = np.arange(300, 500, 0.02)
    for ray, a, b in zip(rays, enter, leave, strict=True):
        inside = np.linalg.norm((source + t[:, None] * ray - organ.centre) @ organ.shape, axis=1) <= 1
        assert max(b - a, 0) == pytest.approx(inside.sum() * 0.02, abs=0.06)


def test_a_cylinder_of_infinite_height_has_a_finite_chord():
    organ = Organ(np.zeros(3), np.diag((1 / 10, 1 / 20, 0.0)))
    enter, leave = organ.interval(np.array((0.0, 100.0, 5.0)), np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0]]))
    assert leave[0] - enter[0] == pytest.approx(40)
    assert leave[1] < enter[1]  # along the axis, outside


def test_what_the_others_leave_of_an_interval_agrees_with_sampling():
    rng = np.random.default_rng(2)
    shape = (7, 5)
    outer = (rng.uniform(0, 50, shape), rng.uniform(40, 100, shape))
    inner = [(lambda a: (a, a + rng.uniform(-10, 40, shape)))(rng.uniform(-10, 100, shape)) for _ in range(5)]
    found = _length_outside(outer, inner)
    t = np.arange(-20, 160, 0.01)
    for index in np.ndindex(shape):
        free = (t >= outer[0][index]) & (t < outer[1][index])
        for a, b in inner:
            free &= ~((t >= a[index]) & (t < b[index]))
        assert found[index] == pytest.approx(free.sum() * 0.01, abs=0.1)


def test_the_chest_looks_like_a_chest(heart):
    thorax = sample_thorax(np.random.default_rng(5), heart, np.zeros(3))
    view = Camera(0, 0, 1000, 750, 1.2, 1.2, 256, 256)  # from the front, wide field
    image = thorax_integral(thorax, view)
    assert image.shape == (256, 256) and np.isfinite(image).all()

    def at(x, z):
        (col, row), _ = view.project([x, 0.0, z])
        return image[round(row) - 2:round(row) + 3, round(col) - 2:round(col) + 3].mean()

    assert at(0, -10) > at(-95, 20) + 0.3  # the heart absorbs more than the right lung
    assert at(-70, -95) > at(-95, 20) + 0.3  # and so does the liver


def test_cloud_has_unit_variance_and_its_power_at_low_frequencies():
    field = cloud(np.random.default_rng(0), 128, 96, 1.4)
    assert field.shape == (128, 96) and field.std() == pytest.approx(1, rel=1e-3)
    assert np.abs(np.diff(field, axis=1)).mean() < 0.5
