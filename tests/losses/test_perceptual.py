# SPDX-License-Identifier: Apache-2.0
"""Perceptual distance: closed forms on hand-made maps, gradients, and the encoder's own maps."""

from __future__ import annotations

import pytest
import torch

from licag3d.losses.perceptual import perceptual_distance


class _Pairs:
    """Two channels per map: the frame and its complement, at two sizes."""

    def maps(self, images):
        both = torch.cat((images, 1 - images), 1)
        return [both, torch.nn.functional.avg_pool2d(both, 2)]


def test_equal_frames_have_distance_zero_and_opposite_ones_two():
    dark, bright = torch.zeros(3, 1, 8, 8), torch.ones(3, 1, 8, 8)
    assert perceptual_distance(_Pairs(), dark, dark).abs().max() == 0
    # (0, 1) against (1, 0): squared difference 1 + 1 at every position of both maps.
    assert perceptual_distance(_Pairs(), dark, bright) == pytest.approx(torch.full((3,), 2.0), abs=1e-6)


def test_each_frame_of_a_batch_has_its_own_distance():
    a = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    b = a.clone()
    b[2] = 1 - b[2]
    distance = perceptual_distance(_Pairs(), a, b)
    assert distance[2] > 0.1 and distance[[0, 1, 3]].max() == 0


def test_gradient_is_right_and_finite_where_maps_vanish():
    a = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    b = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(lambda x: perceptual_distance(_Pairs(), x, b), (a,))

    class Raw:
        def maps(self, images):
            return [images]

    zero = torch.zeros(1, 1, 4, 4, requires_grad=True)
    perceptual_distance(Raw(), zero, torch.ones(1, 1, 4, 4)).sum().backward()
    assert torch.isfinite(zero.grad).all()


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (8, 8), (2, 1, 8, 9)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="one shape"):
        perceptual_distance(_Pairs(), torch.zeros(1, 1, 8, 8), torch.zeros(shape))
