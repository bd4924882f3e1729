# SPDX-License-Identifier: Apache-2.0
"""The segmentor and the evidence made of what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.models.learned_evidence import (
    LearnedRules,
    evidence_from_prediction,
    learned_evidence,
    vessel_mask,
    without_thin_ends,
)
from licag3d.models.segmentor import (
    Prediction,
    Segmentor,
    SegmentorConfig,
    config_facts,
    normalise,
    predict,
    widened_from,
)
from licag3d.models.vessel_evidence import REFERENCE_ATTENUATION_PER_MM, choose_method, vessel_evidence
from licag3d.structures import View
from licag3d.train.checkpoints import save_weights

MM = 0.25
SMALL = SegmentorConfig(channels=(8, 8, 16))


def view_of(p, intensity="log", noise=0.003):
    spacing = MM * 4 / 3
    camera = Camera(0, 0, 1000, 750, spacing, spacing, *p.shape)
    grain = noise * np.random.default_rng(0).standard_normal(p.shape)
    image = (0.8 - ndimage.gaussian_filter(p, 0.7) + grain).astype(np.float32)
    return View(image, camera, np.ones(p.shape, bool), intensity=intensity)


def tube(shape=(160, 200), radius_px=4.0, row=70.0, slope=0.1):
    rows, cols = np.mgrid[: shape[0], : shape[1]].astype(float)
    distance = np.abs(rows - row - slope * cols) / np.hypot(1, slope)
    return 0.2 * MM * 2 * np.sqrt(np.maximum(radius_px**2 - distance**2, 0)), distance


def says(p, gain=1.0, device=None):
    """What a good network would say of a line integral."""
    chance = ndimage.gaussian_filter((p > 0).astype(np.float32), 0.8)
    zero = np.zeros_like(chance)
    return Prediction(chance, (gain * p).astype(np.float32), zero + 0.02, zero if device is None else device)


def test_outputs_are_logits_and_a_line_integral_that_is_not_negative():
    model = Segmentor(SMALL).eval()
    out = model(torch.randn(2, 2, 64, 48))
    assert out.shape == (2, 4, 64, 48) and (out[:, 1] >= 0).all() and SMALL.stride == 8
    assert (out[:, 0].sigmoid() < 0.5).float().mean() > 0.95  # an untrained network says "no vessel"


@pytest.mark.parametrize("change", [lambda x: 0.5 * x, lambda x: x * 0.8, lambda x: 1.2 * x])
def test_input_does_not_depend_on_the_brightness_of_the_display(change):
    grey = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.2
    valid = torch.ones_like(grey, dtype=torch.bool)
    assert torch.allclose(normalise(change(grey), valid), normalise(grey, valid), atol=0.02)


def test_what_lies_outside_the_field_changes_nothing():
    grey = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    valid = torch.ones_like(grey, dtype=torch.bool)
    valid[..., :20] = False
    other = torch.where(valid, grey, 0.0)
    a, b = normalise(grey, valid), normalise(other, valid)
    assert torch.equal(a, b) and (a[..., :20] == 0).all()
    assert (normalise(grey, ~torch.ones_like(valid)) == 0).all()


@pytest.mark.parametrize(("shape", "mm"), [((61, 83), 0.25), ((40, 50), 0.6), ((120, 90), 0.1)])
def test_frames_of_any_size_and_scale(shape, mm):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    valid = np.ones(shape, bool)
    valid[:5] = False
    found = predict(Segmentor(SMALL), image, valid, mm)
    for layer in (found.vessel, found.line_integral, found.spread, found.device):
        assert layer.shape == shape and np.isfinite(layer).all() and (layer[:5] == 0).all()
    with pytest.raises(InputError, match="too large"):
        predict(Segmentor(SMALL), np.zeros((3000, 3000), np.float32), np.ones((3000, 3000), bool), 2.0)


@pytest.mark.parametrize("radius", [2.0, 4.0, 7.0])
def test_centre_width_and_line_integral_of_a_tube(radius):
    p, distance = tube(radius_px=radius)
    evidence = evidence_from_prediction(view_of(p), says(p, gain=1.7), LearnedRules())
    away = np.zeros(p.shape, bool)
    away[:, 25:-25] = True
    middle = (distance < 0.6) & away
    assert np.median(evidence.radius_px[middle]) == pytest.approx(radius, abs=0.35)
    assert np.median(evidence.line_integral[middle] / p[middle]) == pytest.approx(1, abs=0.1)  # the gain is undone
    truth = (distance <= radius) & away
    found = evidence.mask & away
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9
    assert (evidence.confidence[middle] > 0.4).all() and (
        evidence.line_integral[~evidence.mask & (distance > 12)] == 0
    ).all()


def test_display_scale_is_the_convention():
    p, distance = tube(radius_px=5.0)
    evidence = evidence_from_prediction(view_of(p, "display"), says(p, gain=0.4), LearnedRules())
    middle = (distance < 0.6) & (np.arange(p.shape[1]) > 25) & (np.arange(p.shape[1]) < 175)
    per_mm = evidence.line_integral[middle] / (2 * evidence.radius_px[middle] * MM)
    assert np.median(per_mm) == pytest.approx(REFERENCE_ATTENUATION_PER_MM, rel=0.1)


def test_short_faint_and_far_pieces_go():
    chance = np.zeros((300, 300), np.float32)
    chance[100:106, 20:280] = 0.95  # a tree of 65 mm
    chance[115:119, 40:50] = 0.95  # 2.5 mm beside it
    chance[250:254, 30:60] = 0.9  # 7.5 mm, 36 mm away
    chance[130:134, 100:160] = 0.55  # never sure
    mask = vessel_mask(chance, MM, LearnedRules())
    assert mask[102, 150] and not mask[117, 45] and not mask[252, 45] and not mask[132, 130]
    assert not vessel_mask(np.where(np.arange(300) < 60, chance, 0), MM, LearnedRules()).any()  # 10 mm are no tree


def test_free_pieces_that_are_rather_devices_go_and_the_tree_stays():
    chance, device = np.zeros((300, 300), np.float32), np.zeros((300, 300), np.float32)
    chance[100:106, 20:220] = 0.95  # a tree of 50 mm
    chance[60:160, 120:124] = 0.95  # a lead across it: one piece with the tree
    chance[180:188, 20:280] = 0.9  # a coil of 65 mm, longer than the tree
    chance[230:234, 20:150] = 0.9  # a vessel that hangs on nothing
    device[60:160, 120:124] = device[180:188, 20:280] = 0.7
    device[230:234, 20:60] = 0.7  # a wire crosses it
    mask = vessel_mask(chance, MM, LearnedRules(), device)
    assert mask[102, 60] and mask[140, 122] and mask[232, 40] and not mask[184, 150]
    assert vessel_mask(chance, MM, LearnedRules())[184, 150]
    everything = vessel_mask(chance * (np.arange(300) > 170)[:, None], MM, LearnedRules(), np.full_like(chance, 0.9))
    assert everything[184, 150] and not everything[232, 40]  # of nothing but devices the longest is left


def test_vessels_that_hang_on_a_device_stay():
    chance, device = np.zeros((300, 300), np.float32), np.zeros((300, 300), np.float32)
    chance[20:26, 20:280] = 0.95  # the tree
    chance[60:290, 150:156] = 0.9  # a catheter
    chance[180:184, 90:150] = 0.9  # a vessel of 15 mm that ends on it
    chance[120:123, 156:166] = 0.9  # a stub of it
    device[60:290, 150:156] = 0.7
    mask = vessel_mask(chance, MM, LearnedRules(), device)
    assert mask[22, 100] and mask[182, 92:140].all()
    assert not mask[60:170, 152].any() and not mask[200:, 152].any() and not mask[121, 160]


@pytest.mark.parametrize(("radius_mm", "sure", "kept"), [(0.25, 0.8, False), (0.25, 0.97, True), (0.5, 0.8, True)])
def test_thin_ends_go_where_they_are_not_sure(radius_mm, sure, kept):
    mask = np.zeros((200, 260), bool)
    mask[95:105, 10:250] = True
    mask[20:96, 120:124] = mask[104:180, 60:64] = True  # side branches upwards and downwards
    radius = np.where(mask, 1.2, 0.0)
    chance = np.where(mask, 0.99, 0.0)
    radius[20:95, 120:124] = radius_mm
    chance[20:95, 120:124] = sure
    radius[104:180, 60:64] = 0.6
    chance[104:180, 60:64] = 0.8  # unsure, but not thin
    out = without_thin_ends(mask, radius, chance, LearnedRules())
    assert bool(out[50, 122]) == kept and out[100, 20:240].all() and out[150, 62] and not (out & ~mask).any()
    assert kept or not out[20:88, 120:124].any()
    # Between two vessels it is no end.
    mask[15:25, 10:250] = True
    radius[15:25, 10:250], chance[15:25, 10:250] = 1.2, 0.99
    assert without_thin_ends(mask, radius, chance, LearnedRules())[50, 122]


def test_empty_frames_stay_empty(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_weights(file, Segmentor(SMALL), {"config": config_facts(SMALL)})
    blank = replace(view_of(np.zeros((96, 96))), image=np.full((96, 96), 0.5, np.float32))
    for view in (blank, replace(blank, valid=np.zeros((96, 96), bool))):
        evidence = learned_evidence(view, weights=str(file))
        assert not evidence.mask.any() and evidence.probability.max() == 0
    nothing = says(np.zeros((96, 96)))
    assert not evidence_from_prediction(blank, nothing, LearnedRules()).mask.any()


def test_choice_of_method(tmp_path):
    view = view_of(tube()[0])
    with pytest.raises(InputError, match="not known"):
        vessel_evidence(view, method="guess")
    with pytest.raises(InputError, match="no segmentor weights"):
        vessel_evidence(view, method="learned", weights="absent")
    assert choose_method("auto", "absent") == "classical" == choose_method("classical")
    with pytest.raises(InputError, match="cannot be read as weights"):
        vessel_evidence(view, method="learned", weights=str(tmp_path / "none.safetensors"))
    wrong = tmp_path / "wrong.safetensors"
    save_weights(wrong, Segmentor(SMALL), {"config": config_facts(SegmentorConfig((8, 8, 24)))})
    with pytest.raises(InputError, match="another size"):
        vessel_evidence(view, method="learned", weights=str(wrong))
    save_weights(wrong, Segmentor(SMALL), {"config": {"channels": [9e9]}})
    with pytest.raises(InputError, match="no segmentor"):
        vessel_evidence(replace(view), method="learned", weights=str(wrong))


@pytest.mark.parametrize("guided", (False, True))
def test_a_widened_network_begins_with_the_same_answers_and_learns(guided):
    torch.manual_seed(0)
    narrow = Segmentor(SegmentorConfig((8, 12, 16), guided=guided)).eval()
    for layer in narrow.modules():  # statistics and scales of a trained network
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 2)
            layer.bias.data.normal_()
    wide = widened_from(narrow, (12, 12, 40)).eval()
    x = torch.randn(2, 3 if guided else 2, 24, 40)
    assert torch.allclose(wide(x), narrow(x), atol=1e-5)
    wide.train()
    wide(x).square().mean().backward()
    listened = wide.out.weight.grad[:, 8:]
    assert listened.abs().sum() > 0
    with pytest.raises(InputError, match="none below"):
        widened_from(narrow, (8, 8, 16))
    with pytest.raises(InputError, match="give 3 levels"):
        widened_from(narrow, (8, 12, 16, 20))
