# SPDX-License-Identifier: Apache-2.0
"""Exit status, one-line errors and start-up time of the commands."""

from __future__ import annotations

import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from licag3d.command import Parser, add_geometry_flags, device_of, geometry_of, status_of
from licag3d.errors import InputError


def processor_seconds() -> float:
    """Of the finished child processes of this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def inspect(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "licag3d.inspect", *map(str, arguments)], capture_output=True,
                          text=True)


@pytest.fixture
def png(tmp_path) -> str:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(90, 160, (64, 80)).astype(np.uint8)).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


@pytest.mark.parametrize(("error", "status", "line"), [
    (InputError("bad\n thing"), 2, "licag3d: error: bad thing\n"), (KeyboardInterrupt(), 130, "licag3d: interrupted\n"),
    (RuntimeError("x\ny"), 1, "licag3d: error: internal error: RuntimeError: x y (run again with --debug for the "
                              "traceback)\n"),
    (MemoryError(), 1, "licag3d: error: not enough memory: use smaller views or --quality fast\n")])
def test_status_and_line(capsys, error, status, line):
    def main(argv):
        raise error

    assert status_of(main, []) == status
    assert capsys.readouterr().err == line
    assert status_of(main, ["--debug"]) == status
    shown = capsys.readouterr().err
    assert shown.endswith(line) and ("Traceback" in shown) == (status in (1, 2))


def test_status_of_success():
    assert status_of(lambda argv: None, []) == 0
    assert status_of(lambda argv: 5, []) == 5


def test_help_shows_zero_as_a_default_and_keeps_the_lines_of_examples(capsys):
    made = Parser(prog="x", description="One line.", epilog="examples:\n  x --a 1\n  x --b\n")
    made.add_argument("--a", type=int, default=0, help="number")
    made.add_argument("--b", action="store_true", help="switch")
    made.add_argument("--c", nargs="+", default=(), help="list")
    with pytest.raises(SystemExit):
        made.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert "number (default: 0)" in shown and shown.count("default") == 1
    assert shown.endswith("examples:\n  x --a 1\n  x --b\n")


def test_device_of(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_of("cpu") == device_of("auto") == "cpu"
    with pytest.raises(InputError, match="no CUDA device"):
        device_of("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device_of("cpu") == "cpu" and device_of("auto") == device_of("cuda") == "cuda"


def geometry(*arguments) -> dict:
    parser = Parser()
    add_geometry_flags(parser)
    return geometry_of(parser.parse_args(list(arguments)))


def test_geometry_flags():
    found = geometry("--angles", "30,0", "-30.5,-2", "--sid", "1000", "--sod", "default", "--pixel-spacing", "0.3",
                     "0.2")
    assert found == {"cameras": None, "angles": [(30, 0), (-30.5, -2)], "sid_mm": [1000], "sod_mm": "default",
                     "pixel_spacing_mm": [0.3, 0.2]}
    assert geometry("--cameras", "c.json")["cameras"] == "c.json" and geometry()["angles"] is None
    # Negative first, and .5 without a zero: still values, not flags.
    assert geometry("--angles", "-.5,3", "-1,-2")["angles"] == [(-0.5, 3), (-1, -2)]


@pytest.mark.parametrize(("arguments", "words"), [
    (["--angles", "30"], "--angles '30'"), (["--angles", "a,b"], "--angles 'a,b'"), (["--sid", "far"], "--sid far"),
    (["--sod", "x", "y"], "--sod x y"), (["--angels", "1,2"], "unrecognized arguments"),
    (["--sid"], "expected at least one")])
def test_wrong_flags(arguments, words):
    with pytest.raises(InputError, match=words):
        geometry(*arguments)


def test_help_is_quick_and_imports_nothing_heavy():
    best = 9.0
    for _ in range(3):
        start = processor_seconds()
        done = inspect("--help")
        best = min(best, processor_seconds() - start)
    assert done.returncode == 0 and "--pixel-spacing MM" in done.stdout and "None" not in done.stdout
    assert best < 0.5  # of the processor: what else runs on the machine does not count
    code = ("import sys, licag3d.inspect; heavy = {'torch', 'numpy', 'scipy', 'pydicom', 'PIL'} & set(sys.modules); "
            "assert not heavy, heavy")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_inspect_describes_a_picture(png, tmp_path):
    done = inspect(png, "--angles", "30,-5", "--sid", 1000, "--sod", 750, "--pixel-spacing", 0.3, "--out",
                   tmp_path / "o.png")
    assert done.returncode == 0 and done.stderr == ""
    for words in ("a.png", "PNG, 8 bit", "64 rows x 80 columns", "LAO 30", "caudal 5", "magnification 1.333", "wrote "):
        assert words in done.stdout
    assert Image.open(tmp_path / "o.png").size[0] > 100


def test_inspect_bad_input(tmp_path, png):
    (tmp_path / "text.png").write_text("no picture")
    for arguments, words in (([tmp_path / "none.png"], "does not exist"), ([tmp_path / "text.png"], "is a text file"),
                             ([], "FILE"), ([png, "--sid", "x"], "--sid x"),
                             ([png, "--out", tmp_path / "no" / "o.png"], "cannot be written")):
        done = inspect(*arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("licag3d: error: ") and words in done.stderr and "Traceback" not in done.stderr


def test_inspect_real_cines(shared_data, tmp_path):
    done = inspect(*sorted((shared_data / "xa-phantom").glob("*.dcm")), "--out", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    for words in ("LAO 31.3", "RAO 27.3", "JPEG Lossless", "SID 860 mm", "FieldOfViewDimensions"):
        assert words in done.stdout
    assert "PHANTOM" not in done.stdout  # patient names are never printed
    assert Image.open(tmp_path / "sheet.png").size[1] > 1000
