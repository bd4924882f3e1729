# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from licag3d.geometry import Camera, Cameras
from licag3d.models.discriminator import CAMERA_DIM, Discriminator, TreeCritic, camera_label


def test_shape_and_what_it_looks_at():
    torch.manual_seed(0)
    d = Discriminator(2, 32, (8, 16, 16), 3)
    images, camera, label = torch.rand(4, 2, 32, 32), torch.randn(4, 2, CAMERA_DIM), torch.eye(3)[[0, 1, 0, 1]]
    score = d(images, camera, label)
    assert score.shape == (4,)
    assert not torch.allclose(score, d(images, camera.flip(0), label))
    assert not torch.allclose(score, d(images, camera, label[[1, 0, 1, 0]]))
    assert not torch.allclose(score, d(images.flip(1), camera, label))
    score.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in d.parameters())


def test_an_item_is_judged_by_how_much_the_batch_varies():
    torch.manual_seed(0)
    d = Discriminator(1, 16, (8, 8), 3)
    same = torch.rand(1, 1, 16, 16).expand(4, -1, -1, -1)
    other = torch.cat([same[:1], torch.rand(3, 1, 16, 16)])
    camera, label = torch.zeros(4, 1, CAMERA_DIM), torch.zeros(4, 3)
    assert not torch.allclose(d(same, camera, label)[0], d(other, camera, label)[0])


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one width per halving"):
        Discriminator(1, 48, (8, 8), 3)


def test_camera_label_tells_views_apart_and_starts_untouched():
    view = dict(sid_mm=1000, sod_mm=750, spacing_row_mm=2, spacing_col_mm=2, rows=64, cols=64)
    label = camera_label(Cameras.stack([Camera(0, 0, **view), Camera(30, 0, **view), Camera(0, 30, **view)]))
    assert label.shape == (3, CAMERA_DIM) and (label[:, -4:] == 0).all()
    assert len({tuple(row) for row in label.tolist()}) == 3


def test_critic_has_one_entrance_per_artery():
    torch.manual_seed(0)
    critic = TreeCritic({"rca": 10, "lca": 14}, 3, hidden=16)
    label = torch.zeros(5, 3)
    assert critic(torch.randn(5, 10), label, "rca").shape == critic(torch.randn(5, 14), label, "lca").shape == (5,)
