# SPDX-License-Identifier: Apache-2.0
"""A tiny pool of pairs, rendered once for all tests of synthesis."""

from __future__ import annotations

import pytest
import torch

from licag3d.data.contrast_pairs import grow_pairs
from licag3d.models.segmentor import SegmentorConfig, build, config_facts
from licag3d.phantom.splits import VALIDATION
from licag3d.train.checkpoints import save_weights

ROWS = 96


@pytest.fixture(scope="session")
def pair_pools(tmp_path_factory):
    """Folder with ``pool`` (two still pairs, one moving) and ``checked`` (one validation pair)."""
    folder = tmp_path_factory.mktemp("pairs")
    grow_pairs(folder / "pool", 1, views=2, rows=ROWS, kappas=(0.1,))
    grow_pairs(folder / "pool", 1, first=1, views=1, rows=ROWS, kappas=(0.0, 0.3), moving_share=1.0)
    grow_pairs(folder / "checked", 1, views=1, rows=ROWS, split=VALIDATION, kappas=(0.0, 0.2))
    return folder


def wild_network():
    """A network with random weights and an undecided output: it says vessel and background everywhere."""
    torch.manual_seed(0)
    model = build(SegmentorConfig(channels=(8, 8, 8)))
    with torch.no_grad():
        model.out.weight.mul_(30)
        model.out.bias.zero_()
    return model


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """File with weights of an untrained network that draws vessels here and there."""
    model = wild_network()
    file = tmp_path_factory.mktemp("weights") / "mask_first.safetensors"
    save_weights(file, model, {"model": "mask-first", "config": config_facts(model.config)})
    return str(file)
