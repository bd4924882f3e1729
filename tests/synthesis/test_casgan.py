# SPDX-License-Identifier: Apache-2.0
"""CAS-GAN: composition, switches, losses against their formulas, collapse, training and the ablation by one command."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from licag3d.command import BAD_INPUT, status_of
from licag3d.errors import InputError
from licag3d.losses import casgan as losses
from licag3d.losses.casgan import AREA, SOURCES, AttentionWatch, CasganWeights, area_loss, casgan_loss, to_fake, to_real
from licag3d.models.casgan import OPEN, CasGan, CasganConfig, ablation_rows, config_from, fuse, load_casgan, synthesise
from licag3d.train import casgan as training
from licag3d.train.__main__ import main

SMALL = {"channels": 4, "patch_channels": 4, "blocks": 1}


def small(**switches):
    torch.manual_seed(0)
    return CasGan(CasganConfig(**SMALL, **switches))


def frames(count=2, size=32, seed=0):
    noise = torch.Generator().manual_seed(seed)
    return {"x": torch.rand(count, 1, size, size, generator=noise), "y": torch.rand(count, 1, size, size)}


def a_map(pictures):
    """A stand-in for the frozen segmentor."""
    return (1 - pictures).square()


def test_fusion_and_attenuation_are_their_formulas():
    x, attention, raw = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    image, a, c = fuse(x, attention, raw, "fusion")
    assert torch.allclose(image, x * (1 - a) + torch.sigmoid(raw) * a) and torch.equal(a, attention)
    dark, a, c = fuse(x, attention, raw, "attenuate")
    assert (c >= 0).all() and (dark <= x).all() and torch.allclose(dark, x * torch.exp(-a * c))
    for composition in ("fusion", "attenuate"):
        kept, _, _ = fuse(x, torch.zeros_like(x), raw, composition)
        assert torch.equal(kept, x)  # without attention nothing is touched


def test_eight_rows_have_the_parts_their_switches_say():
    rows = ablation_rows()
    assert len(set(rows)) == 8 and rows[0] == (False, False, False) and rows[-1] == (True, True, True)
    names = []
    for drl, vsgg, vsgl in rows:
        model = small(drl=drl, vsgg=vsgg, vsgl=vsgl)
        assert hasattr(model, "predictor") == hasattr(model, "vessel_encoder") == drl
        assert hasattr(model, "attention_generator") == vsgg != hasattr(model, "image_generator")
        assert hasattr(model, "semantic_discriminator") == vsgl
        drawn = model(frames()["x"])
        assert drawn.image.shape == (2, 1, 32, 32) and (drawn.attention is not None) == vsgg
        total, numbers, _ = casgan_loss(model, frames(), a_map if vsgl else None, CasganWeights())
        total.backward()
        assert torch.isfinite(total)
        assert ("prediction" in numbers) == ("cycle_latent" in numbers) == drl
        assert ("gan_semantic" in numbers) == ("judge_semantic" in numbers) == vsgl
        unused = [name for name, p in model.named_parameters() if p.grad is None]
        assert not unused, f"never trained: {unused}"
        names.append(model.config.row)
    assert names[0] == "---" and names[-1] == "DGL" and names[5] == "D-L"


def test_generators_and_discriminators_learn_from_their_own_terms_only():
    model, batch = small(), frames()
    only_generators = CasganWeights()
    total, numbers, _ = casgan_loss(model, batch, a_map, only_generators)
    total.backward()
    seen = {name: p.grad.clone() for name, p in model.named_parameters()}
    # The judges' gradients are those of the judgement alone: weights of the generator's terms do not move them.
    model.zero_grad()
    zero = CasganWeights(0, 0, 0, 0, 0, 0, 0, 0, 0)
    total, _, _ = casgan_loss(model, batch, a_map, zero)
    total.backward()
    for name, parameter in model.named_parameters():
        if "discriminator" in name:
            assert torch.allclose(parameter.grad, seen[name], atol=1e-6), name
        else:
            assert parameter.grad is None or not parameter.grad.any(), name
    terms = sum(getattr(only_generators, k) * float(v) for k, v in numbers.items() if hasattr(only_generators, k))
    judged = sum(float(v) for k, v in numbers.items() if k.startswith("judge_"))
    first, _, _ = casgan_loss(model, batch, a_map, only_generators)
    assert float(first.detach()) == pytest.approx(terms + judged, rel=1e-4)


def test_flat_crops_have_finite_gradients():
    model = CasGan(CasganConfig(channels=8, patch_channels=8))
    batch = {"x": torch.zeros(2, 1, 32, 32), "y": torch.full((2, 1, 32, 32), 0.5)}
    total, _, _ = casgan_loss(model, batch, a_map, CasganWeights())
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_adversarial_forms_and_area():
    judgement = torch.tensor([0.0, 2.0])
    assert float(to_real(judgement, "least-squares")) == 1.0 and float(to_fake(judgement, "least-squares")) == 2.0
    expected = -sum(math.log(1 / (1 + math.exp(-v))) for v in (0.0, 2.0)) / 2
    assert float(to_real(judgement, "log")) == pytest.approx(expected, rel=1e-6)
    assert float(to_fake(judgement, "log")) == pytest.approx(expected + 1.0, rel=1e-6)  # softplus(v) - softplus(-v) = v
    inside, flooded = torch.full((1, 1, 4, 4), 0.1), torch.ones(1, 1, 4, 4)
    assert float(area_loss(inside)) == 0 and float(area_loss(flooded)) == pytest.approx((1 - AREA[1]) / AREA[1])
    assert float(area_loss(torch.zeros(1, 1, 4, 4))) == pytest.approx(1.0)


def test_everything_open_is_marked_in_the_configuration():
    assert set(SOURCES) == set(CasganWeights().__dict__)
    for text in [*SOURCES.values(), *OPEN.values()]:
        assert "ours" in text


def test_attention_watch_names_the_collapse():
    watch = AttentionWatch(patience=3)
    for step, value in enumerate((1e-6, 1e-6, 0.1, 1e-6, 1e-6)):
        watch.look(value, step)  # never three in a row
    with pytest.raises(InputError, match="collapsed at step 6: the attention is zero"):
        watch.look(1e-6, 5)
    with pytest.raises(InputError, match="attention is one everywhere"):
        for step in range(3):
            watch.look(0.99, step)


def test_configuration_is_checked_and_comes_back():
    config = CasganConfig(drl=False, composition="attenuate", channels=8)
    assert config_from(config.__dict__, "x") == config
    with pytest.raises(InputError, match="no configuration"):
        config_from({"drl": True}, "weights.safetensors")
    for wrong in ({"composition": "paint"}, {"channels": 1000}, {"leak_noise": -1.0}):
        with pytest.raises(InputError):
            CasganConfig(**wrong)


def test_synthesis_keeps_the_frame_where_there_is_no_attention():
    model = small(composition="attenuate")
    with torch.no_grad():
        model.attention_generator.out.bias.fill_(-60.0)
    image = np.random.default_rng(0).random((45, 61)).astype(np.float32)
    made, attention = synthesise(model, image, 0.2, 0.4)
    assert made.shape == image.shape and np.allclose(made, image, atol=1e-6) and attention.max() < 1e-6


@pytest.fixture()
def flags(pair_pools):
    given = ["casgan", "--pool", str(pair_pools / "pool"), "--validation", str(pair_pools / "checked")]
    given += ["--size", "32", "--batch", "2", "--save-every", "2", "--validate-every", "2", "--channels", "4"]
    return [*given, "--device", "cpu", "--threads", "1", "--precision", "fp32"]


def last_scores(folder):
    lines = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return [line["validation"] for line in lines if "validation" in line][-1]


def test_training_smoke_resume(flags, tmp_path, capsys):
    flags = [*flags, "--steps", "4", "--rate", "0.01"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert status_of(main, [*flags, "--out", str(whole)]) == 0
    assert status_of(main, [*flags, "--out", str(parts), "--minutes", "0.00001"]) == 0
    assert "stopped at the time limit" in capsys.readouterr().out
    assert status_of(main, [*flags, "--out", str(parts), "--resume"]) == 0
    assert last_scores(whole) == last_scores(parts)
    model, facts = load_casgan(str(whole / "casgan.safetensors"))
    assert facts["row"] == "DGL" and facts["sources"]["cycle_image"].startswith("not published; ours")
    assert not model.training and facts["data"]["frames"] == 3
    with pytest.raises(InputError, match="not of a CAS-GAN"):
        from licag3d.train.checkpoints import save_weights

        save_weights(tmp_path / "other.safetensors", torch.nn.Linear(2, 2), {"model": "segmentor"})
        load_casgan(str(tmp_path / "other.safetensors"))


def test_collapse_stops_the_training_and_keeps_the_best_checkpoint(flags, tmp_path, capsys, monkeypatch):
    class Impatient(AttentionWatch):
        def __init__(self):
            super().__init__(low=1.0, high=2.0, patience=3)  # any attention is too little

    monkeypatch.setattr(losses, "AttentionWatch", Impatient)
    run = [*flags, "--steps", "9", "--no-vsgl", "--out", str(tmp_path / "run")]
    assert status_of(main, run) == BAD_INPUT
    assert "training collapsed at step 3: the attention is zero everywhere" in capsys.readouterr().err
    assert (tmp_path / "run" / "best.safetensors").is_file()  # of the validation at step 2


def test_ablation_trains_all_rows_by_one_command(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "validate", lambda model, pairs: {"score": 0.5, "cldice": 0.5})
    monkeypatch.setattr(training, "frozen_vessel_map", lambda device, pixel_mm: a_map)
    run = [*flags, "--ablation", "--steps", "1", "--out", str(tmp_path)]
    assert status_of(main, run) == 0
    table = json.loads((tmp_path / "ablation.json").read_text())
    assert [line["row"] for line in table] == ["---", "--L", "-G-", "-GL", "D--", "D-L", "DG-", "DGL"]
    assert all(line["cldice"] == 0.5 for line in table) and "DGL" in capsys.readouterr().out
    assert status_of(main, [*run, "--resume"]) == 0  # rows that are there are taken as they are
    assert status_of(main, [*run, "--no-drl"]) == BAD_INPUT


def test_own_folders_without_pairs(flags, pair_pools, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("before", "after", "empty"):
        (tmp_path / name).mkdir()
    for k in range(3):
        for name, low in (("before", 0.4), ("after", 0.1)):
            rows = np.linspace(low, 0.9, 80)[:, None] + 0.1 * rng.random((80, 70 + 8 * k))
            Image.fromarray((65535 * rows.clip(0, 1)).astype(np.uint16)).save(tmp_path / name / f"{k}.png")
    own = [flag for flag in flags if flag != str(pair_pools / "pool") and flag != "--pool"]
    own += ["--contrast-free", str(tmp_path / "before"), "--no-vsgl", "--steps", "1"]
    run = [*own, "--angiograms", str(tmp_path / "after"), "--out", str(tmp_path / "run")]
    assert status_of(main, run) == 0
    assert "contrast-free: 3 frames" in capsys.readouterr().out
    facts = load_casgan(str(tmp_path / "run" / "casgan.safetensors"))[1]
    assert facts["data"] == {"source": "own folders", "frames": [3, 3]}
    empty = [*own, "--angiograms", str(tmp_path / "empty"), "--out", str(tmp_path / "run2")]
    assert status_of(main, empty) == BAD_INPUT and "--angiograms" in capsys.readouterr().err
    assert status_of(main, [*own, "--out", str(tmp_path / "x")]) == BAD_INPUT  # one domain only
    assert status_of(main, [*run[:-1], str(tmp_path / "y"), "--paired"]) == BAD_INPUT
