# SPDX-License-Identifier: Apache-2.0
"""The X-ray field: collimator shapes, padding, dark anatomy that is no border, burnt-in marks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage
from xa_files import angiogram

from licag3d.io.collimator import burnt_in_marks, valid_area

SIZE = 384


def field(shape: str, size: int = SIZE) -> np.ndarray:
    """True inside a collimator of that shape."""
    r, c = np.mgrid[:size, :size] / size
    if shape == "rectangle":
        return (r > 0.08) & (r < 0.93) & (c > 0.05) & (c < 0.88)
    if shape == "octagon":
        return (np.maximum(abs(r - 0.5), abs(c - 0.5)) < 0.46) & (abs(r - 0.5) + abs(c - 0.5) < 0.82)
    if shape == "circle":
        return (r - 0.5) ** 2 + (c - 0.5) ** 2 < 0.47**2
    return np.ones((size, size), bool)


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    return (found & truth).sum() / (found | truth).sum()


@pytest.mark.parametrize("size", [128, 384, 1100])
@pytest.mark.parametrize("border", [0.0, 0.08, 1.0, "noise"])
@pytest.mark.parametrize("shape", ["rectangle", "octagon", "circle"])
def test_borders_are_found(shape, border, size):
    inside, image = field(shape, size), angiogram(size, size)
    rng = np.random.default_rng(1)
    level = np.clip(rng.normal(0.08, 0.02, image.shape), 0, 1) if border == "noise" else border
    image = np.where(inside, image, level)
    if border in (0.08, "noise"):
        image = ndimage.gaussian_filter(image, 1.5)  # the edge of a blade is blurred
    found = valid_area(image.astype(np.float32))
    assert (found & ~inside).sum() <= 0.002 * inside.sum(), "border taken for anatomy"
    core = ndimage.binary_erosion(inside, iterations=max(6, size // 32))  # a blurred edge may be given up, no more
    assert (core & ~found).sum() <= 0.002 * inside.sum(), "anatomy taken for border"


def test_full_frame_stays_whole():
    for seed in range(4):
        assert valid_area(angiogram(SIZE, SIZE, seed=seed).astype(np.float32)).mean() > 0.995


def test_bars_on_two_sides_only():
    image = angiogram(SIZE, SIZE)
    image[:, :40] = 0
    image[:, -40:] = 0
    found = valid_area(image.astype(np.float32))
    assert not found[:, :40].any() and not found[:, -40:].any() and found[:, 50:-50].mean() > 0.98


def test_dark_vessels_and_diaphragm_at_the_edge_are_no_border():
    r, c = np.mgrid[:SIZE, :SIZE] / SIZE
    image = angiogram(SIZE, SIZE)
    image[abs(c - 0.5 - 0.1 * r) < 0.02] *= 0.2  # a catheter that enters from the top
    image = np.where((r - 1.1) ** 2 + (c - 0.4) ** 2 < 0.35**2, image * 0.55, image)  # a diaphragm
    assert valid_area(image.astype(np.float32)).mean() > 0.97


def test_shutter_of_the_file_is_used():
    shutter = field("rectangle")
    found = valid_area(angiogram(SIZE, SIZE).astype(np.float32), shutter)
    assert not (found & ~shutter).any() and overlap(found, shutter) > 0.93


def test_black_and_blank_images_do_not_fail():
    for image in (np.zeros((64, 64)), np.ones((64, 80)), np.eye(64), np.random.default_rng(0).random((50, 70))):
        found = valid_area(image.astype(np.float32))
        assert found.shape == image.shape and found.dtype == bool


def test_burnt_in_text_is_left_out():
    picture = Image.fromarray((angiogram(SIZE, SIZE) * 200).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.text((20, 20), "LAO 30 CRA 20", fill=255, font_size=18)
    image = np.asarray(picture, np.float32) / 255
    marks = burnt_in_marks(image, np.ones(image.shape, bool))
    assert marks[image > 0.9].mean() > 0.95
    assert marks.mean() < 0.03


def test_saturated_lung_is_no_mark():
    image = angiogram(SIZE, SIZE)
    r, c = np.mgrid[:SIZE, :SIZE] / SIZE
    lung = ndimage.gaussian_filter(((r - 0.2) ** 2 + (c - 0.8) ** 2 < 0.04**2).astype(float), 4) * 2
    image = np.clip(image + lung, 0, 1).astype(np.float32)
    assert (image == 1).any() and not burnt_in_marks(image, np.ones(image.shape, bool)).any()


def test_real_frames(shared_data):
    """Figures read off the pictures by eye: the black bars and blades are outside, the vessels inside."""
    def area(name):
        return valid_area(np.asarray(Image.open(shared_data / f"arcade/images/{name}.png"), np.float32) / 255)

    bars = area("158")
    assert not bars[:, :62].any() and not bars[:, 455:].any() and bars[60:480, 90:440].all()
    assert not area("193")[:, :8].any() and area("193")[40:470, 40:480].all()
    assert area("176").mean() > 0.99 and area("5").mean() > 0.98
    assert area("61")[20:480, 40:480].all()  # the dark spine at the right is anatomy
