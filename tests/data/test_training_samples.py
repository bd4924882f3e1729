# SPDX-License-Identifier: Apache-2.0
"""Drawn training scenes, and what the losses ask of a segmentor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from licag3d.data.bench_scenes import BenchBank
from licag3d.data.device_scenes import SHARES, DeviceBank, _coiled, _devices
from licag3d.data.distractors import _DRAW, DEVICES, KINDS, DistractorBank
from licag3d.data.phantom_frames import PhantomPool, grow_pool
from licag3d.data.randomise import Randomisation, SampleStream
from licag3d.data.winding import winding_branches
from licag3d.losses.vessel import narrow_gaps, skeleton_recall_loss


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    grow_pool(folder, 1, views=1, rows=160)
    return PhantomPool(folder)


def test_bench_scenes_have_tubes_and_what_is_none():
    bank, again = BenchBank(4, 192), BenchBank(4, 192)
    for number in range(4):
        scene = bank[number]
        assert scene.vessel.any() and (scene.p[scene.vessel] > 0).mean() > 0.95
        assert not (scene.p[~scene.vessel] != 0).any() and not (scene.device & scene.vessel).any()
        assert np.array_equal(scene.p, again[number].p) and np.isfinite(scene.rest.astype(float)).all()
    assert any(bank[n].device.any() for n in range(4))
    with pytest.raises(IndexError):
        bank[4]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_distractor_can_be_drawn(kind):
    integral, inside = _DRAW[kind](np.random.default_rng(3), 96)
    assert integral.shape == inside.shape == (96, 96) and np.isfinite(integral).all()
    assert kind in DEVICES or not inside.any()


def test_samples_depend_on_their_index_alone_and_hold_what_they_say(pool):
    def stream(**kw):
        return SampleStream(pool, DistractorBank(3, 128), 1, Randomisation(size=64, **kw), BenchBank(2, 128))

    one, two = stream(), stream()
    two.batch(0, 2)  # what came before changes nothing
    a, b = one.batch(3, 2), two.batch(3, 2)
    assert all(torch.equal(a[key], b[key]) for key in a) and a["x"].shape == (2, 2, 64, 64)
    bench = stream(bench=1.0, empty=0.0, fade=0.0).batch(0, 8)
    assert bench["vessel"].any() and bench["device"].any() and torch.isfinite(bench["x"]).all()
    assert not (bench["p"] * (1 - bench["vessel"])).any()


def test_device_scenes_depend_on_their_number_alone_and_hold_metal():
    bank, again = DeviceBank(4, 128), DeviceBank(4, 128)
    first, other = again[2], again[1]  # in another order
    assert np.array_equal(bank[2].integral, first.integral) and np.array_equal(bank[1].integral, other.integral)
    for number in range(4):
        scene = bank[number]
        assert scene.device.any() and not scene.integral[~scene.device].any() and scene.integral.max() > 0.05
    assert not np.array_equal(bank[0].device, bank[1].device)
    with pytest.raises(IndexError):
        bank[4]


def test_leads_have_coils_denser_than_themselves_and_end_in_electrodes():
    way = np.stack([np.zeros(90), np.zeros(90), np.linspace(0, 300, 90)], 1)
    kinds = set()
    for seed in range(12):
        parts = _coiled(np.random.default_rng(seed), way)
        kinds |= {part.kind for part in parts}
        (lead,) = (part for part in parts if part.kind == "lead")
        coils = [part for part in parts if part.kind == "shock coil"]
        assert coils and all(part.per_mm > 2 * lead.per_mm for part in coils)
        assert all((part.lines[0].radius_mm[0] > lead.lines[0].radius_mm[0]) for part in coils)
    assert kinds == {"lead", "shock coil", "core", "electrode", "screw"}  # hollow ones and screws among them


def test_every_device_of_a_scene_can_be_drawn(monkeypatch):
    from licag3d.phantom.anatomy import sample_patient, sample_tree
    from licag3d.phantom.thorax import sample_thorax

    for kind in SHARES:
        monkeypatch.setitem(SHARES, kind, 1.0)
    rng = np.random.default_rng(0)
    thorax = sample_thorax(rng, sample_patient(1_000_000).heart, np.zeros(3))
    found = _devices(rng, thorax, sample_tree(1_000_000, "rca"))
    assert len(found) >= len(SHARES)
    for device in (device for parts in found for device in parts):
        assert all(np.isfinite(line.points_lps_mm).all() and (line.radius_mm > 0).all() for line in device.lines)


def test_implants_are_added_to_what_is_learnt_as_device(pool):
    def stream(share):
        settings = Randomisation(size=64, implants=share, empty=0.0, distractors=0.0, shutter=0.0, foreign=0.0)
        return SampleStream(pool, DistractorBank(0), 4, settings, implants=DeviceBank(2, 128))

    with_them, without = stream(1.0).batch(0, 6), stream(0.0).batch(0, 6)
    assert with_them["device"].mean() > without["device"].mean()
    assert set(np.unique(with_them["device"].numpy())) <= {0.0, 1.0} and torch.isfinite(with_them["x"]).all()
    metal, where = stream(1.0)._implants(np.random.default_rng(0), 64)
    assert metal.shape == where.shape == (1, 64, 64) and where.any() and not metal[where == 0].any()


def test_twigs_count_as_background_the_fainter_the_more(pool):
    stream = SampleStream(pool, DistractorBank(0), 1, Randomisation(size=64, twig=0.25))
    crop = stream._crop(np.random.default_rng(0), 0)
    weight = stream._weight(crop)
    assert set(np.unique(weight.numpy())) <= {0.25, 1.0} and (weight[crop.faint < 0.5] == 1).all()


def test_missing_a_thin_vessel_costs_as_much_as_missing_a_thick_one():
    truth = torch.zeros(1, 1, 64, 64)
    truth[..., 10:12, :] = 1
    truth[..., 40:52, :] = 1
    thin, thick = truth.clone(), truth.clone()
    thin[..., :20, :] = 0
    thick[..., 40:52, :] = 0
    assert float(skeleton_recall_loss(truth, truth)) < 0.01
    assert float(skeleton_recall_loss(thin, truth)) == pytest.approx(0.5, abs=0.15)
    assert float(skeleton_recall_loss(thick, truth)) == pytest.approx(0.5, abs=0.15)
    assert float(skeleton_recall_loss(torch.zeros_like(truth), torch.zeros_like(truth))) == 0


def test_narrow_gaps_lie_between_neighbours_only():
    truth = torch.zeros(1, 1, 48, 48)
    truth[..., 10:14, :] = 1
    truth[..., 17:21, :] = 1
    gaps = narrow_gaps(truth)
    assert (gaps[..., 14:17, 8:-8] == 1).all() and not gaps[..., 30:, :].any() and not (gaps * truth).any()


def test_winding_branches_hang_on_vessels_and_wind(pool):
    vessel = np.zeros((160, 160), bool)
    vessel[70:74, 20:140] = True
    for seed in range(4):
        integral, inside = winding_branches(np.random.default_rng(seed), vessel, 0.25)
        again, _ = winding_branches(np.random.default_rng(seed), vessel, 0.25)
        assert np.array_equal(integral, again) and inside.any() and (integral[inside] > 0).all()
        assert (inside & vessel).any() and float(integral.max()) < 1.5
    assert not winding_branches(np.random.default_rng(0), np.zeros_like(vessel), 0.25)[0].any()

    def vessels(share: float):
        look = Randomisation(
            size=64, winding=share, shown=0.0, empty=0.0, fade=0.0, foreign=0.0, implants=0.0, bench=0.0
        )
        return sum(
            float(SampleStream(pool, DistractorBank(2, 128), 1, look).sample(k)["vessel"].sum()) for k in range(6)
        )

    assert vessels(1.0) > vessels(0.0)
