# SPDX-License-Identifier: Apache-2.0
"""Harmonisation: vendors, losses, buffer, collapse, vessels that stay, training, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from licag3d.command import BAD_INPUT, status_of
from licag3d.data.phantom_frames import PhantomPool
from licag3d.data.vendors import VENDORS, vendor_frame, vendor_look
from licag3d.data.vendors import main as vendors
from licag3d.errors import InputError
from licag3d.harmonize import main as harmonize
from licag3d.harmonize import matcher
from licag3d.losses import cyclegan as losses
from licag3d.losses.cyclegan import HarmonyWeights, SpreadWatch, contrastive_loss, harmony_loss, kept_vessels
from licag3d.metrics.harmonisation import style_distance, vessel_shift
from licag3d.metrics.synthesis import view_of
from licag3d.models import cyclegan as models
from licag3d.models.cyclegan import CycleGan, CycleganConfig, Translator, config_from, harmonise, translate
from licag3d.train.__main__ import main as train
from licag3d.train.checkpoints import save_weights

SMALL = {"channels": 4, "patch_channels": 4, "blocks": 1, "size": 32, "buffer": 3}


def small(**more):
    torch.manual_seed(0)
    return CycleGan(CycleganConfig(**SMALL | more))


def batch(seed=0):
    noise = torch.Generator().manual_seed(seed)
    return {"x": torch.rand(2, 1, 32, 32, generator=noise), "y": torch.rand(2, 1, 32, 32, generator=noise)}


def a_map(frames):
    """A stand-in for the frozen segmentor."""
    return (1 - frames).square()


def test_vendors_differ_and_vessels_stay(pair_pools):
    frame = PhantomPool(pair_pools / "pool").frame(0)
    seen = {}
    for vendor in VENDORS:
        look = vendor_look(np.random.default_rng(0), vendor, 96)
        assert look.display.family == vendor
        seen[vendor] = vendor_frame(frame.contrast_free, frame.contrast, look, np.random.default_rng(1), noisy=False)
        bare = vendor_frame(frame.contrast_free, 0 * frame.contrast, look, np.random.default_rng(1), noisy=False)
        assert seen[vendor].shape == (96, 96) and (seen[vendor] - bare)[frame.mask].mean() < -0.005
    assert style_distance([seen["siemens-like"]], [seen["intensifier"]]) > 0.02
    assert style_distance([seen["ge-like"]], [seen["ge-like"]]) == 0
    stress = vendor_look(np.random.default_rng(0), "ge-like", 96, strength=3.0)
    plain = vendor_look(np.random.default_rng(0), "ge-like", 96)
    assert stress.quanta < plain.quanta and stress.blur_px > plain.blur_px
    with pytest.raises(InputError, match="not known"):
        vendor_look(np.random.default_rng(0), "acme", 96)


def test_a_new_generator_is_the_identity():
    model = Translator(4, 1)
    image = np.random.default_rng(0).uniform(0.02, 0.98, (45, 61)).astype(np.float32)
    made = translate(model, image)
    assert made.shape == image.shape and np.allclose(made, image, atol=1e-5)


@pytest.mark.parametrize("method", ["cyclegan", "cut"])
def test_every_part_learns_and_terms_add_up(method):
    model, weights = small(method=method), HarmonyWeights()
    for part in (model.forth, *([model.back] if method == "cyclegan" else [])):
        torch.nn.init.normal_(part.out.weight, std=0.1)
    total, numbers = harmony_loss(model, batch(), a_map, weights)
    total.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    named = {"cyclegan": {"cycle", "identity", "judge_source"}, "cut": {"contrast"}}
    assert named[method] < set(numbers) and not named["cut" if method == "cyclegan" else "cyclegan"] & set(numbers)
    terms = sum(getattr(weights, k) * float(v) for k, v in numbers.items() if hasattr(weights, k))
    judged = sum(float(v) for k, v in numbers.items() if k.startswith("judge_"))
    assert float(total.detach()) == pytest.approx(terms + judged, rel=1e-4)


def test_identity_costs_nothing_but_the_game():
    model = small().eval()  # new: both directions are the identity
    frames = {key: value.clamp(0.02, 0.98) for key, value in batch().items()}
    _, numbers = harmony_loss(model, frames, a_map, HarmonyWeights())
    assert all(float(numbers[name]) < 1e-4 for name in ("cycle", "identity", "vessels"))
    assert float(numbers["spread"]) == pytest.approx(1, abs=1e-3)


def test_vessels_that_go_or_come_cost():
    there, gone = torch.full((1, 1, 8, 8), 0.9), torch.full((1, 1, 8, 8), 0.1)
    there[..., ::2], gone[..., ::2] = 0.1, 0.1
    assert float(kept_vessels(lambda x: x, there, there)) < 0.02
    assert float(kept_vessels(lambda x: x, there, gone)) > 0.5 < float(kept_vessels(lambda x: x, gone, there))


def test_contrast_prefers_the_own_place():
    model = small(method="cut")
    x = batch()["x"]
    torch.manual_seed(0)
    own = contrastive_loss(model, x, x)
    torch.manual_seed(0)
    assert float(own) < float(contrastive_loss(model, x, x.flip(0)))


def test_buffer_shows_older_frames():
    model = small()
    frames = [torch.full((1, 1, 32, 32), float(k)) for k in range(12)]
    shown = [float(model.remembered("target", frame)[0, 0, 0, 0]) for frame in frames]
    assert shown[:3] == [0, 1, 2] and int(model.count_target) == 3
    assert any(a != b for a, b in zip(shown[3:], range(3, 12), strict=True))
    assert all(value <= k for k, value in enumerate(shown))
    assert torch.equal(small(buffer=0).remembered("target", frames[5]), frames[5])


def test_flat_frames_are_a_collapse():
    watch = SpreadWatch(patience=3)
    for step, spread in enumerate((0.01, 0.01, 0.9, 0.01, 0.01)):
        watch.look(spread, step)
    with pytest.raises(InputError, match="collapsed at step 6: the harmonised frames are flat"):
        watch.look(0.01, 5)


def test_shift_of_vessels():
    mask = np.zeros((60, 60), bool)
    mask[28:33, 5:55] = True
    moved = vessel_shift(mask, np.roll(mask, 3, 0))
    assert moved.shift_px == pytest.approx(3.0, abs=0.1) and moved.lost == moved.made_up == 0
    gone = vessel_shift(mask, np.zeros_like(mask))
    assert np.isnan(gone.shift_px) and gone.lost == 1 and gone.made_up == 0
    more = mask.copy()
    more[5:10, 5:55] = True
    assert vessel_shift(mask, more).made_up == pytest.approx(0.5, abs=0.05)
    assert vessel_shift(np.zeros_like(mask), np.zeros_like(mask)).shift_px == 0


@pytest.fixture()
def line_view(monkeypatch):
    """A dark line on grey, and a segmentor that finds what is dark."""
    image = np.full((64, 64), 0.6, np.float32)
    image[30:34, 6:58] = 0.2

    class Found:
        def __init__(self, picture):
            self.vessel = (picture < 0.4).astype(np.float32)

    import licag3d.models.segmentor as segmentor

    monkeypatch.setattr(segmentor, "load_segmentor", lambda *a: None)
    monkeypatch.setattr(segmentor, "predict", lambda model, picture, valid, mm: Found(picture))
    return view_of(image, 0.3)


def test_changes_that_move_vessels_are_taken_back(line_view):
    tone = harmonise(lambda x, inside: 0.9 * x, line_view)
    assert tone.share == 1 and tone.shift_px == 0
    moved = harmonise(lambda x, inside: np.roll(x, 6, 0), line_view)
    assert moved.share < 0.5 and moved.shift_px < models.MOST_SHIFT_PX and max(moved.lost, moved.made_up) <= 0.15
    gone = harmonise(lambda x, inside: np.full_like(x, 0.9), line_view)
    assert gone.share <= 0.25  # a quarter of it leaves the line dark
    with pytest.raises(InputError, match="no numbers"):
        harmonise(lambda x, inside: np.full_like(x, np.nan), line_view)


def test_histograms_are_matched():
    rng = np.random.default_rng(0)
    target = [rng.beta(2, 5, 4000) for _ in range(3)]
    image = rng.uniform(0, 1, (50, 60)).astype(np.float32)
    inside = np.ones(image.shape, bool)
    inside[:, :20] = False
    made = matcher(target)(image, inside)
    assert np.array_equal(made[~inside], image[~inside])
    made = made[inside]
    assert np.quantile(made, [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(np.concatenate(target), [0.1, 0.5, 0.9]), abs=0.01
    )


@pytest.fixture()
def centres(pair_pools, tmp_path):
    """Two folders of frames, as two vendors show them."""
    for vendor, first in (("siemens-like", 0), ("neusoft-like", 1)):
        out = ["--out", str(tmp_path / vendor), "--vendor", vendor, "--frames", "2", "--first", str(first)]
        assert status_of(vendors, ["--pool", str(pair_pools / "pool"), *out]) == 0
    assert status_of(vendors, ["--pool", str(pair_pools / "pool"), *out, "--frames", "9"]) == BAD_INPUT
    flags = ["cyclegan", "--source", str(tmp_path / "neusoft-like"), "--target", str(tmp_path / "siemens-like")]
    flags += ["--size", "32", "--batch", "2", "--channels", "4", "--buffer", "2", "--save-every", "2"]
    return [*flags, "--validate-every", "2", "--device", "cpu", "--threads", "1", "--precision", "fp32"]


def last(folder):
    lines = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return [line["validation"] for line in lines if "validation" in line][-1]


def test_training_smoke_resume_and_command(centres, tmp_path, capsys):
    flags = [*centres, "--steps", "4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert status_of(train, [*flags, "--out", str(whole)]) == 0
    assert status_of(train, [*flags, "--out", str(parts), "--minutes", "0.00001"]) == 0
    assert status_of(train, [*flags, "--out", str(parts), "--resume"]) == 0
    assert last(whole) == last(parts)  # the buffer is part of the checkpoint
    weights = str(whole / "cyclegan.safetensors")
    frame = next((tmp_path / "neusoft-like").glob("*/*.png"))
    for number, direction in enumerate(("forth", "back")):
        out = ["--out", str(tmp_path / f"out{number}"), "--direction", direction, "--device", "cpu"]
        assert status_of(harmonize, [str(frame), "--weights", weights, *out]) == 0
    made = np.asarray(Image.open(tmp_path / "out0" / f"{frame.stem}_harmonised.png"))
    assert made.shape == (96, 96) and (tmp_path / "out0" / f"{frame.stem}_compare.png").is_file()
    match = [str(frame), "--match", str(tmp_path / "siemens-like"), "--out", str(tmp_path / "out3")]
    assert status_of(harmonize, match) == 0
    capsys.readouterr()
    save_weights(tmp_path / "other.safetensors", torch.nn.Linear(2, 2), {"model": "segmentor"})
    for wrong in (
        [str(frame)],
        [*match, "--weights", weights],
        [str(frame), "--weights", "none.safetensors"],
        [str(frame), "--weights", str(tmp_path / "other.safetensors")],
        [str(tmp_path / "none.png"), "--weights", weights],
        [*match, "--direction", "back"],
    ):
        assert status_of(harmonize, [*wrong, "--out", str(tmp_path / "bad")]) == BAD_INPUT
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "bad").exists()


def test_cut_has_one_direction(centres, tmp_path, capsys):
    run = [*centres, "--method", "cut", "--vessel-weight", "0", "--steps", "1", "--out", str(tmp_path / "cut")]
    assert status_of(train, run) == 0
    weights = str(tmp_path / "cut" / "cyclegan.safetensors")
    frame = str(next((tmp_path / "neusoft-like").glob("*/*.png")))
    back = [frame, "--weights", weights, "--direction", "back", "--out", str(tmp_path / "out")]
    assert status_of(harmonize, back) == BAD_INPUT and "no direction back" in capsys.readouterr().err


def test_one_domain_empty_and_other_bad_inputs(centres, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    target = centres.index("--target") + 1
    for value, words in ((str(tmp_path / "empty"), "--target"), (centres[2], "nothing to harmonise")):
        wrong = [*centres[:target], value, *centres[target + 1 :], "--out", str(tmp_path / "bad"), "--steps", "1"]
        assert status_of(train, wrong) == BAD_INPUT
        assert words in capsys.readouterr().err
    large = [*centres, "--size", "128", "--out", str(tmp_path / "large"), "--steps", "1"]
    assert status_of(train, large) == BAD_INPUT and "smaller than a crop" in capsys.readouterr().err

    class Impatient(SpreadWatch):
        def __init__(self):
            super().__init__(low=9.0, patience=3)

    monkeypatch.setattr(losses, "SpreadWatch", Impatient)
    run = [*centres, "--steps", "9", "--vessel-weight", "0", "--out", str(tmp_path / "flat")]
    assert status_of(train, run) == BAD_INPUT and "training collapsed at step 3" in capsys.readouterr().err
    assert (tmp_path / "flat" / "best.safetensors").is_file()


def test_configuration_is_checked_and_comes_back():
    config = CycleganConfig(method="cut", channels=8)
    assert config_from(config.__dict__, "x") == config
    with pytest.raises(InputError, match="no configuration"):
        config_from({"method": "cut"}, "x")
    for wrong in ({"method": "paint"}, {"channels": 1000}, {"buffer": -1}):
        with pytest.raises(InputError):
            CycleganConfig(**wrong)
