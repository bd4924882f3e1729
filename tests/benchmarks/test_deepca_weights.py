# SPDX-License-Identifier: Apache-2.0
"""The committed weights of the DeepCA-style rival: loaded by hash, deterministic, and better than nothing."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.baselines import deepca_style, deepca_training
from licag3d.errors import InputError
from licag3d.phantom import splits


def test_weights_load_by_hash_and_find_a_tube(tube):
    model, card = deepca_style._loaded()
    assert card["name"] == deepca_style.WEIGHTS and card["bytes"] <= 6_000_000 and card["steps"] > 0
    assert card["level"] in deepca_training.LEVELS and card["scores"] and card["limits"]
    assert sum(p.numel() for p in model.parameters()) < 3_000_000
    tree, inputs = tube
    result = deepca_style.reconstruct(inputs)
    found = np.concatenate([b.points_lps_mm for b in result.tree.branches])
    true = np.concatenate([b.points_lps_mm for b in tree.branches])
    gap = np.linalg.norm(found[:, None] - true[None], axis=2)
    # With exact cameras a plain tube leaves no doubt; the network has learnt to expect shifted views, though.
    assert gap.min(1).mean() < 2.5 and gap.min(0).mean() < 4.0
    again = deepca_style.reconstruct(inputs)
    for first, second in zip(result.tree.branches, again.tree.branches, strict=True):
        assert np.array_equal(first.points_lps_mm, second.points_lps_mm)


def test_the_network_beats_the_common_shadow_on_a_validation_patient():
    """Its volume overlaps the truth by more than what both back-projections agree on does."""
    given, target = (x.float() for x in deepca_training.sample(splits.VALIDATION[1]))
    model, card = deepca_style._loaded()
    truth = target > 0.25

    def dice(mask) -> float:
        return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))

    shadow = max(dice(given.amin(0) > level) for level in (0.1, 0.3, 0.5))
    assert dice(deepca_style.predict(model, given) > card["level"]) > shadow


def test_damaged_weights_are_refused(tmp_path):
    from licag3d import weights

    for suffix in (".json", ".safetensors"):
        content = (deepca_style.FOLDER / f"{deepca_style.WEIGHTS}{suffix}").read_bytes()
        if suffix == ".safetensors":
            content = content[:-1] + bytes([content[-1] ^ 1])
        (tmp_path / f"{deepca_style.WEIGHTS}{suffix}").write_bytes(content)
    with pytest.raises(InputError, match="sha256"):
        weights.load(deepca_style.WEIGHTS, tmp_path)
