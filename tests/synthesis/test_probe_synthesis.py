# SPDX-License-Identifier: Apache-2.0
"""Probes of synthesis: distances, leak, swap and closure say what they should of models whose answer is known."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from licag3d.command import BAD_INPUT, status_of
from licag3d.data.contrast_pairs import grow_pairs
from licag3d.errors import InputError
from licag3d.models.casgan import CasGan, CasganConfig
from licag3d.phantom.splits import VALIDATION
from licag3d.train.checkpoints import save_weights

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import probe_synthesis as probes
from probe_synthesis import average_precision, fit_probe, fitted, main


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """Two still validation pairs without residual contrast."""
    folder = tmp_path_factory.mktemp("still")
    grow_pairs(folder, 1, views=2, rows=96, split=VALIDATION, kappas=(0.0,))
    return str(folder)


def casgan_file(folder, model) -> str:
    file = folder / "casgan.safetensors"
    facts = {"model": "casgan", "config": asdict(model.config), "working_mm": 0.41}
    save_weights(file, model, facts)
    return f"DGL={file}"


def small():
    torch.manual_seed(0)
    return CasGan(CasganConfig(channels=4, patch_channels=4, blocks=1))


def test_average_precision_of_known_orders():
    truth = np.array([True, True, False, False, True])
    assert average_precision(np.array([5.0, 4, 2, 1, 3]), truth) == 1.0
    assert average_precision(np.array([5.0, 1, 4, 3, 2]), truth) == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)
    assert np.isnan(average_precision(np.zeros(3), np.zeros(3, bool)))


def test_probe_reads_what_is_there_and_nothing_else(monkeypatch):
    monkeypatch.setitem(probes.PROBE, "steps", 60)
    torch.manual_seed(0)
    cells = (torch.rand(12, 1, 8, 8) > 0.8).float()
    vessel = torch.nn.functional.interpolate(cells, scale_factor=4)
    noise = torch.randn(12, 3, 8, 8)
    for codes, low, high in ((torch.cat((noise, cells), 1), 0.95, 1.01), (noise, 0.0, 0.5)):
        probe = fit_probe(codes[:8], vessel[:8], torch.ones_like(vessel[:8]), 0)
        with torch.no_grad():
            said = probe(codes[8:])
        assert low <= average_precision(said.numpy().ravel(), cells[8:].numpy().ravel() > 0.5) < high


def test_pictures_are_cut_and_continued_about_their_middle():
    picture = torch.arange(36.0).reshape(1, 1, 6, 6)
    assert torch.equal(fitted(picture, 4), picture[..., 1:5, 1:5])
    assert fitted(picture, 9).shape[-1] == 9 and torch.equal(fitted(picture, 9)[..., 1:7, 1:7], picture)


def test_leak_and_swap(still, pair_pools, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(probes.PROBE, "samples", 6)
    monkeypatch.setitem(probes.PROBE, "steps", 5)
    model = small()
    with torch.no_grad():  # attention nowhere: nothing of the other patient can come over
        model.attention_generator.out.bias.fill_(-60.0)
    flags = ["--pairs", still, "--networks", casgan_file(tmp_path, model), "--out", str(tmp_path / "out.json")]
    assert status_of(main, ["leak", *flags, "--pool", str(pair_pools / "pool")]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["method"] == "DGL" and 0 < row["chance"] < 0.5
    assert all(0 < row[code]["mean"] <= 1 for code in ("background of x", "background of y", "vessels of y"))
    assert status_of(main, ["swap", *flags]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["theirs"]["mean"] == pytest.approx(row["nothing"]["mean"]) and row["change_outside"]["mean"] < 1e-6
    assert "DGL" in capsys.readouterr().out
    assert status_of(main, ["leak", *flags]) == BAD_INPUT  # no training frames
    assert status_of(main, ["leak", *flags, "--pool", still]) == BAD_INPUT  # validation frames for the probe
    flags[1] = str(pair_pools / "pool")
    assert status_of(main, ["swap", *flags]) == BAD_INPUT
    assert "training patients" in capsys.readouterr().err


def test_distances_stand_beside_their_floor(still, weights, tmp_path, monkeypatch):
    from licag3d.models import vasomim

    monkeypatch.setattr(probes, "SIDE_PX", 64)
    small_one = vasomim.load_encoder("random:vit-mini")
    monkeypatch.setattr(vasomim, "load_encoder", lambda name: small_one)
    out = tmp_path / "distances.json"
    flags = ["distances", "--networks", f"wild={weights}", "--out", str(out), "--count", "20", "--kappas", "0.1"]
    assert status_of(main, [*flags, "--frames", still]) == 0
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {"true, other samples", "identity", "wild"}
    for row in rows.values():
        assert row["fd_floor"] > 0 and row["fd"]["low_95"] <= row["fd"]["mean"] <= row["fd"]["high_95"]
        assert row["frames"] == 20 and row["encoder"].startswith("random:vit-mini-")
    assert status_of(main, flags) == BAD_INPUT
    assert status_of(main, [*flags, "--frames", still, "--count", "3"]) == BAD_INPUT
    assert status_of(main, ["distances", "--out", str(out), "--frames", still]) == BAD_INPUT  # nothing to judge


def test_closure_scores_both_kinds_of_views(weights, tmp_path, monkeypatch):
    from licag3d.inversion import pipeline
    from licag3d.phantom import simulate_case as simulation

    made, cases = [], []
    real = simulation.simulate_case

    def smaller(seed, artery, **settings):
        cases.append(real(seed, artery, rows=72, cols=72, **settings))
        return cases[-1]

    def pretend(views, settings):
        made.append([float(view.image.mean()) for view in views])
        if len(made) == 2:
            raise InputError("nothing can be matched")
        return SimpleNamespace(tree=cases[-1].tree, cameras=cases[-1].true_cameras)

    monkeypatch.setattr(simulation, "simulate_case", smaller)
    monkeypatch.setattr(pipeline, "reconstruct", pretend)
    out = tmp_path / "closure.json"
    flags = ["closure", "--networks", f"wild={weights}", "--out", str(out), "--cases", "1"]
    assert status_of(main, [*flags, "--kappas", "0.1", "0.2"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["views"], row["kappa"]) for row in rows] == [("true angiograms", 1.0), ("wild", 0.1), ("wild", 0.2)]
    assert [row["f1_1mm"]["mean"] for row in rows] == [pytest.approx(1.0), 0.0, pytest.approx(1.0)]
    assert rows[1]["cases"][0]["failed"] == "nothing can be matched" and rows[1]["distance_mm"]["n"] == 0
    assert len(made) == 3 and made[0] != made[2]  # synthesised views are not the true ones
    assert status_of(main, [*flags, "--first-seed", "1000000"]) == BAD_INPUT
