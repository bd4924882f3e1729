# SPDX-License-Identifier: Apache-2.0
"""Judging encoders by few labels: metrics against brute force, a comparison in seconds, and its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
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
    stenosis_frames,
)

CONFIG = config_of("vit-mini", image_px=32)
SIDE = 96
QUICK = downstream.TuningSettings(steps=3, batch=9, test_frames=4, stenosis_cases=4)


def frame_of(seed: int):
    """A phantom-like frame: one dark vessel, named RCA on the left half and OM1 on the right."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:192, :192]
    mask = np.abs(y - 96 - 30 * np.sin(x / 25 + rng.uniform(0, 6))) < 6
    image = np.clip(170 - 90 * mask + 4 * rng.standard_normal(mask.shape), 0, 255).astype(np.uint8)
    labels = np.where(mask, np.where(x < 96, 1, 2), 0).astype(np.uint8)
    return SimpleNamespace(image=image, mask=mask, labels=labels, branch_names=("RCA", "OM1.a"), seed=seed)


class FakePool:
    """Training frames, or validation frames in a folder of that name."""

    def __init__(self, folder) -> None:
        first = 50_000 if Path(folder).name == "validation" else 1_000_000
        self.folder, self.entries = Path(folder), [{"seed": first + k // 2} for k in range(80)]

    def __len__(self) -> int:
        return len(self.entries)

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


def test_choice_of_labels_is_nested_and_keeps_pairs():
    small, large = (downstream._choice(40, count, 3) for count in (8, 40))
    assert np.array_equal(small, large[:8]) and sorted(large) == list(range(40))
    assert np.array_equal(small[::2] + 1, small[1::2]) and not (small[::2] % 2).any()
    assert not np.array_equal(small, downstream._choice(40, 8, 4))
    assert sorted(downstream._choice(5, 5, 0)) == list(range(5))


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


def test_names_are_scored_over_all_frames():
    true, found = np.array([[0, 0, 3, -1], [3, 3, 3, -1]]), np.array([[0, 3, 3, 9], [3, 3, 5, 9]])
    scores = downstream_heads.name_scores(found, true)
    assert scores["accuracy"] == [pytest.approx(2 / 3), pytest.approx(2 / 3)]
    # RCA: 2 * 1 / (1 + 2); index 3: 2 * 3 / (4 + 4); index 5 is never true and index 9 lies off the vessels.
    assert downstream_report.metric_of(scores, "macro_f1") == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert downstream_report.metric_of(scores, "macro_f1", np.array([1])) == pytest.approx(4 / 5)


def test_average_precision_against_its_definition():
    rng = np.random.default_rng(2)
    for _ in range(20):
        scores, hits, lesions = rng.permutation(30), rng.random(30) < 0.3, 14
        expected, last = 0.0, 0.0
        points = []
        for k in range(1, 31):
            top = np.argsort(-scores)[:k]
            points.append((hits[top].sum() / lesions, hits[top].mean()))
        for recall, _ in points:
            expected += (recall - last) * max(p for r, p in points if r >= recall)
            last = recall
        pairs = list(zip(scores.tolist(), hits.astype(int).tolist(), strict=True))
        assert downstream_report.average_precision(pairs, lesions) == pytest.approx(expected)
    assert downstream_report.average_precision([], 3) == 0 and np.isnan(downstream_report.average_precision([], 0))
    # Findings of one score are no better than their worst order.
    assert downstream_report.average_precision([(1, 1), (1, 0)], 1) == 0.5


def test_a_lesion_is_found_once_and_by_what_is_near(pool):
    frames = from_pool(pool, range(2), SIDE)  # within 4 of 96 pixels
    frames = replace(frames, lesions=(np.array([[20.0, 40.0], [60.0, 40.0]]), np.zeros((0, 2))))
    found = [[(0.5, 60, 46), (0.9, 20, 43), (0.8, 21, 40), (0.1, 63, 40)], [(0.7, 5, 5)]]
    scores = downstream_heads.detection_scores(found, frames)
    assert scores["findings"] == [[[0.9, 1], [0.8, 0], [0.5, 0], [0.1, 1]], [[0.7, 0]]]
    assert scores["peak"] == [0.9, 0.7] and scores["lesions"] == [2, 0]
    assert downstream_report.metric_of(scores, "ap") == pytest.approx(0.5 * 1 + 0.5 * 2 / 5)
    assert downstream_report.metric_of(scores, "auc") == 1


def test_peaks_do_not_touch():
    values = np.zeros((6, 6))
    values[2, 3], values[2, 4], values[5, 0] = 3.0, 2.0, 1.0
    first, second, *_ = downstream_heads.peaks_of(values, 8, 4)
    assert first == (3.0, 28.0, 20.0) and second == (1.0, 4.0, 44.0)
    assert len(downstream_heads.peaks_of(np.zeros((3, 3)), 8, 20)) < 9


def test_floors_need_no_picture(pool):
    frames = from_pool(pool, range(8), SIDE)
    floors = downstream_heads.chance_scores("labelling", frames, frames, 8, 0)
    # Two names, each on its half: the place gives them away, frequencies alone are right half the time.
    assert downstream_report.metric_of(floors["place"], "macro_f1") > 0.9
    assert 0.35 < downstream_report.metric_of(floors["chance"], "macro_f1") < 0.65
    sick = replace(frames, lesions=tuple(np.argwhere(m)[:1, ::-1].astype(float) for m in frames.masks))
    chance = downstream_heads.chance_scores("stenosis", sick, sick, 8, 0)["chance"]
    assert len(chance["findings"][0]) == downstream_heads.FINDINGS
    assert downstream_report.metric_of(chance, "ap") < 0.4
    assert downstream_heads.chance_scores("segmentation", frames, frames, 8, 0) == {}


@pytest.mark.parametrize(
    "task, protocol",
    [(task, protocol) for task in downstream.TASKS for protocol in ("finetune", "linear")],
)
def test_tuning_learns_its_training_frames(task, protocol, pool):
    frames = from_pool(pool, range(4), SIDE)
    if task == "stenosis":
        images = frames.images.copy()
        places = [np.array([[20.0 + 15 * k, 44.0]]) for k in range(2)] + [np.zeros((0, 2))] * 2
        for image, place in zip(images, places, strict=True):
            for col, row in place.astype(int):
                image[row - 5 : row + 6, col - 5 : col + 6] = 1.0
        frames = LabelledFrames(images, frames.masks, frames.segments, frames.patients, tuple(places))
    torch.manual_seed(0)
    settings = downstream.TuningSettings(
        steps=60, batch=9, rate=1e-3 if task == "stenosis" else 3e-3, protocol=protocol
    )
    encoder = random_encoder(CONFIG)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    if protocol == "linear":
        frames = downstream_heads.with_tokens(frames, encoder)
    scores = downstream.tune_and_score(task, encoder, frames, frames, settings, 0)
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items()) == (protocol == "linear")
    if task == "segmentation":
        assert np.mean(scores["dice"]) > 0.75 and np.mean(scores["cldice"]) > 0.75
    elif task == "labelling":
        assert downstream_report.metric_of(scores, "macro_f1") > 0.8
    else:
        assert downstream_report.metric_of(scores, "auc") == 1
        assert downstream_report.metric_of(scores, "ap") > 0.9


def test_known_tokens_are_those_of_the_pictures(pool):
    frames = from_pool(pool, [0, 2, 4], SIDE)
    encoder = random_encoder(CONFIG)
    known = downstream_heads.with_tokens(frames, encoder)
    assert known.tokens.shape == (3, 2 * CONFIG.width, SIDE // 8, SIDE // 8) and known.take([2]).tokens.shape[0] == 1
    whole = torch.from_numpy(frames.images)
    # A tile of the frame alone has the tokens it has in the frame.
    with torch.no_grad():
        alone = downstream_heads.token_maps(encoder, whole[1:2, None, 32:64, 64:96])
    assert torch.allclose(alone[0], known.tokens[1, :, 4:8, 8:12].float(), atol=0.05)


def test_comparison_is_stored_resumed_and_reported(pool, tmp_path):
    file = tmp_path / "mae.safetensors"
    write_encoder_file(file, random_encoder(CONFIG, seed=9))
    arguments = {"tasks": ("segmentation", "labelling"), "labels": (2, 4), "seeds": 1,
                 "validation": tmp_path / "validation"}  # fmt: skip
    results = downstream.compare(tmp_path / "out", "pool", {"mae": str(file)}, QUICK, **arguments)
    assert len(results) == 2 * (2 + 4)
    assert {r["encoder"] for r in results} == {"scratch", "mae", "chance", "place"}
    assert all(r["patients"] == [50_000, 50_000, 50_001, 50_001] for r in results)
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


def test_judging_and_labelled_frames_never_mix(pool, tmp_path):
    once = {"tasks": ("labelling",), "labels": (2,), "seeds": 1}
    with pytest.raises(InputError, match="80 validation frames are there, 99"):
        many = replace(QUICK, test_frames=99)
        downstream.compare(tmp_path / "a", "pool", {}, many, **once, validation=tmp_path / "validation")
    with pytest.raises(InputError, match="not for training"):
        downstream.compare(tmp_path / "b", tmp_path / "validation", {}, QUICK, **once)
    with pytest.raises(InputError, match="0 validation frames"):
        downstream.compare(tmp_path / "c", "pool", {}, QUICK, **once, validation=tmp_path / "other")


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
    frames = stenosis_frames(55_000, 4, 96, tmp_path / "kept.npz")
    assert [len(x) > 0 for x in frames.lesions] == [True, False, True, False]
    assert frames.images.shape == (4, 96, 96) and frames.masks.any((1, 2)).all()
    col, row = frames.lesions[0][0]
    near = frames.masks[0][max(0, int(row) - 4) : int(row) + 5, max(0, int(col) - 4) : int(col) + 5]
    assert near.any()
    again = stenosis_frames(55_000, 4, 96, tmp_path / "kept.npz")
    assert np.array_equal(again.images, frames.images) and np.array_equal(again.lesions[0], frames.lesions[0])


@pytest.mark.parametrize("bad", [{"steps": 1}, {"protocol": "half"}, {"rate": 0.0}])
def test_bad_settings(bad):
    with pytest.raises(InputError):
        downstream.TuningSettings(**bad)
