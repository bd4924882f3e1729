# SPDX-License-Identifier: Apache-2.0
"""Losses of vessel segmentation against hand-made cases."""

from __future__ import annotations

import pytest
import torch

from licag3d.losses.vessel import gain_of, line_integral_loss, soft_cldice_loss, soft_dice_loss, soft_skeleton


def bar(half=2, rows=24, cols=40):
    truth = torch.zeros(1, 1, rows, cols)
    truth[:, :, rows // 2 - half : rows // 2 + half + 1, 4:-4] = 1
    return truth


def test_dice_of_half_the_vessel():
    truth = bar()
    found = truth.clone()
    found[..., :20] = 0
    a, b = float(found.sum()), float(truth.sum())
    assert float(soft_dice_loss(found, truth)) == pytest.approx(1 - (2 * a + 1) / (a + b + 1))
    assert float(soft_dice_loss(truth, truth)) == pytest.approx(0, abs=1e-6)
    weight = torch.ones_like(truth)
    weight[..., :20] = 0  # what is weighed nothing costs nothing
    assert float(soft_dice_loss(found, truth, weight)) == pytest.approx(0, abs=1e-6)


def test_skeleton_of_a_bar_is_its_middle_line():
    thin = soft_skeleton(bar(half=2), 3)[0, 0]
    assert (thin[12, 8:-8] > 0.99).all() and thin[:11].max() < 0.01 and thin[14:].max() < 0.01


def test_cldice_sees_a_break_that_dice_hardly_sees():
    truth = bar(half=3)
    broken, thinner = truth.clone(), truth.clone()
    broken[..., 18:22] = 0
    thinner[:, :, [9, 15]] = 0
    line_broken, line_thinner = (float(soft_cldice_loss(x, truth, 5)) for x in (broken, thinner))
    assert line_broken > 0.05 and line_thinner < 0.02
    assert float(soft_dice_loss(broken, truth)) < float(soft_dice_loss(thinner, truth))


def test_line_integral_of_unknown_gain():
    truth = torch.rand(2, 1, 8, 8) + 0.2
    inside = torch.ones_like(truth)
    assert torch.allclose(gain_of(truth / 2, truth, inside).flatten(), torch.tensor([2.0, 2.0]))
    assert torch.allclose(gain_of(truth, truth, 0 * inside).flatten(), torch.ones(2))
    spread = torch.zeros_like(truth)
    shape_only = line_integral_loss(truth / 2, spread, truth, inside, shape_share=1.0)
    assert float(shape_only) == pytest.approx(0, abs=1e-5)
    assert float(line_integral_loss(truth / 2, spread, truth, inside)) > 0.05


def test_spread_that_fits_the_error_costs_least():
    truth, p, inside = torch.full((1, 1, 4, 4), 0.5), torch.full((1, 1, 4, 4), 0.7), torch.ones(1, 1, 4, 4)
    costs = {s: float(line_integral_loss(p, torch.full_like(p, s).log(), truth, inside, shape_share=0.0))
             for s in (0.05, 0.2, 0.8)}  # fmt: skip
    assert min(costs, key=costs.get) == 0.2


def test_gradients_are_finite_for_empty_truth():
    logit = torch.randn(1, 1, 16, 16, requires_grad=True)
    zero = torch.zeros(1, 1, 16, 16)
    (soft_dice_loss(logit.sigmoid(), zero) + soft_cldice_loss(logit.sigmoid(), zero, 3)).backward()
    assert torch.isfinite(logit.grad).all()
