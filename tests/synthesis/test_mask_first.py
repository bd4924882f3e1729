# SPDX-License-Identifier: Apache-2.0
"""Mask-first synthesis: what no output may do, what the numbers mean, and the training end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from licag3d.command import BAD_INPUT, status_of
from licag3d.errors import InputError
from licag3d.metrics.synthesis import branch_scores, change_outside, line_length_px, vessel_scores
from licag3d.models.mask_first import (
    best_threshold,
    darken,
    expected_dice,
    expected_error,
    gate,
    load_mask_first,
    synthesise,
)
from licag3d.train.__main__ import main


def test_whatever_the_network_says_nothing_gets_brighter_and_the_background_stays(weights):
    rng = np.random.default_rng(1)
    image = rng.random((90, 70)).astype(np.float32)
    valid = np.ones(image.shape, bool)
    valid[:, :9] = False
    made = synthesise(load_mask_first(weights)[0], image, valid, 0.3)
    assert 0.05 < (made.vessel > 0.5).mean() < 0.95, "the network must try both"
    assert (made.angiogram <= image).all() and (made.attenuation >= 0).all()
    untouched = made.vessel < 0.4
    assert np.array_equal(made.angiogram[untouched], image[untouched])
    assert np.array_equal(made.angiogram[~valid], image[~valid]) and not made.vessel[~valid].any()
    assert np.allclose(made.angiogram, image * np.exp(-made.attenuation))
    assert made.angiogram.shape == (90, 70) and (made.uncertainty >= 0).all()


def test_frames_of_other_scales_come_back_in_their_own_size(weights):
    image = np.random.default_rng(2).random((40, 55)).astype(np.float32)
    made = synthesise(load_mask_first(weights)[0], image, np.ones(image.shape, bool), 0.8)
    assert made.angiogram.shape == made.uncertainty.shape == (40, 55)


def test_expected_error_is_that_of_drawing_vessels_with_their_probability():
    rng = np.random.default_rng(3)
    for chance in (0.02, 0.3, 0.45, 0.55, 0.9):
        depth, spread = 0.6, 0.1
        is_vessel = rng.random(200_000) < chance
        true = np.where(is_vessel, rng.laplace(depth, spread, len(is_vessel)), 0)
        drawn = float(gate(np.float64(chance))) * depth
        measured = np.abs(true - drawn).mean()
        # The formula takes the spread as it is: exact where all or nothing is drawn, an upper bound between.
        formula = float(expected_error(np.float64(chance), depth, spread))
        assert measured - 2e-3 <= formula <= measured + spread * chance + 2e-3


def test_expected_dice_is_what_calibrated_probabilities_give():
    rng = np.random.default_rng(4)
    chance = rng.beta(0.3, 0.6, (400, 400))
    truth = rng.random(chance.shape) < chance
    mask = chance > 0.5
    dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    assert abs(expected_dice(chance) - dice) < 0.01
    assert np.isnan(expected_dice(np.zeros((4, 4))))


def test_best_threshold_is_that_of_the_best_dice():
    rng = np.random.default_rng(5)
    for peak in (0.2, 0.6, 1.0):  # frames that say less and less allow less and less
        chance = peak * rng.beta(0.4, 4, (300, 300))
        truth = rng.random(chance.shape) < chance

        def dice(threshold, chance=chance, truth=truth):
            mask = chance > threshold
            return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())

        chosen = best_threshold(chance)
        assert dice(chosen) > max(dice(t) for t in np.arange(0.02, 0.5, 0.02)) - 0.01
        assert chosen == pytest.approx(dice(chosen) / 2, abs=0.04) and chosen <= 0.5
    assert best_threshold(np.zeros((5, 5))) == 0.5


def test_a_guess_draws_more_than_what_is_likely(weights):
    image = np.random.default_rng(6).random((60, 60)).astype(np.float32)
    model, _ = load_mask_first(weights)
    likely, guess = (synthesise(model, image, np.ones(image.shape, bool), 0.3, threshold=t) for t in (0.5, None))
    assert guess.threshold < 0.5 and guess.mask.sum() > likely.mask.sum()
    assert (guess.angiogram <= likely.angiogram).all() and guess.expected_dice >= likely.expected_dice


def test_darken_and_gate_work_on_tensors_and_arrays():
    x, a = torch.rand(5), torch.rand(5)
    assert np.allclose(darken(x, a).numpy(), darken(x.numpy(), a.numpy()))
    chance = torch.linspace(0, 1, 11)
    assert np.allclose(gate(chance).numpy(), gate(chance.numpy())) and float(gate(chance)[0]) == 0


def test_vessel_scores_measure_lengths():
    truth = np.zeros((60, 80), bool)
    truth[28:33, 10:70] = True
    found = np.zeros_like(truth)
    found[28:33, 10:40] = True
    found[8:11, 20:60] = True  # made up
    scores = vessel_scores(found, truth, 0.5)
    assert scores["truth_mm"] == pytest.approx(28, abs=2)
    assert scores["missed_mm"] == pytest.approx(15, abs=2.5) and scores["hallucinated_mm"] == pytest.approx(19, abs=2)
    again = vessel_scores(found, truth, 0.5, ignore=found & ~truth)
    assert again["hallucinated_mm"] == 0 and again["missed_mm"] == scores["missed_mm"]
    assert vessel_scores(truth, truth, 1.0)["cldice"] == 1.0
    assert vessel_scores(np.zeros_like(truth), np.zeros_like(truth), 1.0)["dice"] == 1.0
    circle = np.zeros((40, 40), bool)
    circle[5, 5:35] = circle[34, 5:35] = circle[5:35, 5] = circle[5:35, 34] = True
    assert line_length_px(circle) == 4 * 29 and line_length_px(np.zeros((3, 3), bool)) == 0


def test_branch_scores_count_found_and_made_up_branches():
    truth, labels = np.zeros((80, 80), bool), np.zeros((80, 80), np.uint8)
    for k, row in enumerate((10, 30, 50)):
        truth[row : row + 4, 5:75], labels[row : row + 4, 5:75] = True, k + 1
    whole = branch_scores(truth, truth, labels, 0.4)
    assert whole == {"branch_recall": 1.0, "branch_precision": 1.0, "branch_f1": 1.0}
    found = truth & (labels == 1)
    found |= truth & (labels == 2) & (np.arange(80) < 30)  # less than half of the second
    found[66:70, 5:75] = True  # made up
    scores = branch_scores(found, truth, labels, 0.4)
    assert scores["branch_recall"] == pytest.approx(1 / 3) and scores["branch_precision"] == pytest.approx(2 / 3)
    left_out = branch_scores(found, truth, labels, 0.4, ignore=found & ~truth)
    assert left_out["branch_precision"] == 1.0
    crossed = truth | (np.abs(np.arange(80) - 40) < 2)[None]  # a line across all: forks cut it into stretches
    assert 0 < branch_scores(crossed, truth, labels, 0.4)["branch_precision"] < 1
    assert branch_scores(np.zeros_like(truth), truth, labels, 0.4)["branch_f1"] == 0


def test_change_outside_leaves_the_vessels_out():
    source = np.full((50, 50), 0.5)
    vessels = np.zeros((50, 50), bool)
    vessels[20:25] = True
    made = np.where(vessels, 0.1, source)
    assert change_outside(made, source, vessels) == 0.0
    made[0, 0] = 1.0
    assert change_outside(made, source, vessels) > 0


def test_training_smoke_resume_export(pair_pools, tmp_path, capsys):
    flags = ["mask-first", "--pool", str(pair_pools / "pool"), "--validation", str(pair_pools / "checked")]
    flags += ["--size", "64", "--batch", "2", "--save-every", "2", "--validate-every", "4", "--warmup", "1"]
    flags += ["--device", "cpu", "--threads", "1", "--steps", "4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert status_of(main, [*flags, "--out", str(whole)]) == 0
    assert status_of(main, [*flags, "--out", str(parts), "--minutes", "0.00001"]) == 0
    assert "stopped at the time limit" in capsys.readouterr().out
    assert status_of(main, [*flags, "--out", str(parts), "--resume", "--export", "tiny"]) == 0

    def scores(folder):
        lines = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
        return [line["validation"] for line in lines if "validation" in line and line["step"] == 4]

    assert scores(whole) == scores(parts) and "cldice_kappa_0.2" in scores(whole)[0]
    card = json.loads((parts / "export" / "tiny.json").read_text())
    assert card["model"] == "mask-first" and card["kappa_max"] == 0.3 and card["curve"] and card["frames"] == 3
    model, facts = load_mask_first(str(whole / "mask_first.safetensors"))
    assert facts["step"] in (1, 4) and not model.training
    with pytest.raises(InputError, match="not of mask-first"):
        load_mask_first("segmentor")
    assert status_of(main, [*flags, "--out", str(tmp_path / "x"), "--kappa-max", "0"]) == BAD_INPUT
    assert status_of(main, [*flags, "--out", str(tmp_path / "x"), "--init", "nothing"]) == BAD_INPUT
    wrong = [str(pair_pools / "checked") if flag == str(pair_pools / "pool") else flag for flag in flags]
    assert status_of(main, [*wrong, "--out", str(tmp_path / "x")]) == BAD_INPUT
    assert "not for training" in capsys.readouterr().err
