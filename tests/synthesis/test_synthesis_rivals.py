# SPDX-License-Identifier: Apache-2.0
"""Rivals of synthesis: losses against their formulas, composition, bank of samples, training by one command each."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from licag3d.command import BAD_INPUT, status_of
from licag3d.data.contrast_bank import SampleBank
from licag3d.data.contrast_pairs import PairPool
from licag3d.data.contrast_samples import PairSettings, PairStream
from licag3d.errors import InputError
from licag3d.losses import casgan, cyclegan
from licag3d.losses.synthesis_rivals import DIFFERENCE, constant_mask_loss, pix2pix_loss
from licag3d.metrics.synthesis import view_of
from licag3d.models.casgan import load_casgan
from licag3d.models.synthesis_rivals import METHODS, RivalConfig, build, config_from, drawing_part, load_rival
from licag3d.models.synthesis_rivals import synthesise as synthesise_rival
from licag3d.models.virtual_contrast import load_synthesiser
from licag3d.train import casgan as casgan_training
from licag3d.train.__main__ import main
from licag3d.train.synthesis_rivals import METHODS as TRAINED
from licag3d.train.synthesis_rivals import PAIRED, loss_of

SMALL = {"channels": 4, "blocks": 1, "patch_channels": 4, "size": 32, "buffer": 3}


def small(method):
    torch.manual_seed(0)
    return build(RivalConfig(method, **SMALL))


def batch(seed=0):
    noise = torch.Generator().manual_seed(seed)
    found = {key: torch.rand(2, 1, 32, 32, generator=noise) for key in ("x", "y", "attenuation")}
    vessel = (torch.rand(2, 1, 32, 32, generator=noise) > 0.8).float()
    ones = torch.ones(2, 1, 32, 32)
    return found | {"vessel": vessel, "weight": ones, "valid": ones, "known": torch.ones(2, 1, 1, 1)}


@pytest.mark.parametrize("method", METHODS)
def test_every_part_is_trained_and_nothing_drawn_means_the_frame_itself(method):
    model = small(method)
    part = drawing_part(model)
    image = np.random.default_rng(0).uniform(0.02, 0.98, (45, 61)).astype(np.float32)
    if method == "constant-mask":
        with torch.no_grad():
            part.generator.out.bias.fill_(-60.0)
    made, drawn = synthesise_rival(part, image, 0.2, 0.4)  # new translations are the identity
    assert made.shape == drawn.shape == image.shape and np.allclose(made, image, atol=1e-5) and drawn.max() < 1e-4
    model = small(method).train()
    for name, parameter in model.named_parameters():
        if "out.weight" in name:  # or nothing behind it would be reached in the first step
            torch.nn.init.normal_(parameter, std=0.1)
    total, numbers = loss_of(method)(model, batch(), 0)
    total.backward()
    assert torch.isfinite(total) and not [name for name, p in model.named_parameters() if p.grad is None]
    assert ("spread" in numbers) == (method != "constant-mask")


def test_pix2pix_is_its_formula():
    model, data = small("pix2pix"), batch()
    data["valid"] = torch.zeros(2, 1, 32, 32)
    data["valid"][..., :16] = 1
    total, numbers = pix2pix_loss(model, data)
    with torch.no_grad():
        made = model.forth(data["x"])
        fake, real = (model.judge(torch.cat((data["x"], other), 1)) for other in (made, data["y"]))
    assert float(numbers["gan"]) == pytest.approx(float((fake - 1).square().mean()), rel=1e-4)
    expected = 0.5 * float((real - 1).square().mean() + fake.square().mean())
    assert float(numbers["judge"]) == pytest.approx(expected, rel=1e-4)
    difference = float((made - data["y"])[..., :16].abs().mean())
    assert float(numbers["difference"]) == pytest.approx(difference, rel=1e-4)
    assert float(total.detach()) == pytest.approx(float(numbers["gan"]) + DIFFERENCE * difference + expected, rel=1e-4)


def test_constant_mask_darkens_all_vessels_alike_and_learns_how_much():
    model, data = small("constant-mask"), batch()
    data["attenuation"] = torch.full_like(data["x"], 0.7)
    with torch.no_grad():
        model.generator.out.weight.mul_(100)
    drawn = model.draw(data["x"])
    assert (drawn.image <= data["x"]).all()
    ratio = (data["x"] / drawn.image).log()[drawn.attention > 0.7]
    assert len(ratio) and torch.allclose(ratio, model.depth.expand_as(ratio), atol=1e-3)
    optimiser = torch.optim.Adam([model.raw_depth], 0.1)
    for _ in range(60):
        optimiser.zero_grad()
        constant_mask_loss(model, data)[0].backward()
        optimiser.step()
    assert float(model.depth) == pytest.approx(0.7, abs=0.05)


def test_a_bank_holds_the_samples_of_its_stream(pair_pools, tmp_path):
    pool, look = PairPool(pair_pools / "pool"), PairSettings(size=32, scale_mm=(0.5, 0.6))
    stream, file = PairStream(pool, 3, look), tmp_path / "bank.safetensors"
    bank = SampleBank.of(stream, 4, file)
    one = bank.batch(5, 3)
    assert all(torch.equal(value, bank.batch(5, 3)[key]) for key, value in one.items())
    wanted = [stream.sample(k)["x"].half().float() for k in range(4)]
    for x in one["x"]:
        assert any(torch.equal(x, w) or torch.equal(x, w.flip(-1)) for w in wanted)
    written = file.stat().st_mtime_ns
    again = SampleBank.of(stream, 4, file)
    assert file.stat().st_mtime_ns == written and torch.equal(again.samples["y"], bank.samples["y"])
    other = SampleBank.of(PairStream(pool, 4, look), 4, file)  # other samples: made anew
    assert file.stat().st_mtime_ns != written and not torch.equal(other.samples["x"], bank.samples["x"])
    apart = SampleBank(bank.samples, paired=False, seed=3)
    for step in range(4):
        mixed = apart.batch(step, 2)
        for x, y in zip(mixed["x"], mixed["y"], strict=True):
            (own,) = [k for k in range(4) if any(torch.equal(v, bank.samples["x"][k].float()) for v in (x, x.flip(-1)))]
            assert not any(torch.equal(v, bank.samples["y"][own].float()) for v in (y, y.flip(-1)))
    with pytest.raises(InputError, match="2 to"):
        SampleBank.of(stream, 1)
    with pytest.raises(InputError, match="paired samples"):
        SampleBank.of(PairStream(pool, 3, replace(look, paired=False)), 4)
    file.write_bytes(b"no bank")
    with pytest.raises(InputError, match="cannot be read"):
        SampleBank.of(stream, 4, file)


@pytest.fixture()
def flags(pair_pools, tmp_path, monkeypatch):
    def quick(model, pairs, draw=None):
        image = pairs[0].images[0].astype(np.float32) / 255
        made, _ = draw(model, image, pairs[0].before.mm_per_pixel, 0.4)
        assert made.shape == image.shape and np.isfinite(made).all()
        return {"score": float(np.abs(made - image).mean())}

    real = casgan_training.validate
    monkeypatch.setattr(casgan_training, "validate", lambda m, p, d=None: quick(m, p, d) if d else real(m, p))
    given = ["synthesis-rivals", "--pool", str(pair_pools / "pool"), "--validation", str(pair_pools / "checked")]
    given += ["--size", "32", "--batch", "2", "--save-every", "2", "--validate-every", "4", "--channels", "4"]
    given += ["--blocks", "1", "--bank", "4", "--bank-file", str(tmp_path / "bank.safetensors")]
    return [*given, "--device", "cpu", "--threads", "1", "--precision", "fp32", "--rate", "0.01"]


@pytest.mark.parametrize("method", TRAINED)
def test_training_by_one_command_and_use(flags, tmp_path, method, capsys):
    run = tmp_path / "run"
    assert status_of(main, [*flags, "--method", method, "--steps", "3", "--out", str(run)]) == 0
    assert f"{method}" in capsys.readouterr().out
    if method == "attentiongan":
        file = run / "casgan.safetensors"
        assert load_casgan(str(file))[1]["row"] == "-G-"
    else:
        file = run / "synthesis_rival.safetensors"
        facts = load_rival(str(file))[1]
        assert facts["config"]["method"] == method and facts["paired"] == (method in PAIRED)
        assert facts["data"]["bank"] == 4
    image = np.random.default_rng(0).uniform(0.2, 0.8, (64, 64)).astype(np.float32)
    made = load_synthesiser(str(file))(view_of(image, 0.3))
    assert made.angiogram.shape == image.shape and 0 <= made.angiogram.min() and made.angiogram.max() <= 1


def test_resumed_run_is_that_of_one_go(flags, tmp_path):
    flags = [*flags, "--method", "pix2pix", "--steps", "4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert status_of(main, [*flags, "--out", str(whole)]) == 0
    assert status_of(main, [*flags, "--out", str(parts), "--minutes", "0.00001"]) == 0
    assert status_of(main, [*flags, "--out", str(parts), "--resume"]) == 0
    last = [json.loads((run / "curves.jsonl").read_text().splitlines()[-1]) for run in (whole, parts)]
    assert last[0]["validation"] == last[1]["validation"]


def test_collapse_and_bad_flags(flags, tmp_path, capsys, monkeypatch):
    class Impatient(cyclegan.SpreadWatch):
        def __init__(self):
            super().__init__(low=99.0, patience=2)

    monkeypatch.setattr(cyclegan, "SpreadWatch", Impatient)
    run = [*flags, "--method", "pix2pix", "--steps", "9", "--out", str(tmp_path / "flat")]
    assert status_of(main, run) == BAD_INPUT
    assert "collapsed at step 2" in capsys.readouterr().err

    class Dead(casgan.AttentionWatch):
        def __init__(self):
            super().__init__(low=2.0, patience=2)

    monkeypatch.setattr(casgan, "AttentionWatch", Dead)
    run = [*flags, "--method", "constant-mask", "--steps", "9", "--out", str(tmp_path / "dead")]
    assert status_of(main, run) == BAD_INPUT
    assert "the attention is zero everywhere" in capsys.readouterr().err
    for wrong in (
        ["--method", "identity"],
        ["--method", "cut", "--size", "33"],
        ["--method", "cut", "--channels", "0"],
    ):
        assert status_of(main, [*flags, "--steps", "1", "--out", str(tmp_path / "x"), *wrong]) == BAD_INPUT
        assert capsys.readouterr().err.count("\n") <= 4
    small_bank = [flag if flag != "4" else "1" for flag in flags]
    assert status_of(main, [*small_bank, "--method", "cut", "--out", str(tmp_path / "y")]) == BAD_INPUT


def test_configuration_comes_back_and_is_checked():
    config = RivalConfig("cut", channels=8)
    assert config_from(config.__dict__, "x") == config
    with pytest.raises(InputError, match="no configuration"):
        config_from({"method": "cut"}, "x")
    for wrong in ({"method": "paint"}, {"channels": 1000}, {"buffer": -1}):
        with pytest.raises(InputError):
            RivalConfig(**wrong)
