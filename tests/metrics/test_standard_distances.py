# SPDX-License-Identifier: Apache-2.0
"""LPIPS and FID with the user's weights."""

from __future__ import annotations

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.metrics.feature_space.standard import inception_fid, lpips_distance


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """An AlexNet state with random weights, as torchvision writes it."""
    torch = pytest.importorskip("torch")
    from licag3d.metrics.feature_space.standard import _import_lpips

    try:
        _import_lpips()
    except InputError as error:
        pytest.skip(str(error))
    from torchvision.models import alexnet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(alexnet(weights=None).state_dict(), path)
    return path


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lpips_uses_the_weights_of_the_file(backbone):
    import torch

    rng = np.random.default_rng(0)
    a = rng.random((2, 64, 64)).astype(np.float32)
    b = np.stack((a[0], rng.random((64, 64)))).astype(np.float32)
    value = lpips_distance(a, b, backbone)
    assert value[0] == pytest.approx(0, abs=1e-6) and value[1] > 1e-3
    # Other weights, another distance: the file is really used.
    state = torch.load(backbone, weights_only=True)
    state["features.0.weight"] = state["features.0.weight"].flip(0)
    other = backbone.with_name("other.pth")
    torch.save(state, other)
    assert lpips_distance(a, b, other)[1] != pytest.approx(value[1], rel=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_of_something_else_is_refused(backbone, tmp_path):
    path = tmp_path / "wrong.pth"
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match="does not hold the weights of the alex backbone"):
        lpips_distance(np.zeros((1, 64, 64)), np.zeros((1, 64, 64)), path)
    with pytest.raises(InputError, match="choose alex, vgg or squeeze"):
        lpips_distance(np.zeros((1, 64, 64)), np.zeros((1, 64, 64)), backbone, net="resnet")


def test_missing_files_are_named(tmp_path):
    for measure in (inception_fid, lpips_distance):
        with pytest.raises(InputError, match="needs a weights file"):
            measure(np.zeros((2, 64, 64)), np.zeros((2, 64, 64)), tmp_path / "none.pth")
