# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.encode``: files, what it says, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from licag3d import encode
from licag3d.command import status_of
from licag3d.io.write_centerlines import read_centerlines_json

EXAMPLE = Path(__file__).parents[1] / "examples" / "lca"


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Masks of two views, so that no vessels have to be found."""
    folder = tmp_path_factory.mktemp("masks")
    for k in (1, 2):
        image = imageio.imread(EXAMPLE / f"view_{k}.png")
        mask = np.zeros(image.shape[:2], np.uint8)
        for t in np.linspace(0, 1, 400):
            row, col = int(120 + 250 * t), int(200 + 120 * np.sin(2 * t + k))
            mask[row - 4 : row + 4, col - 4 : col + 4] = 255
        imageio.imwrite(folder / f"mask_{k}.png", mask)
    return [str(folder / f"mask_{k}.png") for k in (1, 2)]


def flags(out, masks, views=(1, 2)):
    return ["--views", *(str(EXAMPLE / f"view_{k}.png") for k in views), "--cameras", str(EXAMPLE / "cameras.json"),
            "--masks", *masks, "--out", str(out), "--weights", "random"]  # fmt: skip


def test_files_of_an_encoding(tmp_path, masks, capsys):
    assert status_of(encode.main, flags(tmp_path / "out", masks)) == 0
    said = capsys.readouterr().out
    assert "artery:" in said and "expected error" in said
    codes = np.load(tmp_path / "out" / "codes.npz")
    assert codes["w_plus"].shape == (16, 256) and codes["view_tuple_codes"].shape == (2, 64)
    facts = json.loads((tmp_path / "out" / "encoding.json").read_text())
    assert facts["artery"] in ("rca", "lca") and len(facts["views"]) == 2
    assert 0 <= facts["pairs"][0]["same_patient_probability"] <= 1
    tree = read_centerlines_json(tmp_path / "out" / "centerlines.json")
    assert len(tree.branches) > 3 and all(branch.name for branch in tree.branches)
    assert (tmp_path / "out" / "vessels.stl").stat().st_size > 1000
    assert imageio.imread(tmp_path / "out" / "view_2.png").ndim == 3
    assert str(EXAMPLE) not in json.dumps(facts)


def test_the_artery_can_be_given(tmp_path, masks):
    for artery in ("rca", "lca"):
        assert status_of(encode.main, [*flags(tmp_path / artery, masks), "--artery", artery]) == 0
        assert json.loads((tmp_path / artery / "encoding.json").read_text())["artery"] == artery


def test_bad_input_is_one_line_and_status_two(tmp_path, masks, capsys):
    empty = tmp_path / "empty.png"
    imageio.imwrite(empty, np.zeros((512, 512), np.uint8))
    good = flags(tmp_path / "out", masks)
    for arguments, text in (
        (["--out", str(tmp_path)], "--views"),
        ([*good[:-1], "missing"], "missing"),
        ([*good[:-1], str(empty)], ""),
        ([*good, "--artery", "left"], "--artery"),
        (["--views", str(tmp_path / "none.png"), "--out", str(tmp_path / "o")], "none.png"),
        (["--views", str(EXAMPLE / "view_1.png"), "--out", str(tmp_path / "o"), "--angles", "30"], "--angles '30'"),
    ):
        assert status_of(encode.main, arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("licag3d: error: ") and error.count("\n") == 1 and text in error
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_view_without_vessels_is_refused(tmp_path, capsys):
    blank = tmp_path / "blank.png"
    imageio.imwrite(blank, np.full((256, 256), 120, np.uint8))
    arguments = ["--views", str(blank), "--angles", "30,0", "--sid", "1000", "--sod", "750", "--pixel-spacing", "0.3",
                 "--out", str(tmp_path / "out"), "--weights", "random", "--evidence", "classical"]  # fmt: skip
    assert status_of(encode.main, arguments) == 2
    assert capsys.readouterr().err.startswith("licag3d: error: ")


def test_help_is_quick_to_read_and_names_units():
    done = subprocess.run(
        [sys.executable, "-m", "licag3d.encode", "--help"], capture_output=True, text=True, check=True
    )
    assert "mm" in done.stdout and "examples:" in done.stdout and "codes.npz" in done.stdout
