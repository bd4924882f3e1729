# SPDX-License-Identifier: Apache-2.0
"""SSIM and PSNR against scikit-image, silhouettes against counting, the score of an empty image."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from licag3d.geometry import Camera
from licag3d.metrics.centerline import tree_points
from licag3d.metrics.images import (
    TruthView,
    comparison_camera,
    image_scores,
    path_mm,
    psnr_db,
    silhouette_scores,
    ssim_map,
    vessel_region,
    view_scores,
)
from licag3d.structures import Branch, VesselTree


def reference_ssim(image, truth, span):
    return structural_similarity(
        truth, image, data_range=span, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )[1]


def tube(shift=(0.0, 0, 0), radius_mm=1.5) -> VesselTree:
    points = np.linspace((-20, 0, -10), (20, 0, 15), 60) + shift
    return VesselTree((Branch(0, None, points, np.full(60, radius_mm)),))


CAMERA = Camera(0, 0, 1000, 750, 0.6, 0.6, 192, 160)


def test_ssim_is_that_of_scikit_image_everywhere():
    rng = np.random.default_rng(0)
    truth, image = rng.uniform(0, 5, (2, 70, 90))
    np.testing.assert_allclose(ssim_map(image, truth, 5.0), reference_ssim(image, truth, 5.0), atol=1e-9)


def test_ssim_of_projections_is_that_of_scikit_image_although_only_a_box_is_filtered():
    truth, image = path_mm(tube(), CAMERA), path_mm(tube((0.7, 0, 0.5)), CAMERA)
    span = float(truth.max())
    wanted = reference_ssim(image.astype(float), truth.astype(float), span)
    np.testing.assert_allclose(ssim_map(image, truth, span), wanted, atol=1e-7)
    empty = reference_ssim(np.zeros_like(truth, float), truth.astype(float), span)
    np.testing.assert_allclose(ssim_map(np.zeros_like(truth), truth, span), empty, atol=1e-7)


def test_psnr_is_that_of_scikit_image_and_bounded():
    rng = np.random.default_rng(1)
    truth, image = rng.uniform(0, 3, (2, 40, 50))
    assert psnr_db(image, truth, 3.0) == pytest.approx(peak_signal_noise_ratio(truth, image, data_range=3.0))
    region = truth > 1
    assert psnr_db(image, truth, 3.0, region) == pytest.approx(
        peak_signal_noise_ratio(truth[region], image[region], data_range=3.0)
    )
    assert psnr_db(truth, truth, 3.0) == 100


def test_the_vessel_region_reaches_5_mm_at_the_isocentre():
    mask = np.zeros((60, 60), bool)
    mask[30, 30] = True
    every = np.argwhere(np.ones_like(mask))
    wanted = (cdist(every, [[30, 30]]) * 0.4 <= 5).reshape(mask.shape)
    np.testing.assert_array_equal(vessel_region(mask, 0.4), wanted)


def test_a_tube_seen_at_its_place_beats_the_empty_image_and_a_shifted_one_does_not_beat_it_much():
    view = TruthView(tube(), tree_points(tube()), CAMERA)
    same = view_scores(tube(), tree_points(tube()), CAMERA, view)
    assert same["dice"] == same["cldice"] == 1 and same["ssim_vessel"] == pytest.approx(1)
    assert same["psnr_db"] == 100
    off = view_scores(tube((0, 0, 6)), tree_points(tube((0, 0, 6))), CAMERA, view)
    empty = view.empty_scores()
    assert empty["ssim"] > 0.8 > empty["ssim_vessel"]  # most of a frame is empty: the whole image says nothing
    assert off["ssim_vessel"] < empty["ssim_vessel"] and off["dice"] == 0 and off["cldice"] == 0


def test_silhouettes_agree_with_counting():
    rng = np.random.default_rng(2)
    a, b = rng.uniform(size=(2, 20, 30)) > 0.5
    pixels, truth_pixels = rng.uniform(-3, 33, (2, 50, 2))
    scores = silhouette_scores(a, pixels, b, truth_pixels)
    assert scores["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))

    def share(mask, points):
        hits = []
        for col, row in points:
            c, r = math.floor(col + 0.5), math.floor(row + 0.5)
            if 0 <= c < 30 and 0 <= r < 20:
                hits.append(mask[r, c])
        return np.mean(hits)

    p, s = share(b, pixels), share(a, truth_pixels)
    assert scores["cldice"] == pytest.approx(2 * p * s / (p + s))


def test_large_views_are_compared_at_512_px_and_nothing_visible_is_nan():
    large = Camera(0, 0, 1000, 750, 0.2, 0.2, 1024, 768)
    small = comparison_camera(large)
    assert (small.rows, small.cols) == (512, 384)
    x = [[10.0, 5, -8]]
    np.testing.assert_allclose(small.project(x)[0] + 0.5, (large.project(x)[0] + 0.5) / 2)
    nothing = np.zeros((20, 20))
    assert all(math.isnan(v) for v in image_scores(nothing, nothing, nothing > 0).values())
    assert math.isnan(silhouette_scores(nothing > 0, np.zeros((0, 2)), nothing > 0, np.zeros((0, 2)))["dice"])


def test_an_empty_tree_projects_to_nothing():
    assert path_mm(VesselTree(), CAMERA).max() == 0
    assert path_mm(tube(), CAMERA).max() == pytest.approx(3.0, rel=0.01)  # the diameter, straight through
