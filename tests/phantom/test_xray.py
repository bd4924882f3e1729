# SPDX-License-Identifier: Apache-2.0
"""Rendered frames: contrast-free twin, devices, independence of effects, noise, reproducibility."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.phantom.anatomy import sample_patient, sample_tree
from licag3d.phantom.thorax import sample_thorax
from licag3d.phantom.tubes import path_length_mm, tree_lines
from licag3d.phantom.xray import Exposure, render_frame, sample_surroundings

CAMERA = Camera(30, 10, 1040, 750, 1.0, 1.0, 144, 144)


@pytest.fixture(scope="module")
def scene():
    tree = sample_tree(4, "lca")
    centre = -np.concatenate([b.points_lps_mm for b in tree.branches]).mean(0)
    tree = type(tree)(tuple(replace(b, points_lps_mm=b.points_lps_mm + centre) for b in tree.branches))
    rng = np.random.default_rng(0)
    thorax = sample_thorax(rng, sample_patient(4).heart, centre)
    return tree, sample_surroundings(rng, tree, thorax), Exposure.sample(np.random.default_rng(1))


def test_the_same_seed_gives_the_same_bytes(scene):
    tree, surroundings, exposure = scene
    one, two = (render_frame(tree, CAMERA, exposure, surroundings, [3, 1], kappa=0.1) for _ in range(2))
    for name in ("image", "measured", "devices", "contrast_free_image", "contrast_free_measured"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    other = render_frame(tree, CAMERA, exposure, surroundings, [3, 2])
    assert not np.array_equal(one.image, other.image)
    assert other.contrast_free_image is None


@pytest.mark.parametrize("full", [False, True])
def test_kappa_0_leaves_no_vessel_and_kappa_1_all_of_it(scene, full):
    tree, surroundings, exposure = scene
    exposure = replace(exposure, quanta=1e7)  # next to no noise
    behind = surroundings if full else None
    none, whole = (render_frame(tree, CAMERA, exposure, behind, [3, 1], kappa=kappa) for kappa in (0, 1))
    gone = none.measured - none.contrast_free_measured
    strong = none.line_integral > 0.4
    far = path_far_from(none.line_integral, none.devices)
    assert np.median(gone[strong]) > 0.2
    assert np.abs(gone[far]).mean() < 0.04 * np.median(gone[strong]) + (0.03 if full else 0)
    assert np.abs(whole.measured - whole.contrast_free_measured).max() < 0.02
    if full:  # what is left has no contrast between vessel and surroundings beyond that of the background itself
        bare = replace(surroundings, companions=replace(surroundings.companions, reflux=0.0, blush=0.0))
        without = render_frame(tree, CAMERA, replace(exposure, mu_per_mm=1e-9), bare, [3, 1], kappa=0)
        free, plain = (
            frame.contrast_free_measured - np.median(frame.contrast_free_measured) for frame in (none, without)
        )
        assert np.abs(free - plain).max() < 0.03


def path_far_from(line_integral, devices):
    from scipy.ndimage import binary_dilation

    return ~binary_dilation((line_integral > 0) | devices, iterations=12)


def test_kappa_out_of_range_is_refused(scene):
    tree, surroundings, exposure = scene
    for kappa in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="kappa is .*; give"):
            render_frame(tree, CAMERA, exposure, surroundings, [0], kappa=kappa)


def test_the_mask_of_devices_covers_what_they_add(scene):
    tree, surroundings, exposure = scene
    frame = render_frame(tree, CAMERA, exposure, surroundings, [3, 1])
    assert np.all(frame.devices[path_length_mm([surroundings.catheter], CAMERA) > 0])
    assert 0.002 < frame.devices.mean() < 0.3
    assert not render_frame(tree, CAMERA, exposure, None, [3, 1]).devices.any()


def test_a_moved_tree_moves_neither_display_nor_shutters(scene):
    tree, surroundings, exposure = scene
    moved = replace(CAMERA, offset_lps_mm=(3.0, 0.0, 2.0))
    shutters = [
        render_frame(tree, camera, exposure, surroundings, [3, 1]).measured.mean(1)[:3] for camera in (CAMERA, moved)
    ]
    np.testing.assert_allclose(*shutters, atol=0.1)


def test_noise_variance_falls_as_the_dose_rises():
    from licag3d.phantom.xray import _detected

    flat = np.ones((256, 256))
    variance = [_detected(np.random.default_rng(0), flat, quanta, 0.6, 0.0).var() for quanta in (500, 2000, 8000)]
    assert variance[0] / variance[1] == pytest.approx(4, rel=0.05)
    assert variance[1] / variance[2] == pytest.approx(4, rel=0.05)


def test_scatter_lowers_the_contrast_by_its_share():
    from licag3d.phantom.xray import _detected

    line = np.ones((256, 256))
    line[:, 126:130] = 0.5
    depths = []
    for scatter in (0.0, 0.5):
        seen = _detected(np.random.default_rng(0), line, 1e8, 0.01, scatter)
        depths.append(seen[128, 40] - seen[128, 128])
    assert depths[1] == pytest.approx(0.5 * depths[0], rel=0.1)


def test_partial_filling_scales_the_line_integral_and_none_leaves_no_vessel(scene):
    tree, surroundings, exposure = scene
    full = render_frame(tree, CAMERA, exposure, None, [1])
    half, none = (
        render_frame(
            tree, CAMERA, exposure, None, [1], opacity={b.id: np.full(len(b.points_lps_mm), c) for b in tree.branches}
        )
        for c in (0.5, 0.0)
    )
    np.testing.assert_allclose(half.line_integral, 0.5 * full.line_integral, atol=0.02)
    assert not none.mask.any() and not none.line_integral.any()


def test_a_beam_of_many_energies_reads_less_in_thick_contrast(scene):
    tree, surroundings, exposure = scene
    exposure = replace(exposure, quanta=1e7, mu_per_mm=0.35)
    many, one = (
        render_frame(tree, CAMERA, replace(exposure, beam=beam), surroundings, [3, 1]).measured
        for beam in (exposure.beam, None)
    )
    thick = path_length_mm(tree_lines(tree), CAMERA) > 4
    assert thick.sum() > 10 and (one - many)[thick].mean() > 0.01


def test_more_bits_show_the_same_picture(scene):
    tree, surroundings, exposure = scene
    eight, twelve = (render_frame(tree, CAMERA, exposure, surroundings, [3, 1], bits=bits).image for bits in (8, 12))
    assert twelve.dtype == np.uint16 and twelve.max() > 255 and twelve.max() < 4096
    np.testing.assert_allclose(twelve / 4095, eight / 255, atol=0.5 / 255 + 1e-3)
    with pytest.raises(InputError, match="bits is 7; give 8 to 16"):
        render_frame(tree, CAMERA, exposure, surroundings, [3, 1], bits=7)


def test_twigs_are_shown_and_kept_out_of_the_truth(scene):
    tree, surroundings, exposure = scene
    frame = render_frame(tree, CAMERA, exposure, surroundings, [3, 1])
    assert (frame.twigs & ~frame.mask).mean() > 0.002
    assert np.array_equal(frame.mask, frame.line_integral > 0)
