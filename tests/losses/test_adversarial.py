# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from licag3d.losses import adversarial
from licag3d.models.discriminator import CAMERA_DIM


def test_losses_at_known_values():
    zero = torch.zeros(3)
    assert adversarial.generator_loss(zero).item() == pytest.approx(math.log(2))
    assert adversarial.discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert adversarial.generator_loss(torch.full((3,), 9.0)) < 1e-3


def test_r1_of_a_linear_function_is_its_squared_slope():
    slope = torch.tensor([[1.0, 2.0, 2.0]])
    x = torch.randn(5, 3, requires_grad=True)
    assert adversarial.r1_penalty(x @ slope[0], x).item() == pytest.approx(9.0)


def blob(row, col, size=64):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.exp(-((y - row) ** 2 + (x - col) ** 2) / 18.0)


def center(image):
    y, x = torch.meshgrid(torch.arange(image.shape[-1]), torch.arange(image.shape[-1]), indexing="ij")
    return torch.stack([(image * x).sum(), (image * y).sum()]) / image.sum()


@pytest.mark.parametrize("kind", ["rotate", "shift", "scale"])
def test_the_label_says_what_was_done_to_the_image(kind):
    torch.manual_seed(3)
    sizes = {"rotate_deg": 0.0, "shift": 0.0, "scale": 0.0}
    sizes |= {"rotate": {"rotate_deg": 20.0}, "shift": {"shift": 0.1}, "scale": {"scale": 0.15}}[kind]
    image = blob(20, 40)[None, None].expand(6, 1, -1, -1)
    out, label = adversarial.augment(image, torch.zeros(6, 1, CAMERA_DIM), 1.0, **sizes)
    angle, column, row, zoom = label[:, 0, -4:].unbind(1)
    away = torch.tensor([40.0, 20.0]) - 31.5
    for k in range(6):
        turn, factor = torch.deg2rad(20 * angle[k]), torch.exp2(0.2 * zoom[k])
        turned = torch.stack(
            [
                away[0] * torch.cos(turn) - away[1] * torch.sin(turn),
                away[0] * torch.sin(turn) + away[1] * torch.cos(turn),
            ]
        )
        expected = 31.5 + factor * turned + 64 * 0.1 * torch.stack([column[k], row[k]])
        torch.testing.assert_close(center(out[k, 0]), expected, atol=0.3, rtol=0)


def test_anatomy_is_never_mirrored():
    """Three blobs in clockwise order stay in clockwise order."""
    torch.manual_seed(4)
    places = ((20, 20), (20, 44), (44, 32))
    images = [blob(*place)[None, None].expand(32, 1, -1, -1) for place in places]
    moved = []
    for image in images:
        torch.manual_seed(5)
        moved.append(adversarial.augment(image, torch.zeros(32, 1, CAMERA_DIM), 1.0)[0])
    for k in range(32):
        a, b, c = (center(image[k, 0]) for image in moved)
        assert (b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0] > 0


def test_without_chance_nothing_changes():
    image, label = torch.rand(2, 2, 16, 16), torch.randn(2, 2, CAMERA_DIM)
    out, same = adversarial.augment(image, label, 0.0)
    torch.testing.assert_close(out, image, atol=1e-6, rtol=0)
    assert torch.equal(same, label)


def test_chance_follows_how_sure_the_discriminator_is():
    sure, unsure = torch.ones(100), -torch.ones(100)
    up = adversarial.adapted_chance(torch.tensor(0.1), sure, images=10_000)
    assert up.item() == pytest.approx(0.11)
    assert adversarial.adapted_chance(torch.tensor(0.1), unsure, images=10_000).item() == pytest.approx(0.09)
    assert adversarial.adapted_chance(torch.tensor(0.0), unsure) == 0
