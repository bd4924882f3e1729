# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from licag3d.losses import volume


def test_dice_and_attenuation_are_zero_for_the_truth_and_grow_with_errors():
    truth = volume.wall_ramp(torch.linspace(-2, 2, 400)[None], 0.5)
    weight = torch.ones_like(truth)
    assert volume.point_dice_loss(truth, truth, weight) < 1e-4
    assert volume.attenuation_loss(truth, truth, weight) == 0
    thin = volume.wall_ramp(torch.linspace(-2, 2, 400)[None] + 0.5, 0.5)
    empty = torch.zeros_like(truth)
    some, most = (volume.point_dice_loss(x, truth, weight) for x in (thin, empty))
    assert 0.02 < some < most and most > 0.99
    torch.testing.assert_close(volume.attenuation_loss(empty, truth, weight), truth.mean())


def test_too_bright_costs_like_too_dark():
    truth, weight = torch.ones(1, 50), torch.ones(1, 50)
    bright, dark = (volume.point_dice_loss(truth * x, truth, weight) for x in (1.4, 0.6))
    torch.testing.assert_close(bright, dark)


def test_weights_count_points_as_volume():
    truth = torch.tensor([[1.0, 0.0]])
    found = torch.tensor([[1.0, 0.5]])
    light = volume.point_dice_loss(found, truth, torch.tensor([[1.0, 0.1]]))
    assert light < volume.point_dice_loss(found, truth, torch.tensor([[1.0, 1.0]]))


def test_one_gap_in_a_branch_costs_whatever_the_rest_does():
    branch = torch.zeros(100, dtype=torch.long)
    share = torch.ones(100, requires_grad=True)
    with torch.no_grad():
        share[40:43] = 0.05
    gap = volume.connectivity_loss(share, branch, 1)
    assert gap > 0.3
    gap.backward()
    assert share.grad[41].abs() > 20 * share.grad[0].abs()
    assert volume.connectivity_loss(torch.ones(100), branch, 1) < 1e-5


def test_a_branch_without_points_says_nothing():
    value = volume.connectivity_loss(torch.ones(4), torch.zeros(4, dtype=torch.long), 7)
    assert torch.isfinite(value) and value < 1e-5


def test_radius_loss_sees_both_too_wide_and_too_narrow():
    over = torch.linspace(0, 2, 201)
    at = [volume.radius_loss((over < wall).float(), over) for wall in (0.6, 1.0, 1.4)]
    assert at[1] == 0 and at[0] > 0.1 and at[2] > 0.1


def test_density_loss_is_zero_for_an_even_field():
    assert volume.density_loss(torch.ones(2, 5), torch.ones(2, 5)) == 0
    assert volume.density_loss(torch.ones(2, 5), torch.zeros(2, 5)) == 1
