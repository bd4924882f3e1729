# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.generate``: seeds and grids, files and their marks, bad input."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from licag3d import generate
from licag3d.command import status_of
from licag3d.errors import InputError
from licag3d.models.generator import Generator, GeneratorConfig
from licag3d.models.generator_config import config_facts
from licag3d.models.samples import codes, draw, line_integrals
from licag3d.train.checkpoints import save_weights


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """Weights of a tiny generator whose field is far from constant."""
    torch.manual_seed(0)
    config = GeneratorConfig(
        z_dim=8,
        w_dim=8,
        plane_resolution=16,
        plane_channels=4,
        hidden=8,
        widths=(8, 8),
        mu_scale=0.1,
        structure=0,
        start_mu=0.04,
    )
    model = Generator(config)
    with torch.no_grad():
        model.field.weight_2.mul_(8)
    file = tmp_path_factory.mktemp("prior") / "own.safetensors"
    save_weights(file, model, {"model": "generator", "config": config_facts(config)})
    return file


def run(prior, out, *more):
    small = ["--spacing", "4", "--size", "48", "--video-size", "32", "--prior", str(prior), "--device", "cpu"]
    return generate.main([*small, "--out", str(out), *more])


def test_seed_lists():
    assert generate.parse_seeds("0-3,134") == [0, 1, 2, 3, 134]
    assert generate.parse_seeds(" 7 , 5-6 ,5") == [7, 5, 6]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "3-1", "-4", "1-2-3", "1.5", "0-99999", "9999999999", "0x10", "1;2"])
def test_bad_seed_lists_say_what_is_wrong(text):
    with pytest.raises(InputError, match="--seeds"):
        generate.parse_seeds(text)


def test_grids():
    assert generate.parse_grid("2x3", 1) == (2, 3)
    assert generate.parse_grid(None, 1) == (1, 1)
    assert generate.parse_grid(None, 5) == (2, 3)
    for text in ("2", "0x2", "2x", "99x99", "ax2"):
        with pytest.raises(InputError, match="--grid"):
            generate.parse_grid(text, 1)


def test_one_seed_fills_the_grid_with_views(prior, tmp_path):
    assert run(prior, tmp_path, "--seeds", "134", "--trunc", "0.7", "--grid", "2x2", "--artery", "rca") == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"seed0134.png", "seed0134.nii.gz", "seed0134.stl", "sheet.png", "samples.json"} == names
    sheet = imageio.imread(tmp_path / "sheet.png")
    assert sheet.shape == (98, 98)
    places = [sheet[r : r + 40, c : c + 48] for r in (0, 50) for c in (0, 50)]
    assert all(np.any(places[0] != other) for other in places[1:])
    assert b"SYNTHETIC" in (tmp_path / "seed0134.stl").read_bytes()[:80]
    assert b"Synthetic" in (tmp_path / "seed0134.png").read_bytes()
    facts = json.loads((tmp_path / "samples.json").read_text())
    assert facts["synthetic"] is True and facts["samples"][0]["seed"] == 134
    assert facts["prior_sha256"] == hashlib.sha256(prior.read_bytes()).hexdigest()


def test_the_field_on_disk_is_the_one_in_the_picture(prior, tmp_path):
    run(prior, tmp_path, "--seeds", "3", "--plain", "--angles", "30,0", "-30,20")
    import SimpleITK

    from licag3d.models.generator import load_generator
    from licag3d.models.samples import cameras_at
    from licag3d.report.samples import angiogram
    from licag3d.vessels.volume import Volume

    image = SimpleITK.ReadImage(str(tmp_path / "seed0003.nii.gz"))
    volume = Volume(SimpleITK.GetArrayFromImage(image), image.GetOrigin(), image.GetSpacing()[0])
    assert "SYNTHETIC" in image.GetMetaData("descrip")
    generator, _ = load_generator(str(prior))
    sample = draw(generator, 3, "rca", truncation=1.0, spacing_mm=4.0)
    assert np.array_equal(sample.volume.values, volume.values)
    seen = angiogram(line_integrals(volume, cameras_at([(-30, 20)], 48))[0])
    written = imageio.imread(tmp_path / "seed0003_view2.png")
    assert written.shape == (48, 48) and np.abs(written.astype(int) - seen).max() <= 1


def test_a_seed_does_not_depend_on_its_company(prior):
    from licag3d.models.generator import load_generator

    generator, _ = load_generator(str(prior))
    together = codes(generator, [5, 134], "lca")
    assert torch.allclose(codes(generator, [134], "lca")[0], together[1], atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    assert not torch.allclose(codes(generator, [134], "rca")[0], together[1], atol=1e-3)


@pytest.mark.parametrize("kind", ["turntable", "interpolation", "views"])
def test_videos(prior, tmp_path, kind):
    run(prior, tmp_path, "--seeds", "1-3", "--images-only", "--video", kind, "--frames", "3", "--nine-views")
    files = [path for path in tmp_path.iterdir() if path.stem == "video"]
    assert len(files) == 1 and not list(tmp_path.glob("*.stl"))
    frames = imageio.imread(files[0], index=None)
    assert len(frames) == 3 and np.any(frames[0] != frames[1])
    assert imageio.imread(tmp_path / "seed0001_views.png").shape == (24 * 3 + 4, 24 * 3 + 4)


def test_many_seeds_make_several_sheets(prior, tmp_path):
    run(prior, tmp_path, "--seeds", "0-2", "--images-only", "--grid", "1x2")
    assert sorted(path.name for path in tmp_path.glob("sheet*")) == ["sheet_01.png", "sheet_02.png"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seeds", "1-"], "seeds"),
        (["--seeds", "1", "--trunc", "nan"], "--trunc"),
        (["--seeds", "1", "--spacing", "0"], "--spacing"),
        (["--seeds", "1", "--angles", "200,0"], "--angles"),
        (["--seeds", "1", "--video", "interpolation"], "at least two"),
        (["--seeds", "1", "--prior", "missing.safetensors"], "missing.safetensors"),
        (["--seeds", "1", "--artery", "both"], "--artery"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(prior, tmp_path, capsys, more, said):
    out = tmp_path / "out"
    small = ["--prior", str(prior), "--spacing", "4", "--size", "32", "--out", str(out)]
    assert status_of(generate.main, [*small, *more]) == 2
    text = capsys.readouterr().err.strip()
    assert said in text and len(text.splitlines()) == 1 and "Traceback" not in text
    assert not out.exists()


def test_weights_of_another_model_are_refused(tmp_path, capsys):
    file = tmp_path / "other.safetensors"
    save_weights(file, torch.nn.Linear(2, 2), {"model": "segmentor"})
    status = status_of(generate.main, ["--seeds", "1", "--prior", str(file), "--out", str(tmp_path / "o")])
    assert status == 2 and "generator" in capsys.readouterr().err


def test_help_names_units_and_examples_without_torch():
    code = (
        "import sys; from licag3d import generate; text = generate.parser().format_help();"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules;"
        "assert '--seeds 134' in text and ' mm' in text and 'degrees' in text"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
