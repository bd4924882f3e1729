# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.segment``: files, names, exit status."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from licag3d import segment
from licag3d.command import BAD_INPUT, status_of


@pytest.fixture()
def frame_file(tmp_path):
    rows, cols = np.mgrid[:160, :180].astype(float)
    p = 0.14 * np.sqrt(np.maximum(5.0**2 - (rows - 40 - 0.4 * cols) ** 2, 0))
    rng = np.random.default_rng(0)
    path = tmp_path / "case" / "frame.png"
    path.parent.mkdir()
    Image.fromarray(np.clip(170 * np.exp(-p) + rng.normal(0, 3, p.shape), 0, 255).astype(np.uint8)).save(path)
    return path


def test_writes_three_files_of_the_size_of_the_input(frame_file, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--out", str(out), "--device", "cpu", "--evidence", "classical"]
    assert status_of(segment.main, [str(frame_file), *flags]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["frame_overlay.png", "frame_projection.tif", "frame_vessel.png"]
    probability = np.asarray(Image.open(out / "frame_vessel.png"))
    projection = np.asarray(Image.open(out / "frame_projection.tif"))
    assert probability.shape == projection.shape == (160, 180)
    assert probability.dtype == np.uint8 and projection.dtype == np.float32
    assert probability[76, 90] > 200 and probability[20, 150] == 0
    assert projection[76, 90] > 0 and projection[20, 150] == 0
    assert np.asarray(Image.open(out / "frame_overlay.png")).shape == (160, 180, 3)
    assert "frame: vessels on" in capsys.readouterr().out


def test_folder_is_listed_and_other_files_skipped(frame_file):
    (frame_file.parent / "notes.txt").write_text("not an image")
    (frame_file.parent / ".hidden.png").write_bytes(frame_file.read_bytes())
    (frame_file.parent / "other.png").write_bytes(frame_file.read_bytes())
    assert [f.rsplit("/", 1)[-1] for f in segment.list_inputs([str(frame_file.parent)])] == ["frame.png", "other.png"]


def test_equal_names_are_told_apart():
    assert segment.output_names(["a.png", "b.png"]) == ["a", "b"]
    assert segment.output_names(["x/a.dcm#3", "x/a.dcm#8"]) == ["a_3", "a_8"]
    assert segment.output_names(["a.png", "a.tif"]) == ["a_png", "a_tif"]
    assert segment.output_names(["x/a.png", "y/a.png", "y/A.png"]) == ["a_png", "a_png_2", "A_png_3"]


@pytest.mark.parametrize("arguments", [["missing.png"], ["{folder}"], ["{frame}", "--weights", "none.safetensors"],
                                       ["{text}"]])
def test_bad_input_is_one_line_and_writes_nothing(arguments, frame_file, tmp_path, capsys):
    empty, text = tmp_path / "empty", tmp_path / "text.png"
    empty.mkdir()
    text.write_text("hello")
    given = [a.format(folder=empty, frame=frame_file, text=text) for a in arguments]
    out = tmp_path / "out"
    assert status_of(segment.main, [*given, "--out", str(out)]) == BAD_INPUT
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not out.exists() or not any(out.iterdir())
