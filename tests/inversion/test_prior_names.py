# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_prior import distance_mm, drawn_chains, two_cameras

from licag3d.inversion.prior_evidence import gather
from licag3d.inversion.prior_fit import PriorSettings, fit_prior
from licag3d.inversion.prior_names import named_evidence, unlike
from licag3d.inversion.prior_tree import Codes, named_tree
from licag3d.models.branch_table import table_of
from licag3d.models.generator import labels_of, load_generator

NAMES = [slot.name for slot in table_of("lca").slots]


@pytest.fixture(scope="module")
def generator():
    return load_generator()[0]


@pytest.fixture(scope="module")
def scene(generator):
    codes = Codes.start(generator, labels_of(["lca"]), np.array([5.0, -10.0, 8.0]))
    codes.z = 0.9 * torch.randn(codes.z.shape, generator=torch.Generator().manual_seed(11))
    tree, cameras = named_tree(generator, codes), two_cameras()
    chains = [drawn_chains(tree, camera) for camera in cameras]
    middle = np.concatenate([branch.points_lps_mm for branch in tree.branches]).mean(0)
    points = [np.full((len(chain.pixels), 3), np.nan) for chain in chains]
    points[0][:3] = middle
    return tree, cameras, chains, points, [np.ones(len(p)) for p in points]


def encoding_of(tree, name_of):
    """An encoder that is sure of ``name_of(name)`` wherever the nearest branch of the tree is called ``name``."""
    from scipy.spatial import cKDTree

    owner = np.concatenate([np.full(len(b.points_lps_mm), NAMES.index(name_of(b.name))) for b in tree.branches])
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])

    def names_at(view, camera, pixels):
        chance = np.full((len(pixels), len(NAMES) + 1), 1e-3)
        chance[np.arange(len(pixels)), owner[cKDTree(camera.project(points)[0]).query(pixels)[1]]] = 0.95
        return chance, np.zeros(len(pixels))

    return SimpleNamespace(artery="lca", names_at=names_at)


def test_places_are_unlike_other_branches_but_side_branches_pass_for_their_parent():
    chance = np.full((2, len(NAMES) + 1), 1e-4)
    chance[0, NAMES.index("D1")] = 0.98
    chance[1, -1] = 0.98  # nothing of this tree: no branch is likelier than another
    price = unlike(chance, "lca")
    assert price.shape == (2, len(NAMES)) and price.min() >= 0 and price.max() <= 1
    assert price[0, NAMES.index("D1")] == 0 and price[0, NAMES.index("LCx")] == 1
    assert 0.2 < price[0, NAMES.index("D1.a")] < 0.5
    assert price[1].max() < 0.05
    chance[0, [NAMES.index("D1"), NAMES.index("D1.a")]] = 1e-4, 0.98
    price = unlike(chance, "lca")
    assert 0.2 < price[0, NAMES.index("D1")] < 0.5 and 0.2 < price[0, NAMES.index("D1.b")] < 0.5


def test_names_are_read_where_the_centrelines_are(scene):
    tree, cameras, chains, points, sure = scene
    evidence = named_evidence(gather(cameras, chains, points, sure), cameras, encoding_of(tree, lambda name: name))
    assert evidence.artery == "lca"
    for curve, chain in zip(evidence.views, chains, strict=True):
        assert curve.unlike.shape == (len(curve.points), len(NAMES))
        # Pieces follow the branches: in the middle of the trunk's longest child its own name is free.
        middle = torch.from_numpy(chain.pixels[(chain.start[1] + chain.start[2]) // 2] * chain.mm_per_pixel).float()
        row = int((curve.points - middle).norm(dim=1).argmin())
        assert curve.unlike[row].argmin() == NAMES.index(tree.branches[1].name)


def test_true_names_help_the_fit_and_wrong_ones_do_no_harm(generator, scene):
    tree, cameras, chains, points, sure = scene
    settings = PriorSettings(steps=60, trial_steps=20)
    labels = labels_of(["lca"], [False], len(generator.config.labels))
    far, cost = {}, {}
    shuffled = dict(zip(NAMES, NAMES[7:] + NAMES[:7], strict=True))
    for kind, encoding in {
        "none": None,
        "true": encoding_of(tree, lambda name: name),
        "wrong": encoding_of(tree, shuffled.get),
    }.items():
        fit = fit_prior(cameras, chains, points, sure, generator=generator, settings=settings, labels=labels,
                        encoding=encoding)  # fmt: skip
        far[kind], cost[kind] = distance_mm(tree, fit.tree).mean(), fit.cost
    assert cost["true"] < 0.97 * cost["none"] and far["true"] < far["none"]
    assert cost["wrong"] <= 1.02 * cost["none"]
