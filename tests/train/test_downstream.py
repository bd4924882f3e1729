# SPDX-License-Identifier: Apache-2.0
"""Judging encoders by few labels: metrics against brute force, a comparison in seconds, and its report."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from licag3d.errors import InputError
from licag3d.models.vasomim import random_encoder, write_encoder_file
from licag3d.models.vit import config_of
from licag3d.train import downstream, downstream_heads, downstream_report
from licag3d.train.downstream_data import (
    SEGMENTS,
    LabelledFrames,
    from_pool,
    segment_index,
    split_pool,
    stenosis_frames,
)

CONFIG = config_of("vit-mini", image_px=32)
SIDE = 96
QUICK = downstream.TuningSettings(steps=3, batch=9, stenosis_cases=4)


def frame_of(seed: int):
    """A phantom-like frame: one dark vessel, named RCA on the left half and OM1 on the right."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:192, :192]
    mask = np.abs(y - 96 - 30 * np.sin(x / 25 + rng.uniform(0, 6))) < 6
    image = np.clip(170 - 90 * mask + 4 * rng.standard_normal(mask.shape), 0, 255).astype(np.uint8)
    labels = np.where(mask, np.where(x < 96, 1, 2), 0).astype(np.uint8)
    return SimpleNamespace(image=image, mask=mask, labels=labels, branch_names=("RCA", "OM1.a"), seed=seed)


class FakePool:
    def __init__(self, folder) -> None:
        self.folder, self.entries = folder, [{"seed": 1_000_000 + k // 2} for k in range(80)]

    def frame(self, number: int):
        return frame_of(self.entries[number]["seed"])


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr("licag3d.data.phantom_frames.PhantomPool", FakePool)
    return FakePool("pool")


def test_names_of_segments():
    names = {"RCA": "RCA", "OM2.a": "OM", "D1": "D", "R-PLB.a.b": "R-PLB", "twig 3": None}
    assert {n: SEGMENTS[segment_index(n) - 1] if segment_index(n) else None for n in names} == names


def test_frames_of_a_pool_keep_masks_and_names(pool):
    frames = from_pool(pool, [0, 5], SIDE)
    assert frames.images.shape == (2, SIDE, SIDE) and 0.2 < frames.images.min() < frames.images.max() <= 1
    truth = frame_of(pool.entries[5]["seed"]).mask.reshape(SIDE, 2, SIDE, 2).mean((1, 3)) >= 0.5
    assert downstream_heads.dice(frames.masks[1], truth) > 0.97
    vessel = frames.segments[1] > 0
    assert np.array_equal(vessel, frames.masks[1])
    left, right = (SEGMENTS.index(n) + 1 for n in ("RCA", "OM"))
    assert set(np.unique(frames.segments[1][:, :40])) == {0, left}
    assert set(np.unique(frames.segments[1][:, 56:])) == {0, right}


def test_held_out_patients_are_not_among_the_labels(pool):
    labels, test = split_pool(pool)
    seeds = [{pool.entries[n]["seed"] for n in part} for part in (labels, test)]
    assert not seeds[0] & seeds[1] and len(seeds[1]) == 2 and len(labels) + len(test) == 80
    pool.entries = pool.entries[2:4]
    with pytest.raises(InputError, match="too few"):
        split_pool(pool)


def test_patch_names_are_those_of_most_pixels():
    segments = np.zeros((1, 16, 16), np.uint8)
    segments[0, :8, :4] = 3
    segments[0, :8, 4:8] = 0
    segments[0, 8, 8] = 5  # one pixel is too little
    assert downstream_heads.patch_segments(segments, 8).tolist() == [[2, -1, -1, -1]]


def test_lesion_map_marks_the_patch_and_ignores_its_neighbours():
    made = downstream_heads.lesion_map(np.array([[20.0, 12.0], [-5.0, 3.0], [500.0, 3.0]]), 6, 8)
    assert made[1, 2] == 1 and (made == -1).sum() == 8 and (made == 0).sum() == 27


def test_centreline_dice_drops_on_a_cut_while_dice_barely_moves():
    y, x = np.mgrid[:64, :64]
    whole = np.abs(y - 32) < 4
    cut = whole & ~((x > 20) & (x < 30))
    moved = np.roll(whole, 6, 0)
    assert downstream_heads.centreline_dice(whole, whole) == 1
    assert downstream_heads.centreline_dice(cut, whole) < 0.96
    assert downstream_heads.centreline_dice(moved, whole) < 0.1 < downstream_heads.dice(moved, whole)
    empty = np.zeros_like(whole)
    assert downstream_heads.centreline_dice(empty, whole) == 0 and downstream_heads.dice(empty, empty) == 1


def test_auc_against_all_pairs():
    rng = np.random.default_rng(0)
    scores, sick = rng.integers(0, 8, 40).astype(float), rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[sick] for b in scores[~sick]]
    assert downstream_report.auc(scores, sick) == pytest.approx(np.mean(pairs))
    assert np.isnan(downstream_report.auc([1.0, 2.0], [1, 1]))


@pytest.mark.parametrize("task", ["segmentation", "labelling", "stenosis"])
def test_tuning_learns_its_training_frames(task, pool):
    frames = from_pool(pool, range(4), SIDE)
    if task == "stenosis":
        images = frames.images.copy()
        places = [np.array([[20.0 + 15 * k, 44.0]]) for k in range(2)] + [np.zeros((0, 2))] * 2
        for image, place in zip(images, places, strict=True):
            for col, row in place.astype(int):
                image[row - 5 : row + 6, col - 5 : col + 6] = 1.0
        frames = LabelledFrames(images, frames.masks, frames.segments, frames.patients, tuple(places))
    torch.manual_seed(0)
    settings = downstream.TuningSettings(steps=60, batch=9, rate=3e-3)
    scores = downstream.tune_and_score(task, random_encoder(CONFIG), frames, frames, settings, 0)
    if task == "segmentation":
        assert np.mean(scores["dice"]) > 0.75 and np.mean(scores["cldice"]) > 0.75
    elif task == "labelling":
        assert np.mean(scores["accuracy"]) > 0.85
    else:
        assert downstream_report.auc(scores["peak"], scores["diseased"]) == 1
        assert np.nanmean(scores["hit"]) == 1


def test_frozen_protocol_leaves_the_encoder_alone(pool):
    encoder = random_encoder(CONFIG)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    frames = from_pool(pool, range(2), SIDE)
    settings = downstream.TuningSettings(steps=3, batch=4, protocol="frozen")
    downstream.tune_and_score("segmentation", encoder, frames, frames, settings, 0)
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_comparison_is_stored_resumed_and_reported(pool, tmp_path):
    file = tmp_path / "mae.safetensors"
    write_encoder_file(file, random_encoder(CONFIG, seed=9))
    arguments = {"tasks": ("segmentation", "labelling"), "labels": (2, 4), "seeds": 2}
    results = downstream.compare(tmp_path / "out", "pool", {"mae": str(file)}, QUICK, **arguments)
    assert len(results) == 2 * 2 * 2 * 2
    assert {r["encoder"] for r in results} == {"scratch", "mae"} and all(len(r["patients"]) == 4 for r in results)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    removed = stored["results"].pop()
    (tmp_path / "out" / "results.json").write_text(json.dumps(stored))
    again = downstream.compare(tmp_path / "out", "pool", {"mae": str(file)}, QUICK, **arguments)
    assert again[-1] == removed  # the same seed gives the same scores
    downstream_report.write_report(tmp_path / "out", again)
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())
    row = next(r for r in rows if (r["task"], r["encoder"], r["labels"]) == ("labelling", "scratch", 4))
    assert row["interval"][0] <= row["mean"] <= row["interval"][1] and "gain" in row
    assert (tmp_path / "out" / "label_efficiency.svg").read_text().startswith("<svg")
    with pytest.raises(InputError, match="other settings"):
        downstream.compare(tmp_path / "out", "pool", {}, downstream.TuningSettings(steps=5), **arguments)
    with pytest.raises(InputError, match="are there"):
        downstream.compare(tmp_path / "more", "pool", {}, QUICK, tasks=("segmentation",), labels=(999,), seeds=1)


def test_intervals_pair_what_is_paired():
    """Two encoders that differ by a constant: the gain is that constant, however much frames differ."""
    rng = np.random.default_rng(1)
    results = []
    for seed in range(3):
        base = rng.random(30)
        for name, shift in (("mae", 0.0), ("vasomim", 0.01)):
            scores = {"dice": (base + shift).tolist(), "cldice": (base + shift).tolist()}
            results.append({"task": "segmentation", "encoder": name, "labels": 16, "seed": seed, "scores": scores,
                            "patients": list(range(30))})  # fmt: skip
    row = next(r for r in downstream_report.summary(results) if r["encoder"] == "vasomim" and r["metric"] == "dice")
    assert row["gain"] == pytest.approx(0.01) and row["gain_interval"] == pytest.approx([0.01, 0.01])
    assert row["interval"][1] - row["interval"][0] > 0.1
    assert "+0.010" in downstream_report.table(results)


def test_stenosis_frames_show_what_they_claim_and_are_kept(tmp_path):
    frames = stenosis_frames(55_000, 2, 96, tmp_path / "kept.npz")
    assert [len(x) > 0 for x in frames.lesions] == [True, False]
    assert frames.images.shape == (2, 96, 96) and frames.masks.any((1, 2)).all()
    col, row = frames.lesions[0][0]
    near = frames.masks[0][max(0, int(row) - 4) : int(row) + 5, max(0, int(col) - 4) : int(col) + 5]
    assert near.any()
    again = stenosis_frames(55_000, 2, 96, tmp_path / "kept.npz")
    assert np.array_equal(again.images, frames.images) and np.array_equal(again.lesions[0], frames.lesions[0])


@pytest.mark.parametrize("bad", [{"steps": 1}, {"protocol": "half"}, {"rate": 0.0}])
def test_bad_settings(bad):
    with pytest.raises(InputError):
        downstream.TuningSettings(**bad)
