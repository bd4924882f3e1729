# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.invert``: files, exit status, and every line of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from licag3d import command, invert

EXPECTED = {
    "vessels.stl",
    "attenuation.nii.gz",
    "labels.nii.gz",
    "labels.txt",
    "centerlines.json",
    "centerlines.vtp",
    "cameras.json",
    "view_1.png",
    "view_2.png",
    "report.html",
    "result.json",
}
GEOMETRY = ["--angles", "-30,0", "35,10", "--sid", "1000", "--sod", "750", "--pixel-spacing", "0.6"]


@pytest.fixture(scope="module")
def views(tmp_path_factory) -> list[str]:
    """A small simulated pair as 8-bit PNG with masks."""
    from licag3d.phantom.simulate_case import simulate_case

    folder = tmp_path_factory.mktemp("views")
    case = simulate_case(4, "rca", offset_mm=5, rows=256, cols=256)
    for k, view in enumerate(case.views, 1):
        Image.fromarray(view.image).save(folder / f"v{k}.png")
        Image.fromarray(view.mask.astype(np.uint8) * 255).save(folder / f"m{k}.png")
    from licag3d.io.cameras import write_cameras_json

    (folder / "cameras.json").write_text(write_cameras_json(case.user_cameras, ["v1.png", "v2.png"], [None, None]))
    return [str(folder / "v1.png"), str(folder / "v2.png")]


def _run(arguments: list[str]) -> int:
    return command.status_of(invert.main, arguments)


def test_writes_every_promised_file(views, tmp_path, capsys):
    folder = Path(views[0]).parent
    out = tmp_path / "out"
    status = _run(
        [
            "--views",
            *views,
            "--cameras",
            str(folder / "cameras.json"),
            "--masks",
            str(folder / "m1.png"),
            str(folder / "m2.png"),
            "--quality",
            "fast",
            "--spacing",
            "1.0",
            "--out",
            str(out),
        ]
    )
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert {path.name for path in out.iterdir()} == EXPECTED  # nothing else, not even the resume folder
    assert str(out / "vessels.stl") in printed.out and str(out / "report.html") in printed.out
    summary = json.loads((out / "result.json").read_text())
    assert str(folder) not in json.dumps(summary)  # folders may name patients
    again = tmp_path / "again"
    status = _run(
        [
            "--views",
            *views,
            "--cameras",
            str(out / "cameras.json"),
            "--masks",
            str(folder / "m1.png"),
            str(folder / "m2.png"),
            "--quality",
            "fast",
            "--spacing",
            "1.0",
            "--camera-correction",
            "none",
            "--out",
            str(again),
            "--quiet",
        ]
    )
    assert status == 0, capsys.readouterr().err
    assert json.loads((again / "cameras.json").read_text()) == json.loads((out / "cameras.json").read_text())


def _bad(tmp_path: Path, views: list[str]) -> dict[str, tuple[list[str], str]]:
    text = tmp_path / "notes.png"
    text.write_text("not a picture")
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(views[0]).read_bytes()[:2000])
    colour = tmp_path / "colour.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(colour)
    large = tmp_path / "large.png"
    _huge_png(large)
    broken = tmp_path / "cameras.json"
    broken.write_text('{"views": [{"primary_deg": 30,\n "secondary_deg": "up"}]}')
    blank = tmp_path / "blank.png"
    Image.fromarray(np.full((256, 256), 128, np.uint8)).save(blank)
    a, b = views
    return {
        "missing": ([a, "missing.png", *GEOMETRY], "missing.png"),
        "empty": ([a, str(empty), *GEOMETRY], "empty"),
        "text": ([a, str(text), *GEOMETRY], "notes.png"),
        "truncated": ([a, str(cut), *GEOMETRY], "cut.png"),
        "colour photograph": ([a, str(colour), *GEOMETRY], "colour"),
        "huge": ([a, str(large), *GEOMETRY], "20000"),
        "same view twice": ([a, a, *GEOMETRY], "same"),
        "no vessel": ([a, str(blank), *GEOMETRY], "blank.png"),
        "frame out of range": ([a + "#7", b, *GEOMETRY], "frame"),
        "one camera for two views": (
            [a, b, "--angles", "30,0", "--sid", "1000", "--sod", "750", "--pixel-spacing", "0.6"],
            "2",
        ),
        "SID below SOD": (
            [a, b, "--angles", "-30,0", "30,0", "--sid", "700", "--sod", "750", "--pixel-spacing", "0.6"],
            "SID",
        ),
        "spacing zero": (
            [a, b, "--angles", "-30,0", "30,0", "--sid", "1000", "--sod", "750", "--pixel-spacing", "0"],
            "spacing",
        ),
        "angle 400": (
            [a, b, "--angles", "-30,0", "400,0", "--sid", "1000", "--sod", "750", "--pixel-spacing", "0.6"],
            "400",
        ),
        "angle nan": (
            [a, b, "--angles", "-30,0", "nan,0", "--sid", "1000", "--sod", "750", "--pixel-spacing", "0.6"],
            "nan",
        ),
        "broken cameras": ([a, b, "--cameras", str(broken)], "secondary_deg"),
        "unknown prior": ([a, b, *GEOMETRY, "--prior", "weights.safetensors"], "--prior"),
        "synthesis": ([a, b, *GEOMETRY, "--synthesize", "--synthesis-weights", "no.safetensors"], "no.safetensors"),
        "spacing of volume": ([a, b, *GEOMETRY, "--spacing", "0"], "--spacing"),
        "unknown flag": ([a, b, *GEOMETRY, "--fast"], "--fast"),
    }


CASES = [
    "missing",
    "empty",
    "text",
    "truncated",
    "colour photograph",
    "huge",
    "same view twice",
    "no vessel",
    "frame out of range",
    "one camera for two views",
    "SID below SOD",
    "spacing zero",
    "angle 400",
    "angle nan",
    "broken cameras",
    "unknown prior",
    "synthesis",
    "spacing of volume",
    "unknown flag",
]


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_line_and_nothing_is_written(name, views, tmp_path, capsys):
    arguments, word = _bad(tmp_path, views)[name]
    out = tmp_path / "out"
    assert _run(["--views", *arguments, "--out", str(out), "--quiet"]) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("licag3d: error: "), printed.err
    assert word in lines[0]
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize("there", [False, True])
def test_input_that_fails_late_leaves_no_folder_that_was_not_there(there, views, tmp_path, capsys, monkeypatch):
    from licag3d.errors import InputError
    from licag3d.inversion.state import StageStore

    def fails(*args, resume_folder, **kwargs):
        StageStore(resume_folder, "key", resume=False).save("evidence", {"a": np.zeros(3)}, {})
        raise InputError("no vessel could be matched")

    monkeypatch.setattr("licag3d.inversion.pipeline.reconstruct", fails)
    out = tmp_path / "out"
    if there:
        out.mkdir()
    assert _run(["--views", *views, *GEOMETRY, "--out", str(out), "--quiet"]) == 2
    assert "no vessel could be matched" in capsys.readouterr().err
    assert out.exists() == there and (not there or not any(out.iterdir()))


def test_unwritable_folder(views, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    assert _run(["--views", *views, *GEOMETRY, "--out", str(blocked / "out")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_help_loads_nothing_heavy():
    """What makes --help slow is what it imports; the time itself depends on the machine."""
    program = (
        "import sys\nimport licag3d\nfrom licag3d import invert\n"
        "try:\n    invert.main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'scipy', 'skimage', 'pymoo', 'pydicom', 'SimpleITK', 'trimesh', 'kornia', 'PIL', 'rich'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert "--camera-correction" in done.stdout


def _huge_png(path: Path) -> None:
    """A PNG header that claims 20000 x 20000 pixels, with almost no data behind it."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
