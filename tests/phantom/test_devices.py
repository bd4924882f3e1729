# SPDX-License-Identifier: Apache-2.0
"""Catheters, wires, leads, clips: where they lie, that each is its own draw, and that they follow the heart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from licag3d.geometry import Camera
from licag3d.phantom import devices
from licag3d.phantom.anatomy import sample_patient, sample_tree
from licag3d.phantom.around_vessels import contrast_beside_mm, hanging_lines
from licag3d.phantom.thorax import sample_thorax
from licag3d.phantom.tubes import path_length_mm, tree_lines
from licag3d.phantom.xray import sample_surroundings


@pytest.fixture(scope="module")
def patient():
    tree = sample_tree(7, "rca")
    return tree, sample_thorax(np.random.default_rng(3), sample_patient(7).heart, np.zeros(3))


def moved(tree, by):
    return type(tree)(tuple(replace(b, points_lps_mm=b.points_lps_mm + by) for b in tree.branches))


@pytest.mark.parametrize("curve", list(devices.CURVES))
def test_every_curve_starts_at_the_ostium_and_leaves_the_heart(patient, curve, monkeypatch):
    tree, thorax = patient
    monkeypatch.setattr(devices, "CURVES", {curve: 1.0})
    ostium = tree.branches[0].points_lps_mm[0]
    for seed in range(12):
        line = devices.catheter_line(np.random.default_rng(seed), tree, thorax)
        assert np.isfinite(line.points_lps_mm).all() and line.radius_mm.min() >= 5 / 6 and line.radius_mm.max() <= 1.0
        assert np.linalg.norm(line.points_lps_mm[0] - ostium) < 8  # deep seats reach 7 mm in
        assert np.linalg.norm(line.points_lps_mm[-1] - ostium) > 100
        steps = np.linalg.norm(np.diff(line.points_lps_mm, axis=0), axis=1)
        assert steps.min() > 0 and steps.max() < 10


def test_the_wire_runs_through_catheter_and_vessel_and_ends_in_its_dense_tip(patient):
    tree, thorax = patient
    rng = np.random.default_rng(0)
    catheter = devices.catheter_line(rng, tree)
    core, tip = devices.wire_devices(tree, catheter, devices.wire_branches(rng, tree))
    assert np.array_equal(core.lines[0].points_lps_mm[-1], tip.lines[0].points_lps_mm[0])
    assert tip.per_mm > core.per_mm
    length = np.linalg.norm(np.diff(tip.lines[0].points_lps_mm, axis=0), axis=1).sum()
    assert 25 < length < 35
    vessel = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    for point in tip.lines[0].points_lps_mm:
        assert np.linalg.norm(vessel - point, axis=1).min() < 1e-9


def test_shares_are_those_stated_and_every_kind_is_made_of_tubes(patient, monkeypatch):
    tree, thorax = patient
    ostium = tree.branches[0].points_lps_mm[0]
    drawn = [devices.sample_devices(np.random.default_rng(seed), thorax, ostium) for seed in range(300)]
    found = np.mean([any(d.kind == "sternal wire" for d in one) for one in drawn])
    assert abs(found - devices.SHARES["sternotomy"]) < 0.06
    monkeypatch.setattr(devices, "SHARES", dict.fromkeys(devices.SHARES, 1.0))
    everything = devices.sample_devices(np.random.default_rng(1), thorax, ostium)
    assert {"second catheter", "pacing wire", "lead", "shock coil", "sternal wire", "clip", "cable", "valve ring",
            "electrode"} <= {d.kind for d in everything} | {"clip"}  # fmt: skip
    for device in everything:
        assert 0.05 < device.per_mm < 20 and device.lines
        for line in device.lines:
            assert len(line.points_lps_mm) == len(line.radius_mm) > 1 and np.isfinite(line.points_lps_mm).all()
            assert 0.1 < line.radius_mm.min() and line.radius_mm.max() < 2


def test_one_device_never_moves_another(patient, monkeypatch):
    tree, thorax = patient
    ostium = tree.branches[0].points_lps_mm[0]
    monkeypatch.setattr(devices, "SHARES", dict.fromkeys(devices.SHARES, 0.0) | {"electrodes": 1.0})
    alone = devices.sample_devices(np.random.default_rng(4), thorax, ostium)
    monkeypatch.setattr(devices, "SHARES", dict.fromkeys(devices.SHARES, 1.0))
    among = devices.sample_devices(np.random.default_rng(4), thorax, ostium)
    cables = [next(d for d in group if d.kind == "cable") for group in (alone, among)]
    for one, two in zip(cables[0].lines, cables[1].lines, strict=True):
        assert np.array_equal(one.points_lps_mm, two.points_lps_mm)


def test_what_touches_the_vessels_follows_the_tree(patient):
    tree, thorax = patient
    surroundings = sample_surroundings(np.random.default_rng(5), tree, thorax)
    by = np.array((4.0, -3.0, -6.0))
    other = moved(tree, by)
    before, after = surroundings.catheter_at(tree), surroundings.catheter_at(other)
    np.testing.assert_allclose(before.points_lps_mm, surroundings.catheter.points_lps_mm)
    np.testing.assert_allclose(after.points_lps_mm[0] - before.points_lps_mm[0], by)
    assert np.linalg.norm(after.points_lps_mm[-1] - before.points_lps_mm[-1]) < 0.5
    for hanging in (surroundings.companions.twigs, surroundings.companions.calcium):
        for one, two in zip(hanging_lines(hanging, tree), hanging_lines(hanging, other), strict=True):
            np.testing.assert_allclose(
                two.points_lps_mm - one.points_lps_mm, np.broadcast_to(by, one.points_lps_mm.shape)
            )


def test_layers_and_mixing_move_contrast_about_but_keep_its_amount(patient):
    tree, thorax = patient
    camera = Camera(40, 0, 1040, 750, 0.9, 0.9, 160, 160)
    companions = replace(
        sample_surroundings(np.random.default_rng(6), tree, thorax).companions, twigs=(), layer=0.3, mixing=0.05
    )
    path = path_length_mm(tree_lines(tree), camera)
    beside, twigs = contrast_beside_mm(companions, tree, camera, path, None, np.random.default_rng(0))
    assert not twigs.any() and not beside[path == 0].any()
    assert np.all(path + beside >= 0)
    assert abs(beside.sum()) < 0.15 * path.sum()
    assert np.abs(beside[path > 2]).mean() > 0.01 * path[path > 2].mean()
