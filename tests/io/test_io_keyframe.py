# SPDX-License-Identifier: Apache-2.0
"""The key frame of made-up and of real cines."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image
from xa_files import angiogram, write_xa

from licag3d.io.keyframe import contrast_free_background, filling_score, find_key_frame, write_frame_strip
from licag3d.io.views import read_views

FILLING = [0, 0, 0, 0.25, 0.5, 0.8, 1.0, 1.0, 1.0, 0.8, 0.5, 0.2]


def heart(frame: int, side: int = 256) -> np.ndarray:
    """A frame of a made-up cine: contrast comes and goes, noise differs, the heart moves."""
    motion = 0.01 * np.sin(2 * np.pi * frame / 8)
    picture = angiogram(side, side, filling=FILLING[frame], seed=frame, shift=motion)
    r, c = np.mgrid[:side, :side] / side
    catheter = np.exp(-((c - 0.1 - 0.02 * np.sin(3 * r)) ** 2) / (2 * 0.012**2))
    return (picture * (1 - 0.3 * catheter)).astype(np.float32)


@pytest.fixture(scope="module")
def cine() -> np.ndarray:
    return np.stack([heart(k) for k in range(len(FILLING))])


def reader(frames):
    return lambda numbers: (frames[k] for k in numbers)


def test_fullest_frame_is_found(cine):
    key = find_key_frame(reader(cine), len(cine))
    assert key.frame in (6, 7, 8)
    assert key.scores.shape == key.motion.shape == (12,)
    order = key.scores[[0, 3, 4, 5, 6]]
    assert (np.diff(order) > 0).all()
    assert key.before == (0, 1, 2)


def test_noise_is_no_contrast(cine):
    noisy = cine.copy()
    rng = np.random.default_rng(0)
    noisy[2] = np.clip(noisy[2] + rng.normal(0, 0.12, noisy[2].shape), 0, 1)
    assert find_key_frame(reader(noisy), len(noisy)).frame in (6, 7, 8)


def test_least_motion_among_equally_filled_frames(cine):
    still = np.repeat(cine[6:7], 8, 0)
    for k in (0, 1, 2, 6, 7):
        still[k] = np.roll(still[k], 3 * (-1) ** k, 0)
    key = find_key_frame(reader(still), 8)
    assert key.frame == 4 and key.before == ()


def test_collimator_does_not_count(cine):
    framed = cine.copy()
    framed[:, :24] = 0.05
    framed[:, :, -24:] = 0.05
    assert find_key_frame(reader(framed), len(framed)).frame in (6, 7, 8)


def test_score_of_a_picture_without_vessels_is_near_zero():
    valid = np.ones((256, 256), bool)
    assert filling_score(angiogram(256, 256, filling=0).astype(np.float32), valid) < 0.1
    assert filling_score(angiogram(256, 256, filling=1).astype(np.float32), valid) > 5
    assert filling_score(np.zeros((64, 64), np.float32), np.zeros((64, 64), bool)) == 0


def test_background(cine):
    key = find_key_frame(reader(cine), len(cine))
    valid = np.ones(cine[0].shape, bool)
    background = contrast_free_background(reader(cine), key, cine[key.frame], valid)
    assert background.dtype == np.float32
    assert np.abs(background - cine[:3].mean(0)).mean() < 0.01
    moved = cine.copy()
    moved[:3] = np.roll(cine[:3], 90, 1)[:, ::-1]  # another anatomy before the contrast: not a background
    assert contrast_free_background(reader(moved), key, cine[key.frame], valid) is None


def test_through_a_dicom_cine(tmp_path, cine):
    path = write_xa(tmp_path / "a.dcm", (cine * 255).round().astype(np.uint8))
    (view,), notes = read_views([str(path)])
    assert view.frame in (6, 7, 8) and view.background is not None and len(view.scores) == 12
    assert any(f"Frame {view.frame} of 0 to 11 was chosen" in note for note in notes)
    assert np.abs(view.image - cine[view.frame]).max() < 0.01
    (view,), _ = read_views([f"{path}#4"])
    assert view.frame == 4 and view.scores is None and view.background is None


def test_long_cines_are_scored_in_steps(cine):
    frames, asked = 600, []

    def decode(numbers):
        for k in numbers:
            asked.append(k)
            yield small[min(11, k * 12 // frames)]

    small = cine[:, ::2, ::2]
    key = find_key_frame(decode, frames)
    assert len(asked) <= 210 and 250 <= key.frame < 450 and key.scores.shape == (600,)


def test_two_frames(cine):
    assert find_key_frame(reader(cine[[0, 6]]), 2).frame == 1


def test_speed():
    frames = np.repeat(heart(6, 512)[None], 15, 0)
    start = time.process_time()
    find_key_frame(reader(frames), 15)
    assert time.process_time() - start < 6  # about 1 s


def test_real_cines(shared_data):
    """The phantom is filled in every frame; in frame 0 the exposure has not settled: noisy, and never the key frame."""
    for name in ("view1", "view2"):
        (view,), _ = read_views([str(shared_data / f"xa-phantom/{name}.dcm")])
        assert view.frame >= 2
        assert view.scores[0] < 0.8 * view.scores[1:].min()
        assert view.scores[2:].std() < 0.05 * view.scores[2:].mean()


def test_frame_strip(tmp_path, cine):
    path = tmp_path / "strip.png"
    write_frame_strip(path, list(cine), [str(k) for k in range(12)], 6, side_px=100)
    picture = np.asarray(Image.open(path)).astype(int)
    assert picture.shape == (3 * 116, 500, 3)
    yellow = (picture[..., 0] > 200) & (picture[..., 1] > 200) & (picture[..., 2] < 60)
    rows, cols = np.nonzero(yellow)
    # second line, second column
    assert 116 <= rows.min() and rows.max() < 232 and 100 <= cols.min() and cols.max() < 200
    assert [p.name for p in tmp_path.iterdir()] == ["strip.png"]
