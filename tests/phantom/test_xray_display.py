# SPDX-License-Identifier: Apache-2.0
"""Display, shutters, wedges and marks, and the statistics that compare phantom and real frames."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from licag3d.phantom import display
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def sheet():
    spec = importlib.util.spec_from_file_location("phantom_sheet", REPOSITORY / "tools" / "phantom_sheet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(**changes) -> display.Display:
    settings = display.sample_display(np.random.default_rng(0))
    quiet = {"flatten": 0.0, "sharpen": 0.0, "text": False, "field": "square", "margins": (0.0,) * 4, "tilt": 0.0}
    return replace(settings, **(quiet | changes))


def test_shares_of_the_families_sum_to_one_and_every_family_comes():
    assert sum(family.share for family in display.FAMILIES.values()) == pytest.approx(1)
    drawn = [display.sample_display(np.random.default_rng(seed)) for seed in range(200)]
    assert {one.family for one in drawn} == set(display.FAMILIES)
    assert all(one.quanta_gain() >= 1 for one in drawn)
    assert plain(smoothing=0.5).quanta_gain() == pytest.approx(3)


def test_without_enhancement_the_curve_rises_with_the_intensity():
    ramp = np.tile(np.geomspace(0.2, 3.0, 128), (64, 1))
    settings = plain()
    limits = display.window(ramp, settings)
    grey = display.shown(ramp, settings, limits, display.shutters(settings, 64, 128), np.random.default_rng(0))
    assert np.all(np.diff(grey[5]) >= 0) and grey.min() >= 0 and grey.max() <= 1
    assert grey[5, -1] - grey[5, 0] > 0.4


def test_sharpening_steepens_edges_and_flattening_takes_out_slow_changes():
    step = np.where(np.arange(128) < 64, 1.0, 0.8)[None] * np.ones((64, 1))
    limits, light = (-1.0, 0.6), np.ones((64, 128), np.float32)
    soft, hard = (display.shown(step, plain(sharpen=s), limits, light, np.random.default_rng(0)) for s in (0.0, 1.0))
    assert np.ptp(hard[30]) > 1.1 * np.ptp(soft[30])
    slope = np.exp(np.linspace(-0.5, 0.3, 128))[None] * np.ones((128, 1))
    light = np.ones((128, 128), np.float32)
    kept, flat = (display.shown(slope, plain(flatten=f), limits, light, np.random.default_rng(0)) for f in (0.0, 0.6))
    assert np.ptp(flat[60]) < 0.8 * np.ptp(kept[60])


def test_shutters_are_dark_outside_and_clear_in_the_middle():
    light = display.shutters(plain(margins=(0.03, 0.02, 0.02, 0.03), floor=0.0), 200, 200)
    assert light[:2].max() < 0.1 and light[:, -2:].max() < 0.1 and light[20:-20, 20:-20].min() > 0.99
    round_field = display.shutters(plain(field="round", floor=0.0), 200, 200)
    cut = display.shutters(plain(field="cut", floor=0.0), 200, 200)
    for field in (round_field, cut):
        assert field[:6, :6].max() < 0.05 and field[60:140, 60:140].min() > 0.99
    assert np.all(display.shutters(plain(), 64, 64) > 0.9)


def test_wedges_lie_on_some_frames_and_only_absorb():
    depths = [display.wedge_depth(np.random.default_rng(seed), 64, 64) for seed in range(150)]
    share = np.mean([depth.any() for depth in depths])
    assert 0.2 < share < 0.4
    for depth in depths:
        assert depth.min() >= 0 and depth.max() < 2.5
        assert not depth.any() or depth.max() > 0.05 or depth.mean() < 0.01


@pytest.mark.parametrize("bits, kind", [(8, np.uint8), (10, np.uint16), (16, np.uint16)])
def test_depth_of_the_stored_values(bits, kind):
    values = display.stored(np.array([-0.1, 0.0, 0.5, 1.0, 1.2]), bits)
    assert values.dtype == kind and values[0] == 0 and values[-1] == 2**bits - 1
    assert abs(int(values[2]) - 2 ** (bits - 1)) <= 1


def test_marks_stand_at_the_border():
    grey = np.zeros((256, 256), np.float32)
    for seed in range(8):
        marked = display._marked(np.random.default_rng(seed), grey)
        rows, cols = np.nonzero(marked)
        assert len(rows) > 5 and marked.max() == 1
        assert np.all((rows < 80) | (rows > 176)) and np.all((cols < 128) | (cols > 128))


def test_statistics_find_what_was_put_in(sheet):
    rng = np.random.default_rng(0)
    vessels = np.zeros((256, 256), bool)
    vessels[60:200, 120:130] = True
    image = np.full((256, 256), 150.0) - 40.0 * vessels + rng.normal(0, 3, (256, 256))
    found = sheet.statistics_of(np.clip(image, 0, 255).astype(np.uint8), vessels)
    assert found["contrast"] == pytest.approx(40, abs=2)
    assert found["relative_contrast"] == pytest.approx(40 / 150, abs=0.02)
    assert found["noise"] == pytest.approx(3, abs=0.5)  # white noise less what a 1.5 px blur leaves of it
    assert found["noise_fine"] == pytest.approx(1 - np.pi / 16, abs=0.05)  # white: the area beyond a quarter
    white = np.clip(150 + rng.normal(0, 3, (256, 256)), 0, 255).astype(np.uint8)
    assert abs(sheet._slope(white.astype(float))) < 0.4
    smooth = sheet.statistics_of(np.full((256, 256), 150, np.uint8) - 40 * vessels.astype(np.uint8), vessels)
    assert smooth["edges"] == 0 and smooth["ridges"] == 0


def test_a_sheet_holds_every_frame_once(sheet):
    images = [np.full((20, 20), number, np.uint8) for number in range(5)] + [np.full((40, 40), 9, np.uint8)]
    page = sheet.sheet(images, columns=4, gap=2)
    assert page.shape == (2 * 22, 4 * 22)
    for number in (0, 1, 2, 3, 4, 9):
        assert (page == number).sum() == 400


def test_real_outlines_cover_dark_pixels(sheet, shared_data):
    frames = sheet.read_real(shared_data / "arcade")
    assert len(frames) == 8
    for _, image, mask in frames[:3]:
        assert 0.01 < mask.mean() < 0.3 and sheet.statistics_of(image, mask)["contrast"] > 8
