# SPDX-License-Identifier: Apache-2.0
"""The keyframe command on real cines and on what it must refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest

from licag3d.command import status_of
from licag3d.keyframe import main


def test_two_real_cines(shared_data, tmp_path, capsys):
    folder = shared_data / "xa-phantom"
    if not folder.is_dir():
        pytest.skip("the cines of an X-ray phantom are not there")
    out, scores = tmp_path / "strip.png", tmp_path / "scores.json"
    files = [str(folder / f"view{k}.dcm") for k in (1, 2)]
    assert status_of(main, [*files, "--candidates", "2", "--out", str(out), "--json", str(scores)]) == 0
    found = json.loads(scores.read_text())
    assert [cine["frames"] for cine in found["cines"]] == [14, 12]
    assert len(found["pairs"]) == 4 and found["pairs"][0]["matched"] > 0.8
    text = capsys.readouterr().out
    assert f"view1.dcm#{found['cines'][0]['key_frame']}" in text.splitlines()[-1]
    assert out.stat().st_size > 10_000


def test_one_cine_of_rising_contrast(tmp_path, capsys):
    import imageio.v3 as iio

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    line = np.exp(-((y - 48 - 12 * np.sin(x / 15)) ** 2) / 8)
    filling = (0, 0, 0, 0.3, 0.8, 1, 1, 0.6, 0.2)
    stack = [np.clip(180 - 90 * f * line + rng.normal(0, 2, line.shape), 0, 255).astype(np.uint8) for f in filling]
    iio.imwrite(tmp_path / "cine.tif", np.stack(stack))
    assert status_of(main, [str(tmp_path / "cine.tif"), "--out", str(tmp_path / "s.png")]) == 0
    text = capsys.readouterr().out
    assert "key frame 5" in text or "key frame 6" in text
    nowhere = ["--json", str(tmp_path / "none" / "s.json")]
    assert status_of(main, [str(tmp_path / "cine.tif"), "--out", str(tmp_path / "s.png"), *nowhere]) == 2
    assert "--json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a.dcm", "b.dcm", "c.dcm"], "give one or two"),
        (["a.dcm", "--candidates", "0"], "--candidates is 0"),
        (["a.dcm", "--range-mm", "500"], "--range-mm is 500"),
        (["none.dcm"], "none.dcm"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert status_of(main, arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_still_picture_is_refused(tmp_path, capsys):
    import imageio.v3 as iio

    iio.imwrite(tmp_path / "one.png", np.tile(np.arange(96, dtype=np.uint8), (96, 1)))
    assert status_of(main, [str(tmp_path / "one.png"), "--out", str(tmp_path / "s.png")]) == 2
    assert "one frame" in capsys.readouterr().err and not (tmp_path / "s.png").exists()
